"""Maps of a run folder: from its rows to a heatmap, and to a small raster that a page can hold many of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float, UInt8

from mmneurons.heatmaps import Heatmap
from mmneurons.vlm.geometry import Geometry, ImageGrid

__all__ = ["UNSEEN", "Raster", "raster", "stored_heatmap"]

UNSEEN = 255
"""The code of what no token sees; 0 to 254 are the smallest to the largest value."""


@dataclass(frozen=True, eq=False)
class Raster:
    """A map at a few points, in one byte each.

    Attributes:
        codes: 0 to 254 for the smallest to the largest value, ``UNSEEN`` where no token sees the picture.
        low: the smallest value of the map, not only of these points.
        high: the largest.
    """

    codes: UInt8[np.ndarray, "rows columns"]
    low: float
    high: float


def stored_heatmap(grids: pl.DataFrame, size: tuple[int, int], title: str = "") -> Heatmap:
    """Put a map together again.

    Args:
        grids: its rows in the heatmaps table, one for each grid.
        size: width and height of the picture.
        title: what it is of.
    """
    values, placed, first = [], [], 0
    for row in grids.sort("grid").iter_slices(1):
        rows, columns = int(row["rows"][0]), int(row["columns"][0])
        cells = row["rectangles"][0].to_numpy().reshape(rows, columns, 4).astype(np.float64)
        x, y = cells[0][:, [0, 2]], cells[:, 0][:, [1, 3]]
        covers = (float(x[0, 0]), float(y[0, 0]), float(x[-1, 1]), float(y[-1, 1]))
        positions = first + np.arange(rows * columns).reshape(rows, columns)
        placed.append(ImageGrid(rows, columns, covers, positions, x, y))
        values.append(row["values"][0].to_numpy())
        first += rows * columns
    return Heatmap(np.concatenate(values).astype(np.float32), Geometry(size, first, tuple(placed)), title)


def raster(heatmap: Heatmap, long_side: int) -> Raster:
    """A map at the centers of a raster over the picture.

    Args:
        heatmap: the map.
        long_side: of the raster, in points; the other side has as many as its length asks for, at least one.
    """
    size = heatmap.geometry.size
    columns, rows = (max(1, round(long_side * length / max(size))) for length in size)
    values = heatmap.sample(_centers(columns, size[0]), _centers(rows, size[1]))
    low, high = heatmap.limits()
    if not np.isnan(values).all():
        # where one grid ends over another the map jumps, and a sample may lie beyond the knots
        low, high = min(low, float(np.nanmin(values))), max(high, float(np.nanmax(values)))
    levels = (values - low) * ((UNSEEN - 1) / (high - low) if high > low else 0)
    codes = np.nan_to_num(levels, nan=UNSEEN).clip(0, UNSEEN).round().astype(np.uint8)
    codes[(codes == UNSEEN) & ~np.isnan(values)] = UNSEEN - 1
    return Raster(codes, low, high)


def _centers(count: int, length: int) -> Float[np.ndarray, "count"]:
    return (np.arange(count) + 0.5) * (length / count)
