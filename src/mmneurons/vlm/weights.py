"""Reading the weights of linear maps, however they are stored.

A plain matrix is read as it is; one that accelerate has put on another device or the disk is fetched. Whatever else a
linear map may be (4 or 8 bits of bitsandbytes, torchao, quanto, GGUF), it can be asked: column i is what it makes of
the i-th unit vector, less what it makes of nothing. That is right on every loader, where reading the stored numbers is
not: bitsandbytes packs 4-bit weights anew at the first forward on a CPU, and int8 weights are stored without their
scale. The product of directions with all columns is a derivative of the map by its input; it is believed only where it
agrees with columns that were asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmneurons.errors import AnatomyError

__all__ = ["asked_columns", "bits", "fetched", "here", "is_plain", "own_weight", "products"]

ASKED = 4
"""How many columns are asked for to see whether a derivative can be believed."""

CLOSE = 0.02
"""How far the two may be apart, over the largest of the products."""

CHUNK = 512
"""How many columns are asked for at once where all have to be."""


def bits(values: Tensor) -> Tensor:
    """The same memory as integers: what is copied or compared so is never rounded, and NaN equals itself."""
    return values.detach().view(_BITS[values.element_size()])


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By the size of a number, the integers that its bits are looked at as."""


def here(model: nn.Module, name: str, weight: Tensor) -> Tensor:
    """A weight of a model's state, fetched by its dotted name where accelerate keeps it elsewhere."""
    if weight.device.type != "meta":
        return weight
    holder, _, own = name.rpartition(".")
    return own_weight(model.get_submodule(holder), own)


def is_plain(module: nn.Module, parameter: str = "weight") -> bool:
    """Whether a weight is an ordinary floating-point tensor, here or where accelerate fetches it from."""
    weight = getattr(module, parameter, None)
    kind = type(weight)
    return isinstance(weight, Tensor) and weight.is_floating_point() and kind in (Tensor, nn.Parameter)


@contextmanager
def fetched(module: nn.Module) -> Iterator[None]:
    """Have a module's weights here while the block runs, where accelerate keeps them elsewhere."""
    if all(weight.device.type != "meta" for weight in module.parameters(recurse=False)):
        yield
        return
    if not hasattr(module, "_hf_hook"):
        raise AnatomyError(
            f"The weights of a {type(module).__name__} are not here, and nothing says where they are. Load the model "
            "with device_map, so that accelerate knows."
        )
    from accelerate.utils import align_module_device

    with align_module_device(module):
        yield


def own_weight(module: nn.Module, parameter: str = "weight") -> Tensor:
    """A plain weight as it is stored; a copy where it was fetched.

    Raises:
        AnatomyError: it is not plain, or not to be had.
    """
    weight = getattr(module, parameter, None)
    if not isinstance(weight, Tensor) or not is_plain(module, parameter):
        raise AnatomyError(f"The weight of a {type(module).__name__} is a {type(weight).__name__}, not a plain matrix.")
    if weight.device.type != "meta":
        return weight.detach()
    with fetched(module):
        return getattr(module, parameter).detach().clone()


def asked_columns(module: nn.Module, width: int, units: Sequence[int], kind: torch.dtype) -> Float[Tensor, "units out"]:
    """Columns of a linear map, by what it makes of unit vectors. Float32 on the CPU.

    Args:
        module: the map.
        width: how many inputs it has.
        units: which columns.
        kind: the dtype that it is given.
    """
    device = _device(module)
    given = torch.zeros(len(units) + 1, width, dtype=kind, device=device)
    given[torch.arange(len(units)), torch.tensor(list(units), dtype=torch.long)] = 1
    with torch.no_grad():
        made = module(given[:, None])[:, 0].float().cpu()
    return made[:-1] - made[-1]


def products(
    module: nn.Module, width: int, directions: Float[Tensor, "rows out"], kind: torch.dtype
) -> Float[Tensor, "rows width"]:
    """The product of every direction with every column of a linear map. In the directions' dtype, on the CPU."""
    units = torch.randperm(width, generator=torch.Generator().manual_seed(0))[:ASKED].tolist()
    expected = directions.float() @ asked_columns(module, width, units, kind).T
    found = _derivative(module, width, directions, kind)
    if found is None or not _agree(found[:, units], expected):
        parts = [
            directions.float() @ asked_columns(module, width, range(start, min(start + CHUNK, width)), kind).T
            for start in range(0, width, CHUNK)
        ]
        found = torch.cat(parts, 1)
    return found.to(directions.dtype)


def _derivative(
    module: nn.Module, width: int, directions: Float[Tensor, "rows out"], kind: torch.dtype
) -> Float[Tensor, "rows width"] | None:
    """The derivative of the map along directions; None where it has none."""
    given = torch.zeros(len(directions), 1, width, dtype=kind, device=_device(module), requires_grad=True)
    try:
        with torch.enable_grad():
            made = module(given)
            (found,) = torch.autograd.grad(made, given, directions[:, None].to(made))
    except (RuntimeError, NotImplementedError, ValueError):
        return None
    return found[:, 0].float().cpu()


def _agree(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= CLOSE * expected.abs().max().clamp_min(1e-6))


def _device(module: nn.Module) -> torch.device:
    hook = getattr(module, "_hf_hook", None)
    where = getattr(hook, "execution_device", None)
    if where is not None:
        return torch.device(where)
    return next((weight.device for weight in module.parameters()), torch.device("cpu"))
