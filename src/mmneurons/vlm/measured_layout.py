"""Where image tokens lie, from what was measured of them: any family without a layout of its own.

Two ways for pixels to come out of an image processor. As pictures: a token's pixels are a rectangle of one of them, and
where that lies in the original is measured by charts (``pixel_map``). As patches one after the other (Qwen's way): the
charts' colours, averaged over a token's patches, say where its middle lies; the grid that these middles form says the
rest.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from transformers.image_processing_utils import BaseImageProcessor

from mmneurons.errors import AnatomyError
from mmneurons.vlm.geometry import Geometry, ImageGrid, Rectangle, TokenGrid, TokenLayout, even_spans, on_picture
from mmneurons.vlm.model import VLM
from mmneurons.vlm.pixel_map import BLUE, MIRROR, chart_levels, positions_of, process_chart
from mmneurons.vlm.supports import PIXELS, Supports, supports

__all__ = ["measured_geometry"]

SNAP = 0.1
"""An edge of the grid this close to the picture's border, in cells, is the border."""

OFF = 0.25
"""How far the middle of a token may be from where its grid has it, in cells."""


def measured_geometry(vlm: VLM, size: tuple[int, int], tokens: int) -> Geometry:
    """Measure where the image tokens of a picture of this size lie.

    Args:
        vlm: the model, with its processor.
        size: width and height of the picture.
        tokens: how many image tokens stand in the sequence.

    Raises:
        AnatomyError: the family has no way that is known to make image tokens, their number is another, or they form no
            grids.
    """
    assert vlm.processor is not None
    processor: BaseImageProcessor = vlm.processor.image_processor
    kind = vlm.model.config.model_type
    made = processor(images=[Image.new("RGB", size)], return_tensors="pt")
    inputs = {name: value.to(vlm.device) for name, value in made.items() if isinstance(value, Tensor)}
    inputs = {name: v.to(vlm.model.dtype) if v.is_floating_point() else v for name, v in inputs.items()}
    try:
        seen = supports(vlm.model, vlm.anatomy, inputs)
    except (AnatomyError, AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise AnatomyError(
            f"How models of type {kind!r} lay out their image tokens could not be measured, so where the neurons look "
            f"cannot be shown; everything else works. {str(error).splitlines()[0]}"
        ) from error
    if seen.tokens != tokens:
        raise AnatomyError(
            f"A picture of {size[0]} × {size[1]} pixels makes {seen.tokens} image tokens in a model of type {kind!r}, "
            f"but there are {tokens} in the sequence; where the neurons look cannot be shown."
        )
    if seen.whole:
        return Geometry(size, tokens, (), whole=True)
    if (seen.owners == -2).any():
        raise AnatomyError(
            f"Some pixels belong to several image tokens of a model of type {kind!r}; where the neurons look cannot be "
            "shown."
        )
    pixels = next(inputs[name] for name in PIXELS if name in inputs)
    if pixels.dim() >= 4:
        chart = process_chart(processor, size)
        layout = _of_pictures(seen)
        grids = tuple(on_picture(grid, chart.pixel_map(grid.tiles)) for grid in layout.grids)
        return Geometry(size, tokens, grids)
    return Geometry(size, tokens, (_of_patches(processor, size, seen),))


def _of_pictures(seen: Supports) -> TokenLayout:
    """A grid for each of the pictures that the processor made."""
    pictures = seen.owners.reshape(-1, *seen.owners.shape[-2:])
    grids = []
    for number, owners in enumerate(pictures):
        present = np.unique(owners[owners >= 0])
        if len(present):
            boxes = np.array([_box(owners == token) for token in present])
            grids.append(_grid(number, present, boxes))
    return TokenLayout(seen.tokens, tuple(grids))


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    if mask.sum() != (box[2] - box[0]) * (box[3] - box[1]):
        raise AnatomyError("An image token's pixels are no rectangle, so where the neurons look cannot be shown.")
    return box


def _grid(picture: int, tokens: Int[np.ndarray, "tokens"], boxes: Int[np.ndarray, "tokens 4"]) -> TokenGrid:
    x, y = np.unique(boxes[:, [0, 2]], axis=0), np.unique(boxes[:, [1, 3]], axis=0)
    places = {(tuple(box[[0, 2]]), tuple(box[[1, 3]])): token for token, box in zip(tokens, boxes, strict=True)}
    try:
        positions = np.array([[places[tuple(column), tuple(row)] for column in x] for row in y])
    except KeyError as error:
        raise AnatomyError("Image tokens form no grid, so where the neurons look cannot be shown.") from error
    return TokenGrid(np.array([[picture]]), x.astype(np.float64), y.astype(np.float64), positions)


def _of_patches(processor: BaseImageProcessor, size: tuple[int, int], seen: Supports) -> ImageGrid:
    """The one grid of a picture that comes out as patches, in rows."""
    x, y = _middles(processor, size, seen)
    there = np.flatnonzero(~np.isnan(x))
    ends = np.flatnonzero(np.diff(x[there]) < 0)
    columns = int(ends[0]) + 1 if len(ends) else len(there)
    if len(there) % columns:
        raise AnatomyError("Image tokens form no grid, so where the neurons look cannot be shown.")
    positions = there.reshape(-1, columns)
    spans = []
    for middles, length in ((x[positions].mean(0), size[0]), (y[positions].mean(1), size[1])):
        spans.append(_edges(middles, length))
    for own, found in ((x[positions], spans[0]), (y[positions].T, spans[1])):
        expected = found.mean(1)
        cell = (found[-1, 1] - found[0, 0]) / len(found)
        if np.abs(own - expected).max() > OFF * cell:
            raise AnatomyError("Image tokens form no even grid, so where the neurons look cannot be shown.")
    rows = len(positions)
    rectangle: Rectangle = (
        float(spans[0][0, 0]),
        float(spans[1][0, 0]),
        float(spans[0][-1, 1]),
        float(spans[1][-1, 1]),
    )
    return ImageGrid(rows, columns, rectangle, positions, spans[0], spans[1])


def _edges(middles: Float[np.ndarray, "cells"], length: int) -> Float[np.ndarray, "cells 2"]:
    """The edges of even cells with these middles, in a picture that is so long."""
    count = len(middles)
    if count == 1:
        # one cell has no distance to another: what its middle leaves on both sides
        half = min(middles[0], length - middles[0])
        return np.array([[middles[0] - half, middles[0] + half]])
    step, start = np.polyfit(np.arange(count), middles, 1)
    first, last = start - step / 2, start + step * (count - 0.5)
    first = 0.0 if abs(first) < SNAP * step else first
    last = float(length) if abs(last - length) < SNAP * step else last
    return even_spans(count, (last - first) / count, first)


def _middles(
    processor: BaseImageProcessor, size: tuple[int, int], seen: Supports
) -> tuple[Float[np.ndarray, "tokens"], Float[np.ndarray, "tokens"]]:
    """Where the middle of every token lies in the picture; not a number where it shows none of it."""
    levels = chart_levels(size)
    bright, dark = (_patches(processor, shown) for shown in (levels, (MIRROR - levels).astype(np.uint8)))
    half = (bright - dark) / 2
    if half[..., 2].std() > half[..., 0].std():
        raise AnatomyError("The image processor's patches hold their colours in an order that is not known.")
    # whatever the processor multiplies levels by, blue is the same everywhere
    blue = half[..., 2:]
    colors = MIRROR / 2 + half * (BLUE - MIRROR / 2) / np.where(blue == 0, 1, blue)
    x, y = positions_of(colors[..., :2], size)
    owners = seen.owners.reshape(-1)
    middles = np.full((2, seen.tokens), np.nan)
    for axis, values in enumerate((x, y)):
        own = owners >= 0
        sums = np.bincount(owners[own], weights=values.reshape(-1)[own], minlength=seen.tokens)
        counts = np.bincount(owners[own], minlength=seen.tokens)
        middles[axis, counts > 0] = sums[counts > 0] / counts[counts > 0]
    return middles[0], middles[1]


def _patches(processor: BaseImageProcessor, levels: np.ndarray) -> Float[np.ndarray, "patches 3"]:
    """The mean red, green and blue of every patch."""
    made = processor(images=[Image.fromarray(levels)], return_tensors="pt", do_rescale=False, do_normalize=False)
    pixels = torch.as_tensor(next(made[name] for name in PIXELS if name in made)).float().numpy()
    flat = pixels.reshape(-1, pixels.shape[-1])
    # all of one colour after the other, or colours pixel by pixel: blue is the one that does not change
    orders = (flat.reshape(len(flat), 3, -1).mean(2), flat.reshape(len(flat), -1, 3).mean(1))
    there = np.abs(flat).max(1) > 0
    return min(orders, key=lambda colors: float(colors[there, 2].std()))
