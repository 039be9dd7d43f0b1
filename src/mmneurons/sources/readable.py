"""Reading what was listed, picture by picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from PIL import Image

from mmneurons.errors import PictureError
from mmneurons.sources.item import Item
from mmneurons.vlm.inputs import check_sides
from mmneurons.vlm.pictures import decode_picture

__all__ = ["Skipped", "readable"]

Skipped = Callable[[str, PictureError], None]
"""Told the name of a picture that is left out, and why."""


def readable(
    items: Iterable[Item], skipped: Skipped | None = None, needed: bool = False
) -> Iterator[tuple[Item, Image.Image]]:
    """The pictures as they are needed.

    Args:
        items: what was listed.
        skipped: told of one that cannot be read, or is too long and thin; None to stop there.
        needed: whether to stop at the end, too, where none can be read.

    Raises:
        PictureError: one cannot be read, and nobody is told; or none can, and one is needed.
    """
    wrong: PictureError | None = None
    some = False
    for item in items:
        try:
            picture = decode_picture(item.read(), item.source)
            check_sides(picture, repr(item.source))
        except PictureError as error:
            if skipped is None:
                raise
            wrong = error
            skipped(item.source, error)
        else:
            some = True
            yield item, picture
    if needed and not some and wrong is not None:
        raise wrong
