"""What measures are taken of: one word of one picture, and the order in which every finder puts the neurons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from mmneurons.finders import Target
from mmneurons.finding import WordFinding
from mmneurons.measures.truth import Truth
from mmneurons.vlm.model import VLM
from mmneurons.vlm.recording import Recording

__all__ = ["Case", "Measure", "Observation", "Place", "Ranking"]

Place = tuple[int, int]
"""Block and column of a neuron."""


@dataclass(frozen=True, eq=False)
class Ranking:
    """How one finder puts the neurons of a word.

    Attributes:
        places: the first ones, best first.
        signs: 1, or -1 where the finder took the neuron's activation for negative.
        scores: of ``places``.
        values: the score of every neuron.
        seconds: what it took; a share of it where several words were scored at once.
    """

    places: tuple[Place, ...]
    signs: tuple[int, ...]
    scores: tuple[float, ...]
    values: Float[Tensor, "blocks width"]
    seconds: float

    def top(self, k: int) -> list[Place]:
        """The first k."""
        return list(self.places[:k])


@dataclass(frozen=True, eq=False)
class Case:
    """One word of one picture.

    Attributes:
        word: as it was found.
        rankings: by the finder's name.
        truth: what the picture shows, where that is known.
        ks: how many neurons are looked at.
        seed: of whatever is drawn for this word.
    """

    word: WordFinding
    rankings: Mapping[str, Ranking]
    truth: Truth | None = None
    ks: tuple[int, ...] = (1, 10, 50)
    seed: int = 0

    @property
    def vlm(self) -> VLM:
        """The model."""
        return self.word.found.vlm

    @property
    def recording(self) -> Recording:
        """Of the caption."""
        return self.word.found.recording

    @property
    def target(self) -> Target:
        """The token that is explained."""
        return self.word.targets[0]


@dataclass(frozen=True)
class Observation:
    """One number.

    Attributes:
        finder: whose neurons.
        quantity: what was measured; see the measure that gives it.
        k: of how many neurons; 0 where that means nothing.
        value: NaN where it cannot be told.
    """

    finder: str
    quantity: str
    k: int
    value: float


@runtime_checkable
class Measure(Protocol):
    """A measure: a frozen dataclass whose fields are its options."""

    @property
    def quantities(self) -> Mapping[str, str]:
        """What it gives: a name, and what it means in a sentence."""
        ...

    def __call__(self, cases: Sequence[Case]) -> Iterator[tuple[Case, Observation]]:
        """Measure the words of one picture."""
        ...
