"""Tables with a column of pictures: Parquet files, folders of them, Hugging Face datasets saved with save_to_disk."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from mmneurons.errors import PictureError, SourceError
from mmneurons.sources.columns import picture_column
from mmneurons.sources.item import Item, as_text, from_text
from mmneurons.sources.listing import Asked, Kind
from mmneurons.sources.rows import RowItem, describe, is_parquet
from mmneurons.sources.walking import is_picture_name, search

__all__ = ["TABLES"]

SPLITS = {"train": 0, "training": 0, "validation": 1, "valid": 1, "val": 1, "dev": 1, "test": 2, "testing": 2}
"""The order of a dataset's splits; others follow."""

ONE, SEVERAL = "state.json", "dataset_dict.json"
"""What save_to_disk writes beside one split, and beside the folders of several."""


def _items(name: str, asked: Asked) -> Iterator[Item]:
    return _rows(name, _files(name, asked.recursive), asked)


def _rows(name: str, files: list[str], asked: Asked) -> Iterator[Item]:
    import pyarrow

    empty = True
    for file in files:
        try:
            schema, rows = describe(file)
            column = picture_column(file, schema, asked.column)
        except (pyarrow.ArrowException, LookupError, OSError, ValueError) as error:
            raise SourceError(f"{as_text(file)!r} could not be read as a table: {error}") from error
        empty = empty and not rows
        yield from (RowItem(file, column, row) for row in range(rows))
    if empty and asked.named:
        raise SourceError(f"{as_text(name)!r} holds no picture: it has no rows.")


def _files(name: str, recursive: bool) -> list[str]:
    """The files of rows that a name stands for, in order."""
    if os.path.isfile(name):
        return [name]
    if os.path.isfile(os.path.join(name, ONE)):
        return [os.path.join(name, file) for file in _saved(name)]
    if os.path.isfile(os.path.join(name, SEVERAL)):
        path = os.path.join(name, SEVERAL)
        splits = _json(path).get("splits")
        if not isinstance(splits, list) or not all(isinstance(split, str) for split in splits):
            raise SourceError(f"{as_text(path)!r} names no splits: it is damaged. Save the dataset again.")
        folders = [os.path.join(name, split) for split in sorted(splits, key=_split_order)]
        return [os.path.join(folder, file) for folder in folders for file in _saved(folder)]
    found = [entry.path for entry in search(name, is_parquet, recursive) if os.path.isfile(entry.path)]
    return sorted(found, key=lambda path: _split_order(os.path.relpath(path, name)))


def _saved(folder: str) -> list[str]:
    """The files of one split that save_to_disk wrote."""
    path = os.path.join(folder, ONE)
    try:
        return [str(file["filename"]) for file in _json(path)["_data_files"]]
    except (KeyError, TypeError) as error:
        raise SourceError(f"{as_text(path)!r} names no files: it is damaged. Save the dataset again.") from error


def _split_order(name: str) -> int:
    """Where a split comes, by the first of a path's words that is the name of one."""
    words = re.split(r"[/\\._-]", name.lower())
    return next((SPLITS[word] for word in words if word in SPLITS), max(SPLITS.values()) + 1)


def _json(path: str) -> dict:
    try:
        content = json.loads(Path(path).read_bytes())
    except (OSError, RecursionError, ValueError) as error:
        raise SourceError(f"{as_text(path)!r} could not be read: {error}") from error
    return content if isinstance(content, dict) else {}


def _reopen(source: str, folder: Path, asked: Asked) -> bytes | None:
    import pyarrow

    file, mark, row = re.sub(r" \(\d+\)$", "", source).rpartition("#")
    path = next((path for text in (file, from_text(file)) if os.path.isfile(path := str(folder / text))), None)
    if not mark or not re.fullmatch("[0-9]+", row) or path is None:
        return None
    try:
        column = picture_column(path, describe(path)[0], asked.column)
    except (pyarrow.ArrowException, LookupError, OSError, ValueError, SourceError) as error:
        raise PictureError(f"{source!r} could not be read again: {error}") from error
    return RowItem(path, column, int(row)).read()


def _claims(name: str) -> bool:
    if is_parquet(name) and os.path.isfile(name):
        return True
    if not os.path.isdir(name):
        return False
    if any(os.path.isfile(os.path.join(name, file)) for file in (ONE, SEVERAL)):
        return True
    return _only_tables(name)


def _only_tables(folder: str) -> bool:
    """Whether there are Parquet files in a folder, and no pictures."""
    tables = False
    try:
        for entry in search(folder, lambda name: is_picture_name(name) or is_parquet(name)):
            if not is_parquet(entry.path):
                return False
            tables = tables or os.path.isfile(entry.path)
    except OSError:
        return False
    return tables


TABLES = Kind(claims=_claims, items=_items, reopen=_reopen, takes=frozenset({"column"}))
