"""The bundled pictures: ``demo:pictures``, or one of them as ``demo:pictures/dog.jpg``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmneurons.errors import PictureError, SourceError
from mmneurons.sources.item import Item, read_file
from mmneurons.sources.listing import Asked, Kind

__all__ = ["BUNDLED", "NAME"]

NAME = "demo:pictures"
"""What all of them are named by."""


@dataclass(frozen=True, slots=True)
class _BundledItem:
    place: str

    @property
    def source(self) -> str:
        return f"{NAME}/{os.path.basename(self.place)}"

    def read(self) -> bytes:
        return read_file(self.place, self.source)


def _paths() -> dict[str, str]:
    from mmneurons.demo import pictures

    return {picture.path.name: str(picture.path) for picture in pictures()}


def _items(name: str, _asked: Asked) -> Iterator[Item]:
    paths = _paths()
    if name.rstrip("/") == NAME:
        return map(_BundledItem, paths.values())
    one = name.removeprefix(f"{NAME}/")
    if one not in paths:
        raise SourceError(f"There is no bundled picture {name!r}. There are: {NAME}, {NAME}/{next(iter(paths))}, …")
    return iter((_BundledItem(paths[one]),))


def _reopen(source: str, _folder: Path, _asked: Asked) -> bytes | None:
    if not _claims(source):
        return None
    path = _paths().get(source.removeprefix(f"{NAME}/"))
    if path is None:
        raise PictureError(f"There is no bundled picture {source!r} any more.")
    return read_file(path, source)


def _claims(name: str) -> bool:
    return name.startswith("demo:") and not os.path.lexists(name)


BUNDLED = Kind(claims=_claims, items=_items, reopen=_reopen)
