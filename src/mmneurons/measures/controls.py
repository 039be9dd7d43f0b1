"""Neurons to compare with: as many, and writing as much."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mmneurons.measures.case import Place
from mmneurons.vlm.model import VLM
from mmneurons.vlm.recording import Recording
from mmneurons.vlm.sites import columns

__all__ = ["matched_neurons", "written_norms"]

NEAREST = 20
"""Among how many of the nearest norms one is drawn."""


def written_norms(vlm: VLM, recording: Recording, step: int) -> Float[Tensor, "blocks width"]:
    """The length of what every neuron writes at a step: |z| ‖W[:, i]‖, before norms on the way."""
    z = recording.activations[step].abs()
    norms = torch.zeros_like(z)
    for index, block in enumerate(vlm.anatomy.blocks):
        for site in block.sites:
            units = z[index, site.columns].nonzero().flatten()
            if len(units):
                norms[index, site.start + units] = columns(vlm.model, site, units.tolist()).norm(dim=-1)
    return z * norms


def matched_neurons(
    norms: Float[Tensor, "blocks width"], chosen: Sequence[Place], widths: Sequence[int], seed: int
) -> list[Place]:
    """For every chosen neuron another one that writes about as much, drawn from the nearest that are left.

    A neuron of the same block where there is one, so that depth is matched, too.

    Args:
        norms: of ``written_norms``.
        chosen: the neurons to be matched.
        widths: of the blocks.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    taken = set(chosen)
    matched = []
    for block, column in chosen:
        distance = (norms[block, : widths[block]] - norms[block, column]).abs()
        order = distance.argsort()[: NEAREST + len(taken)].tolist()
        free = [other for other in order if (block, other) not in taken][:NEAREST]
        if not free:
            continue
        other = free[int(torch.randint(len(free), (1,), generator=generator))]
        taken.add((block, other))
        matched.append((block, other))
    return matched
