"""What pictures truly show: objects, boxes, masks and captions, from files that say so.

Three kinds of file are read: a list of our own,

    [{"file": "a.jpg", "objects": ["dog", "ball"], "captions": ["A dog with a ball."]}]

in which an object may also be ``{"name": "dog", "box": [x0, y0, x1, y1], "runs": […]}`` as in the truth of the bundled
pictures; COCO's instances; and COCO's captions. Pictures are matched to them by file name, without folders.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw

from mmneurons.demo import pictures as bundled_pictures
from mmneurons.errors import OptionError, SourceError

__all__ = ["BUNDLED", "Outline", "Truth", "matched", "outline_mask", "read_truth", "truth_of_bundled"]

BUNDLED = "demo:pictures"
"""Stands for the truth of the bundled pictures."""

Box = tuple[int | float, int | float, int | float, int | float]


@dataclass(frozen=True)
class Outline:
    """Where an object is seen, as its file says.

    Attributes:
        kind: "runs": run lengths, row by row, of pixels outside, inside, outside …; "columns": the same column by
            column (COCO's RLE); "polygons": corners x0, y0, x1, y1 … of one or more polygons.
        numbers: the runs, or the polygons one after another, each closed by its own tuple.
    """

    kind: str
    numbers: tuple[tuple[int | float, ...], ...]


@dataclass(frozen=True)
class Truth:
    """What one picture shows.

    Attributes:
        file: the picture's file name, without folders.
        objects: names of the things, one entry per thing.
        boxes: (x0, y0, x1, y1) of each thing in pixels, right and lower edge excluded; empty where they are not known.
        captions: what people said of it.
        size: (width, height) in pixels; (0, 0) where it is not known.
        outlines: of each thing; empty where they are not known.
    """

    file: str
    objects: tuple[str, ...]
    boxes: tuple[Box, ...] = ()
    captions: tuple[str, ...] = ()
    size: tuple[int, int] = (0, 0)
    outlines: tuple[Outline, ...] = field(default=(), repr=False)

    @property
    def masks(self) -> tuple[Bool[np.ndarray, "height width"], ...] | None:
        """One for each thing; None where outlines are not known."""
        if not self.outlines:
            return None
        return tuple(outline_mask(outline, self.size) for outline in self.outlines)


def truth_of_bundled() -> dict[str, Truth]:
    """The truth of the bundled pictures, by file name."""
    return {
        picture.path.name: Truth(
            file=picture.path.name,
            objects=picture.objects,
            boxes=picture.boxes,
            size=picture.size,
            outlines=() if picture.runs is None else tuple(Outline("runs", (runs,)) for runs in picture.runs),
        )
        for picture in bundled_pictures()
    }


def read_truth(names: str | Path | Sequence[str | Path]) -> dict[str, Truth]:
    """Read one file, or several that are joined: COCO's instances and captions, say.

    Args:
        names: paths of JSON files, or ``"demo:pictures"``.

    Returns:
        By file name.

    Raises:
        SourceError: a file cannot be read, or says nothing that is known.
    """
    truths: dict[str, Truth] = {}
    for name in [names] if isinstance(names, str | Path) else names:
        for own in (truth_of_bundled() if str(name) == BUNDLED else _read(Path(name))).values():
            before = truths.get(own.file)
            truths[own.file] = own if before is None else _joined(before, own)
    return truths


def matched(truths: Mapping[str, Truth], files: Iterable[str]) -> dict[str, Truth]:
    """Those of some pictures, by their file name without folders.

    Raises:
        OptionError: there is none for any of them: it is the truth of other pictures.
    """
    names = [Path(file).name for file in files]
    found = {name: truths[name] for name in names if name in truths}
    if names and not found:
        raise OptionError(
            f"The truth is of other pictures: it names {', '.join(list(truths)[:3]) or 'none'} …, and the pictures are "
            f"{', '.join(names[:3])} …. Pictures are matched by file name: pass the truth of these."
        )
    return found


def outline_mask(outline: Outline, size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
    """Where an outline's object is seen.

    Raises:
        SourceError: it does not fit the size.
    """
    width, height = size
    if outline.kind == "polygons":
        drawn = Image.new("1", size)
        pen = ImageDraw.Draw(drawn)
        for corners in outline.numbers:
            pen.polygon(list(corners), fill=1)
        return np.array(drawn, dtype=bool)
    runs = np.array(outline.numbers[0], dtype=np.int64)
    if runs.sum() != width * height or (runs < 0).any():
        raise SourceError(f"A mask of {int(runs.sum())} pixels does not fit a picture of {width} × {height}.")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(height, width) if outline.kind == "runs" else flat.reshape(width, height).T


def _read(path: Path) -> dict[str, Truth]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SourceError(f"The truth {path} cannot be read: {error.strerror}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SourceError(f"The truth {path} is not JSON: {error}.") from error
    try:
        if isinstance(content, list):
            truths = [_own(entry) for entry in content]
        elif isinstance(content, dict) and "images" in content and "annotations" in content:
            truths = _coco(content)
        else:
            raise SourceError(
                f'{path} holds no truth that is known: a list of {{"file": …, "objects": […]}}, or COCO\'s instances '
                "or captions."
            )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SourceError(f"{path} is not whole: {type(error).__name__}: {error}.") from error
    return {truth.file: truth for truth in truths}


def _own(entry: Mapping) -> Truth:
    things = [{"name": thing} if isinstance(thing, str) else thing for thing in entry["objects"]]
    boxes: list[Box] = []
    for thing in things:
        if "box" in thing:
            # one that has not four edges is told by its unpacking
            x0, y0, x1, y1 = (float(edge) for edge in thing["box"])
            boxes.append((x0, y0, x1, y1))
    outlines = tuple(
        Outline("runs", (tuple(int(run) for run in thing["runs"]),)) for thing in things if thing.get("runs")
    )
    width, height = entry.get("size", (0, 0))
    return Truth(
        file=Path(entry["file"]).name,
        objects=tuple(str(thing["name"]) for thing in things),
        boxes=tuple(boxes) if len(boxes) == len(things) else (),
        captions=tuple(entry.get("captions", ())),
        size=(int(width), int(height)),
        outlines=outlines if len(outlines) == len(things) else (),
    )


def _coco(content: Mapping) -> list[Truth]:
    names = {category["id"]: category["name"] for category in content.get("categories", ())}
    things: dict[int, list[Mapping]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        if annotation["image_id"] not in things:
            raise ValueError(
                f"annotation {annotation.get('id')} is of image {annotation['image_id']}, which is not listed"
            )
        things[annotation["image_id"]].append(annotation)
    truths = []
    for image in content["images"]:
        own = things[image["id"]]
        objects = [annotation for annotation in own if "category_id" in annotation]
        if unknown := [one["category_id"] for one in objects if one["category_id"] not in names]:
            raise ValueError(f"category {unknown[0]} is not listed")
        size = (int(image.get("width", 0)), int(image.get("height", 0)))
        outlines = [
            _coco_outline(annotation["segmentation"]) for annotation in objects if annotation.get("segmentation")
        ]
        boxes = [annotation["bbox"] for annotation in objects if "bbox" in annotation]
        truths.append(
            Truth(
                file=Path(image["file_name"]).name,
                objects=tuple(names[annotation["category_id"]] for annotation in objects),
                boxes=tuple((x, y, x + w, y + h) for x, y, w, h in boxes) if len(boxes) == len(objects) else (),
                captions=tuple(annotation["caption"] for annotation in own if "caption" in annotation),
                size=size,
                outlines=tuple(outlines) if len(outlines) == len(objects) and all(size) else (),
            )
        )
    return truths


def _coco_outline(segmentation: Sequence | Mapping) -> Outline:
    if isinstance(segmentation, Mapping):
        counts = segmentation["counts"]
        runs = _unpacked(counts) if isinstance(counts, str) else [int(count) for count in counts]
        return Outline("columns", (tuple(runs),))
    return Outline("polygons", tuple(tuple(float(corner) for corner in polygon) for polygon in segmentation))


def _unpacked(text: str) -> list[int]:
    """COCO's packed run lengths: five bits a sign, low ones first; from the fourth run on less the one two before."""
    runs: list[int] = []
    place = 0
    while place < len(text):
        value, shift, more = 0, 0, True
        while more:
            bits = ord(text[place]) - 48
            value |= (bits & 31) << shift
            more = bool(bits & 32)
            shift += 5
            place += 1
            if not more and bits & 16:
                value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
    return runs


def _joined(first: Truth, second: Truth) -> Truth:
    """What two files say of a picture."""
    more = second if second.objects else first
    return replace(more, captions=(*first.captions, *second.captions), size=max(first.size, second.size))
