"""One picture to be read, wherever it lies."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from mmneurons.errors import PictureError

__all__ = ["FileItem", "Item", "MissingItem", "NamedItem", "Renamed", "as_text", "from_text", "image_id", "read_file"]


@runtime_checkable
class Item(Protocol):
    """A picture that was listed. It is read when it is asked for, and not kept."""

    @property
    def source(self) -> str:
        """What names it in one listing: a path, or a file and a row in it. Always valid UTF-8."""
        ...

    @property
    def place(self) -> str:
        """Where it lies: a path, or one with a row. What has the same place in the same folder is the same picture."""
        ...

    def read(self) -> bytes:
        """Its bytes.

        Raises:
            PictureError: they cannot be had.
        """
        ...


@dataclass(frozen=True, slots=True)
class FileItem:
    """A file of its own.

    Attributes:
        place: its path.
    """

    place: str

    @property
    def source(self) -> str:
        """Its path."""
        return as_text(self.place)

    def read(self) -> bytes:
        """Its bytes."""
        return read_file(self.place, self.source)


@dataclass(frozen=True, slots=True)
class NamedItem:
    """A file that an annotation file names, and that need not be there.

    Attributes:
        place: its path.
        namer: the annotation file.
    """

    place: str
    namer: str

    @property
    def source(self) -> str:
        """Its path."""
        return as_text(self.place)

    def read(self) -> bytes:
        """Its bytes."""
        if not os.path.lexists(self.place):
            raise PictureError(f"{as_text(self.namer)!r} names {self.source!r}, which is not there.")
        return read_file(self.place, self.source)


@dataclass(frozen=True, slots=True)
class MissingItem:
    """What cannot be read, as was seen when it was listed.

    Attributes:
        place: what it is.
        reason: why it cannot be read.
    """

    place: str
    reason: str

    @property
    def source(self) -> str:
        """What it is."""
        return as_text(self.place)

    def read(self) -> bytes:
        """Nothing.

        Raises:
            PictureError: always.
        """
        raise PictureError(self.reason)


@dataclass(frozen=True, slots=True)
class Renamed:
    """An item whose own name is already another's.

    Attributes:
        item: the item.
        source: what it is called instead.
    """

    item: Item
    source: str

    @property
    def place(self) -> str:
        """Where the item lies."""
        return self.item.place

    def read(self) -> bytes:
        """The item's bytes."""
        return self.item.read()


def image_id(data: bytes) -> str:
    """What a picture is known by: the first 32 hex digits of the SHA-256 of its file's bytes."""
    return hashlib.sha256(data).hexdigest()[:32]


def as_text(path: str) -> str:
    r"""A path as valid UTF-8: a byte that is none is written as its number, ``\xff``."""
    try:
        return os.fsencode(path).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a surrogate pair, as JSON can spell it; no file is called that
        return path.encode("utf-8", "backslashreplace").decode()


def from_text(text: str) -> str:
    """The path that ``as_text`` wrote so, if it had bytes that are not UTF-8."""
    raw = re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes.fromhex(found[1].decode()), text.encode())
    return os.fsdecode(raw)


def read_file(path: str, name: str) -> bytes:
    """The bytes of an ordinary file, which messages call ``name``.

    Raises:
        PictureError: they cannot be had.
    """
    from mmneurons.vlm import pictures  # numpy and Pillow are not needed to list

    return pictures.read_file(path, name)
