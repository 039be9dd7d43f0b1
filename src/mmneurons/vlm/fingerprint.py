"""Which weights a model has, as one short text."""

import hashlib

import torch
from torch import Tensor, nn

from mmneurons.vlm.weights import here

__all__ = ["fingerprint"]

_CHUNK = 64 * 2**20


def fingerprint(model: nn.Module) -> str:
    """The SHA-256, as 64 hex digits, over all weights: names, shapes, dtypes and bytes, in the order of the names.

    The same on every device. Weights that are shared count once for each name. Reads all weights once: about half a
    second for a gigabyte.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        if not isinstance(weight, Tensor):
            continue
        weight = here(model, name, weight)
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
        flat = weight.detach().contiguous().flatten().view(torch.uint8)
        for start in range(0, len(flat), _CHUNK):
            digest.update(flat[start : start + _CHUNK].cpu().numpy().data)
    return digest.hexdigest()
