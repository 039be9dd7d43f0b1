"""Files, and folders with all below them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from mmneurons.errors import SourceError
from mmneurons.sources.item import FileItem, Item, MissingItem, as_text, from_text, read_file
from mmneurons.sources.listing import Asked, Kind
from mmneurons.sources.walking import Found, is_picture_name, search

__all__ = ["FILES", "pictures_in", "taken_from"]


def pictures_in(folder: str, recursive: bool = True) -> Iterator[Item]:
    """The pictures in a folder, by name, as ``walking.search`` finds them."""
    try:
        yield from map(_item, search(folder, is_picture_name, recursive))
    except OSError as error:
        raise SourceError(f"The folder {as_text(folder)!r} cannot be searched: {error.strerror}.") from error


def taken_from() -> str:
    """What relative paths are relative to, for messages."""
    try:
        return f"it is taken from {as_text(os.getcwd())}"
    except FileNotFoundError:
        return "the folder that it was taken from is gone"


def _nothing_there(name: str) -> SourceError:
    if name.startswith(("http://", "https://")):
        return SourceError(f"{name!r} is an address. Addresses are not fetched: download it, and name the files.")
    return SourceError(f"There is no file or folder {as_text(name)!r}. Check the path; {taken_from()}.")


def _item(found: Found) -> Item:
    if found.error is None:
        return FileItem(found.path)
    return MissingItem(
        found.path,
        f"The folder {as_text(found.path)!r} cannot be searched: {found.error.strerror}. What it holds is left out.",
    )


def _items(name: str, asked: Asked) -> Iterator[Item]:
    if not os.path.lexists(name):
        raise _nothing_there(name)
    return _in_folder(name, asked) if os.path.isdir(name) else iter((FileItem(name),))


def _in_folder(name: str, asked: Asked) -> Iterator[Item]:
    empty = True
    for item in pictures_in(name, asked.recursive):
        empty = False
        yield item
    if empty and is_picture_name(os.path.normpath(name)):
        yield FileItem(name)
    elif empty and asked.named:
        raise SourceError(
            f"The folder {as_text(name)!r} holds no picture: no file in it{' or below it' if asked.recursive else ''} "
            "ends in .jpg, .png or the like. Name the files themselves if they are called otherwise."
        )


def _reopen(source: str, folder: Path, _asked: Asked) -> bytes | None:
    """The file that a source names which is not its name as it stands."""
    # a number behind it says that its name was another's, see ``mmneurons.sources.gather``
    for text in (source, re.sub(r" \(\d+\)$", "", source)):
        path = str(folder / from_text(text))
        if os.path.lexists(path):
            return read_file(path, source)
    return None


FILES = Kind(claims=lambda _: True, items=_items, reopen=_reopen)
