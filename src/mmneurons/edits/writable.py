"""Which weights an edit can be written into; on all others it runs as a hook."""

from __future__ import annotations

import torch
from torch import nn

from mmneurons.vlm.anatomy import WriteSite
from mmneurons.vlm.model import VLM
from mmneurons.vlm.weights import is_plain

__all__ = ["writable"]

_WRITABLE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Dtypes whose numbers are what they say; those of 8 bits have a scale elsewhere."""


def writable(vlm: VLM, site: WriteSite) -> nn.Parameter | None:
    """A site's weight; None where what is written to it would not be there to stay, or not be what is computed with."""
    module = vlm.model.get_submodule(site.module)
    weight = getattr(module, site.parameter, None)
    # a weight that is no parameter is made anew from others at every use
    if not is_plain(module, site.parameter) or not isinstance(weight, nn.Parameter):
        return None
    return weight if weight.device.type != "meta" and weight.dtype in _WRITABLE else None
