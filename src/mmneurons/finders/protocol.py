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
    """

    values: Float[Tensor, "blocks width"]
    activations: Float[Tensor, "blocks width"]
    total: float | None
    note: str = ""


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
