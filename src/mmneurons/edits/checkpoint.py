"""A whole checkpoint with an edit in its weights.

The files of the checkpoint that the model came from are copied one by one. Of a file of weights only the edit's columns
are written anew; a file without any is the same byte for byte. A tensor at a time is in memory, so the model is never
held twice. Before anything is written, every weight in memory is compared with what the files keep of it: a model that
was trained on since it was loaded is not what its files say.

Where there are no such files, or they are not those of the model, the model in memory is saved by transformers, with
the edit in what it is given to save.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from mmneurons.demo.assembly import default_folder
from mmneurons.edits.edit import Edit
from mmneurons.edits.shards import DTYPES, Shards, ShardsError, opened, rewrite
from mmneurons.edits.shipping import Part, check_fits, check_folder, is_of, new_folder, parts
from mmneurons.edits.stack import active
from mmneurons.errors import AnatomyError, EditError
from mmneurons.vlm.families.first_llava import is_first_llava
from mmneurons.vlm.loading import without_bars
from mmneurons.vlm.sites import plain
from mmneurons.vlm.stored import may_be_absent, stored_as, weights
from mmneurons.vlm.weights import bits, own_weight

if TYPE_CHECKING:
    from mmneurons.vlm.model import VLM

__all__ = ["Merged", "merge"]

OTHER_WEIGHTS = (
    ".safetensors",
    ".safetensors.index.json",
    ".bin",
    ".bin.index.json",
    ".ckpt",
    ".gguf",
    ".h5",
    ".msgpack",
    ".npz",
    ".onnx",
    ".onnx_data",
    ".ot",
    ".pt",
    ".pth",
)
"""What weights come as. Files that transformers does not read, but others may, hold them without the edit."""


@dataclass(frozen=True)
class Merged:
    """A checkpoint that was written.

    Attributes:
        folder: where it is.
        source: the checkpoint whose files it is made of; None where the model in memory was saved.
        rewritten: the tensors that are not the source's, by their names in the files; of a model that was saved, by
            their names in the model.
        left_out: the source's files that are not in it, since they hold the weights once more, without the edit.
        note: why the model in memory was saved; empty where it was not.
    """

    folder: Path
    source: Path | None
    rewritten: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, eq=False)
class _Change:
    """What an edit does to a weight, or to a piece of it.

    Attributes:
        added: what is added, 0 where nothing is.
        where: whether an element is in an edited column.
    """

    added: Float[Tensor, "..."]
    where: Bool[Tensor, "..."]


class _Unlike(Exception):
    """The files are not those of the model. The message is one sentence about them."""


def merge(edit: Edit, vlm: VLM, folder: str | os.PathLike[str], force: bool = False) -> Merged:
    """Write the model's checkpoint with the edit in its weights.

    Loaded in the dtype that the model has here, it gives what the model gives under the edit, to the last bit. Where
    the files have another dtype, the edit's columns are what the model here rounds them to, and a tensor that cannot
    hold them gets a dtype that can.

    Args:
        edit: the edit.
        vlm: the model that it is of. It is not changed.
        folder: where to; made anew, or empty.
        force: whether the model's weights may be others than those that the edit was made of, or have the edit in
            force in them. There have to be files of the model then.

    Returns:
        Where it is, and how it was made. A warning, too, says where the files that are there could not be used.

    Raises:
        EditError: the edit changes no weights or is of another model, its write sites are quantised, there is something
            in the folder, or it cannot be written.
    """
    check_folder(folder)
    check_fits(edit, vlm, force)
    if packed := [part.parameter for part in parts(edit, vlm.anatomy) if not plain(vlm.model, part.site)]:
        raise EditError(
            f"{packed[0]} is quantised: no vector can be added to what is stored of it. Load the model without "
            "quantization and merge there, or write an adapter: edit.to_peft(folder, vlm)."
        )
    reasons: list[str] = []
    for source in _sources(vlm):
        try:
            return _from_files(edit, vlm, source, Path(folder), force)
        except (ShardsError, _Unlike) as reason:
            reasons.append(
                f"The files of {str(source)!r} are not those of the model in memory: so it was saved. {reason}"
            )
    if force and not is_of(edit, vlm):
        raise EditError(
            f"There are no files of {vlm.name!r} that hold what is in memory, where the weights are not those that the "
            "edit was made of: an edit may be in force in them. Withdraw all edits; or apply this one, and call "
            "vlm.model.save_pretrained(folder)."
        )
    if any(one.banned for one in active(vlm)):
        raise EditError(
            "A ban is in force in this model, which is saved from memory, and would be saved with the settings of its "
            "generation. Withdraw it first."
        )
    note = reasons[0] if reasons else f"There are no files of {vlm.name!r} here, so what is in memory was saved."
    if reasons:
        warnings.warn(note, stacklevel=2)
    return _from_memory(edit, vlm, Path(folder), note)


def _sources(vlm: VLM) -> list[Path]:
    """The folders on this machine that a model may have been loaded from. Nothing is downloaded."""
    folder = default_folder() if vlm.name == "demo" else Path(vlm.name).expanduser()
    if (folder / "config.json").is_file():
        return [folder]
    from huggingface_hub import constants

    # no model says which version it is of, so all that were ever downloaded are compared, that of the main branch first
    kept = Path(constants.HF_HUB_CACHE) / f"models--{vlm.name.replace('/', '--')}"
    main = kept / "refs" / "main"
    first = main.read_text(encoding="utf-8").strip() if main.is_file() else ""
    found = [path for path in (kept / "snapshots").glob("*") if (path / "config.json").is_file()]
    return sorted(found, key=lambda path: (path.name != first, -path.stat().st_mtime))


def _from_files(edit: Edit, vlm: VLM, source: Path, folder: Path, force: bool) -> Merged:
    if is_first_llava(source):
        raise _Unlike("They are a first-generation LLaVA's, which transformers cannot read.")
    own = {part.parameter: part for part in parts(edit, vlm.anatomy)}
    with opened(source) as shards:
        changed = _compared(vlm, own, shards, force)
        # before the new folder is made, which may lie in the old one
        files = sorted(path for path in source.rglob("*") if path.is_file() and not _hidden(path.relative_to(source)))
        if not shards.handles.keys() <= {*files}:
            raise _Unlike("They do not lie in that folder.")
        others = {path for path in files if path.name.endswith(OTHER_WEIGHTS)} - {*shards.handles, shards.index}
        with new_folder(folder) as building:
            _copy(vlm, own, shards, changed, [path for path in files if path not in others], building)
    left_out = tuple(str(path.relative_to(source)) for path in sorted(others))
    return Merged(folder, source, tuple(sorted(changed)), left_out)


def _compared(vlm: VLM, own: Mapping[str, Part], shards: Shards, force: bool) -> dict[str, str]:
    """Compare all weights in memory with the files.

    Returns:
        The tensors in the files that the edit changes, and the weights of the model that they are, or are pieces of.

    Raises:
        _Unlike: the files lack a weight, or hold another.
    """
    changed: dict[str, str] = {}
    try:
        optional = may_be_absent(vlm.model)
        for group in weights(vlm.model):
            changes: dict[str, _Change] = {}
            for name in own.keys() & group.keys():
                for piece, change in _pieces(vlm, own[name]).items():
                    changes[piece] = change
                    changed[piece] = name
            for piece, weight in stored_as(vlm.model, group).items():
                if piece not in shards.places and piece in optional and piece not in changes:
                    continue
                if piece not in shards.places:
                    raise _Unlike(f"They lack {piece}.")
                change = changes.get(piece)
                if change is not None and not {shards.dtype(piece), weight.dtype} <= DTYPES.keys():
                    raise _Unlike(f"They hold {piece} in another kind of numbers.")
                if not _same(shards.read(piece), weight, change, force):
                    raise _Unlike(f"They hold another {piece}.")
    except (AnatomyError, ValueError) as error:
        raise _Unlike(f"They cannot be compared: {error}") from error
    if lacking := [piece for piece in changed if piece not in shards.places]:
        raise _Unlike(f"They lack {lacking[0]}.")
    return changed


def _same(stored: Shaped[Tensor, "..."], weight: Shaped[Tensor, "..."], change: _Change | None, force: bool) -> bool:
    """Whether a tensor in the files is what the model has, and, where it is edited, one that an edit can be put in."""
    if stored.shape != weight.shape or stored.is_floating_point() != weight.is_floating_point():
        return False
    if not weight.is_floating_point():
        return bool((stored == weight).all())
    read = stored.to(weight.dtype)
    alike = _alike(read, weight)
    if change is not None and force:
        alike |= change.where & _alike(_edited(read, change), weight)
    return bool(alike.all())


def _copy(
    vlm: VLM, own: Mapping[str, Part], shards: Shards, changed: Mapping[str, str], files: list[Path], building: Path
) -> None:
    dtypes = {name: vlm.model.get_parameter(name).dtype for name in own}

    # the pieces of one weight follow one another in a file
    @lru_cache(maxsize=1)
    def pieces(name: str) -> dict[str, _Change]:
        return _pieces(vlm, own[name])

    def anew(piece: str) -> Tensor:
        stored, name = shards.read(piece), changed[piece]
        change = pieces(name)[piece]
        before = stored.to(dtypes[name])
        after = _edited(before, change)
        kind = torch.promote_types(stored.dtype, after.dtype)
        return torch.where(_alike(before, after), stored.to(kind), after.to(kind))

    grown = 0
    for path in files:
        target = building / path.relative_to(shards.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        kinds = {
            piece: torch.promote_types(shards.dtype(piece) or dtypes[name], dtypes[name])
            for piece, name in changed.items()
            if shards.places[piece] == path
        }
        if kinds:
            grown += rewrite(path, target, kinds, anew)
        else:
            shutil.copyfile(path, target)
    if grown and shards.index is not None:
        target = building / shards.index.relative_to(shards.folder)
        index = json.loads(target.read_text(encoding="utf-8"))
        if "total_size" in index.get("metadata", {}):
            index["metadata"]["total_size"] += grown
            target.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _pieces(vlm: VLM, part: Part) -> dict[str, _Change]:
    """What an edit does to the tensors that the files keep of a weight; those that it leaves alone are left out."""
    shape = vlm.model.get_parameter(part.parameter).shape
    added, where = torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)
    _rows(added, part)[_at(part)] = part.vectors
    _rows(where, part)[_at(part)] = True
    values, marks = (stored_as(vlm.model, {part.parameter: one}) for one in (added, where))
    return {name: _Change(values[name], mark) for name, mark in marks.items() if bool(mark.any())}


def _from_memory(edit: Edit, vlm: VLM, folder: Path, note: str) -> Merged:
    state = vlm.model.state_dict()
    own = parts(edit, vlm.anatomy)
    for part in own:
        weight = own_weight(vlm.model.get_submodule(part.site.module), part.site.parameter).clone()
        rows, at = _rows(weight, part), _at(part)
        rows[at] = _sum(rows[at], part.vectors.to(weight.device))
        state[part.parameter] = weight
    with new_folder(folder) as building, without_bars():
        try:
            vlm.model.save_pretrained(building, state_dict=state)
            if vlm.processor is not None:
                vlm.processor.save_pretrained(building)
        except (OSError, ValueError, RuntimeError, NotImplementedError) as error:
            raise EditError(f"transformers cannot save {vlm.name!r}: {str(error).splitlines()[0]}") from error
    return Merged(folder, None, tuple(part.parameter for part in own), note=note)


def _edited(weight: Float[Tensor, "..."], change: _Change) -> Float[Tensor, "..."]:
    return torch.where(change.where, _sum(weight, change.added), weight)


def _sum(weight: Float[Tensor, "..."], added: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """What an edited weight is: added in float32 at least, rounded once."""
    made = (weight.to(torch.promote_types(weight.dtype, torch.float32)) + added).to(weight.dtype)
    if bool((weight.isfinite() & ~made.isfinite()).any()):
        kind = str(weight.dtype).removeprefix("torch.")
        raise EditError(
            f"With this edit, weights would be too large for {kind}. Load the model in bfloat16 or float32."
        )
    return made


def _rows(weight: Shaped[Tensor, "..."], part: Part) -> Shaped[Tensor, "..."]:
    """A view of a weight in which the last axis but one are the columns, and the last the stream."""
    experts = part.site.experts
    turned = part.site.transposed if experts is None else experts.transposed
    return weight if turned else weight.transpose(-1, -2)


def _at(part: Part) -> tuple[Int[Tensor, "neurons"], ...]:
    """Where the edit's columns are in that view."""
    experts = part.site.experts
    return (part.units,) if experts is None else (part.units // experts.width, part.units % experts.width)


def _alike(one: Float[Tensor, "..."], other: Float[Tensor, "..."]) -> Bool[Tensor, "..."]:
    """Where two tensors have the same bits: NaN equals itself, and the two zeros differ."""
    return bits(one.contiguous()) == bits(other.contiguous())


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
