"""Which rectangle of the picture each image token shows.

Two maps, one after the other. From tokens to processed pixels: what a family does with its patches, tiles and newline
tokens, one function per family in ``vlm/families``. From processed pixels to the picture: measured (``pixel_map``). The
rectangle of a token is that of its own patch; through attention in the vision tower it knows of the rest, too.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from mmneurons.errors import AnatomyError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, ProcessorMixin
    from transformers.image_processing_utils import BaseImageProcessor

    from mmneurons.vlm.model import VLM
    from mmneurons.vlm.pixel_map import PixelMap

__all__ = [
    "Geometry",
    "ImageGrid",
    "Processed",
    "Rectangle",
    "TokenGrid",
    "TokenLayout",
    "even_spans",
    "geometry",
    "laid_out",
    "on_picture",
    "placed",
]

Rectangle = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels of the picture, from its left upper corner; the far edges are not included."""

SLIVER = 0.005
"""A token of which less than this share lies in the picture, in width or in height, shows none of it: so little is
measurement error."""


@dataclass(frozen=True, eq=False)
class ImageGrid:
    """A grid of image tokens over a part of the picture.

    Attributes:
        rows: how many tokens stand one above the other.
        columns: how many tokens stand side by side.
        rectangle: what the grid covers, outer edges; may reach outside the picture (padding).
        positions: which of the picture's image tokens stands where, counted from 0 in sequence order.
        x_spans: left and right edge of every column; None where they divide the rectangle evenly. (They do not where
            tiles have a few pixels that belong to no patch: 384 pixels hold 27 patches of 14, and 6 pixels more.)
        y_spans: upper and lower edge of every row, likewise.
    """

    rows: int
    columns: int
    rectangle: Rectangle
    positions: Int[np.ndarray, "rows columns"]
    x_spans: Float[np.ndarray, "columns 2"] | None = None
    y_spans: Float[np.ndarray, "rows 2"] | None = None

    def spans(self) -> tuple[Float[np.ndarray, "columns 2"], Float[np.ndarray, "rows 2"]]:
        """Return the edges of the columns and of the rows, in pixels of the picture."""
        x0, y0, x1, y1 = self.rectangle
        x = even_spans(self.columns, (x1 - x0) / self.columns, x0) if self.x_spans is None else self.x_spans
        y = even_spans(self.rows, (y1 - y0) / self.rows, y0) if self.y_spans is None else self.y_spans
        return x, y

    def visible(self, size: tuple[int, int]) -> tuple[Bool[np.ndarray, "columns"], Bool[np.ndarray, "rows"]]:
        """Tell which columns and which rows show a part of a picture of this width and height, not padding alone."""
        columns, rows = (
            (np.clip(spans[:, 1], 0, length) - np.clip(spans[:, 0], 0, length)) >= SLIVER * (spans[:, 1] - spans[:, 0])
            for spans, length in zip(self.spans(), size)
        )
        return columns, rows


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where the image tokens of one picture lie in it.

    Attributes:
        size: width and height of the picture.
        tokens: how many image tokens there are, those that show no part of it (a newline, a class token) included.
        grids: the grids they form: one, or the whole picture and its tiles.
        whole: every token sees the whole picture (a resampler, queries), so there are no grids.
    """

    size: tuple[int, int]
    tokens: int
    grids: tuple[ImageGrid, ...]
    whole: bool = False

    def rectangles(self) -> list[Rectangle | None]:
        """Return each token's rectangle, cut off at the picture's edges.

        None where a token shows nothing but padding, or stands for no part at all (a newline, a class token).
        """
        width, height = self.size
        found: list[Rectangle | None] = [(0.0, 0.0, float(width), float(height)) if self.whole else None] * self.tokens
        for grid in self.grids:
            (columns, rows), (x, y) = grid.visible(self.size), grid.spans()
            x, y = x.clip(0, self.size[0]).tolist(), y.clip(0, self.size[1]).tolist()
            for row, column in np.argwhere(rows[:, None] & columns[None, :]).tolist():
                found[grid.positions[row, column]] = (x[column][0], y[row][0], x[column][1], y[row][1])
        return found


@dataclass(frozen=True)
class Processed:
    """What a family's layout may look at.

    Attributes:
        config: the model's.
        processor: the model's.
        size: width and height of the picture.
        tiles: how many pictures the image processor made of it.
        width: of each of them, in pixels.
        height: of each of them, in pixels.
        tokens: how many image tokens stand in the sequence.
    """

    config: PreTrainedConfig
    processor: ProcessorMixin
    size: tuple[int, int]
    tiles: int
    width: int
    height: int
    tokens: int


@dataclass(frozen=True, eq=False)
class TokenGrid:
    """A grid of image tokens over processed pixels.

    Attributes:
        tiles: which processed tiles, put together so, the grid lies on; (tile rows, tile columns).
        x_spans: left and right edge of every column in pixels of the tiles put together.
        y_spans: upper and lower edge of every row.
        positions: which of the picture's image tokens stands where, counted from 0 in sequence order.
    """

    tiles: Int[np.ndarray, "tile_rows tile_columns"]
    x_spans: Float[np.ndarray, "columns 2"]
    y_spans: Float[np.ndarray, "rows 2"]
    positions: Int[np.ndarray, "rows columns"]


@dataclass(frozen=True, eq=False)
class TokenLayout:
    """What a family's layout returns: the grids, and how many image tokens there should be in all."""

    tokens: int
    grids: tuple[TokenGrid, ...]


def even_spans(count: int, step: float, start: float = 0.0) -> Float[np.ndarray, "count 2"]:
    """Return the edges of ``count`` neighbors, each ``step`` wide."""
    edges = start + step * np.arange(count + 1, dtype=np.float64)
    return np.stack([edges[:-1], edges[1:]], axis=1)


def geometry(vlm: VLM, picture_size: tuple[int, int], tokens: int) -> Geometry:
    """Find where the image tokens of a picture lie in it.

    By the family's own layout where it has one, otherwise by measuring what each token is made of
    (``measured_layout``). Costs two runs of the image processor on a picture of the same size, and up to two dozen
    passes through the model's projector; what was found is kept for the next picture of that size.

    Args:
        vlm: The model, with its processor.
        picture_size: Width and height of the picture that the processor was given, after any rotation.
        tokens: How many image tokens stand in the sequence for this picture.

    Raises:
        AnatomyError: the family's token layout cannot be measured, the tokens in the sequence are not as many as it
            has, or the image processor does not treat the axes apart.
    """
    if vlm.processor is None:
        raise AnatomyError("There is no processor, so where image tokens lie cannot be told.")
    key = (_signature(vlm.processor, vlm.model.config), picture_size, tokens)
    if key not in _found:
        _found[key] = _find(vlm, picture_size, tokens)
        if len(_found) > 256:
            _found.popitem(last=False)
    _found.move_to_end(key)
    return _found[key]


def placed(vlm: VLM, picture_size: tuple[int, int], tokens: int) -> Geometry:
    """As ``geometry``, for maps: refuse where there is nothing to tell one place from another.

    Raises:
        AnatomyError: as in ``geometry``; or every token sees the whole picture.
    """
    found = geometry(vlm, picture_size, tokens)
    if found.whole:
        raise AnatomyError(
            f"Each of the {tokens} image tokens of a model of type {vlm.model.config.model_type!r} is made of the "
            "whole picture (a resampler, or queries), so a map over it would show nothing. Everything else works."
        )
    return found


_found: OrderedDict[tuple, Geometry] = OrderedDict()


def _signature(processor: ProcessorMixin, config: PreTrainedConfig) -> str:
    """Return what processor and configuration are set to, so that one that was changed meets no stale geometry."""
    image_processor: BaseImageProcessor = processor.image_processor
    settings = (image_processor.to_dict(), getattr(processor, "patch_size", None), config.to_dict())
    return type(image_processor).__name__ + json.dumps(settings, sort_keys=True, default=str)


def _find(vlm: VLM, size: tuple[int, int], tokens: int) -> Geometry:
    from mmneurons.vlm.families import FAMILIES
    from mmneurons.vlm.measured_layout import measured_geometry

    family = FAMILIES.get(vlm.model.config.model_type)
    if family is not None and family.queries:
        return Geometry(size, tokens, (), whole=True)
    if family is None or family.layout is None:
        return measured_geometry(vlm, size, tokens)
    assert vlm.processor is not None
    return laid_out(vlm.processor, vlm.model.config, family.layout, size, tokens)


def laid_out(
    processor: ProcessorMixin,
    config: PreTrainedConfig,
    layout: Callable[[Processed], TokenLayout],
    size: tuple[int, int],
    tokens: int,
) -> Geometry:
    """The geometry by a family's layout; arguments and errors as in ``geometry``."""
    from mmneurons.vlm.pixel_map import process_chart

    chart = process_chart(processor.image_processor, size)
    tiles, _, height, width = chart.tiles.shape
    processed = Processed(config, processor, size, tiles, width, height, tokens)
    plan = layout(processed)
    if plan.tokens != tokens:
        raise AnatomyError(
            f"A picture of {size[0]} × {size[1]} pixels should be {plan.tokens} image tokens in a model of type "
            f"{config.model_type!r}, but there are {tokens} in the sequence. Processor and model may not belong "
            "together; where the neurons look cannot be shown."
        )
    return Geometry(size, tokens, tuple(on_picture(grid, chart.pixel_map(grid.tiles)) for grid in plan.grids))


def on_picture(grid: TokenGrid, pixel_map: PixelMap) -> ImageGrid:
    """Where a grid over processed pixels lies in the picture."""
    x, y = pixel_map.x.original(grid.x_spans), pixel_map.y.original(grid.y_spans)
    rows, columns = grid.positions.shape
    rectangle = (float(x[0, 0]), float(y[0, 0]), float(x[-1, 1]), float(y[-1, 1]))
    return ImageGrid(rows, columns, rectangle, grid.positions, x, y)
