"""The demo: a small model that sees, put together on first use, and pictures with known contents.

Importing this imports neither torch nor transformers.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Picture", "assemble", "pictures"]

FOLDER = Path(__file__).parent / "pictures"
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Picture:
    """A bundled picture with its truth.

    Attributes:
        path: The file.
        objects: Names of the things it shows, from left to right, one entry per thing.
        boxes: (x0, y0, x1, y1) of each thing in pixels, right and lower edge excluded.
        credit: Whose picture it is, and its licence.
        kind: "scene" for drawn scenes, "photo" for photographs.
        style: The drawing style of a scene; None for photographs.
        held_out: Whether the demo model saw nothing of its style in training.
        size: (width, height) in pixels.
        runs: Masks as run lengths, see `masks`; None where there are only boxes.
    """

    path: Path
    objects: tuple[str, ...]
    boxes: tuple[Box, ...]
    credit: str
    kind: str
    style: str | None
    held_out: bool
    size: tuple[int, int]
    runs: tuple[tuple[int, ...], ...] | None = field(default=None, repr=False)

    def __fspath__(self) -> str:
        """So that a picture can be passed wherever a path can."""
        return str(self.path)

    @property
    def masks(self) -> "tuple[np.ndarray, ...] | None":
        """One (height, width) bool array per thing, of what is seen of it; None where there are only boxes."""
        return None if self.runs is None else tuple(unpack(runs, self.size) for runs in self.runs)


def unpack(runs: Sequence[int], size: tuple[int, int]) -> "np.ndarray":
    """Run lengths, row by row, of pixels outside, inside, outside ... -> (height, width) bool."""
    import numpy as np

    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(size[1], size[0])


@cache
def truth() -> tuple[Picture, ...]:
    """All of `pictures/truth.json`."""
    entries: list[Mapping] = json.loads((FOLDER / "truth.json").read_text())
    return tuple(
        Picture(
            path=FOLDER / entry["file"],
            objects=tuple(o["name"] for o in entry["objects"]),
            boxes=tuple(tuple(o["box"]) for o in entry["objects"]),
            credit=entry["credit"],
            kind=entry["kind"],
            style=entry.get("style"),
            held_out=entry["held_out"],
            size=tuple(entry["size"]),
            runs=tuple(tuple(o["runs"]) for o in entry["objects"]) if entry["kind"] == "scene" else None,
        )
        for entry in entries
    )


def pictures() -> list[Picture]:
    """The bundled pictures, which no training saw.

    First scenes in drawing styles the demo model was trained on, then in one it never saw, then photographs.
    """
    return list(truth())


def assemble(folder: Path | None = None) -> Path:
    """Puts the demo model together where it is not there yet; see `mmneurons.demo.assembly.assemble`."""
    from mmneurons.demo.assembly import assemble as put_together

    return put_together(folder)
