"""The safetensors files of a checkpoint: which there are, a tensor of them, and one written anew with some changed.

A safetensors file is the length of a JSON header, the header (dtype, shape and place of every tensor), and the bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

__all__ = ["DTYPES", "Shards", "ShardsError", "opened", "rewrite"]

DTYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"}
"""The dtypes that an edited weight may have, as the format calls them."""

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
CHUNK = 2**24


class ShardsError(Exception):
    """A checkpoint has no such files, or they cannot be read. The message is one sentence about them."""


@dataclass(frozen=True)
class Shards:
    """The weights of a checkpoint, in the files that transformers reads.

    Attributes:
        folder: where they are.
        index: the file that says which of several files holds what; None where there is one file.
        handles: the files, opened.
        places: the file of every tensor.
    """

    folder: Path
    index: Path | None
    handles: Mapping[Path, safe_open]
    places: Mapping[str, Path]

    def read(self, name: str) -> Tensor:
        """A tensor by its name."""
        return self.handles[self.places[name]].get_tensor(name)

    def dtype(self, name: str) -> torch.dtype | None:
        """The dtype of a tensor, if it is one of ``DTYPES``."""
        called = self.handles[self.places[name]].get_slice(name).get_dtype()
        return next((dtype for dtype, own in DTYPES.items() if own == called), None)


@contextmanager
def opened(folder: Path) -> Iterator[Shards]:
    """The weights of a checkpoint, while the block runs.

    Raises:
        ShardsError: it has none as safetensors, or they cannot be read.
    """
    with ExitStack() as stack:
        try:
            index, files = _listed(folder)
            handles = {file: stack.enter_context(safe_open(file, framework="pt", device="cpu")) for file in files}
            places = {name: file for file, handle in handles.items() for name in handle.offset_keys()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise ShardsError(f"They cannot be read: {error}.") from error
        yield Shards(folder, index, handles, places)


def _listed(folder: Path) -> tuple[Path | None, list[Path]]:
    asked = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("transformers_weights")
    main = next((folder / name for name in ([asked] if asked else [SINGLE, INDEX]) if (folder / name).is_file()), None)
    if main is None:
        raise ShardsError("They hold no weights as safetensors.")
    if not main.name.endswith(".index.json"):
        return None, [main]
    named = json.loads(main.read_text(encoding="utf-8"))["weight_map"].values()
    return main, [folder / name for name in sorted(set(named))]


def rewrite(source: Path, target: Path, dtypes: Mapping[str, torch.dtype], changed: Callable[[str], Tensor]) -> int:
    """Write a file of weights anew. One tensor at a time is in memory; those that stay are copied as bytes.

    Args:
        source: the file.
        target: the new file.
        dtypes: the tensors that change, and the dtype that each shall have.
        changed: gives one of them as it shall be, of the same shape.

    Returns:
        By how many bytes the tensors have grown.
    """
    with source.open("rb") as old, target.open("wb") as new:
        length = int.from_bytes(old.read(8), "little")
        header = json.loads(old.read(length))
        places = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
        sizes = {name: end - start for name, (start, end) in places.items()}
        for name, dtype in dtypes.items():
            sizes[name] = math.prod(header[name]["shape"]) * dtype.itemsize
            header[name]["dtype"] = DTYPES[dtype]
        names = sorted(places, key=lambda name: places[name])
        grown = sum(sizes.values()) - sum(end - start for start, end in places.values())
        if grown:
            # so that each starts at a multiple of the size of its numbers, as safetensors itself sees to
            names.sort(key=lambda name: -sizes[name] // max(math.prod(header[name]["shape"]), 1))
        at = 0
        for name in names:
            header[name]["data_offsets"] = [at, at + sizes[name]]
            at += sizes[name]
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        new.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            if name in dtypes:
                tensor = changed(name).contiguous()
                assert (tensor.dtype, tensor.nbytes) == (dtypes[name], sizes[name])
                new.write(tensor.flatten().view(torch.uint8).numpy().data)
                continue
            start, end = places[name]
            old.seek(8 + length + start)
            while start < end:
                new.write(old.read(min(CHUNK, end - start)))
                start += CHUNK
    return grown
