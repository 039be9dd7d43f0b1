"""What a kind of source is, and what it may need to know."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mmneurons.sources.item import Item

__all__ = ["Asked", "Kind"]


@dataclass(frozen=True)
class Asked:
    """What was asked beside the names.

    Attributes:
        images: the folder of the pictures that annotation files name.
        column: the column of a table that holds the pictures.
        recursive: whether folders are searched with all below them.
        named: whether the name was given as it is, and so has to stand for something; False where a pattern fitted it.
    """

    images: Path | None = None
    column: str | None = None
    recursive: bool = True
    named: bool = True


@dataclass(frozen=True)
class Kind:
    """A way for pictures to be named.

    Attributes:
        claims: whether a name is of this kind.
        items: the pictures that a name stands for, in order. That there is no such thing is an error at once, that
            there is nothing in it when it is listed.
        reopen: the bytes of a source that was listed as ``items`` does, read again; None where it is of another kind.
        takes: which of the options of ``gather`` mean something to it.
    """

    claims: Callable[[str], bool]
    items: Callable[[str, Asked], Iterator[Item]]
    reopen: Callable[[str, Path, Asked], bytes | None]
    takes: frozenset[str] = frozenset()
