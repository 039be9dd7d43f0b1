"""Cross-image invariance and specificity (Pan et al. 2024, with our definitions): neurons compared between words.

*Cross-image invariance*: of the first k neurons of a word, the share that is among the first k of the same word said of
another picture; mean over those pictures. Its control is the same against other words of other pictures: what every
word needs is not the concept's.

*Specificity*: a concept's neurons are the k that most of its pictures have among their first k. The share of them that
is no other concept's; and a score's own word against others: the mean rank-weighted share of the concept's neurons
among the first neurons of its own words, less that of other words'.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mmneurons.measures.case import Observation
from mmneurons.measures.overlap import overlap

__all__ = ["QUANTITIES", "Concept", "Told", "concepts", "cross_image", "specificity"]

QUANTITIES = {
    "own overlap": "cross-image invariance: share of the top k found for the same word in other pictures, mean",
    "other overlap": "the control: the same, of other words in other pictures",
    "exclusive": "specificity: share of a concept's k neurons that are no other concept's",
    "own share": "share of a concept's k neurons among the top k of its words",
    "other share": "the same among the top k of other concepts' words",
}


@dataclass(frozen=True)
class Told:
    """A word with its neurons.

    Attributes:
        picture: which picture it was said of.
        word: the lemma.
        top: its neurons, best first, each as one number.
    """

    picture: str
    word: str
    top: tuple[int, ...]


@dataclass(frozen=True)
class Concept:
    """A word that several pictures share, and its neurons.

    Attributes:
        word: the lemma.
        pictures: in how many it was said.
        neurons: those that most of its words have among their first k; ties go to the better mean rank.
    """

    word: str
    pictures: int
    neurons: tuple[int, ...]


def cross_image(words: Sequence[Told], finder: str, k: int) -> list[tuple[Told, list[Observation]]]:
    """The overlap of every word with the same word, and with others, in other pictures.

    Words that only one picture has are left out.
    """
    found = []
    tops = [set(word.top[:k]) for word in words]
    for index, word in enumerate(words):
        elsewhere = [other for other in range(len(words)) if words[other].picture != word.picture]
        own = [len(tops[index] & tops[other]) / k for other in elsewhere if words[other].word == word.word]
        others = [len(tops[index] & tops[other]) / k for other in elsewhere if words[other].word != word.word]
        if own and others:
            values = (("own overlap", float(np.mean(own))), ("other overlap", float(np.mean(others))))
            found.append((word, [Observation(finder, name, k, value) for name, value in values]))
    return found


def concepts(words: Sequence[Told], k: int, least: int = 2) -> list[Concept]:
    """The concepts among words: those that at least so many pictures share, each with its k neurons."""
    found = []
    for name in sorted({word.word for word in words}):
        own = list({word.picture: word for word in words if word.word == name}.values())
        if len(own) < least:
            continue
        count: Counter[int] = Counter()
        ranks: Counter[int] = Counter()
        for word in own:
            for rank, neuron in enumerate(word.top[:k]):
                count[neuron] += 1
                ranks[neuron] += rank
        order = sorted(count, key=lambda neuron: (-count[neuron], ranks[neuron] / count[neuron], neuron))
        found.append(Concept(name, len(own), tuple(order[:k])))
    return found


def specificity(words: Sequence[Told], finder: str, k: int, least: int = 2) -> Iterator[tuple[Concept, Observation]]:
    """What of each concept's neurons is its own."""
    known = concepts(words, k, least)
    if len(known) < 2:
        return
    for concept in known:
        own = set(concept.neurons)
        others = set().union(*(set(other.neurons) for other in known if other.word != concept.word))
        yield concept, Observation(finder, "exclusive", k, 1 - overlap_of(own, others))
        names = {other.word for other in known}
        for name, chosen in (
            ("own share", [word for word in words if word.word == concept.word]),
            ("other share", [word for word in words if word.word in names and word.word != concept.word]),
        ):
            shares = [len(own & set(word.top[:k])) / len(own) for word in chosen]
            yield concept, Observation(finder, name, k, float(np.mean(shares)))


def overlap_of(own: set[int], others: set[int]) -> float:
    """The share of ``own`` that is in ``others``."""
    return overlap(sorted(own), sorted(own & others)) if own & others else 0.0
