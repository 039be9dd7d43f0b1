"""The most active neurons: a baseline that asks nothing about the word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmneurons.finders.protocol import Scores, Target
from mmneurons.vlm.model import VLM
from mmneurons.vlm.recording import Recording

__all__ = ["Activation"]


@dataclass(frozen=True)
class Activation:
    """The size of every neuron's activation at the emitting position: |z|."""

    def __call__(self, vlm: VLM, recording: Recording, targets: Sequence[Target]) -> list[Scores]:
        """Score every neuron for each target; the token does not matter."""
        note = "scores are sizes of activations, not shares of the logit"
        return [Scores(z.abs(), z, None, note) for z in (recording.activations[target.step] for target in targets)]
