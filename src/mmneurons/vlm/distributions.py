"""Distributions over the vocabulary: compared, and their most likely tokens."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmneurons.vlm.decoding import never_said
from mmneurons.vlm.model import VLM

__all__ = ["kl", "likeliest"]


def kl(
    before: Float[Tensor, "positions vocabulary"], after: Float[Tensor, "positions vocabulary"]
) -> Float[Tensor, "positions"]:
    """KL(before ‖ after) at each position, in nats; derivatives go through it.

    Args:
        before: log p, normalised. A token that cannot be said has −inf, and adds nothing, whatever its log p becomes.
        after: log p, normalised.
    """
    return (before.exp() * (before - after).masked_fill(before == -torch.inf, 0)).sum(-1)


def likeliest(vlm: VLM, logits: Float[Tensor, "steps vocabulary"]) -> Int[Tensor, "steps"]:
    """The most likely token of every step that can be said: see ``never_said``."""
    silent = [token for token in sorted(never_said(vlm)) if token < logits.shape[1]]
    if silent:
        logits = logits.index_fill(1, torch.tensor(silent, device=logits.device), -torch.inf)
    return logits.argmax(-1)
