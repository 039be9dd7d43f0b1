"""What a page of measurements has to say beside its tables: what was left out, of what, and why, a line each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import polars

from mmneurons.engines.measured_folder import Measured
from mmneurons.measures.objects import Vocabulary
from mmneurons.measures.suites import RANDOM, Suite
from mmneurons.measures.summary import CLAIMED, Observed
from mmneurons.measures.truth import Truth
from mmneurons.reports.texts import count_of, file_name
from mmneurons.vlm.inputs import PREFIX
from mmneurons.words import stands_in

__all__ = ["claims_asked", "never_said", "notes"]

FIRST = {
    "causal": "fall",
    "sensitivity": "BERTScore",
    "region": "region overlap",
    "across": "own overlap",
    "looking": "pointing",
}
"""The quantity without which a measure gave nothing."""

LEFT_OUT = {
    "sensitivity": "are not read, the dearest part of a word",
    "region": "are not found again: a set, or too dear for every order of the image tokens",
}
"""Why a measure is not taken of every finder."""


def notes(
    measured: Measured,
    observed: Observed,
    plan: Suite,
    pictures: polars.DataFrame,
    truths: Mapping[str, Truth] | None,
    known: Vocabulary | None,
) -> Iterator[str]:
    """Everything that was asked for and is not on the page, or counts otherwise than one would think.

    Args:
        measured: the folder.
        observed: what was observed.
        plan: what was asked for.
        pictures: a row for each, copies among them.
        truths: what the pictures show.
        known: the objects that captions may name.
    """
    captioned = pictures.drop_nulls("caption")
    failed = pictures.drop_nulls("error")
    if len(failed):
        source, error = failed.select("source", "error").row(0)
        # a run's pictures have their whole paths
        first = error.replace(source, file_name(source))
        yield f"{count_of(len(failed), 'picture')} failed; the first: {first}"
    copies = pictures.height - len(failed) - captioned["image_id"].n_unique()
    if copies == 1:
        yield "1 picture is a copy of another one, byte for byte, and is counted once with it."
    elif copies:
        yield f"{copies} pictures are copies of others, byte for byte, and are counted once with them."
    if missing := never_said(measured):
        yield f"No caption says {', '.join(map(repr, missing))}."
    if absent := [finder for finder in plan.finders if finder not in observed.finders]:
        yield f"No word was scored by {_listed(absent)}: this model does not have what is asked for, or too few words."
    for name in plan.names:
        if name in FIRST:
            yield from _of_measure(name, observed, truths)
    if "hallucination" in plan.names and known is None:
        yield "hallucination: not taken, because the truth names no objects."
    elif "hallucination" in plan.names and not any(covered(captioned, truths)):
        yield "hallucination: not taken, because the truth is of none of the captioned pictures."
    if "pope" in plan.names and measured.table("answers").is_empty():
        yield "pope: not taken, because no question is of any of these pictures."
    if truths is not None and known is None and not {"looking", "hallucination"} & set(plan.names):
        yield "looking and hallucination: not taken, because the truth names no objects."


def claims_asked(observed: Observed) -> str:
    """Of which finders it is said what holds, and of which it is not."""
    asked = [finder for finder in CLAIMED if finder in observed.finders]
    others = [finder for finder in observed.finders if finder not in (*CLAIMED, RANDOM)]
    if not asked:
        return f"What holds is asked of {_listed(CLAIMED)} alone, and neither was measured; see the tables."
    return f"What holds is asked of {_listed(asked)}." + (
        f" Of others the tables have the figures alone: {_listed(others)}." if others else ""
    )


def covered(captioned: polars.DataFrame, truths: Mapping[str, Truth] | None) -> list[bool]:
    """Of which pictures the truth is."""
    return [Path(source).name in (truths or {}) for source in captioned["source"]]


def never_said(measured: Measured) -> list[str]:
    """The words that were asked for and that no caption says."""
    options = measured.about["options"]
    assert isinstance(options, Mapping)
    captions = measured.table("pictures")["caption"].drop_nulls().to_list()
    begun = len(options.get("prefix", PREFIX))
    return [
        word for word in options.get("words") or () if not any(stands_in(caption, begun, word) for caption in captions)
    ]


def _of_measure(name: str, observed: Observed, truths: Mapping[str, Truth] | None) -> Iterator[str]:
    asked = observed.asked(FIRST[name])
    if not asked:
        yield f"{name}: not taken, because {_why(name, truths)}."
        return
    if name == "looking" and not observed.asked("mask IoU"):
        yield "looking: masks are not compared, because the truth has none of every object of a picture."
    if name == "across" and not observed.asked("own share"):
        yield "across: specificity is not taken, because fewer than two words were said of three pictures."
    if name in LEFT_OUT and (without := [finder for finder in observed.finders if finder not in asked]):
        yield f"{name}: the neurons of {_listed(without)} {LEFT_OUT[name]}."


def _why(name: str, truths: Mapping[str, Truth] | None) -> str:
    if name == "looking":
        if not any(truth.boxes for truth in (truths or {}).values()):
            return "the truth has no boxes of every object of a picture"
        return "no word names an object whose box is known, or it is not known where this model's image tokens lie"
    return {
        "region": "this model has no image tokens that could be put into another order",
        "across": "no word was said of two pictures, or there is no other one beside it",
    }.get(name, "nothing was observed")


def _listed(finders: Sequence[str]) -> str:
    # some names hold commas
    return ", ".join(f"`{finder}`" for finder in finders)
