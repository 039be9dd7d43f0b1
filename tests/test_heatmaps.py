"""Heatmaps: the map against torch's interpolation, peaks and masks that are known, and what the overlay shows."""

import time

import cmap
import numpy as np
import pytest
import torch
from PIL import Image

import mmneurons as mmn
from helpers.tiny import tiny_llava_next
from mmneurons.errors import OptionError
from mmneurons.heatmaps import Heatmap, mask_iou, pointing_hit
from mmneurons.vlm.geometry import Geometry, ImageGrid, geometry


def grid_over(size, rows, columns, rectangle=None, first=0):
    positions = first + np.arange(rows * columns).reshape(rows, columns)
    whole = (0.0, 0.0, float(size[0]), float(size[1]))
    return ImageGrid(rows, columns, whole if rectangle is None else rectangle, positions)


def heatmap(values, size, rectangle=None, title="dog: L3.u7", source="recording"):
    values = np.asarray(values, dtype=np.float32)
    grid = grid_over(size, *values.shape, rectangle)
    return Heatmap(values.ravel(), Geometry(size, values.size, (grid,)), title, source)


def random_values(rows, columns, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


@pytest.mark.parametrize("size", [(56, 56), (90, 60), (31, 200), (7, 5), (3, 2), (1, 1), (640, 481)])
@pytest.mark.parametrize("shape", [(7, 7), (1, 1), (3, 5), (24, 24)])
def test_over_the_whole_picture_the_map_is_torchs_interpolation(size, shape):
    values = random_values(*shape)
    expected = torch.nn.functional.interpolate(
        torch.tensor(values, dtype=torch.float64)[None, None], (size[1], size[0]), mode="bilinear", align_corners=False
    )
    found = heatmap(values, size).map()
    assert found.shape == (size[1], size[0])
    np.testing.assert_allclose(found, expected[0, 0].numpy(), atol=1e-5)


def test_a_center_crop_is_interpolated_inside_and_unknown_outside():
    values = random_values(4, 4)
    found = heatmap(values, (90, 60), (15.0, 0.0, 75.0, 60.0)).map()
    expected = torch.nn.functional.interpolate(torch.tensor(values)[None, None], (60, 60), mode="bilinear")[0, 0]
    np.testing.assert_allclose(found[:, 15:75], expected.numpy(), atol=1e-5)
    assert np.isnan(found[:, :15]).all()
    assert np.isnan(found[:, 75:]).all()


def test_a_rectangle_between_pixels_is_sampled_at_the_pixels_centers():
    # One row of two tokens whose centers lie at x = 2.25 and 6.75: the value grows by 1/4.5 a pixel between them.
    found = heatmap([[0.0, 1.0]], (10, 2), (0.0, -0.3, 9.0, 2.7)).map()
    expected = np.interp(np.arange(9) + 0.5, [2.25, 6.75], [0, 1])
    np.testing.assert_allclose(found[0, :9], expected, atol=1e-6)
    assert np.isnan(found[:, 9]).all()


def test_tokens_that_see_only_padding_do_not_reach_the_map():
    # The upper and lower rows of four lie in the padding of a picture twice as wide as high.
    values = np.array([[9, 9, 9, 9], [1, 2, 3, 4], [5, 6, 7, 8], [-9, -9, -9, -9]], dtype=np.float32)
    found = heatmap(values, (80, 40), (0.0, -20.0, 80.0, 60.0)).map()
    expected = torch.nn.functional.interpolate(torch.tensor(values[1:3])[None, None], (40, 80), mode="bilinear")[0, 0]
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    assert heatmap(values, (80, 40), (0.0, -20.0, 80.0, 60.0)).peak() == (70.0, 30.0)


def test_two_grids_are_averaged_where_both_see_and_stand_alone_elsewhere():
    size = (8, 4)
    whole = grid_over(size, 2, 2)
    right = grid_over(size, 2, 2, (4.0, 0.0, 8.0, 4.0), first=4)
    values = random_values(1, 9)[0]
    values[8] = 1e6  # a newline token, in no grid
    found = Heatmap(values, Geometry(size, 9, (whole, right))).map()

    def interpolated(part, shape):
        grid = torch.tensor(part.reshape(1, 1, 2, 2))
        return torch.nn.functional.interpolate(grid, shape, mode="bilinear")[0, 0].numpy()

    expected = interpolated(values[:4], (4, 8))
    expected[:, 4:] = (expected[:, 4:] + interpolated(values[4:8], (4, 4))) / 2
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_columns_that_are_not_evenly_spaced_are_taken_where_they_are():
    # Two tiles of 10 pixels hold 2 patches of 4 each; 2 pixels of each tile belong to none.
    spans = np.array([[0.0, 4.0], [4.0, 8.0], [10.0, 14.0], [14.0, 18.0]])
    grid = ImageGrid(1, 4, (0.0, 0.0, 18.0, 4.0), np.arange(4)[None], spans, np.array([[0.0, 4.0]]))
    found = Heatmap(np.array([0.0, 1.0, 5.0, 2.0], dtype=np.float32), Geometry((20, 4), 4, (grid,))).map()
    expected = np.interp(np.arange(18) + 0.5, [2, 6, 12, 16], [0, 1, 5, 2])
    np.testing.assert_allclose(found[2, :18], expected, atol=1e-6)
    assert np.isnan(found[:, 18:]).all()


@pytest.mark.parametrize(("row", "column"), [(0, 0), (3, 5), (6, 6), (6, 0)])
def test_the_peak_is_the_center_of_the_largest_tokens_rectangle(row, column):
    values = random_values(7, 7).clip(-1, 1)
    values[row, column] = 3
    assert heatmap(values, (224, 112)).peak() == ((column + 0.5) * 32, (row + 0.5) * 16)


def test_the_peak_of_tiles_and_whole_is_the_largest_value_of_a_fine_map():
    model, processor = tiny_llava_next()
    size = (150, 70)
    tokens = int(
        (
            processor(images=Image.new("RGB", size), text="<image>", return_tensors="pt")["input_ids"]
            == model.config.image_token_id
        ).sum()
    )
    place = geometry(mmn.wrap(model, processor), size, tokens)
    for seed in range(5):
        shown = Heatmap(random_values(1, tokens, seed)[0], place)
        x, y = shown.peak()
        values = shown.map()
        # A pixel's center is at most half a pixel from the peak, and the map is continuous there.
        assert np.nanmax(values) <= values[min(int(y), 69), min(int(x), 149)] + 0.15
        fine = shown.sample(np.linspace(0, 150, 1501), np.linspace(0, 70, 701))
        assert shown.sample(np.array([x]), np.array([y]))[0, 0] >= np.nanmax(fine) - 1e-5


def test_the_mask_is_what_lies_above_the_percentile_of_what_is_seen():
    shown = heatmap(random_values(7, 7), (90, 60), (15.0, 0.0, 75.0, 60.0))
    values, mask = shown.map(), shown.mask()
    seen = ~np.isnan(values)
    assert mask.sum() == pytest.approx(0.05 * seen.sum(), rel=0.01)
    assert values[mask].min() > values[seen & ~mask].max()
    assert not mask[~seen].any()
    assert shown.mask(50.0).sum() == pytest.approx(0.5 * seen.sum(), rel=0.01)
    assert not heatmap(np.ones((3, 3)), (30, 30)).mask().any()


def test_the_pointing_game_counts_a_peak_in_any_box():
    values = np.zeros((4, 4))
    values[1, 2] = 1
    shown = heatmap(values, (40, 40))
    assert shown.peak() == (25, 15)
    assert pointing_hit(shown, [(20.0, 10.0, 30.0, 20.0)])
    assert pointing_hit(shown, [(0.0, 0.0, 5.0, 5.0), (24.0, 14.0, 26.0, 16.0)])
    assert not pointing_hit(shown, [(0.0, 0.0, 25.0, 40.0)])
    assert not pointing_hit(shown, [])


def test_the_iou_of_masks_is_overlap_over_union():
    one, other = np.zeros((10, 10), dtype=bool), np.zeros((10, 10), dtype=bool)
    one[:4, :5] = True
    other[2:6, :5] = True
    assert mask_iou(one, other) == pytest.approx(10 / 30)
    assert mask_iou(one, one) == 1
    assert mask_iou(np.zeros_like(one), np.zeros_like(one)) == 0
    with pytest.raises(OptionError, match="different sizes"):
        mask_iou(one, other[:5])


def test_the_overlay_colors_what_is_seen_by_value_and_dims_the_rest():
    values = np.tile(np.linspace(-2, 5, 8), (4, 1))
    picture = Image.new("RGB", (200, 100), (200, 100, 50))
    shown = heatmap(values, (200, 100), (40.0, 0.0, 160.0, 100.0))
    drawn = np.asarray(shown.overlay(picture, opacity=1.0, legend=False))
    assert drawn.shape == (100, 200, 3)
    viridis = cmap.Colormap("viridis")
    field = shown.map()
    for x in (40, 73, 100, 159):
        expected = np.array(viridis((field[50, x] + 2) / 7).rgba8[:3])
        assert np.abs(drawn[50, x].astype(int) - expected).max() <= 3
    gray = np.asarray(picture.convert("L"))[50, 10]
    assert (drawn[:, :40] == drawn[0, 0]).all()
    assert len(set(drawn[0, 0].tolist())) == 1
    assert drawn[0, 0, 0] < 0.5 * gray
    # Lightness grows with the value: the colors are perceptually uniform.
    lightness = np.asarray(Image.fromarray(drawn).convert("L"))[50, 40:160].astype(int)
    assert (np.diff(lightness) >= -1).all()
    assert lightness[-1] - lightness[0] > 150


def test_without_opacity_the_picture_stays_as_it_is_in_gray():
    picture = Image.effect_noise((64, 48), 60).convert("RGB")
    drawn = heatmap(random_values(4, 4), (64, 48)).overlay(picture, opacity=0.0, legend=False)
    assert (np.asarray(drawn) == np.asarray(picture)).all()


def drawn_text(monkeypatch, shown, picture):
    """What the legend writes, and the overlay."""
    from PIL import ImageDraw

    written = []
    draw = ImageDraw.ImageDraw.text

    def note(self, place, text, *arguments, **options):
        written.append(text)
        return draw(self, place, text, *arguments, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", note)
    return written, shown.overlay(picture)


def test_the_legend_says_what_the_colors_mean(monkeypatch):
    values = np.array([[-1.25, 0.5], [0.25, 3.0]])
    shown = heatmap(values, (300, 200), title="dog: L27.u1234", source="second prefill")
    picture = Image.new("RGB", (300, 200), "gray")
    written, drawn = drawn_text(monkeypatch, shown, picture)
    assert written == ["dog: L27.u1234", "-1.25", "activation, signed, second prefill", "3"]
    assert drawn.width == 300
    assert drawn.height > 200
    assert (np.asarray(drawn)[:200] == np.asarray(shown.overlay(picture, legend=False))).all()
    strip = np.asarray(drawn)[200:].reshape(-1, 3)
    assert (strip < 100).all(axis=1).sum() > 100, "no black text was drawn"
    for end in (0.0, 1.0):
        color = np.array(cmap.Colormap("viridis")(end).rgba8[:3]).astype(int)
        assert (np.abs(strip.astype(int) - color).max(axis=1) <= 1).any()


@pytest.mark.parametrize("size", [(1, 1), (20, 300), (2000, 30)])
def test_a_legend_fits_any_picture_and_any_title(size):
    title = "a word of many letters: the mean of the first thousand neurons"
    drawn = heatmap(random_values(3, 3), size, title=title).overlay(Image.new("RGB", size))
    assert drawn.width >= max(size[0], 240)
    # The title's last letter is inside: nothing but white at the right edge, something near it or a wide sheet.
    strip = np.asarray(drawn.convert("L"))[size[1] :]
    assert (strip[:, -1] == 255).all()
    assert (strip < 100).any()


def test_what_does_not_fit_is_refused():
    shown = heatmap(random_values(3, 3), (30, 20))
    with pytest.raises(OptionError, match="30 × 20"):
        shown.overlay(Image.new("RGB", (20, 30)))
    with pytest.raises(OptionError, match="Opacity"):
        shown.overlay(Image.new("RGB", (30, 20)), opacity=2.0)
    with pytest.raises(OptionError, match="percentile"):
        shown.mask(101.0)
    with pytest.raises(OptionError, match="9 image tokens"):
        Heatmap(np.zeros(8, dtype=np.float32), shown.geometry)
    with pytest.raises(OptionError, match="no number"):
        Heatmap(np.full(9, np.nan, dtype=np.float32), shown.geometry).peak()


def test_a_map_of_three_million_pixels_takes_less_than_a_tenth_of_a_second():
    shown = heatmap(random_values(24, 24), (2000, 1500))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        shown.map()
        times.append(time.perf_counter() - start)
    assert min(times) < 0.1
