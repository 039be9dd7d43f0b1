"""Edits of tiny models, put into the weights by hand, and what the models then give."""

from functools import cache

import torch

import mmneurons as mmn
from helpers.families import FAMILIES
from mmneurons.edits import Delta, Edit
from mmneurons.vlm.fingerprint import fingerprint
from mmneurons.vlm.model import VLM

__all__ = ["anatomy", "by_hand", "draw", "logits", "studied"]

KINDS = ("own", "one", "few")


@cache
def anatomy(family):
    """What is measured of a family, once."""
    case = FAMILIES[family]()
    return mmn.wrap(case.model, inputs=None if case.text else case.inputs).anatomy


def studied(family, dtype=torch.float32):
    """A tiny model of a family in a dtype, and what it is asked."""
    case = FAMILIES[family]()
    vlm = VLM(case.model.to(dtype), None, anatomy(family), type(case.model).__name__)
    inputs = {name: one.to(dtype) if one.is_floating_point() else one for name, one in case.inputs.items()}
    if vlm.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.tensor([[1, 5, 6]])
    return vlm, inputs


def draw(vlm, kinds=KINDS, blocks=None, count=5, size=0.3):
    """An edit of some columns of every write site of blocks: with directions of their own, one for all, or two."""
    generator = torch.Generator().manual_seed(1)
    deltas = []
    for block in range(len(vlm.anatomy.blocks)) if blocks is None else blocks:
        sites = vlm.anatomy.blocks[block].sites
        chosen = [site.start + torch.randperm(site.width, generator=generator)[:count] for site in sites]
        columns = torch.cat(chosen).sort().values
        kind = kinds[block % len(kinds)]
        rank = {"own": len(columns), "one": 1, "few": 2}[kind]
        directions = size * torch.randn(rank, vlm.anatomy.hidden, generator=generator)
        weights = torch.eye(rank) if kind == "own" else torch.randn(len(columns), rank, generator=generator)
        deltas.append(Delta(block, columns, weights, directions))
    recipe = {"source": "dog", "to": "cat", "method": "drawn"}
    return Edit(tuple(deltas), recipe, {"name": vlm.name, "fingerprint": fingerprint(vlm.model)})


@torch.no_grad()
def by_hand(vlm, edit):
    """Change the weights, a column at a time."""
    for delta in edit.deltas:
        for column, vector in zip(delta.columns.tolist(), delta.vectors, strict=True):
            site = vlm.anatomy.site(delta.block, column)
            weight, unit = vlm.model.get_submodule(site.module).get_parameter(site.parameter), column - site.start
            if site.experts is not None:
                expert, unit = divmod(unit, site.experts.width)
                own = weight[expert, unit] if site.experts.transposed else weight[expert, :, unit]
            else:
                own = weight[unit] if site.transposed else weight[:, unit]
            own += vector


@torch.no_grad()
def logits(model, inputs):
    """What a model gives for a picture and a few words."""
    return model(**inputs).logits
