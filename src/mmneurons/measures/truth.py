"""What pictures truly show: objects, boxes, masks and captions, from files that say so.

Three kinds of file are read: a list of our own,

    [{"file": "a.jpg", "objects": ["dog", "ball"], "captions": ["A dog with a ball."]}]

in which an object may also be ``{"name": "dog", "box": [x0, y0, x1, y1], "runs": […]}`` as in the truth of the bundled
pictures; COCO's instances; and COCO's captions. Pictures are matched to them by file name, without folders; where that
does not tell two pictures apart, it is refused. A crowd in COCO's instances is one thing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

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
        SourceError: a file cannot be read, says nothing that is known, or contradicts another one.
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
        OptionError: there is none for any of them: it is the truth of other pictures; or two of them, in different
            folders, have the same name.
    """
    paths = {str(file): Path(file).name for file in files}
    names = list(paths.values())
    if twice := [name for name, count in Counter(names).items() if count > 1 and name in truths]:
        places = ", ".join(path for path, name in paths.items() if name == twice[0])
        raise OptionError(f"The truth of {twice[0]} is for one picture, and there are several: {places}. Rename them.")
    found = {name: truths[name] for name in names if name in truths}
    if names and not found:
        raise OptionError(
            f"The truth is of other pictures: it names {', '.join(list(truths)[:3]) or 'none'} …, and the pictures are "
            f"{', '.join(names[:3])} …. Pictures are matched by file name: pass the truth of these."
        )
    return found


def outline_mask(outline: Outline, size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
    """Where an outline's object is seen.

    A pixel is in a polygon where its center is, by the even-odd rule; COCO's own tool differs by single pixels of the
    border. What lies outside of the picture is cut off.

    Raises:
        SourceError: it does not fit the size, or is none.
    """
    try:
        _check_outline(outline, size)
    except ValueError as error:
        raise SourceError(f"A mask cannot be drawn: {error}. Correct the truth's file.") from error
    width, height = size
    if outline.kind == "polygons":
        drawn = np.zeros((height, width), dtype=bool)
        for corners in outline.numbers:
            drawn |= _filled(np.array(corners, dtype=float).reshape(-1, 2), size)
        return drawn
    runs = np.array(outline.numbers[0], dtype=np.int64)
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(height, width) if outline.kind == "runs" else flat.reshape(width, height).T


def _check_outline(outline: Outline, size: tuple[int, int]) -> None:
    width, height = size
    if outline.kind == "polygons":
        for corners in outline.numbers:
            if len(corners) % 2 or len(corners) < 6 or not np.isfinite(corners).all():
                raise ValueError(f"a polygon needs x and y of three corners or more, not {len(corners)} numbers")
        return
    runs = outline.numbers[0]
    if sum(runs) != width * height or min(runs, default=0) < 0:
        raise ValueError(f"a mask of {sum(runs)} pixels does not fit a picture of {width} × {height}")


def _filled(corners: Float[np.ndarray, "corners 2"], size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
    """Pixels whose centers have an odd number of the polygon's edges to their left."""
    width, height = size
    turns = np.zeros((height, width + 1), dtype=np.int64)
    centers = np.arange(height) + 0.5
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        rows = np.flatnonzero((y0 <= centers) != (y1 <= centers))
        crossings = x0 + (centers[rows] - y0) * (x1 - x0) / (y1 - y0 if len(rows) else 1)
        turns[rows, np.ceil(crossings - 0.5).clip(0, width).astype(int)] += 1
    return turns.cumsum(axis=1)[:, :width] % 2 == 1


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
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise SourceError(f"{path} is not whole: {type(error).__name__}: {error}.") from error
    if twice := [file for file, count in Counter(truth.file for truth in truths).items() if count > 1]:
        raise SourceError(
            f"{path} says twice what {twice[0]} shows, and pictures are told apart by file name, without folders. Join "
            "the entries, or rename the pictures."
        )
    return {truth.file: truth for truth in truths}


def _own(entry: Mapping) -> Truth:
    objects, captions = entry["objects"], entry.get("captions", [])
    if not isinstance(objects, list):
        raise TypeError(f"objects are a list, not {objects!r}")
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise TypeError(f"captions are a list of texts, not {captions!r}")
    things = [{"name": thing} if isinstance(thing, str) else thing for thing in objects]
    boxes = [_box(thing["box"], entry["file"]) for thing in things if "box" in thing]
    outlines = tuple(
        Outline("runs", (tuple(int(run) for run in thing["runs"]),)) for thing in things if thing.get("runs")
    )
    width, height = (int(side) for side in entry.get("size", (0, 0)))
    for outline in outlines:
        _check_outline(outline, (width, height))
    return Truth(
        file=Path(entry["file"]).name,
        objects=tuple(str(thing["name"]) for thing in things),
        boxes=tuple(boxes) if len(boxes) == len(things) else (),
        captions=tuple(captions),
        size=(width, height),
        outlines=outlines if len(outlines) == len(things) else (),
    )


def _box(edges: object, file: str) -> Box:
    """Left, upper, right and lower edge of a thing, of which the first two are the smaller ones."""
    wanted = "a box is [x0, y0, x1, y1] in pixels: left, upper, right and lower edge, with x0 < x1 and y0 < y1"
    if not isinstance(edges, Sequence) or isinstance(edges, str) or len(edges) != 4:
        raise ValueError(f"{wanted}; {file} has {edges!r}")
    x0, y0, x1, y1 = (float(edge) for edge in edges)
    if not (np.isfinite([x0, y0, x1, y1]).all() and x0 < x1 and y0 < y1):
        raise ValueError(f"{wanted}; {file} has {edges!r}")
    return x0, y0, x1, y1


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
            _coco_outline(annotation["segmentation"], size) for annotation in objects if annotation.get("segmentation")
        ]
        boxes = [annotation["bbox"] for annotation in objects if "bbox" in annotation]
        # COCO itself has some of no width
        if bad := [box for box in boxes if not min(box[2:]) >= 0]:
            raise ValueError(
                f"a bbox of COCO is [x, y, width, height] in pixels; {image['file_name']} has {bad[0]}, smaller than 0"
            )
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


def _coco_outline(segmentation: Sequence | Mapping, size: tuple[int, int]) -> Outline:
    if isinstance(segmentation, Mapping):
        counts = segmentation["counts"]
        runs = _unpacked(counts) if isinstance(counts, str) else [int(count) for count in counts]
        outline = Outline("columns", (tuple(runs),))
        height, width = segmentation.get("size", size[::-1])
        if (width, height) != size:
            raise ValueError(f"a mask of {width} × {height} pixels is of a picture of {size[0]} × {size[1]}")
    else:
        outline = Outline("polygons", tuple(tuple(float(corner) for corner in polygon) for polygon in segmentation))
    # where a picture has no size there are no masks
    if all(size):
        _check_outline(outline, size)
    return outline


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
    if first.objects and second.objects and first.objects != second.objects:
        raise SourceError(f"Two files say which objects {first.file} shows, and do not agree. Pass one of them.")
    if all(first.size) and all(second.size) and first.size != second.size:
        raise SourceError(f"{first.file} has two sizes in two files, {first.size} and {second.size}. Pass one of them.")
    more = second if second.objects and not first.outlines else first
    captions = tuple(dict.fromkeys((*first.captions, *second.captions)))
    return replace(more, captions=captions, size=max(first.size, second.size))
