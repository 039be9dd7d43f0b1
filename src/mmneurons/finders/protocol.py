"""What every way of scoring neurons takes and gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from mmneurons.vlm.model import VLM
from mmneurons.vlm.recording import Recording

__all__ = ["BatchFinder", "Finder", "Scores", "Target"]


@dataclass(frozen=True)
class Target:
    """One emitted token that is explained.

    Attributes:
        step: the index into ``recording.token_ids``.
        token: the id whose logit is explained.
        other: the id that it is contrasted with, where a finder contrasts.
    """

    step: int
    token: int
    other: int | None = None


@dataclass(frozen=True, eq=False)
class Scores:
    """One score per neuron.

    Attributes:
        values: float32 on the CPU; units that a narrower block does not have are 0.
        activations: what stood for each neuron's activation at the step.
        total: what the scores are shares of, before a soft-cap; None where they are no shares of anything.
        note: what the scores are read against and what is approximate in them, to be shown with them.
        order: block and column of neurons that were chosen as a set, one after another. They come first, whatever their
            values, which are those at the time when each was chosen.
    """

    values: Float[Tensor, "blocks width"]
    activations: Float[Tensor, "blocks width"]
    total: float | None
    note: str = ""
    order: tuple[tuple[int, int], ...] = ()

    def best(self, k: int, widths: Sequence[int]) -> list[tuple[int, int]]:
        """Block and column of the k neurons that come first, of blocks of some widths."""
        width = self.values.shape[1]
        chosen = set(self.order)
        absent = len(widths) * width - sum(widths)
        order = self.values.flatten().topk(min(self.values.numel(), k + absent + len(chosen))).indices.tolist()
        places = ((index // width, index % width) for index in order)
        rest = [place for place in places if place[1] < widths[place[0]] and place not in chosen]
        return [*self.order, *rest][:k]


@runtime_checkable
class Finder(Protocol):
    """A way of scoring neurons: a frozen dataclass whose fields are its options."""

    def __call__(self, vlm: VLM, recording: Recording, targets: Sequence[Target]) -> list[Scores]:
        """Score every neuron for each target, in their order."""
        ...


@runtime_checkable
class BatchFinder(Finder, Protocol):
    """A finder for which several recordings at once cost less than one by one."""

    def many(self, vlm: VLM, work: Sequence[tuple[Recording, Sequence[Target]]]) -> list[list[Scores]]:
        """What a call gives for each recording with its targets."""
        ...
