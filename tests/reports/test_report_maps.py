"""Maps from their rows: the same map again, and a raster of it that is the map, to one part in 254."""

import numpy as np
import polars as pl
import pytest
from PIL import Image

import mmneurons as mmn
from helpers.tiny import tiny_llava_next
from mmneurons.heatmaps import Heatmap
from mmneurons.reports.maps import UNSEEN, raster, stored_heatmap
from mmneurons.runs.schema import schema
from mmneurons.vlm.geometry import Geometry, ImageGrid, geometry


def rows_of(heatmap: Heatmap) -> pl.DataFrame:
    """The rows of the heatmaps table, as the engine writes them: every cell's rectangle, also in the padding."""
    rows = []
    for number, grid in enumerate(heatmap.geometry.grids):
        x, y = grid.spans()
        cells = [[x[c, 0], y[r, 0], x[c, 1], y[r, 1]] for r in range(grid.rows) for c in range(grid.columns)]
        values = heatmap.values[grid.positions].ravel().tolist()
        rows.append(("w.0", 0, None, number, grid.rows, grid.columns, values, cells))
    return pl.DataFrame(rows[::-1], schema=schema("heatmaps"), orient="row")


def grid_over(rectangle, rows, columns, first=0):
    return ImageGrid(rows, columns, rectangle, first + np.arange(rows * columns).reshape(rows, columns))


def heatmap(size, *grids, seed=0):
    tokens = sum(grid.positions.size for grid in grids)
    values = np.random.default_rng(seed).normal(size=tokens).astype(np.float32)
    return Heatmap(values, Geometry(size, tokens, grids))


LAYOUTS = {
    "whole": heatmap((90, 60), grid_over((0.0, 0.0, 90.0, 60.0), 7, 7)),
    "crop": heatmap((90, 60), grid_over((15.0, 0.0, 75.0, 60.0), 4, 4)),
    "padding": heatmap((80, 40), grid_over((0.0, -20.0, 80.0, 60.0), 6, 6)),
    "tiles": heatmap(
        (80, 50), grid_over((0.0, 0.0, 80.0, 50.0), 3, 5), grid_over((0.0, -5.0, 80.0, 55.0), 6, 8, first=15)
    ),
    "half": heatmap(
        (80, 50), grid_over((0.0, 0.0, 80.0, 50.0), 3, 5), grid_over((40.0, 0.0, 80.0, 50.0), 4, 4, first=15)
    ),
    "tall": heatmap((3, 200), grid_over((0.0, 0.0, 3.0, 200.0), 5, 5)),
}


@pytest.fixture(params=LAYOUTS)
def stored(request):
    return LAYOUTS[request.param]


def test_a_stored_map_is_the_map_again(stored):
    again = stored_heatmap(rows_of(stored), stored.geometry.size)
    np.testing.assert_allclose(again.map(), stored.map(), atol=1e-4)
    assert again.peak() == pytest.approx(stored.peak(), abs=1e-3)


def test_tiles_and_newlines_of_llava_next_are_the_map_again():
    model, processor = tiny_llava_next()
    for size in ((150, 70), (40, 120)):
        inputs = processor(images=Image.new("RGB", size), text="<image>", return_tensors="pt")
        tokens = int((inputs["input_ids"] == model.config.image_token_id).sum())
        values = np.random.default_rng(1).normal(size=tokens).astype(np.float32)
        shown = Heatmap(values, geometry(mmn.wrap(model, processor), size, tokens))
        assert len(shown.geometry.grids) > 1
        np.testing.assert_allclose(stored_heatmap(rows_of(shown), size).map(), shown.map(), atol=1e-3)


def test_a_raster_of_the_pictures_size_is_the_map_to_half_a_step(stored):
    size, expected = stored.geometry.size, stored.map()
    small = raster(stored, max(size))
    assert small.codes.shape == expected.shape
    unseen = np.isnan(expected)
    assert ((small.codes == UNSEEN) == unseen).all()
    decoded = small.low + small.codes / (UNSEEN - 1) * (small.high - small.low)
    step = (small.high - small.low) / (UNSEEN - 1)
    assert np.abs(decoded - expected)[~unseen].max() <= 0.51 * step


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "half"])
def test_a_raster_names_the_ends_of_the_map_not_of_its_few_points(name):
    stored = LAYOUTS[name]
    small = raster(stored, 6)
    size = stored.geometry.size
    everywhere = stored.sample(np.linspace(0.5, size[0] - 0.5, 1200), np.linspace(0.5, size[1] - 0.5, 1200))
    spread = small.high - small.low
    assert np.nanmin(everywhere) == pytest.approx(small.low, abs=0.02 * spread)
    assert np.nanmax(everywhere) == pytest.approx(small.high, abs=0.02 * spread)
    assert small.low - 1e-5 <= np.nanmin(everywhere)
    assert np.nanmax(everywhere) <= small.high + 1e-5


@pytest.mark.parametrize(
    ("size", "shape"), [((640, 480), (36, 48)), ((480, 640), (48, 36)), ((2000, 3), (1, 48)), ((1, 1), (48, 48))]
)
def test_a_raster_has_the_shape_of_the_picture(size, shape):
    whole = heatmap(size, grid_over((0.0, 0.0, *map(float, size)), 3, 3))
    assert raster(whole, 48).codes.shape == shape


def test_a_flat_map_and_one_that_is_not_a_number_have_a_raster():
    whole = grid_over((0.0, 0.0, 30.0, 30.0), 3, 3)
    flat = raster(Heatmap(np.full(9, 2.5, dtype=np.float32), Geometry((30, 30), 9, (whole,))), 8)
    assert (flat.low, flat.high) == (2.5, 2.5)
    assert (flat.codes == 0).all()
    nothing = raster(Heatmap(np.full(9, np.nan, dtype=np.float32), Geometry((30, 30), 9, (whole,))), 8)
    assert (nothing.low, nothing.high) == (0.0, 0.0)
    assert (nothing.codes == UNSEEN).all()
