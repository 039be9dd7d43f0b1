"""Where pictures come from: files, folders, patterns, tables, annotation files, the bundled ones.

One registry, ``SOURCES``: a new kind is a new file and one line. Listing reads no picture; a picture is read when it is
asked for.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain, islice
from pathlib import Path

from mmneurons.errors import OptionError, SourceError
from mmneurons.options import check_whole
from mmneurons.sources.annotations import ANNOTATIONS
from mmneurons.sources.bundled import BUNDLED
from mmneurons.sources.files import FILES, taken_from
from mmneurons.sources.item import FileItem, Item, Renamed, as_text, image_id, read_file
from mmneurons.sources.listing import Asked, Kind
from mmneurons.sources.tables import TABLES
from mmneurons.sources.walking import fitting, is_pattern, is_picture_name

__all__ = ["SOURCES", "Asked", "Item", "Kind", "gather", "image_id", "open_source"]

SOURCES: tuple[Kind, ...] = (BUNDLED, TABLES, ANNOTATIONS, FILES)
"""The kinds; the first that claims a name has it."""


def gather(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    images: str | os.PathLike[str] | None = None,
    column: str | None = None,
    recursive: bool = True,
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 0,
) -> list[Item]:
    """List the pictures that some names stand for. No picture is read.

    Args:
        inputs: files, folders, patterns, Parquet files, datasets' folders, annotation files, ``demo:pictures``. What is
            there under exactly this name is taken, whatever signs the name holds. A folder stands for the files in it
            that end like pictures, by the bytes of their names. A pattern does, too, unless it says an ending itself.
            What is named twice is listed once, where it comes first.
        images: the folder of the pictures that annotation files name.
        column: the column of a table that holds the pictures.
        recursive: whether folders are searched with all below them.
        limit: only the first so many, of the sample where there is one.
        sample: only so many, drawn without replacement; they stay in the listing's order. All, where there are fewer.
        seed: of the draw.

    Raises:
        SourceError: a name stands for nothing, or where its pictures are is not clear.
        OptionError: ``limit`` or ``sample`` is no whole number from 1, or ``images`` or ``column`` means nothing to
            what is named.
    """
    for option, count in (("limit", limit), ("sample", sample)):
        if count is not None:
            check_whole(option, count)
    names = _names(inputs)
    asked = Asked(None if images is None else Path(images), column, recursive)
    parts = [_part(name, asked) for name in names]
    used = frozenset().union(*(part.takes for part in parts))
    for option, value in (("images", images), ("column", column)):
        if value is not None and option not in used:
            what = "an annotation file" if option == "images" else "a table"
            raise OptionError(f"{option}={os.fspath(value)!r} is for {what}, and none is named.")
    listed = _once(chain.from_iterable(part.items for part in parts))
    if sample is None:
        return list(islice(listed, limit))
    items = list(listed)
    chosen = sorted(random.Random(seed).sample(range(len(items)), min(sample, len(items))))
    return [items[index] for index in chosen[:limit]]


def _names(inputs: object) -> list[str]:
    given = inputs if isinstance(inputs, list | tuple) else [inputs]
    names = [os.fspath(name) for name in given if isinstance(name, str | os.PathLike)]
    if not names or len(names) < len(given):
        what = "No pictures are named" if not given else f"{inputs!r} does not name pictures"
        raise SourceError(f"{what}. Name files, a folder, or demo:pictures.")
    return names


def open_source(source: str, folder: Path, column: str | None = None) -> bytes:
    """Read again what was listed as ``source``.

    Args:
        source: as an ``Item`` has it.
        folder: what relative paths are relative to.
        column: as it was in ``gather``.

    Raises:
        PictureError: it is not there any more, or cannot be read.
    """
    path = str(folder / source)
    if not os.path.lexists(path):
        for kind in SOURCES:
            data = kind.reopen(source, folder, Asked(column=column))
            if data is not None:
                return data
    return read_file(path, source)


@dataclass(frozen=True)
class _Part:
    """What one name stands for, and which options mean something to it."""

    items: Iterator[Item]
    takes: frozenset[str]


def _part(name: str, asked: Asked) -> _Part:
    if name.startswith(("http://", "https://")) or not is_pattern(name):
        kind = next(kind for kind in SOURCES if kind.claims(name))
        return _Part(kind.items(name, asked), kind.takes)
    found = fitting(name)
    ending = name.rpartition(os.sep)[2].rpartition(".")[2]
    says_ending = "." in name.rpartition(os.sep)[2] and not any(sign in ending for sign in "*?[]")
    others = {
        match.path: _part(match.path, replace(asked, named=False))
        for match in found
        if match.is_folder or (says_ending and not is_picture_name(match.path))
    }
    items = chain.from_iterable(
        others[match.path].items if match.path in others else (FileItem(match.path),)
        for match in found
        if match.path in others or is_picture_name(match.path)
    )
    first = next(items, None)
    if first is None:
        what = f"No picture among the {len(found)} files and folders that fit" if found else "Nothing fits"
        raise SourceError(f"{what} the pattern {as_text(name)!r}. Check it; {taken_from()}.")
    return _Part(chain((first,), items), frozenset().union(*(part.takes for part in others.values())))


def _real(folder: str) -> str:
    try:
        return os.path.realpath(folder)
    except ValueError:  # a name that no file can have, as an annotation file may hold one
        return folder


def _once(items: Iterable[Item]) -> Iterator[Item]:
    """The items, none twice and no two with the same name."""
    real = cache(_real)
    met: set[str] = set()
    taken: set[str] = set()
    for item in items:
        folder, _, name = item.place.rpartition(os.sep)
        place = os.path.join(real(folder or os.curdir), name)
        if place in met:
            continue
        met.add(place)
        source = item.source
        # only these signs can make the names of two pictures the same: a byte or a row that is written out
        if "\\" in source or "#" in source:
            number = 1
            while source in taken:
                number += 1
                source = f"{item.source} ({number})"
            taken.add(source)
        yield item if source == item.source else Renamed(item, source)
