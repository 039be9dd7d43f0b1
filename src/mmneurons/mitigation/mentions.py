"""Which objects a caption names, at which step each begins, and whether the picture shows it."""

from __future__ import annotations

from dataclasses import dataclass

from mmneurons.measures.hallucination import mentions
from mmneurons.measures.objects import Vocabulary
from mmneurons.measures.truth import Truth
from mmneurons.vlm.recording import Recording

__all__ = ["Mention", "mentions_in"]


@dataclass(frozen=True)
class Mention:
    """An object that a caption names.

    Attributes:
        name: of the object, as the vocabulary has it.
        step: that begins it.
        there: whether the picture shows it.
    """

    name: str
    step: int
    there: bool


def mentions_in(recording: Recording, truth: Truth, known: Vocabulary) -> list[Mention]:
    """The objects that a caption names, in order; what its prefix names the model did not say."""
    there = mentions("", truth, known).there
    begun = len(recording.request.prefix)
    found = []
    for name, start, _ in known.said_where(recording.caption):
        step = next((step for step, (_, end) in enumerate(recording.spans) if end > start), None)
        if start >= begun and step is not None:
            found.append(Mention(name, step, name in there))
    return found
