"""Neurons drawn by chance: the control for every other finder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mmneurons.finders.protocol import Scores, Target
from mmneurons.vlm.model import VLM
from mmneurons.vlm.recording import Recording

__all__ = ["Random"]


@dataclass(frozen=True)
class Random:
    """A seeded draw: scores are uniform numbers above 0, so that the top k are k random neurons.

    Attributes:
        seed: of the draw. Targets of one call get draws of their own.
    """

    seed: int = 0

    def __call__(self, vlm: VLM, recording: Recording, targets: Sequence[Target]) -> list[Scores]:
        """Draw a score for every neuron and target; units that a narrower block does not have are 0."""
        generator = torch.Generator().manual_seed(self.seed)
        widths = torch.tensor([block.ffn.width for block in vlm.anatomy.blocks])
        there = torch.arange(vlm.anatomy.width) < widths[:, None]
        scores = []
        for target in targets:
            draw = torch.rand(there.shape, generator=generator).clamp_min(1e-9) * there
            scores.append(Scores(draw, recording.activations[target.step], None, "scores are random numbers"))
        return scores
