"""Whether less is said of what is not there, on pictures that nothing was learned from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Unpack

from mmneurons.edits.edit import Edit
from mmneurons.measures.edit_hallucination import chair_change
from mmneurons.measures.figures import Figure, share
from mmneurons.measures.hallucination import mentions
from mmneurons.measures.objects import Vocabulary
from mmneurons.mitigation.lesson import Shown
from mmneurons.mitigation.proof import Change
from mmneurons.recordings import CaptionOptions, batches, caption
from mmneurons.vlm.model import VLM
from mmneurons.vlm.pictures import PictureLike
from mmneurons.words import stands_in

__all__ = ["Grounded", "ground_captions"]


@dataclass(frozen=True)
class Grounded:
    """What was measured on pictures that nothing was learned from.

    Attributes:
        figures: CHAIRs, CHAIRi and recall before, after, and after less before; the share of captions without a false
            mention that stay word for word; the share of captions that say the general word.
        changes: captions that changed.
        captions: how many there are.
        refusal: why the edit should not be used; empty where nothing that was measured speaks against it.
    """

    figures: tuple[Figure, ...]
    changes: tuple[Change, ...]
    captions: int
    refusal: str

    def __getitem__(self, name: str) -> Figure:
        """A figure by its name."""
        return next(one for one in self.figures if one.name == name)


def ground_captions(
    vlm: VLM,
    edit: Edit,
    pictures: Sequence[Shown],
    known: Vocabulary,
    at_least: float,
    recall: float,
    progress: Callable[[int], None] | None = None,
    **how: Unpack[CaptionOptions],
) -> Grounded:
    """Caption pictures without the edit and with it, and compare.

    Args:
        vlm: the model, unedited.
        edit: what was learned.
        pictures: that nothing was learned from.
        known: the objects.
        at_least: the share of captions without a false mention that has to stay word for word.
        recall: by how much recall may fall.
        progress: told how many pictures are done.
        **how: of captions.
    """
    before: list[str] = []
    after: list[str] = []
    for batch in batches(pictures):
        opened: list[PictureLike] = [one.open() for one in batch]
        before += caption(vlm, opened, **how)
        with edit.on(vlm):
            after += caption(vlm, opened, **how)
        if progress is not None:
            progress(len(before))
    figures = tuple(_figures(pictures, before, after, known, edit))
    changes = tuple(
        Change(one.name, old, new) for one, old, new in zip(pictures, before, after, strict=True) if old != new
    )
    return Grounded(figures, changes, len(pictures), _refusal(figures, at_least, recall))


def _figures(
    pictures: Sequence[Shown], before: Sequence[str], after: Sequence[str], known: Vocabulary, edit: Edit
) -> list[Figure]:
    said, now = (
        [mentions(text, one.truth, known) for text, one in zip(texts, pictures, strict=True)]
        for texts in (before, after)
    )
    figures = chair_change(said, now, [one.name for one in pictures], "recall")
    right = [old == new for old, new, own in zip(before, after, said, strict=True) if not own.hallucinated]
    figures.append(share("right captions unchanged", right))
    general = edit.recipe.get("general")
    if isinstance(general, str):
        figures.append(share(f"captions that say {general!r}", [stands_in(new, 0, general) for new in after]))
    return figures


def _refusal(figures: Sequence[Figure], at_least: float, recall: float) -> str:
    named = {one.name: one for one in figures}
    unchanged, fallen = named["right captions unchanged"], named["recall added"].estimate.value
    if not unchanged.captions:
        return "No caption was right before, so what stays cannot be measured."
    if unchanged.estimate.value < at_least:
        return (
            f"{unchanged.estimate.value:.0%} of the captions that were right stay as they were, less than "
            f"{at_least:.0%}."
        )
    if fallen < -recall:
        return f"Recall falls by {-fallen:.3f}, more than {recall:g}."
    if not named["CHAIRi added"].estimate.value < 0:
        return "Nothing was gained: as much is said as before of what is not there."
    return ""
