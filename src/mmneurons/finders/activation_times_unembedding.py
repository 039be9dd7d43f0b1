"""Activation times the product of a neuron's column with a token's unembedding, and nothing in between.

The baseline AcU of NAM (2024), and what the score of Pan et al. (2024) is for whole activations. It leaves out the
final norm and whatever lies on the way to it, so it is a share of nothing in models that have more than a plain path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mmneurons.finders.protocol import Scores, Target
from mmneurons.vlm.model import VLM
from mmneurons.vlm.readout import readout
from mmneurons.vlm.recording import Recording
from mmneurons.vlm.sites import project

__all__ = ["ActivationTimesUnembedding"]


@dataclass(frozen=True)
class ActivationTimesUnembedding:
    """z(l, i) · (W[:, i] · u_t) at the emitting position."""

    def __call__(self, vlm: VLM, recording: Recording, targets: Sequence[Target]) -> list[Scores]:
        """Score every neuron for each target."""
        if not targets:
            return []
        rows, _ = readout(vlm).rows(torch.tensor([target.token for target in targets]))
        z = recording.activations[[target.step for target in targets]]
        values = torch.zeros_like(z)
        for index, block in enumerate(vlm.anatomy.blocks):
            for site in block.sites:
                active = z[:, index, site.columns]
                values[:, index, site.columns] = active * project(vlm.model, site, rows, active)
        note = "activations times columns times unembeddings, without the norm and the way to it; no shares"
        return [Scores(own, active, None, note) for own, active in zip(values, z, strict=True)]
