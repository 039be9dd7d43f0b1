"""Low-rank changes to the language model's attention (Hu et al. 2021, eq. 3 with alpha = rank): W + B A."""

from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["LowRank", "add_low_rank", "low_rank_tensors"]


class LowRank(nn.Module):
    """A frozen linear layer plus a trained product of two small matrices, kept in float32."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Parameter(torch.randn(rank, base.in_features) * base.in_features**-0.5)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output plus B A x."""
        return self.base(x) + F.linear(F.linear(x, self.a.to(x.dtype)), self.b.to(x.dtype))


def add_low_rank(language_model: nn.Module, rank: int) -> nn.ModuleDict:
    """Wraps q, k, v and o of every block in place; returns the wrappers by the wrapped weight's name."""
    wrappers = nn.ModuleDict()
    for name, module in list(language_model.named_modules()):
        if name.endswith("self_attn"):
            for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
                wrapper = LowRank(getattr(module, part), rank)
                setattr(module, part, wrapper)
                wrappers[f"{name}.{part}.weight".replace(".", "/")] = wrapper
    return wrappers


def low_rank_tensors(wrappers: nn.ModuleDict) -> dict[str, torch.Tensor]:
    """The factors under the names of the shipped file."""
    tensors = {}
    for key, module in wrappers.items():
        name, wrapper = key.replace("/", "."), cast(LowRank, module)
        tensors[f"lora_a.{name}"] = wrapper.a.detach()
        tensors[f"lora_b.{name}"] = wrapper.b.detach()
    return tensors
