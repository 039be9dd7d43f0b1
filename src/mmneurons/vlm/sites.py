"""The weights of write sites: columns, projections, biases, and what a mixture of experts was given.

Everything is read from the model as it is now; nothing is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmneurons.errors import AnatomyError
from mmneurons.vlm.anatomy import Block, WriteSite
from mmneurons.vlm.weights import asked_columns, fetched, is_plain, own_weight, products

__all__ = ["bias", "columns", "dtype", "expert_activations", "expert_outputs", "plain", "project", "split", "weight"]


def split(
    block: Block, columns: Int[Tensor, "columns"]
) -> Iterator[tuple[WriteSite, Bool[Tensor, "columns"], Int[Tensor, "own"]]]:
    """Some columns of a block, spread over its write sites; sites that have none of them are left out.

    Yields:
        A site, which of the columns are its own, and these counted from its first.
    """
    for site in block.sites:
        own = (columns >= site.start) & (columns < site.start + site.width)
        if bool(own.any()):
            yield site, own, columns[own] - site.start


def plain(model: nn.Module, site: WriteSite) -> bool:
    """Whether a site's weight is an ordinary matrix, and not quantised."""
    return is_plain(model.get_submodule(site.module), site.parameter)


def weight(model: nn.Module, site: WriteSite) -> Float[Tensor, "hidden width"]:
    """The weight whose columns are the output vectors before the path; a view of a dense site, a copy of experts.

    Raises:
        AnatomyError: it is quantised.
    """
    own = own_weight(model.get_submodule(site.module), site.parameter)
    if site.experts is None:
        return own.T if site.transposed else own
    flat = own if site.experts.transposed else own.transpose(1, 2)
    return flat.reshape(site.width, -1).T


def dtype(model: nn.Module, site: WriteSite) -> torch.dtype:
    """The dtype that a site is computed in."""
    own = getattr(model.get_submodule(site.module), site.parameter, None)
    if plain(model, site) and isinstance(own, Tensor):
        return own.dtype
    norms = (weight.dtype for name, weight in model.named_parameters() if "norm" in name and weight.is_floating_point())
    return next(norms, torch.float32)


def columns(model: nn.Module, site: WriteSite, units: Sequence[int]) -> Float[Tensor, "units hidden"]:
    """The columns of some units of a site, counted from the site's first. Float32 on the CPU."""
    module = model.get_submodule(site.module)
    if not units:
        return torch.zeros(0, 0)
    if not plain(model, site):
        return asked_columns(module, site.width, units, dtype(model, site))
    own = own_weight(module, site.parameter)
    if site.experts is None:
        chosen = torch.tensor(list(units), device=own.device)
        return (own[chosen] if site.transposed else own[:, chosen].T).float().cpu()
    rows = []
    for unit in units:
        expert, place = divmod(unit, site.experts.width)
        rows.append(own[expert, place] if site.experts.transposed else own[expert, :, place])
    return torch.stack(rows).float().cpu()


def project(
    model: nn.Module,
    site: WriteSite,
    directions: Float[Tensor, "rows hidden"],
    active: Float[Tensor, "rows width"] | None = None,
) -> Float[Tensor, "rows width"]:
    """The product of every direction with every column, in the directions' dtype, on the CPU.

    Args:
        model: the model.
        site: one of its write sites.
        directions: a row for each.
        active: activations; experts that are at zero in all rows are left out, and give zeros.
    """
    module = model.get_submodule(site.module)
    if not plain(model, site):
        return products(module, site.width, directions, dtype(model, site))
    own = own_weight(module, site.parameter)
    given = directions.to(own.device)
    if site.experts is None:
        own = own.T if site.transposed else own
        return (given @ own.to(given.dtype)).cpu()
    values = torch.zeros(len(directions), site.width, dtype=directions.dtype)
    for expert in range(site.experts.count):
        part = slice(expert * site.experts.width, (expert + 1) * site.experts.width)
        if active is None or bool(active[:, part].any()):
            one = own[expert].T if site.experts.transposed else own[expert]
            values[:, part] = (given @ one.to(given.dtype)).cpu()
    return values


def bias(model: nn.Module, site: WriteSite) -> Float[Tensor, "hidden"] | None:
    """The bias that is written whatever the neurons do, if there is one. Float32 on the CPU."""
    module = model.get_submodule(site.module)
    if site.experts is not None or getattr(module, "bias", None) is None:
        return None
    with fetched(module):
        return module.get_parameter("bias").detach().float().cpu()


def expert_activations(
    module: nn.Module, site: WriteSite, given: Sequence[Tensor], positions: Int[Tensor, "positions"]
) -> Float[Tensor, "positions width"]:
    """The activations of all experts at some positions, times the factor that follows; those not chosen are 0.

    Args:
        module: the experts.
        site: what is known of them.
        given: what they were called with.
        positions: rows of the tokens, batch and positions as one.

    Raises:
        AnatomyError: they are called in another way than their kind is known for.
    """
    # what listens runs before accelerate has fetched the weights, or after it has put them away again
    with fetched(module):
        return _expert_activations(module, site, given, positions)


def _expert_activations(
    module: nn.Module, site: WriteSite, given: Sequence[Tensor], positions: Int[Tensor, "positions"]
) -> Float[Tensor, "positions width"]:
    experts = site.experts
    assert experts is not None
    if experts.layout == "sorted":
        hidden = given[0].view(experts.count, -1, given[0].shape[-1])[:, positions]
        gate, up = torch.bmm(hidden, module.get_parameter("gate_up_proj")).chunk(2, -1)
        return (up * module.get_submodule("act_fn")(gate)).transpose(0, 1).flatten(1)
    if len(given) != 3 or given[1].shape != given[2].shape:
        raise AnatomyError(f"{site.module} is not called with tokens, the experts chosen and their factors.")
    hidden, chosen, factors = (one[positions] for one in given)
    made = hidden.new_zeros(len(positions), experts.count, experts.width)
    name = "gate_up_proj" if getattr(module, "has_gate", True) else "up_proj"
    first = module.get_parameter(name)
    for expert in chosen.unique().tolist():
        if expert >= experts.count:
            continue
        token, slot = torch.where(chosen == expert)
        inner = first[expert].T if experts.transposed else first[expert]
        z = torch.nn.functional.linear(hidden[token], inner)
        apply = getattr(module, "_apply_gate" if name == "gate_up_proj" else "act_fn")
        made[token, expert] = (apply(z) * factors[token, slot, None]).to(made.dtype)
    return made.flatten(1)


def expert_outputs(site: WriteSite, given: Tensor, batch: int) -> Float[Tensor, "batch length hidden"]:
    """What experts gave, for every token one row: the sum over the experts where they gave one row for each."""
    assert site.experts is not None
    if site.experts.layout == "sorted":
        given = given.view(site.experts.count, -1, given.shape[-1]).sum(0)
    return given.reshape(batch, -1, given.shape[-1])
