"""A neuron's total effect on a word, to first order: its direct share and what later blocks make of it.

At the emitting position

    total(l, i, t) = z(l, i) · ∂ LHS / ∂ z(l, i),

where LHS is the word's logit less its reference, or log p, and the derivative goes through every later block and the
final norm. What happens at the emitting position reaches the logit through that position alone, so it is run again by
itself against the keys and values of what came before, whatever their length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from mmneurons.finders.objective import check_against, objective, reference_note
from mmneurons.finders.protocol import Scores, Target
from mmneurons.vlm.derivatives import step_derivatives
from mmneurons.vlm.model import VLM
from mmneurons.vlm.recording import Recording
from mmneurons.vlm.replay import prefix

__all__ = ["Total", "derivatives_at"]


@dataclass(frozen=True)
class Total:
    """The first-order total effect of every neuron at the emitting position.

    An approximation of what taking a neuron away does: z times the slope where it is, not the way to zero. The effects
    add up to nothing.

    Attributes:
        against: as in ``contribution``.
    """

    against: str | None = "distribution"

    def __post_init__(self) -> None:
        check_against(self.against)

    def __call__(self, vlm: VLM, recording: Recording, targets: Sequence[Target]) -> list[Scores]:
        """Score every neuron for each target.

        Raises:
            OptionError: the model is quantised, or ``against="word"`` without another token.
            RecordingError: the model cannot be differentiated, or is no longer the one that was recorded.
        """
        note = f"the first-order total effect, through later blocks, {reference_note(self.against)}; no shares"
        pairs = derivatives_at(vlm, recording, targets, self.against)
        return [Scores(z * slope, z, None, note) for z, slope in pairs]


def derivatives_at(
    vlm: VLM, recording: Recording, targets: Sequence[Target], against: str | None
) -> Iterator[tuple[Float[Tensor, "blocks width"], Float[Tensor, "blocks width"]]]:
    """The activations at each target's emitting position, and the derivatives of its left-hand side by them."""
    before = prefix(vlm, recording, max(target.step for target in targets)) if targets else None
    for target in targets:
        own = step_derivatives(vlm, recording, target.step, objective(vlm, target, against), before=before)
        yield own.activations[0], own.gradients[0]
