"""The multi-modal neurons of Schwettmann et al. (2023): activation times gradient where the picture is.

    g(l, i, t) = max over image positions p of z(l, i, p) · ∂ LHS / ∂ z(l, i, p)

The linear approximation of what a unit's activity at one image token does to the prediction. It takes a backward pass
through the whole prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmneurons.errors import OptionError
from mmneurons.finders.objective import check_against, objective, reference_note
from mmneurons.finders.protocol import Scores, Target
from mmneurons.vlm.derivatives import caption_derivatives
from mmneurons.vlm.model import VLM
from mmneurons.vlm.recording import Recording

__all__ = ["GradientTimesActivation"]


@dataclass(frozen=True)
class GradientTimesActivation:
    """Activation times gradient at the image positions, the maximum over them.

    Attributes:
        against: as in ``contribution``; None, the raw logit, as published.
    """

    against: str | None = None

    def __post_init__(self) -> None:
        check_against(self.against)

    def __call__(self, vlm: VLM, recording: Recording, targets: Sequence[Target]) -> list[Scores]:
        """Score every neuron for each target.

        Raises:
            OptionError: the picture has no tokens among the decoder's positions, or was shuffled; or as in ``total``.
            RecordingError: the model cannot be differentiated.
        """
        if not targets:
            return []
        positions = recording.image_positions
        if not len(positions):
            raise OptionError(
                "gradient_times_activation looks at image tokens, and there are none among the decoder's positions (an "
                "encoder-decoder, cross-attention, or shuffled tokens). Use finder='total' instead."
            )
        note = f"activation times the derivative {reference_note(self.against)}, at most over image tokens; no shares"
        objectives = [objective(vlm, target, self.against) for target in targets]
        steps = [target.step for target in targets]
        pairs = caption_derivatives(vlm, recording, steps, objectives, positions)
        return [
            Scores((z * slope).amax(1), recording.activations[target.step], None, note)
            for target, (z, slope) in zip(targets, pairs, strict=True)
        ]
