"""Whether edits that are in force together do what they are to do, and leave the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmneurons.edits.edit import Edit
from mmneurons.edits.task import Swap
from mmneurons.measures.edit_outcome import Outcome, Pool
from mmneurons.measures.edit_quality import Quality, edit_quality
from mmneurons.measures.figures import Figure, share
from mmneurons.mitigation.survey import Captioned, Found, Survey
from mmneurons.mitigation.wishes import Wish
from mmneurons.vlm.model import VLM

__all__ = ["ENOUGH", "Change", "Line", "Proof", "prove", "too_much"]

ENOUGH = 20
"""With fewer captions than this an interval says little."""


@dataclass(frozen=True)
class Change:
    """A caption that changed.

    Attributes:
        name: of the picture.
        before: without the edits.
        after: with them.
    """

    name: str
    before: str
    after: str


@dataclass(frozen=True)
class Line:
    """What became of one word.

    Attributes:
        wish: the word.
        count: how many captions said it.
        learned: how many of these an edit was learned from.
        reliability: share of those whose request is met, with all edits in force; None where there is none.
        generality: the same over captions that were held out.
        changes: of held-out captions.
        changes_learned: of captions that were learned from.
        note: why there is no edit, or why little is known of it.
    """

    wish: Wish
    count: int
    learned: int
    reliability: Figure | None = None
    generality: Figure | None = None
    changes: tuple[Change, ...] = ()
    changes_learned: tuple[Change, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Proof:
    """What was measured, with all edits in force together.

    Attributes:
        lines: word by word.
        quality: over captions that say none of the words and that nothing was learned from.
        changes: those of them that changed.
        refusal: why the edits should not be used; empty where nothing that was measured speaks against it.
    """

    lines: tuple[Line, ...]
    quality: Quality
    changes: tuple[Change, ...]
    refusal: str


def prove(
    vlm: VLM, survey: Survey, edits: Sequence[Edit], notes: dict[str, str], at_least: float, max_new_tokens: int
) -> Proof:
    """Measure edits together on captions that they were not learned from.

    Args:
        vlm: the model, unedited.
        survey: the captions.
        edits: one for each word that an edit could be made of.
        notes: by word, why there is none.
        at_least: the share of other captions that must stay word for word.
        max_new_tokens: where captions are cut.
    """
    lines = tuple(_line(vlm, found, edits, notes, max_new_tokens) for found in survey.found)
    quality = edit_quality(edits, Pool(vlm, [one.recording for one in survey.others], max_new_tokens), fluency=False)
    outcomes = quality.outcomes["others"][: len(survey.others)]
    refusal = too_much(quality, at_least) or _too_little(lines)
    return Proof(lines, quality, _changes(survey.others, outcomes), refusal)


def too_much(quality: Quality, at_least: float) -> str:
    """Why edits change too much to be used; empty where they do not."""
    unchanged = next(one for one in quality.figures if one.name == "unchanged")
    if not unchanged.captions:
        return "No caption was left to measure what stays. Give more pictures whose captions say none of the words."
    if unchanged.estimate.value < at_least:
        return (
            f"{unchanged.estimate.value:.0%} of {unchanged.captions} captions that say none of the words stay as they "
            f"were, less than {at_least:.0%}."
        )
    return ""


def _too_little(lines: Sequence[Line]) -> str:
    """Why edits do too little to be used: no word is gone from any caption."""
    measured = [own for line in lines if (own := line.generality or line.reliability) is not None]
    if any(own.estimate.value > 0 for own in measured):
        return ""
    return "No word is gone from any caption."


def _line(vlm: VLM, found: Found, edits: Sequence[Edit], notes: dict[str, str], longest: int) -> Line:
    if not found.count:
        return Line(found.wish, 0, 0, note="no caption says it")
    if found.wish.word in notes:
        return Line(found.wish, found.count, 0, note=notes[found.wish.word])
    learned, held = (_outcomes(vlm, part, edits, found.wish.swap, longest) for part in (found.learned, found.held))
    note = f"{len(held)} held out: read the interval" if len(held) < ENOUGH else ""
    if not held:
        note = "none held out: whether it is gone from other captions is unknown"
    return Line(
        found.wish,
        found.count,
        len(learned),
        _met("reliability", learned),
        _met("generality", held),
        _changes(found.held, held),
        _changes(found.learned, learned),
        note,
    )


def _outcomes(vlm: VLM, part: Sequence[Captioned], edits: Sequence[Edit], swap: Swap, longest: int) -> list[Outcome]:
    return Pool(vlm, [one.recording for one in part], longest).outcomes(edits, swap)


def _met(name: str, outcomes: Sequence[Outcome]) -> Figure | None:
    return share(name, [one.swapped for one in outcomes], range(len(outcomes))) if outcomes else None


def _changes(part: Sequence[Captioned], outcomes: Sequence[Outcome]) -> tuple[Change, ...]:
    return tuple(
        Change(one.name, own.before, own.after) for one, own in zip(part, outcomes, strict=True) if not own.unchanged
    )
