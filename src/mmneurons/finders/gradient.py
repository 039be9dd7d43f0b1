"""How sensitive a word is to a neuron: the size of the derivative of log p, whatever the neuron does now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmneurons.finders.objective import check_against, reference_note
from mmneurons.finders.protocol import Scores, Target
from mmneurons.finders.total import derivatives_at
from mmneurons.vlm.model import VLM
from mmneurons.vlm.recording import Recording

__all__ = ["Gradient"]


@dataclass(frozen=True)
class Gradient:
    """The size of the derivative with respect to every neuron's activation at the emitting position: |∂ LHS / ∂ z|.

    Attributes:
        against: as in ``contribution``.
    """

    against: str | None = "distribution"

    def __post_init__(self) -> None:
        check_against(self.against)

    def __call__(self, vlm: VLM, recording: Recording, targets: Sequence[Target]) -> list[Scores]:
        """Score every neuron for each target. Errors as in ``mmneurons.finders.Total``."""
        note = f"scores are sizes of derivatives {reference_note(self.against)}; no shares"
        pairs = derivatives_at(vlm, recording, targets, self.against)
        return [Scores(slope.abs(), z, None, note) for z, slope in pairs]
