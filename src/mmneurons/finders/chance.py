"""Neurons drawn by chance: the control for every other finder."""

from __future__ import annotations

import hashlib
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

    Every input, order of image tokens, step and token has a draw of its own, which is the same whatever it is batched
    or asked with.

    Attributes:
        seed: of the draws.
    """

    seed: int = 0

    def __call__(self, vlm: VLM, recording: Recording, targets: Sequence[Target]) -> list[Scores]:
        """Draw a score for every neuron and target; units that a narrower block does not have are 0."""
        asked = _digest(recording)
        widths = torch.tensor([block.width for block in vlm.anatomy.blocks])
        there = torch.arange(vlm.anatomy.width) < widths[:, None]
        scores = []
        for target in targets:
            own = hashlib.sha256(
                f"{self.seed} {asked} {recording.shuffle} {target.step} {target.token}".encode()
            ).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(own[:8]) >> 1)
            draw = torch.rand(there.shape, generator=generator).clamp_min(1e-9) * there
            scores.append(Scores(draw, recording.activations[target.step], None, "scores are random numbers"))
        return scores


def _digest(recording: Recording) -> str:
    """What tells one input of the model from another."""
    digest = hashlib.sha256()
    for name, tensor in sorted(recording.inputs.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
