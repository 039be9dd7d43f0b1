"""What becomes of a token's probability when neurons are changed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmneurons.vlm.distributions import kl

__all__ = ["RUNNERS_UP", "Effects", "divergence", "effects"]

RUNNERS_UP = 10


@dataclass(frozen=True, eq=False)
class Effects:
    """What every variant did to a token, in nats.

    Attributes:
        fall: of log p.
        relative: the same less the mean fall of the runners-up, the tokens that were next likeliest: wrecking the model
            makes all of them fall.
        rank: of the token afterwards, 1 where it is the likeliest.
    """

    fall: Float[Tensor, "variants"]
    relative: Float[Tensor, "variants"]
    rank: Int[Tensor, "variants"]


def effects(logits: Float[Tensor, "rows vocabulary"], token: int, runners_up: int = RUNNERS_UP) -> Effects:
    """From row 0, as it was, to each other row.

    Args:
        logits: before any logits processor, of one position.
        token: whose fall.
        runners_up: how many tokens were next likeliest in row 0, the token itself left out.
    """
    fallen = logits.double().log_softmax(-1)
    fallen = fallen[:1] - fallen[1:]
    others = logits[0].clone()
    others[token] = -torch.inf
    fall = fallen[:, token]
    relative = fall - fallen[:, others.topk(runners_up).indices].mean(1)
    rank = (logits[1:] > logits[1:, [token]]).sum(1) + 1
    return Effects(fall.float(), relative.float(), rank)


def divergence(
    before: Float[Tensor, "positions vocabulary"], after: Float[Tensor, "positions vocabulary"]
) -> Float[Tensor, "positions"]:
    """KL(before ‖ after) at each position, in nats."""
    p, q = before.double().log_softmax(-1), after.double().log_softmax(-1)
    return kl(p, q).clamp_min(0).float()
