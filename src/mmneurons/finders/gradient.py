"""How sensitive a word is to a neuron: the size of the derivative of log p, whatever the neuron does now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmneurons.finders.objective import check_against, objective, reference_note
from mmneurons.finders.protocol import Scores, Target
from mmneurons.vlm.derivatives import step_derivatives
from mmneurons.vlm.model import VLM
from mmneurons.vlm.recording import Recording
from mmneurons.vlm.replay import prefix

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
        before = prefix(vlm, recording, max(target.step for target in targets)) if targets else None
        note = f"scores are sizes of derivatives {reference_note(self.against)}; no shares"
        scores = []
        for target in targets:
            own = step_derivatives(vlm, recording, target.step, objective(vlm, target, self.against), before=before)
            scores.append(Scores(own.gradients[0].abs(), own.activations[0], None, note))
        return scores
