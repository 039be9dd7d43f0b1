"""Where a neuron looks: its activations at the image tokens, as a map over the picture.

After Pan et al. (2024), section 4.2: activations at the image positions, enlarged to the picture bilinearly, and as a
mask the part above the 95th percentile. Theirs is one square grid that covers the picture; here a token's place is the
rectangle that the geometry gives it, so cropping, padding and tiles are right.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cmap
import numpy as np
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw, ImageFont

from mmneurons.errors import OptionError
from mmneurons.vlm.geometry import Geometry, Rectangle

__all__ = ["Heatmap", "mask_iou", "pointing_hit"]

COLORS = "viridis"
UNSEEN_BRIGHTNESS = 0.3


@dataclass(frozen=True, eq=False)
class Heatmap:
    """One number per image token, and where in the picture the tokens lie.

    Attributes:
        values: what to show, usually activations times the sign that raises the word.
        geometry: where the tokens lie.
        title: what the legend says, for example ``L27.u1234``.
        source: where the activations come from, ``"recording"`` or ``"second prefill"``.
    """

    values: Float[np.ndarray, "tokens"]
    geometry: Geometry
    title: str = ""
    source: str = "recording"

    def __post_init__(self) -> None:
        if self.values.shape != (self.geometry.tokens,):
            raise OptionError(
                f"A picture of {self.geometry.tokens} image tokens needs as many values, not an array of shape "
                f"{self.values.shape}."
            )

    def __repr__(self) -> str:
        low, high = self.values.min(), self.values.max()
        return f"Heatmap({self.title!r}, {len(self.values)} image tokens from {low:.3g} to {high:.3g}, {self.source})"

    def map(self) -> Float[np.ndarray, "height width"]:
        """Return the values over the picture, float32.

        Bilinear between the centers of the tokens' patches, constant beyond the outermost centers (as
        ``torch.nn.functional.interpolate`` with ``align_corners=False``, but for any rectangle). NaN where no token
        sees the picture, as outside of a center crop. Where two grids lie over one another, as LLaVA-NeXT's whole
        picture and its tiles do, the map is the mean of both. Tokens that show no part of the picture (padding,
        newline, class) are left out.
        """
        width, height = self.geometry.size
        return self.sample(np.arange(width) + 0.5, np.arange(height) + 0.5)

    def mask(self, percentile: float = 95.0) -> Bool[np.ndarray, "height width"]:
        """Return where the map is above a percentile of its values; False where no token sees the picture.

        Args:
            percentile: Of the map's pixels, from 0 to 100. The paper's is 95.
        """
        if not 0 <= percentile <= 100:
            raise OptionError(f"A percentile lies between 0 and 100, not at {percentile}.")
        values = self.map()
        seen = values[~np.isnan(values)]
        if not seen.size:
            return np.zeros(values.shape, dtype=bool)
        return values > np.percentile(seen, percentile)

    def peak(self) -> tuple[float, float]:
        """Return x and y of the largest value, in pixels.

        Exact: a bilinear surface is largest at one of its knots, which are the centers of the tokens' rectangles (or,
        where one grid ends over another, on the edge). Beyond the outermost centers the map is constant; there the
        center is the peak.

        Raises:
            OptionError: no token sees the picture, or no value is a number.
        """
        (xs, x_is_center), (ys, y_is_center) = self._knots()
        values = self.sample(xs, ys)
        if np.isnan(values).all():
            raise OptionError("The map has no largest value: it holds no number.")
        best = np.argwhere(values >= np.nanmax(values))
        row, column = max(best, key=lambda at: int(y_is_center[at[0]]) + int(x_is_center[at[1]]))
        return float(xs[column]), float(ys[row])

    def limits(self) -> tuple[float, float]:
        """Return the smallest and the largest value of the map; 0 and 0 where no token sees the picture.

        Between knots the map is bilinear, so both are met at a knot.
        """
        (xs, _), (ys, _) = self._knots()
        return _limits(self.sample(xs, ys))

    def overlay(self, picture: Image.Image, opacity: float = 0.6, legend: bool = True) -> Image.Image:
        """Draw the map over the picture: dark blue is the smallest value, yellow the largest.

        The picture is shown in gray, so that all color is the map's (viridis: equal steps of value are equal steps of
        lightness). What no token sees is dimmed and has no color.

        Args:
            picture: The picture, as the processor was given it.
            opacity: Of the colors, from 0 to 1.
            legend: Whether to add the title and a bar with the smallest and the largest value below.

        Returns:
            A new picture; with a legend it is higher, and at least 240 pixels wide.
        """
        if picture.size != self.geometry.size:
            raise OptionError(
                f"The heatmap belongs to a picture of {self.geometry.size[0]} × {self.geometry.size[1]} pixels, not of "
                f"{picture.width} × {picture.height}. Pass the picture that was explained, at its size."
            )
        if not 0 <= opacity <= 1:
            raise OptionError(f"Opacity lies between 0 and 1, not at {opacity}.")
        values = self.map()
        unseen = np.isnan(values)
        low, high = _limits(values)
        levels = np.nan_to_num((values - low) * (255 / (high - low) if high > low else 0)).round().astype(np.uint8)
        gray = np.asarray(picture.convert("L"))
        colors = Image.fromarray(_lookup()[levels])
        drawn = Image.blend(Image.fromarray(gray).convert("RGB"), colors, opacity)
        if unseen.any():
            dimmed = Image.fromarray((gray * UNSEEN_BRIGHTNESS).astype(np.uint8)).convert("RGB")
            drawn.paste(dimmed, mask=Image.fromarray(unseen))
        unit = "activation, signed" if self.source == "recording" else f"activation, signed, {self.source}"
        return _with_legend(drawn, low, high, self.title, unit) if legend else drawn

    def sample(
        self, xs: Float[np.ndarray, "columns"], ys: Float[np.ndarray, "rows"]
    ) -> Float[np.ndarray, "rows columns"]:
        """Return the map at every pair of coordinates, in pixels of the picture and each in rising order."""
        total = np.zeros((len(ys), len(xs)), dtype=np.float32)
        count = np.zeros((len(ys), len(xs)), dtype=np.uint8)
        for grid in self.geometry.grids:
            (x, y), (columns, rows) = grid.spans(), grid.visible(self.geometry.size)
            if not columns.any() or not rows.any():
                continue
            inside_x, inside_y = _inside(x, xs), _inside(y, ys)
            values = self.values[grid.positions[np.ix_(rows, columns)]].astype(np.float32)
            along_x, along_y = _weights(_centers(x[columns]), xs[inside_x]), _weights(_centers(y[rows]), ys[inside_y])
            total[inside_y, inside_x] += along_y @ (values @ along_x.T)
            count[inside_y, inside_x] += 1
        if (count > 1).any():
            total /= np.maximum(count, 1)
        total[count == 0] = np.nan
        return total

    def _knots(self) -> list[tuple[Float[np.ndarray, "knots"], Bool[np.ndarray, "knots"]]]:
        """Return, for x and for y, between which coordinates the map is bilinear, and which of them are centers."""
        found = []
        for axis, length in enumerate(self.geometry.size):
            centers, edges = [], []
            for grid in self.geometry.grids:
                spans, visible = grid.spans()[axis], grid.visible(self.geometry.size)[axis]
                # Not nearer to the border than a pixel's center: there one grid can end a hair before another.
                centers.append(_centers(spans[visible]).clip(0.5, length - 0.5))
                edges.append(np.clip([spans[0, 0], spans[-1, 1]], 0.5, length - 0.5))
            knots = np.unique(np.concatenate(centers + edges))
            found.append((knots, np.isin(knots, np.concatenate(centers))))
        return found


def pointing_hit(heatmap: Heatmap, boxes: Sequence[Rectangle]) -> bool:
    """Tell whether the map's peak lies in one of the boxes (the pointing game of Zhang et al., 2016, without a margin).

    Args:
        heatmap: What to judge.
        boxes: Of the object, (x0, y0, x1, y1) in pixels; the far edges are not included.
    """
    x, y = heatmap.peak()
    return any(x0 <= x < x1 and y0 <= y < y1 for x0, y0, x1, y1 in boxes)


def mask_iou(mask: Bool[np.ndarray, "height width"], truth: Bool[np.ndarray, "true_height true_width"]) -> float:
    """Return intersection over union of two masks; 0 where both are empty.

    Args:
        mask: For example ``heatmap.mask()``.
        truth: The object's.
    """
    if mask.shape != truth.shape:
        raise OptionError(f"The masks are of different sizes, {mask.shape} and {truth.shape}.")
    union = int(np.count_nonzero(mask | truth))
    return int(np.count_nonzero(mask & truth)) / union if union else 0.0


def _inside(spans: Float[np.ndarray, "cells 2"], at: Float[np.ndarray, "places"]) -> slice:
    """Return which of the places, in rising order, the cells cover from the first to the last."""
    return slice(int(np.searchsorted(at, spans[0, 0], "left")), int(np.searchsorted(at, spans[-1, 1], "right")))


def _centers(spans: Float[np.ndarray, "cells 2"]) -> Float[np.ndarray, "cells"]:
    return spans.mean(axis=1)


def _weights(centers: Float[np.ndarray, "cells"], at: Float[np.ndarray, "places"]) -> Float[np.ndarray, "places cells"]:
    """Return how much each cell counts at each place: linear between centers, the nearest alone beyond them."""
    place = np.interp(at, centers, np.arange(len(centers)))
    lower = np.minimum(place.astype(int), max(len(centers) - 2, 0))
    upper = np.minimum(lower + 1, len(centers) - 1)
    weights = np.zeros((len(at), len(centers)), dtype=np.float32)
    index = np.arange(len(at))
    weights[index, upper] = place - lower
    weights[index, lower] = 1 - (place - lower)
    return weights


def _limits(values: Float[np.ndarray, "height width"]) -> tuple[float, float]:
    seen = values[~np.isnan(values)]
    return (float(seen.min()), float(seen.max())) if seen.size else (0.0, 0.0)


def _lookup() -> np.ndarray:
    """Return the 256 colors, uint8, shape (256, 3)."""
    return (cmap.Colormap(COLORS).lut(256)[:, :3] * 255).round().astype(np.uint8)


def _with_legend(drawn: Image.Image, low: float, high: float, title: str, unit: str) -> Image.Image:
    """Add, below a picture, the title, a bar of the colors with its numbers, and where the values come from."""
    size = max(11, round(drawn.width / 40))
    font, gap = ImageFont.load_default(size), size // 2
    width = max(drawn.width, 240, round(font.getlength(title)) + 2 * gap)
    sheet = Image.new("RGB", (width, drawn.height + 3 * size + 4 * gap), "white")
    sheet.paste(drawn, ((width - drawn.width) // 2, 0))
    draw = ImageDraw.Draw(sheet)
    top = drawn.height + gap
    draw.text((gap, top), title, fill="black", font=font)
    top += size + gap
    levels = np.linspace(0, 255, width - 2 * gap).round().astype(np.uint8)
    sheet.paste(Image.fromarray(np.repeat(_lookup()[levels][None], size, axis=0)), (gap, top))
    top += size + gap
    for at, text, color, anchor in (
        (gap, f"{low:.3g}", "black", "la"),
        (width // 2, unit, "gray", "ma"),
        (width - gap, f"{high:.3g}", "black", "ra"),
    ):
        draw.text((at, top), text, fill=color, font=font, anchor=anchor)
    return sheet
