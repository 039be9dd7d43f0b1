"""Pictures of a run, read again and made small enough for a page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mmneurons.errors import MMNeuronsError
from mmneurons.sources import image_id, open_source
from mmneurons.vlm.pictures import decode_picture

__all__ = ["Thumbnail", "read_again", "thumbnail"]

LONG_SIDE = 480
QUALITIES = (82, 65, 45, 25)
BYTES = 80_000
"""The first of the qualities is taken with which a thumbnail is no larger than this, or the last."""


@dataclass(frozen=True)
class Thumbnail:
    """A small picture, or why there is none.

    Attributes:
        address: of the JPEG, with all of it in it (``data:``); None where the picture cannot be shown.
        missing: why it cannot; None where it can.
    """

    address: str | None
    missing: str | None


def read_again(source: str, folder: Path, column: str | None, expected: str) -> Image.Image | str:
    """A picture of a run, or why it cannot be shown.

    What is read has to be what the run read: a map over another picture would lie, and a run folder from somebody else
    must not bring any file it names into the report.

    Args:
        source: as the images table has it.
        folder: what relative sources are relative to.
        column: of the table that holds the pictures, as the run was told.
        expected: the image_id that it had.
    """
    try:
        data = open_source(source, folder, column)
        if image_id(data) != expected:
            return "The file is no longer the one that was captioned."
        return decode_picture(data, source)
    except (MMNeuronsError, OSError) as error:
        return f"The picture cannot be read any more: {_message(error)}"


def thumbnail(source: str, folder: Path, column: str | None, expected: str) -> Thumbnail:
    """A small picture of a run; arguments as in ``read_again``."""
    picture = read_again(source, folder, column, expected)
    if isinstance(picture, str):
        return Thumbnail(None, picture)
    picture.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.LANCZOS)
    return Thumbnail(f"data:image/jpeg;base64,{base64.b64encode(_jpeg(picture)).decode()}", None)


def _jpeg(picture: Image.Image) -> bytes:
    data = b""
    for quality in QUALITIES:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality, optimize=True)
        data = file.getvalue()
        if len(data) <= BYTES:
            break
    return data


def _message(error: Exception) -> str:
    return str(error).split("\n(more: docs/")[0]
