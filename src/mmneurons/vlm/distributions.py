"""Distributions over the vocabulary, compared."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["kl"]


def kl(
    before: Float[Tensor, "positions vocabulary"], after: Float[Tensor, "positions vocabulary"]
) -> Float[Tensor, "positions"]:
    """KL(before ‖ after) at each position, in nats; derivatives go through it.

    Args:
        before: log p, normalised. A token that cannot be said has −inf, and adds nothing, whatever its log p becomes.
        after: log p, normalised.
    """
    return (before.exp() * (before - after).masked_fill(before == -torch.inf, 0)).sum(-1)
