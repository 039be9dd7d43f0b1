"""Which column of a table holds pictures, and the bytes in one of its cells."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from mmneurons.errors import PictureError, SourceError
from mmneurons.sources.item import as_text, read_file

if TYPE_CHECKING:
    import pyarrow

__all__ = ["bytes_of", "picture_column"]

NAMES = ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp")
PATH_NAMES = ("image_path", "img_path", "file_name", "filename", "file_path", "filepath", "path", "file")


def picture_column(path: str, schema: pyarrow.Schema, wanted: str | None) -> str:
    """The name of the column of pictures.

    It is the one that is wanted; else the only one that a Hugging Face dataset calls an image; else the only one of
    bytes; else the only one of bytes that is called like a picture; else, where there are no bytes, the only one of
    text that is.

    Args:
        path: the table's file, for messages.
        schema: its columns.
        wanted: the column that was asked for.

    Raises:
        SourceError: there is no such column, it cannot hold pictures, or which one does is not clear.
    """
    there = ", ".join(f"{field.name} ({field.type})" for field in schema)
    if wanted is not None:
        if schema.names.count(wanted) != 1:
            raise SourceError(f"{as_text(path)!r} has no column {wanted!r}. Its columns are: {there}.")
        if not (_holds_bytes(schema.field(wanted).type) or _holds_text(schema.field(wanted).type)):
            raise SourceError(
                f"The column {wanted!r} of {as_text(path)!r} holds neither bytes nor paths. Its columns are: {there}."
            )
        return wanted
    of_bytes = [field.name for field in schema if _holds_bytes(field.type)]
    of_text = [field.name for field in schema if _holds_text(field.type)]
    ways = (
        _declared(schema, of_bytes),
        of_bytes,
        [name for name in of_bytes if name.lower() in NAMES],
        [] if of_bytes else [name for name in of_text if name.lower() in (*NAMES, *PATH_NAMES)],
    )
    for fitting in ways:
        if len(fitting) == 1:
            return fitting[0]
    found = "several columns could hold pictures" if any(ways) else "no column looks as if it held pictures"
    raise SourceError(f"In {as_text(path)!r} {found}. Name it with --column (column=…). The columns are: {there}.")


def bytes_of(cell: object, source: str, folder: str) -> bytes:
    """A picture's bytes: the cell itself, those of Hugging Face's ``{bytes, path}``, or those of the file it names.

    Args:
        cell: what stands in the row.
        source: what to call it in messages.
        folder: what paths are relative to.

    Raises:
        PictureError: the cell is empty, or the file that it names cannot be read.
    """
    if isinstance(cell, dict):
        cell = cell.get("path") if cell.get("bytes") is None else cell["bytes"]
    if isinstance(cell, bytes):
        return cell
    if not isinstance(cell, str) or not cell:
        raise PictureError(f"{source!r} holds no picture: the cell is empty.")
    if cell.startswith(("http://", "https://")):
        raise PictureError(f"{source!r} holds an address, {cell!r}. Addresses are not fetched.")
    path = os.path.join(folder, cell)
    if not os.path.lexists(path):
        raise PictureError(f"{source!r} names {as_text(path)!r}, which is not there.")
    return read_file(path, source)


def _declared(schema: pyarrow.Schema, among: list[str]) -> list[str]:
    """The columns that a Hugging Face dataset says are images."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [name for name in among if features[name]["_type"] == "Image"]
    except (KeyError, TypeError, ValueError):
        return []


def _plain(kind: pyarrow.DataType) -> pyarrow.DataType:
    import pyarrow

    if isinstance(kind, pyarrow.DictionaryType):
        return _plain(kind.value_type)
    if isinstance(kind, pyarrow.BaseExtensionType):
        return _plain(kind.storage_type)
    return kind


def _holds_bytes(kind: pyarrow.DataType) -> bool:
    from pyarrow import types

    kind = _plain(kind)
    if types.is_struct(kind):
        inner = kind.get_field_index("bytes")
        return inner >= 0 and _holds_bytes(kind.field(inner).type)
    return any(
        is_kind(kind)
        for is_kind in (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view)
    )


def _holds_text(kind: pyarrow.DataType) -> bool:
    from pyarrow import types

    kind = _plain(kind)
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
