"""Annotation files with a folder of pictures: COCO, SBU Captions, and plain JSON lists.

COCO: ``{"images": [{"file_name": …}, …], …}``. Plain: ``[{"image": "dog.jpg", …}, …]``. SBU Captions: ``{"image_urls":
[…], …}``, or a text file of addresses, one a line; nothing is fetched, a picture is looked up by the last part of its
address.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mmneurons.errors import SourceError
from mmneurons.sources.item import Item, NamedItem, as_text
from mmneurons.sources.listing import Asked, Kind

__all__ = ["ANNOTATIONS"]

KEYS = ("image", "file_name")
ADDRESS = ("http://", "https://")
LOOKED_UP = 100
"""How many of the files are looked for where the folder of the pictures has to be guessed."""


def _items(name: str, asked: Asked) -> Iterator[Item]:
    files = _files(name)
    folder = _guess(name, files) if asked.images is None else _given(name, files, str(asked.images))
    return (NamedItem(os.path.join(folder, file), name) for file in files)


def _files(name: str) -> list[str]:
    """The files that an annotation file names, each once, in its order."""
    try:
        content = Path(name).read_bytes()
        named = list(
            dict.fromkeys(_addressed(content) if _is_list_of_addresses(name) else _in_json(json.loads(content)))
        )
    except (OSError, RecursionError, ValueError) as error:
        raise SourceError(f"{as_text(name)!r} could not be read as an annotation file: {error}") from error
    if not named:
        raise SourceError(
            f"{as_text(name)!r} is no annotation file that is known: it should be COCO's ('images' with 'file_name'), "
            "that of SBU Captions ('image_urls'), or a list of objects with 'image'."
        )
    return named


def _addressed(content: bytes) -> Iterator[str]:
    lines = content.decode("utf-8", "replace").splitlines()
    return (_last_part(line.strip()) for line in lines if line.strip())


def _in_json(content: object) -> Iterator[str]:
    entries: object = content
    if isinstance(content, dict):
        if isinstance(urls := content.get("image_urls"), list):
            yield from (_last_part(url) for url in urls if isinstance(url, str))
            return
        entries = content.get("images")
    for entry in entries if isinstance(entries, list) else ():
        # an entry without a picture, as instructions mix them in, is left out
        values = [entry[key] for key in KEYS if isinstance(entry.get(key), str)] if isinstance(entry, dict) else []
        yield from (_last_part(value) if value.startswith(ADDRESS) else value for value in values[:1] if value)


def _last_part(url: str) -> str:
    try:
        path = urlsplit(url).path
    except ValueError:  # brackets that are no address of version 6
        path = url
    return unquote(path).rpartition("/")[2] or url


def _given(name: str, files: Sequence[str], images: str) -> str:
    """The folder that was given, or the one in it that is named like the split, whichever holds the pictures."""
    if not os.path.isdir(images):
        raise SourceError(f"There is no folder {as_text(images)!r} for the pictures of {as_text(name)!r}.")
    folders = (images, os.path.join(images, _split(name)))
    for folder in folders:
        if _holds_any(folder, files[:LOOKED_UP]):
            return folder
    for folder in folders:
        if _holds_any(folder, files):
            return folder
    raise SourceError(
        f"None of the {len(files)} pictures that {as_text(name)!r} names is in {as_text(images)!r}; the first is "
        f"{as_text(files[0])!r}. Name the folder where they lie with --images (images=…)."
    )


def _guess(name: str, files: Sequence[str]) -> str:
    """The folder of the pictures where they usually lie: beside the file or above it, named like its split."""
    beside = os.path.dirname(name)
    split = _split(name)
    for base in (beside, os.path.normpath(os.path.join(beside, os.pardir))):
        for part in (split, os.path.join("images", split), "images", ""):
            folder = os.path.normpath(os.path.join(base, part))
            if _holds_any(folder, files[:LOOKED_UP]):
                return "" if folder == os.curdir else folder
    raise SourceError(
        f"{as_text(name)!r} names {len(files)} pictures, but not where its pictures lie. Name their folder with "
        "--images (images=…)."
    )


def _split(name: str) -> str:
    """``val2017`` of ``instances_val2017.json``."""
    return os.path.splitext(os.path.basename(name))[0].rpartition("_")[2]


def _holds_any(folder: str, files: Sequence[str]) -> bool:
    return os.path.isdir(folder) and any(os.path.isfile(os.path.join(folder, file)) for file in files)


def _is_list_of_addresses(name: str) -> bool:
    if not name.lower().endswith(".txt"):
        return False
    with open(name, encoding="utf-8", errors="replace") as file:
        lines = (line.strip() for line in islice(file, LOOKED_UP))
        return next(filter(None, lines), "").startswith(ADDRESS)


def _claims(name: str) -> bool:
    if not name.lower().endswith((".json", ".txt")) or not os.path.isfile(name):
        return False
    try:
        return name.lower().endswith(".json") or _is_list_of_addresses(name)
    except OSError:
        return False


ANNOTATIONS = Kind(claims=_claims, items=_items, reopen=lambda *_: None, takes=frozenset({"images"}))
