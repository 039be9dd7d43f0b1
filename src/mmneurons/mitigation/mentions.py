"""Which objects a caption names, at which step each begins, and whether the picture shows it."""

from __future__ import annotations

from dataclasses import dataclass

from mmneurons.measures.hallucination import mentions
from mmneurons.measures.objects import Vocabulary
from mmneurons.measures.truth import Truth
from mmneurons.vlm.recording import Recording
from mmneurons.words import find_words

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
    found = []
    for word in find_words(recording.caption, len(recording.request.prefix), recording.spans):
        names = known.said(word.surface)
        if names:
            found.append(Mention(names[-1], word.steps[0], names[-1] in there))
    return found
