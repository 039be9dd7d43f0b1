"""An edit as a LoRA adapter that peft loads.

Per write site ``W += B A``. Where columns get fewer directions than they are, A are their weights, a row for each
direction, and B the directions; of rank one where all get the same. Otherwise A has a row for each column, with a
single 1, and B their vectors, so that no sum is rounded. Every scale, alpha over rank, is 1: both are written for every
site whose rank is not the largest, since peft divides the common alpha by a site's own rank.

A mixture of experts has one A and one B for all: peft takes A as (experts, rank, in) and B as (out, rank, experts),
each laid flat. The rank is the largest of all experts; the rest is zero. Here ``in`` and ``out`` are what peft takes
the last two axes of the weight for, which need not be what they are.

In models with a mixture, peft takes a module ``….down_proj`` for the experts' weights of that name, as they were once
stored. So there the weights of dense sites are named as parameters, too, and all sites have the same rank: ranks of
their own work, but peft warns that it ignores them.

The files are written without peft. Tensors are float32: peft adds float32 to half precision and rounds once, except in
parameters, where it rounds what is added first.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn

from mmneurons.edits.edit import Edit
from mmneurons.edits.shipping import Part, check_fits, check_folder, new_folder, parts
from mmneurons.errors import EditError

if TYPE_CHECKING:
    from mmneurons.vlm.model import VLM

__all__ = ["to_peft"]


@dataclass(frozen=True, eq=False)
class _Adapter:
    """The LoRA of one write site.

    Attributes:
        module: the dotted name of the module that peft puts its own around.
        target: what the configuration calls the site: the module, or its parameter.
        rank: the rank.
        a: as it is stored.
        b: as it is stored.
        transposed: whether peft has to turn the module's weight.
    """

    module: str
    target: str
    rank: int
    a: Float[Tensor, "rows in"]
    b: Float[Tensor, "out rows"]
    transposed: bool = False


def to_peft(edit: Edit, vlm: VLM, folder: str | os.PathLike[str], force: bool = False) -> Path:
    """Write an edit as ``adapter_config.json`` and ``adapter_model.safetensors``.

    ``peft.PeftModel.from_pretrained(model, folder)`` and ``model.load_adapter(folder)`` take them. The model gives what
    it gives under the edit, but for the order in which numbers are added; merged, the weights are the same to the last
    bit, except that directions of rank 2 and more which are fewer than their columns are summed up by peft, and that
    what is added to experts of half precision is rounded first.

    Args:
        edit: the edit.
        vlm: the model that it is of. Only names and shapes are read from it.
        folder: where to; made anew, or empty.
        force: whether to write it for a model whose weights are not those that the edit was made of, or that the edit
            is in force in.

    Returns:
        The folder.

    Raises:
        EditError: the edit changes no weights, is of another model, or there is something in the folder.
    """
    check_folder(folder)
    check_fits(edit, vlm, force)
    own = parts(edit, vlm.anatomy)
    if any(site.experts is not None for block in vlm.anatomy.blocks for site in block.sites):
        rank = max(_rank(part, chosen) for part in own for chosen in _groups(part))
        adapters = [_of_parameter(vlm.model, part, rank) for part in own]
    else:
        adapters = [_of_module(part) for part in own]
    config = _config(vlm, adapters)
    tensors = {}
    for adapter in adapters:
        tensors[f"base_model.model.{adapter.module}.lora_A.weight"] = adapter.a.contiguous()
        tensors[f"base_model.model.{adapter.module}.lora_B.weight"] = adapter.b.contiguous()
    with new_folder(folder) as building:
        (building / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_file(tensors, building / "adapter_model.safetensors", metadata={"format": "pt"})
    return Path(folder)


def _config(vlm: VLM, adapters: Sequence[_Adapter]) -> dict[str, object]:
    modules = [adapter.target for adapter in adapters if adapter.target == adapter.module]
    parameters = [adapter.target for adapter in adapters if adapter.target != adapter.module]
    if alike := _endings(parameters, [name for name, _ in vlm.model.named_parameters()]):
        raise EditError(
            f"peft cannot be told to leave {alike[0]} alone, whose name ends like one that the edit changes. Write a "
            "checkpoint instead: edit.merge(vlm, folder)."
        )
    # peft takes a list for endings, a regular expression for whole names
    whole = bool(_endings(modules, [name for name, _ in vlm.model.named_modules()]))
    rank = max(adapter.rank for adapter in adapters)
    others = {adapter.target: adapter.rank for adapter in adapters if adapter.rank != rank}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": vlm.name,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": "|".join(map(re.escape, modules)) if whole else modules,
        "target_parameters": parameters or None,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": any(adapter.transposed for adapter in adapters),
    }


def _endings(targets: Sequence[str], names: Sequence[str]) -> list[str]:
    """Names, other than the targets, that end on one."""
    endings = tuple(f".{target}" for target in targets)
    return [name for name in names if name.endswith(endings)]


def _of_module(part: Part) -> _Adapter:
    every = torch.arange(len(part.units))
    by_columns, by_hidden = _factors(part, every, part.site.width, _rank(part, every))
    return _Adapter(part.site.module, part.site.module, len(by_columns), by_columns, by_hidden.T, part.site.transposed)


def _of_parameter(model: nn.Module, part: Part, rank: int) -> _Adapter:
    site, groups = part.site, _groups(part)
    width = site.width // len(groups)
    factors = [_factors(part, chosen, width, rank) for chosen in groups]
    by_columns, by_hidden = (torch.stack(both) for both in zip(*factors, strict=True))
    # peft takes the last axis for what goes in, but of experts whose module says that it is transposed the last but one
    if site.experts is None:
        swapped = site.transposed
    else:
        swapped = site.experts.transposed != bool(getattr(model.get_submodule(site.module), "is_transposed", False))
    a, b = (by_hidden, by_columns) if swapped else (by_columns, by_hidden)
    return _Adapter(site.module, part.parameter, rank, a.flatten(0, 1), b.permute(2, 1, 0).flatten(1))


def _groups(part: Part) -> list[Int[Tensor, "chosen"]]:
    """Which of the changed columns belong to every expert; to the site, where it has none."""
    experts = part.site.experts
    if experts is None:
        return [torch.arange(len(part.units))]
    return [(part.units // experts.width == expert).nonzero()[:, 0] for expert in range(experts.count)]


def _rank(part: Part, chosen: Int[Tensor, "chosen"]) -> int:
    """The rank of the change of some columns."""
    return min(len(part.directions), len(chosen))


def _factors(
    part: Part, chosen: Int[Tensor, "chosen"], width: int, rank: int
) -> tuple[Float[Tensor, "{rank} {width}"], Float[Tensor, "{rank} hidden"]]:
    """Two matrices, by columns and by the stream, whose product over the first axis is the change of some columns."""
    weights, directions = part.weights[chosen], part.directions
    if len(directions) >= len(chosen):
        weights, directions = torch.eye(len(chosen)), part.vectors[chosen]
    by_columns, by_hidden = torch.zeros(rank, width), torch.zeros(rank, directions.shape[1])
    by_columns[: len(directions), part.units[chosen] % width] = weights.T
    by_hidden[: len(directions)] = directions
    return by_columns, by_hidden
