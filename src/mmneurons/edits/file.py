"""An edit as a file: safetensors, with a SHA-256 over all its bytes.

The tensors are ``block{b}.columns`` (int64), ``block{b}.weights`` and ``block{b}.directions`` (float32); weights that
are the identity are left out. Everything else is in the header's ``__metadata__``, as JSON texts. The digest stands at
a fixed place near the beginning and is taken of the file with zeros in its place: all other bytes are in the digest,
and its own are compared one by one, so no bit can change unseen. Nothing of a file is parsed before that.

The same edit gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from mmneurons.edits.edit import Delta, Edit
from mmneurons.errors import EditError, OptionError
from mmneurons.whole_files import write_whole

__all__ = ["FORMAT_VERSION", "load", "save"]

FORMAT_VERSION = 1
"""Of the files that are written. Files of later versions are refused."""

_BEGINNING = b'{"__metadata__":{"kind":"mmneurons.edit","sha256":"'
"""What the header of every edit begins with; the digest follows."""

_LENGTH = 8
"""The bytes before the header, which tell its length."""

_DIGEST = slice(_LENGTH + len(_BEGINNING), _LENGTH + len(_BEGINNING) + 64)
"""Where the digest's digits are in the file."""

_LARGEST = 16
"""Identities are left out up to so many columns for each entry of a direction: what is not in the file has to be made
when it is read, and a small file must not fill the memory."""

_CHUNK = 2**20


def save(edit: Edit, path: str | os.PathLike[str]) -> None:
    """Write an edit to a file. What was there stays whole until the new file is.

    Args:
        edit: the edit.
        path: the file; its folder is made where it is missing.

    Raises:
        EditError: the path is a folder or cannot be written to, or the edit holds what cannot be kept as it is.
    """
    path = Path(path)
    if path.is_dir():
        raise EditError(
            f"{str(path)!r} is a folder, and an edit is a file. Name one, such as {str(path / 'edit.safetensors')!r}."
        )
    content = _content(edit)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError as error:
        raise EditError(f"{str(path)!r} cannot be written: {error.strerror or error}. Choose another place.") from error


def load(path: str | os.PathLike[str]) -> Edit:
    """Read an edit from a file that ``save`` wrote.

    Raises:
        EditError: there is no such file, it is no edit, it is damaged, or a later version of mmneurons wrote it.
    """
    path = Path(path)
    if path.is_dir():
        raise EditError(f"{str(path)!r} is a folder, and an edit is a file in safetensors format. Name the file.")
    try:
        with path.open("rb") as file:
            _check(file, path)
            file.seek(0)
            content = file.read()
    except FileNotFoundError as error:
        raise EditError(f"There is no file {str(path)!r}. Check the name.") from error
    except (OSError, ValueError) as error:
        raise EditError(f"{str(path)!r} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    try:
        return _edit(content, path)
    except (SafetensorError, OptionError, ValueError, TypeError, KeyError, OverflowError, RuntimeError) as error:
        raise EditError(
            f"{str(path)!r} has the right SHA-256, but is not what mmneurons writes ({type(error).__name__}). Get the "
            "edit from whoever made it."
        ) from error


def _content(edit: Edit) -> bytes:
    """The whole file."""
    texts = {"recipe": edit.recipe, "model": edit.model, "measured": edit.measured}
    about = {name: _text(name, dict(value)) for name, value in texts.items()}
    about["converged"] = _text("converged", edit.converged)
    about["banned"] = _text("banned", edit.banned)
    described, data = _described(edit)
    metadata = {"version": str(FORMAT_VERSION), **about}
    header = _BEGINNING + b"0" * 64 + b'",' + _json(metadata).encode()[1:]
    if described:
        header += b"," + _json(described).encode()[1:]
    else:
        header += b"}"
    # the tensors begin at a multiple of eight bytes
    header += b" " * (-len(header) % 8)
    content = bytearray(len(header).to_bytes(_LENGTH, "little") + header + data)
    content[_DIGEST] = hashlib.sha256(content).hexdigest().encode()
    return bytes(content)


def _described(edit: Edit) -> tuple[dict[str, object], bytes]:
    """What safetensors says of each tensor, and the bytes of all."""
    tensors: dict[str, Tensor] = {}
    for delta in edit.deltas:
        tensors[f"block{delta.block}.columns"] = delta.columns.long()
    # the larger numbers first, so that all are aligned
    for delta in edit.deltas:
        if not _is_identity(delta.weights) or len(delta.columns) > _LARGEST * delta.directions.shape[1]:
            tensors[f"block{delta.block}.weights"] = delta.weights
        tensors[f"block{delta.block}.directions"] = delta.directions
    described: dict[str, object] = {}
    data = bytearray()
    for name, tensor in tensors.items():
        if tensor.dtype not in (torch.int64, torch.float32):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise EditError(f"{name} of {edit} is {kind}; a file keeps float32. Make the edit of float32 tensors.")
        own = tensor.detach().cpu().contiguous().numpy().tobytes()
        kind = "I64" if tensor.dtype == torch.int64 else "F32"
        place = [len(data), len(data) + len(own)]
        described[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": place}
        data += own
    return described, bytes(data)


def _is_identity(weights: Tensor) -> bool:
    """Whether they are the identity to the bit: a zero may be negative."""
    if weights.shape != (len(weights), len(weights)) or weights.dtype != torch.float32:
        return False
    return torch.equal(weights.cpu().view(torch.int32), torch.eye(len(weights)).view(torch.int32))


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _text(name: str, value: object) -> str:
    try:
        return _json(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise EditError(f"The {name!r} of an edit has to be what JSON can say: {error}.") from error


def _check(file: BinaryIO, path: Path) -> None:
    """Raise an EditError unless a file begins as an edit does and its digest is that of its bytes."""
    beginning = file.read(_DIGEST.stop)
    if beginning[_LENGTH : _DIGEST.start] != _BEGINNING or len(beginning) < _DIGEST.stop:
        raise EditError(
            f"{str(path)!r} is not an edit that mmneurons wrote, or its beginning is damaged. Name an edit's file; if "
            "this is one, get it again."
        )
    digest = hashlib.sha256(beginning[: _DIGEST.start] + b"0" * 64)
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    if digest.hexdigest().encode() != beginning[_DIGEST]:
        raise EditError(f"{str(path)!r} is damaged: its SHA-256 is not the one that was written. Get the file again.")


def _edit(content: bytes, path: Path) -> Edit:
    """The edit in a file whose digest is right.

    Raises:
        EditError: a later version wrote it.
        SafetensorError, OptionError, ValueError, TypeError, KeyError, OverflowError, RuntimeError: it is not what
            ``save`` writes.
    """
    length = int.from_bytes(content[:_LENGTH], "little")
    about = json.loads(content[_LENGTH : _LENGTH + length])["__metadata__"]
    version = int(about["version"])
    if version < 1:
        raise ValueError("no such format")
    if version > FORMAT_VERSION:
        raise EditError(
            f"{str(path)!r} was written by a later version of mmneurons: its format is {version}, and this version "
            f"reads formats up to {FORMAT_VERSION}. Install a newer mmneurons."
        )
    recipe, model, measured, converged, banned = (
        json.loads(about[name]) for name in ("recipe", "model", "measured", "converged", "banned")
    )
    if not all(isinstance(one, dict) for one in (recipe, model, measured)) or not isinstance(converged, bool):
        raise ValueError("not an edit's header")
    return Edit(_deltas(load_tensors(content)), recipe, model, measured, converged, _sequences(banned))


def _sequences(banned: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    found = tuple(tuple(sequence) for sequence in banned)
    if not all(type(token) is int for sequence in found for token in sequence):
        raise ValueError("not tokens")
    return found


def _deltas(tensors: Mapping[str, Tensor]) -> tuple[Delta, ...]:
    rest = dict(tensors)
    deltas = []
    blocks = [int(name.removeprefix("block").removesuffix(".columns")) for name in rest if name.endswith(".columns")]
    for block in sorted(blocks):
        columns, directions = rest.pop(f"block{block}.columns"), rest.pop(f"block{block}.directions")
        weights = rest.pop(f"block{block}.weights", None)
        if weights is None and len(columns) > _LARGEST * directions.shape[1]:
            raise ValueError("an identity that would be in the file")
        weights = torch.eye(len(columns)) if weights is None else weights
        kinds = (columns.dtype, weights.dtype, directions.dtype)
        if kinds != (torch.int64, torch.float32, torch.float32) or columns.dim() != 1 or directions.dim() != 2:
            raise ValueError("not an edit's tensors")
        if weights.shape != (len(columns), len(directions)):
            raise ValueError("not an edit's shapes")
        deltas.append(Delta(block, columns, weights, directions))
    if rest:
        raise ValueError("tensors that no edit has")
    return tuple(deltas)
