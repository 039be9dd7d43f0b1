"""Searching folders and fitting patterns, in an order that is the same everywhere: by the bytes of the names.

Hidden files and folders are left out. Links to folders are followed, but each folder is searched once, and a link back
to where it lies is not followed.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["EXTENSIONS", "Found", "fitting", "is_pattern", "is_picture_name", "search"]

EXTENSIONS = frozenset(
    {
        *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "dib", "tif", "tiff", "jp2", "j2k", "avif"),
        *("ppm", "pgm", "pbm", "pnm", "ico", "tga", "pcx", "qoi", "heic", "heif"),
    }
)


@dataclass(frozen=True, slots=True)
class Found:
    """What a search or a pattern came upon.

    Attributes:
        path: where.
        is_folder: whether it is a folder, or a link to one.
        error: why it could not be searched, a folder that could not.
    """

    path: str
    is_folder: bool = False
    error: OSError | None = None


@dataclass
class _Level:
    """A folder while it is searched."""

    path: str
    entries: Iterator[Found]
    empty: bool = True


def is_picture_name(name: str) -> bool:
    """Whether a file's name ends like a picture's."""
    stem, dot, ending = os.path.basename(name).rpartition(".")
    return bool(stem and dot) and ending.lower() in EXTENSIONS


def is_pattern(name: str) -> bool:
    """Whether a name is none of anything that is there, and holds the signs of a pattern."""
    return any(sign in name for sign in "*?[") and not os.path.lexists(name)


def search(folder: str, wanted: Callable[[str], bool], recursive: bool = True) -> Iterator[Found]:
    """What is in a folder and, if ``recursive``, in those below it.

    A folder that itself has a wanted name is found, too, where it is not searched or nothing wanted is in it: somebody
    may look for it. So is one that cannot be searched, with the error.

    Args:
        folder: where to search.
        wanted: whether a name is looked for.
        recursive: whether folders below are searched.

    Raises:
        OSError: the folder itself cannot be searched.
    """
    met = _with_those_above(folder)
    levels = [_Level(folder, _entries(folder))]
    while levels:
        level = levels[-1]
        found = next(level.entries, None)
        if found is None:
            levels.pop()
            if level.empty and levels and wanted(os.path.basename(level.path)):
                level.empty = False
                yield Found(level.path, is_folder=True)
            if levels:
                levels[-1].empty &= level.empty
        elif found.is_folder and recursive and _is_new(found.path, met):
            try:
                levels.append(_Level(found.path, _entries(found.path)))
            except OSError as error:
                level.empty = False
                yield Found(found.path, is_folder=True, error=error)
        elif wanted(os.path.basename(found.path)):
            level.empty = False
            yield found


def fitting(pattern: str) -> list[Found]:
    """What fits a pattern of ``*``, ``?``, ``[…]``, and ``**`` for any folders below; capitals matter."""
    root = os.sep if pattern.startswith(os.sep) else ""
    parts = [part for part in pattern.split(os.sep) if part]
    found = {fits.path: fits for fits in _fitting(root, parts)}
    return [found[path] for path in sorted(found, key=_by_names)]


def _by_names(path: str) -> bytes:
    # nothing comes before the zero byte: so folders are ordered name by name, as a search orders them
    return os.fsencode(path).replace(os.fsencode(os.sep), b"\0")


def _fitting(base: str, parts: list[str]) -> Iterator[Found]:
    part, rest = parts[0], parts[1:]
    if part == "**":
        while rest[:1] == ["**"]:
            rest = rest[1:]
        if not rest:
            # any folders below are what searching it comes upon
            yield Found(base or os.curdir, is_folder=True)
            return
        for folder in (base, *_folders_below(base)):
            yield from _fitting(folder, rest)
        return
    if any(sign in part for sign in "*?["):
        fits = re.compile(fnmatch.translate(part)).match
        matches = [entry for entry in _entries_if_any(base, part[0] == ".") if fits(os.path.basename(entry.path))]
    else:
        path = os.path.join(base, part)
        matches = [Found(path, os.path.isdir(path))] if os.path.lexists(path) else []
    if not rest:
        yield from matches
        return
    for match in matches:
        if match.is_folder:
            yield from _fitting(match.path, rest)


def _folders_below(base: str) -> Iterator[str]:
    met = _with_those_above(base or os.curdir)
    waiting = [base]
    while waiting:
        folders = [entry.path for entry in _entries_if_any(waiting.pop()) if entry.is_folder]
        fresh = [folder for folder in folders if _is_new(folder, met)]
        yield from fresh
        waiting += fresh


def _entries_if_any(folder: str, hidden: bool = False) -> Iterator[Found]:
    try:
        return _entries(folder, hidden)
    except OSError:
        return iter(())


def _entries(folder: str, hidden: bool = False) -> Iterator[Found]:
    with os.scandir(folder or os.curdir) as entries:
        # a million files in one folder are sorted as little more than their names
        named = [(os.fsencode(entry.name), _is_folder(entry)) for entry in entries if hidden or entry.name[0] != "."]
    named.sort()
    return (Found(os.path.join(folder, os.fsdecode(name)), is_folder) for name, is_folder in named)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle of links
        return False


def _with_those_above(folder: str) -> set[tuple[int, int]]:
    """The folder and those that it lies in, by what the file system knows them by."""
    path = Path(os.path.realpath(folder))
    met: set[tuple[int, int]] = set()
    for place in (path, *path.parents):
        _is_new(str(place), met)
    return met


def _is_new(folder: str, met: set[tuple[int, int]]) -> bool:
    """Whether a folder was not met before; now it is."""
    try:
        status = os.stat(folder)
    except OSError:
        return True
    known = (status.st_dev, status.st_ino)
    if known in met:
        return False
    met.add(known)
    return True
