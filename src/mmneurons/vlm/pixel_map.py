"""Which part of a picture each processed pixel shows: measured by sending charts through the image processor.

A chart is a picture of the same size whose colors say where in it one is: red grows along x, green along y. Each also
grows a little along the other axis, so that the levels are crossed at another place in every row and column and
their rounding averages out: the map is good to a few hundredths of a pixel in pictures of 16 to 4,000 pixels. (Where a
bilinear filter makes a picture almost, but not exactly, two or three times smaller, it can be off by an eighth of a
processed pixel.) Two runs serve every way of resizing, cropping, padding and tiling that treats the axes apart; what
does not is refused.

The second chart is the negative of the first, and half the difference of the two is what is read. What a processor adds
to both drops out of it. One such thing is rounding: a picture of whole levels that is halved has every second level at
an exact half, and resamplers round those up; read from one chart, the map would be off by half a pixel. The other is
padding: in blue, a bright chart less a dark one says how much of each pixel is picture, whatever the padding's color.

A long and thin picture that was padded can come out a few pixels wide, all of them mixed with padding. Then the sum and
the middle of these shares give the map across.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor

from mmneurons.errors import AnatomyError

__all__ = ["Axis", "PixelMap", "ProcessedChart", "chart_levels", "positions_of", "process_chart"]

LOW, MAIN, TILT = 8, 200.0, 32.36
"""Levels: where red and green begin, how far they grow along their own axis and along the other. They end at 240."""

PIXELS = ("pixel_values", "pixel_values_images", "images")
"""What image processors call the pixels; the last is Fuyu's, which cuts them into patches later."""

STEP = 4
"""Red and green grow in steps of so many levels, so that a resampler's rounding to whole levels weighs little. In long
pictures, of which a crop may show too short a piece for the steps to average out, they grow level by level."""

MIRROR = 252
"""A level of the chart and that of its negative add up to this."""

BLUE = 204
"""Not as bright as can be, and in the negative not black: a sharpening filter overshoots at padding, and that may not
be cut off."""

SNAP = 0.4
"""An edge of the processed pixels this close to the picture's border is the border. Counted in the smaller of the two
pixel sizes, of which a true crop or padding takes at least one."""

KERNEL = 3
"""The reach of the widest usual resampling filter (Lanczos): nearer to the border the colors are no longer linear."""

FEWEST = 4
"""So many pixels far from the border are enough to measure an axis."""

TOO_THIN = (
    "The picture is too long and thin: so few pixels of it are left after the image processor that where the neurons "
    "look cannot be shown. Crop the picture."
)


@dataclass(frozen=True)
class Axis:
    """original = ``scale`` · processed + ``offset``, both counted in pixels from the outer edge of the first pixel."""

    scale: float
    offset: float

    def original(self, processed: Float[np.ndarray, "*any"]) -> Float[np.ndarray, "*any"]:
        """Return where processed coordinates lie in the picture; may be outside of it (padding)."""
        return self.scale * processed + self.offset


@dataclass(frozen=True)
class PixelMap:
    """From processed pixels to the picture's."""

    x: Axis
    y: Axis


@dataclass(frozen=True, eq=False)
class ProcessedChart:
    """What the image processor made of the chart and its negative.

    Attributes:
        size: width and height of the picture.
        enlarged: how many times as large as the picture the charts were.
        tiles: level of red, level of green (both without padding), and how much of the pixel is picture, from 0 to 1.
    """

    size: tuple[int, int]
    enlarged: int
    tiles: Float[np.ndarray, "tiles 3 height width"]

    def pixel_map(self, arrangement: np.ndarray) -> PixelMap:
        """Fit the map of some tiles put together.

        Where the processed pixels end at the picture's border but for what the fit can be off by, they are taken to end
        there exactly.

        Args:
            arrangement: Numbers of tiles, shape (tile rows, tile columns), as they lie in the picture.

        Raises:
            AnatomyError: the tiles do not show one piece of the picture, upright and evenly scaled, or show too little
                of it to measure.
        """
        size = (self.size[0] * self.enlarged, self.size[1] * self.enlarged)
        pixels = _put_together(self.tiles, arrangement)
        fit = _fit(pixels, size)
        axes = []
        for axis, covered in enumerate((pixels[2], pixels[2].T)):
            line = _extent(covered, size[axis]) if fit.thin[axis] else fit.lines[axis]
            _check("xy"[axis], line, size[axis], fit.estimates[axis], fit.used[axis])
            measured = Axis(line.scale / self.enlarged, line.offset / self.enlarged)
            axes.append(_snapped(measured, covered.shape[1], self.size[axis]))
        return PixelMap(*axes)


def process_chart(image_processor: BaseImageProcessor, size: tuple[int, int]) -> ProcessedChart:
    """Send charts of the picture's size through the image processor.

    A picture of few pixels is measured on charts that are a whole number of times as large, of which more are far from
    their border. Whether the processor does the same with both is checked: same shape, same padding, and colors that
    agree to half a pixel and half a level.

    Args:
        image_processor: Of transformers, or with the same call.
        size: Width and height of the picture.

    Raises:
        AnatomyError: the processor does not return the pixels as levels when asked to, or the picture is too small to
            be measured.
    """
    actual = ProcessedChart(size, 1, _process(image_processor, size))
    for target in (64, 32, 16, 8):
        times = -(-target // min(size))
        if times < 2:
            return actual
        chart = ProcessedChart(size, times, _process(image_processor, (size[0] * times, size[1] * times)))
        if _same_geometry(actual, chart):
            return chart
    raise AnatomyError(
        f"Where the parts of a picture of {size[0]} × {size[1]} pixels go could not be measured: it is too small for "
        f"{type(image_processor).__name__}. Enlarge the picture."
    )


def chart_levels(size: tuple[int, int]) -> UInt8[np.ndarray, "height width 3"]:
    """The chart of a picture's size: red grows along x, green along y, blue stays."""
    width, height = size
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    step = STEP if TILT * min(size) / max(size) > 2 * STEP else 1
    levels = np.full((height, width, 3), BLUE, dtype=np.uint8)
    # Fixed point with 8 binary places keeps a picture of 12 million pixels in 16-bit numbers.
    for channel, (along_x, along_y) in enumerate(((MAIN, TILT), (TILT, MAIN))):
        columns = np.rint((LOW + step / 2 + along_x * x) * 256).astype(np.uint16)
        rows = np.rint(along_y * y * 256).astype(np.uint16)
        levels[..., channel] = (columns[None, :] + rows[:, None]) // (256 * step) * step
    return levels


def _process(image_processor: BaseImageProcessor, size: tuple[int, int]) -> Float[np.ndarray, "tiles 3 height width"]:
    """Return what comes of the chart and its negative, as in ``ProcessedChart.tiles``."""
    levels = chart_levels(size)
    bright = _pixels(image_processor, levels)
    # In place: the chart of a large picture is large.
    np.subtract(MIRROR, levels, out=levels)
    half = (bright - _pixels(image_processor, levels)) / 2
    half[:, 2] /= BLUE - MIRROR / 2
    # Pixels of which less is picture are not read.
    half[:, :2] = MIRROR / 2 + half[:, :2] / np.maximum(half[:, 2:], 0.5)
    return half


def _pixels(
    image_processor: BaseImageProcessor, levels: UInt8[np.ndarray, "height width 3"]
) -> Float[np.ndarray, "tiles 3 processed_height processed_width"]:
    picture = Image.fromarray(levels)
    processed = image_processor(images=[picture], return_tensors="pt", do_rescale=False, do_normalize=False)
    named = next((name for name in PIXELS if name in processed), None)
    if named is None:
        raise AnatomyError(
            f"{type(image_processor).__name__} returns {', '.join(processed)}; pixels are known as "
            f"{', '.join(PIXELS)}. Where the neurons look cannot be shown for this model; everything else works."
        )
    pixels = np.asarray(processed[named], dtype=np.float32)
    if pixels.ndim == 5 and len(pixels) == 1:
        pixels = pixels[0]
    if pixels.ndim != 4 or pixels.shape[1] != 3:
        raise AnatomyError(
            f"{type(image_processor).__name__} returns pixels of shape {pixels.shape}; known are (tiles, 3, height, "
            "width). Where the neurons look cannot be shown for this model; everything else works."
        )
    if pixels.max() < 60:
        raise AnatomyError(
            f"{type(image_processor).__name__} scales its pixels although it was asked not to (do_rescale, "
            "do_normalize). Where the neurons look cannot be shown for this model; everything else works."
        )
    return pixels


def _shown(pixels: Float[np.ndarray, "3 height width"]) -> Bool[np.ndarray, "height width"]:
    """Tell pixels of the picture from padding."""
    return pixels[2] > 0.5


def positions_of(
    colors: Float[np.ndarray, "*any 2"], size: tuple[int, int]
) -> tuple[Float[np.ndarray, "*any"], Float[np.ndarray, "*any"]]:
    """Return x and y in a chart of this size from levels of red and green."""
    mix = np.linalg.inv([[MAIN, TILT], [TILT, MAIN]])
    red, green = colors[..., 0] - LOW, colors[..., 1] - LOW
    return (mix[0, 0] * red + mix[0, 1] * green) * size[0], (mix[1, 0] * red + mix[1, 1] * green) * size[1]


def _positions(pixels: Float[np.ndarray, "3 height width"], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y in the chart, each (height, width), from red and green."""
    return positions_of(np.moveaxis(pixels[:2], 0, -1), size)


def _put_together(
    tiles: Float[np.ndarray, "tiles 3 height width"], arrangement: np.ndarray
) -> Float[np.ndarray, "3 all_height all_width"]:
    return np.concatenate([np.concatenate([tiles[tile] for tile in row], axis=2) for row in arrangement], axis=1)


@dataclass(frozen=True, eq=False)
class _Fit:
    """What was fitted along x and along y.

    Attributes:
        lines: the maps.
        estimates: where each pixel's color says that it is, in rows that run along the axis.
        used: the pixels that the line was fitted to.
        thin: whether too few pixels along the axis are far from the border.
    """

    lines: list[Axis]
    estimates: list[Float[np.ndarray, "_ _"]]
    used: list[Bool[np.ndarray, "_ _"]]
    thin: list[bool]


def _fit(pixels: Float[np.ndarray, "3 height width"], size: tuple[int, int]) -> _Fit:
    """Fit both lines to the pixels that show the chart and are far from its border."""
    # For each axis a view whose rows run along it; of the rows of a large mosaic every second, third … will do.
    step = max(1, max(pixels.shape[1:]) // 512)
    views = (pixels[:, ::step], pixels[:, :, ::step].swapaxes(1, 2))
    estimates = [_positions(view, size)[axis] for axis, view in enumerate(views)]
    shown = [_shown(view) for view in views]
    far = [np.asarray(mask.any(axis=0)) for mask in shown]
    for _ in range(3):
        used = [shown[axis] & far[axis][None, :] & far[1 - axis][::step, None] for axis in (0, 1)]
        lines = [_line(estimates[axis], used[axis]) for axis in (0, 1)]
        further = [_far_from_border(lines[axis], size[axis], shown[axis]) for axis in (0, 1)]
        thin = [bool(columns.sum() < FEWEST) for columns in further]
        far = [far[axis] if thin[axis] else further[axis] for axis in (0, 1)]
    return _Fit(lines, estimates, used, thin)


def _check(name: str, axis: Axis, length: int, estimates: np.ndarray, mask: Bool[np.ndarray, "rows columns"]) -> None:
    """Refuse a map that is not a straight line rising along its own axis and level along the other."""
    off = estimates - axis.original(np.arange(estimates.shape[1]) + 0.5)[None, :]
    worst = max(np.abs(_means(off, mask)).max(), np.abs(_means(off.T, mask.T)).max())
    # One pixel, of the picture or of the processed one, or what is left of the rounding to levels.
    if axis.scale <= 0 or worst > max(1.0, axis.scale, 0.5 * length / MAIN):
        raise AnatomyError(
            f"The image processor does not show an upright, evenly scaled picture: along {name}, the colors of a test "
            f"chart are up to {worst:.1f} pixels away from a straight line. Where the neurons look cannot be shown for "
            "this model; everything else works."
        )


def _means(values: Float[np.ndarray, "rows columns"], mask: Bool[np.ndarray, "rows columns"]) -> np.ndarray:
    """Return the mean of every column that has a pixel in the mask."""
    counts = mask.sum(axis=0)
    return (values * mask).sum(axis=0)[counts > 0] / counts[counts > 0]


def _line(estimates: Float[np.ndarray, "rows columns"], mask: Bool[np.ndarray, "rows columns"]) -> Axis:
    """Fit a straight line through the columns' mean estimates by least squares."""
    at = np.nonzero(mask.any(axis=0))[0] + 0.5
    if len(at) < 2:
        raise AnatomyError(TOO_THIN)
    scale, offset = np.polyfit(at, _means(estimates, mask), 1)
    return Axis(float(scale), float(offset))


def _far_from_border(axis: Axis, length: int, shown: Bool[np.ndarray, "rows columns"]) -> Bool[np.ndarray, "columns"]:
    """Tell the columns that show the picture and whose color no border has touched."""
    margin = KERNEL * max(1.0, axis.scale)
    original = axis.original(np.arange(shown.shape[1]) + 0.5)
    return np.asarray(shown.any(axis=0)) & (original > margin) & (original < length - margin)


def _extent(covered: Float[np.ndarray, "rows columns"], length: int) -> Axis:
    """Return the map of an axis along which padding is seen on both sides, from how much each column is covered."""
    columns = covered.max(axis=0)
    if columns[0] > 0.01 or columns[-1] > 0.01 or columns.max() < 0.5:
        raise AnatomyError(TOO_THIN)
    scale = length / columns.sum()
    middle = columns @ (np.arange(len(columns)) + 0.5) / columns.sum()
    return Axis(float(scale), float(length / 2 - scale * middle))


def _snapped(axis: Axis, processed: int, length: int) -> Axis:
    """Let the processed pixels end at the picture's border where they nearly do."""
    start, end = axis.offset, axis.scale * processed + axis.offset
    near = SNAP * min(1.0, axis.scale)
    start = 0.0 if abs(start) < near else start
    end = float(length) if abs(end - length) < near else end
    return Axis((end - start) / processed, start)


def _same_geometry(actual: ProcessedChart, enlarged: ProcessedChart) -> bool:
    """Tell whether a chart was treated as the picture of the actual size is."""
    if actual.tiles.shape != enlarged.tiles.shape:
        return False
    times = enlarged.enlarged
    size = (actual.size[0] * times, actual.size[1] * times)
    for tile, large in zip(actual.tiles, enlarged.tiles, strict=True):
        # Enlarged, the border is sharper: where it cuts a pixel in two, the shares differ by up to a half.
        if np.abs(tile[2] - large[2]).max() > 0.7:
            return False
        shown = _shown(tile) & _shown(large)
        for axis in (0, 1):
            expected = np.clip(_positions(large, size)[axis] / times, 0.5, actual.size[axis] - 0.5)
            off = _positions(tile, actual.size)[axis] - expected
            worst = np.abs(_means(off, shown) if axis == 0 else _means(off.T, shown.T)).max(initial=0.0)
            if worst > 0.5 + 0.5 * actual.size[axis] / MAIN:
                return False
    return True
