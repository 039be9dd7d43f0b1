"""Knowledge neurons (Dai et al., ACL 2022): gradients of p, integrated while a block's activations grow from zero.

    IG(l, i, t) = z(l, i) / m · Σ_{j=1..m} ∂ p(t | j/m · z(l)) / ∂ z(l, i)

All activations of block l are scaled together at the emitting position; the other blocks react.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mmneurons.finders.objective import probability
from mmneurons.finders.protocol import Scores, Target
from mmneurons.options import check_whole
from mmneurons.vlm.derivatives import step_derivatives
from mmneurons.vlm.model import VLM
from mmneurons.vlm.recording import Recording
from mmneurons.vlm.replay import Prefix, prefix, record_again

__all__ = ["IntegratedGradients"]


@dataclass(frozen=True)
class IntegratedGradients:
    """Integrated gradients of p(token), block by block.

    With many steps the scores of a block add up to p with the block's FFN less p without it. Not where a norm follows
    the FFN before the stream (Gemma 2 and 3): it takes the scale away, and the whole change lies at zero, where the sum
    does not look; nor where a router chooses other experts on the way. The note of the scores says so.

    Attributes:
        steps: m. Each is a row of a replay for every block: the dearest finder but ``ablation``.
    """

    steps: int = 20

    def __post_init__(self) -> None:
        check_whole("steps", self.steps)

    def __call__(self, vlm: VLM, recording: Recording, targets: Sequence[Target]) -> list[Scores]:
        """Score every neuron for each target. Errors as in ``mmneurons.finders.Total``."""
        before = prefix(vlm, recording, max(target.step for target in targets)) if targets else None
        return [self._integrate(vlm, recording, target, before) for target in targets]

    def _integrate(self, vlm: VLM, recording: Recording, target: Target, before: Prefix | None) -> Scores:
        again, before = record_again(vlm, recording, target.step, [], before)
        z = again.activations[0]
        values = torch.zeros_like(z)
        scale = torch.arange(1, self.steps + 1) / self.steps
        # several blocks at once, as many as there is room for, each in rows of its own
        together = max(1, before.rows // self.steps)
        blocks = range(len(vlm.anatomy.blocks))
        for start in range(0, len(blocks), together):
            part = blocks[start : start + together]
            rows = len(part) * self.steps
            scales = {}
            for place, block in enumerate(part):
                scales[block] = torch.ones(rows)
                scales[block][place * self.steps : (place + 1) * self.steps] = scale
            own = step_derivatives(
                vlm,
                recording,
                target.step,
                probability(target),
                rows=rows,
                scales=scales,
                before=before,
                check=False,
            )
            for place, block in enumerate(part):
                slopes = own.gradients[place * self.steps : (place + 1) * self.steps, block]
                values[block] = z[block] * slopes.double().mean(0).float()
        note = f"integrated gradients of p in {self.steps} steps, block by block; no shares of the logit"
        if any(site.path.norms for block in vlm.anatomy.blocks for site in block.sites):
            note += "; a norm behind the FFN hides most of the way from zero"
        return Scores(values, z, None, note)
