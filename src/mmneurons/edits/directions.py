"""Directions of the head where blocks write: carried back there, and whitened."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mmneurons.vlm.model import VLM
from mmneurons.vlm.paths import carry_back
from mmneurons.vlm.readout import Readout
from mmneurons.vlm.recording import Recording

__all__ = ["State", "carried", "covariance", "state", "whitened"]

SAMPLED = 16384
"""Of how many tokens the covariance of unembeddings is estimated, drawn with a fixed seed."""

State = tuple[Float[Tensor, "hidden"], Float[Tensor, "norms"], Float[Tensor, "gates"]]
"""Of one step: the stream before the final norm, the statistics of the norms, the factors of the gates."""


def state(recording: Recording, step: int) -> State:
    """What `carried` needs to know of a step."""
    return recording.stream[step], recording.statistics[step], recording.factors[step]


def carried(
    vlm: VLM, head: Readout, directions: Float[Tensor, "steps hidden"], states: Sequence[State], blocks: Sequence[int]
) -> list[Float[Tensor, "steps hidden"]]:
    """Directions of the head, one for each step, where each of the blocks writes."""
    stream, statistics, factors = (torch.stack(own) for own in zip(*states, strict=True))
    back = carry_back(vlm.model, vlm.anatomy, head.pull_back(directions, stream), statistics, factors)
    return [back.at(vlm.anatomy.blocks[block].sites[0].path).float() for block in blocks]


def whitened(
    direction: Float[Tensor, "hidden"],
    through: Float[Tensor, "hidden hidden"],
    spread: Float[Tensor, "hidden hidden"],
    share: float,
) -> Float[Tensor, "hidden"]:
    """What moves other tokens' logits least of all that moves the logits along a direction as much.

    Args:
        direction: where the block writes.
        through: from the head to there.
        spread: of the unembeddings: their covariance, or what else says how much they are moved.
        share: ε, of the mean variance, that is added to every variance.
    """
    covariance = through.T @ spread @ through
    covariance += share * covariance.diagonal().mean() * torch.eye(len(covariance))
    return torch.linalg.solve(covariance.double(), direction.double()).float()


def covariance(head: Readout) -> Float[Tensor, "hidden hidden"]:
    """Of the unembeddings of ordinary tokens."""
    ordinary = head.ordinary.nonzero().flatten()
    if len(ordinary) > SAMPLED:
        ordinary = ordinary[torch.randperm(len(ordinary), generator=torch.Generator().manual_seed(0))[:SAMPLED]]
    rows, _ = head.rows(ordinary)
    rows = rows - rows.mean(0)
    return rows.T @ rows / len(rows)
