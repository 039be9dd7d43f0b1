"""A figure of one word, as papers print it: the picture, the caption, and its top neurons side by side.

After the figures of Pan et al. (2024): for each neuron where it looks, and the words it promotes. ``figure`` knows
nothing of where its ``WordPanel`` comes from: a finding in memory (``panel_of``), or a run folder. Everything is laid
out in inches from the left upper corner first, and drawn then, because how high a figure is depends on its texts.

All text comes from a model or a file and is drawn as it is, never as markup.
"""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mmneurons.errors import AnatomyError, ExtraMissingError, OptionError
from mmneurons.heatmaps import COLORS, UNSEEN_BRIGHTNESS, Heatmap
from mmneurons.reports.texts import number, percent
from mmneurons.table import NeuronRow, visible
from mmneurons.vlm.geometry import ImageGrid

if TYPE_CHECKING:
    import matplotlib.figure

    from mmneurons.finding import WordFinding

__all__ = ["WordPanel", "figure", "panel_of", "save_figure"]

DPI = 300
MARGIN, GAP, GUTTER = 0.08, 0.18, 0.1
"""Around everything, between the picture and the neurons, and between two neurons; in inches, as what follows."""

LEFT, RIGHT = 1.5, 5.4
"""Of the picture with its caption, and the most of all neurons: together what two columns of a paper are wide."""

TALLEST = 2.4
WIDE = 1.8
"""A picture that many times as wide as high has its maps three in a row, so that they are not too small to see."""

HEADING, TITLE, BODY, SMALL = 9.0, 7.5, 7.0, 6.0
"""Font sizes in points."""

INK, GRAY = "#000000", "#5a5a5a"
CAPTION_LINES, PROMOTED_LINES, NOTE_LINES = 14, 5, 4

_FALLBACKS = (
    "Noto Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Noto Sans JP",
    "Noto Sans KR",
    "Noto Sans Arabic",
    "Noto Sans Hebrew",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Noto Emoji",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Droid Sans Fallback",
    "Arial Unicode MS",
    "PingFang SC",
    "Hiragino Sans",
    "Apple Symbols",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "Segoe UI",
    "Segoe UI Symbol",
    "Unifont",
)
"""Fonts that hold what DejaVu Sans does not; those that are installed are used."""


@dataclass(frozen=True, eq=False)
class WordPanel:
    """What a figure of one word shows.

    Attributes:
        picture: the picture that was captioned.
        caption: what was said of it.
        span: where the word stands in the caption, in characters.
        word: what it is called.
        rows: its neurons, best first.
        maps: where each of them looks; None, or fewer than rows, where that is not known.
        note: what the scores are read against, and what is approximate in them.

    Raises:
        OptionError: a map belongs to a picture of another size, or there are more maps than rows.
    """

    picture: Image.Image
    caption: str
    span: tuple[int, int]
    word: str
    rows: tuple[NeuronRow, ...]
    maps: tuple[Heatmap | None, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        if len(self.maps) > len(self.rows):
            raise OptionError(
                f"There are {len(self.maps)} maps for {len(self.rows)} neurons: pass at most one for each."
            )
        for heatmap in self.maps:
            if heatmap is not None and heatmap.geometry.size != self.picture.size:
                width, height = heatmap.geometry.size
                raise OptionError(
                    f"A map belongs to a picture of {width} × {height} pixels, not of {self.picture.width} × "
                    f"{self.picture.height}. Pass the picture that was explained, at its size."
                )

    def map(self, rank: int) -> Heatmap | None:
        """Where the neuron of a rank looks, if that is known."""
        return self.maps[rank] if rank < len(self.maps) else None


def panel_of(word: WordFinding, neurons: int = 5) -> WordPanel:
    """What to show of a word of a finding.

    Args:
        word: of a finding of a picture.
        neurons: how many of its neurons, best first.

    Raises:
        OptionError: inputs were given by hand, so there is no picture; or there are not so many neurons.
    """
    found = word.found
    if found.picture is None:
        raise OptionError("There is no picture to draw: inputs were given by hand. Find in a picture instead.")
    table = word.top(neurons)
    note, maps = table.note, ()
    try:
        maps = tuple(word.look(row.rank) for row in table)
    except AnatomyError:
        note += "; where the neurons look cannot be shown for this family of models"
    return WordPanel(found.picture, found.caption, word.span, word.word, table.rows, maps, note)


def figure(panel: WordPanel, masks: bool = False) -> matplotlib.figure.Figure:
    """Draw a word: the picture and its caption on the left, one column for each neuron on the right.

    A column holds the neuron's name, its map over the picture with the smallest and the largest value, its score and
    its share, and the tokens it promotes. Up to five neurons stand side by side, more in further rows.

    Args:
        panel: what to show.
        masks: whether to show below each map the part of the picture above the map's 95th percentile, as the paper.

    Returns:
        A figure of matplotlib, made without pyplot, up to 7.24 inches wide. ``save_figure`` saves it.

    Raises:
        ExtraMissingError: matplotlib is not installed.
    """
    with _matplotlib():
        marks, width, height = _lay_out(panel, masks)
        return _draw(marks, width, height)


def save_figure(figure: matplotlib.figure.Figure, stem: Path) -> tuple[Path, Path]:
    """Write a figure as SVG, whose text stays text, and as PNG of 300 dots an inch. Equal figures give equal bytes.

    Args:
        figure: what to save.
        stem: the path of the files without ``.svg`` and ``.png``; its folder is made where it is missing.

    Returns:
        The paths of the SVG and of the PNG.

    Raises:
        ExtraMissingError: matplotlib is not installed.
    """
    svg, png = (stem.with_name(stem.name + ending) for ending in (".svg", ".png"))
    stem.parent.mkdir(parents=True, exist_ok=True)
    with _matplotlib():
        # a date would make each file another one
        figure.savefig(svg, format="svg", metadata={"Date": None})
        figure.savefig(png, format="png", dpi=DPI)
    return svg, png


_ONE_AT_A_TIME = RLock()


@contextmanager
def _matplotlib() -> Iterator[None]:
    """Lend matplotlib with settings of ours alone, and silent about characters that no font has.

    Settings and warnings are those of the process, so two threads that changed them would each put the other's back.
    """
    try:
        import matplotlib.style
    except ImportError as error:
        raise ExtraMissingError(
            "Figures are drawn by matplotlib, which is not installed. Install it: pip install 'mmneurons[report]'"
        ) from error
    settings = {"svg.fonttype": "none", "svg.hashsalt": "mmneurons", "text.usetex": False}
    with _ONE_AT_A_TIME, matplotlib.style.context(["default", settings]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from")
        yield


@dataclass(frozen=True)
class _Text:
    """One line; x and the baseline in inches from the left upper corner."""

    x: float
    baseline: float
    text: str
    size: float
    bold: bool = False
    color: str = INK
    align: str = "left"


@dataclass(frozen=True, eq=False)
class _Image:
    """An image in a box, in inches from the left upper corner."""

    x: float
    y: float
    width: float
    height: float
    image: Image.Image
    label: str


_Mark = _Text | _Image


@dataclass(frozen=True)
class _Box:
    """How large a picture is drawn, in inches, and in pixels at ``DPI``."""

    width: float
    height: float

    @property
    def pixels(self) -> tuple[int, int]:
        return max(1, round(self.width * DPI)), max(1, round(self.height * DPI))


def _fit_box(picture: Image.Image, width: float) -> _Box:
    ratio = picture.height / picture.width
    height = min(width * ratio, TALLEST, width * 2)
    return _Box(height / ratio, height)


def _lay_out(panel: WordPanel, masks: bool) -> tuple[list[_Mark], float, float]:
    """All marks, and the width and the height of the figure."""
    count = max(1, len(panel.rows))
    per_row = 3 if panel.picture.width > WIDE * panel.picture.height else 5
    columns = -(-count // -(-count // per_row))
    room = (RIGHT - GUTTER * (columns - 1)) / columns
    cell = min(room, LEFT if per_row == 5 else LEFT * 1.6)
    right = columns * cell + (columns - 1) * GUTTER
    marks, left_end = _picture_column(panel)
    y = MARGIN
    for start in range(0, len(panel.rows), columns):
        ends = []
        for place, rank in enumerate(range(start, min(start + columns, len(panel.rows)))):
            x = MARGIN + LEFT + GAP + place * (cell + GUTTER)
            drawn, end = _neuron_column(panel, rank, masks, x, y, cell)
            marks += drawn
            ends.append(end)
        y = max(ends) + GUTTER
    y = max(y, left_end + GUTTER)
    drawn, y = _foot(panel, masks, y, right)
    return marks + drawn, MARGIN * 2 + LEFT + GAP + right, y + MARGIN


def _picture_column(panel: WordPanel) -> tuple[list[_Mark], float]:
    """The word, the picture and the caption, and where they end."""
    marks: list[_Mark] = []
    y = MARGIN + _height(TITLE)
    marks.append(_Text(MARGIN, y - _drop(TITLE), _cut(visible(panel.word), LEFT, HEADING, True), HEADING, True))
    box = _fit_box(panel.picture, LEFT)
    marks.append(_Image(MARGIN, y, box.width, box.height, _resize(panel.picture, box.pixels), "picture"))
    lines, end = _caption(panel, y + box.height + 0.03)
    return marks + lines, end


def _caption(panel: WordPanel, y: float) -> tuple[list[_Mark], float]:
    """The caption with the word in bold, and where it ends."""
    if not panel.caption.strip():
        return [], y
    text, span = visible(panel.caption), panel.span
    lines = _wrap(text, LEFT, TITLE, bold=True)
    if len(lines) > CAPTION_LINES:
        at = next((index for index, line in enumerate(lines) if line[1] > span[0]), 0)
        first = min(max(0, at - CAPTION_LINES // 2), len(lines) - CAPTION_LINES)
        lines = lines[first : first + CAPTION_LINES]
    marks: list[_Mark] = []
    for index, (start, end) in enumerate(lines):
        y += _height(TITLE)
        x, cuts = MARGIN, [start, *(min(max(cut, start), end) for cut in span), end]
        if any(unicodedata.bidirectional(character) in ("R", "AL") for character in text[start:end]):
            # pieces of a line that is read from the right cannot be set one after the other from the left
            cuts = [start, end, end, end]
        for piece, (begin, stop) in enumerate(pairwise(cuts)):
            if begin == stop:
                continue
            words = text[begin:stop]
            words = "…" + words if index == 0 and begin == start > 0 else words
            words = words + "…" if index == len(lines) - 1 and stop == end < len(text.rstrip()) else words
            marks.append(_Text(x, y - _drop(TITLE), words, TITLE, piece == 1))
            x += _advance(words, TITLE, piece == 1)
    return marks, y


def _neuron_column(
    panel: WordPanel, rank: int, masks: bool, x: float, y: float, width: float
) -> tuple[list[_Mark], float]:
    """One neuron, and where it ends."""
    row, heatmap = panel.rows[rank], panel.map(rank)
    y += _height(TITLE)
    marks: list[_Mark] = [_Text(x, y - _drop(TITLE), _cut(visible(row.shown), width, TITLE, True), TITLE, True)]
    box = _fit_box(panel.picture, width)
    shown = [] if heatmap is None else _views(panel, heatmap, box, masks)
    for view, label in zip(shown, ("map", "mask")):
        marks.append(_Image(x, y, box.width, box.height, view, f"{label} {rank}"))
        y += box.height + 0.04
    if heatmap is not None:
        marks.append(_Text(x, y + _height(SMALL) - _drop(SMALL), _range(heatmap), SMALL, color=GRAY))
        y += _height(SMALL)
    elif any(other is not None for other in panel.maps):
        empty = Image.new("RGB", (1, 1), "#eeeeee")
        marks.append(_Image(x, y, box.width, box.height, empty, f"no map {rank}"))
        middle = y + box.height / 2
        marks.append(_Text(x + box.width / 2, middle, "no map", SMALL, color=GRAY, align="center"))
        y += (box.height + 0.04) * (2 if masks else 1) + _height(SMALL)
    share = "" if row.share is None else f", {percent(row.share)}"
    room = width - _advance(",", BODY)
    promotes = ", ".join(dict.fromkeys(_cut(visible(token), room, BODY) for token in row.promotes))
    y += _height(SMALL)
    marks.append(_Text(x, y - _drop(SMALL), _cut(f"{number(row.score)}{share}", width, SMALL), SMALL))
    lines, y = _paragraph(promotes, x, y + 0.01, width, BODY, PROMOTED_LINES)
    return marks + lines, y


def _views(panel: WordPanel, heatmap: Heatmap, box: _Box, masks: bool) -> list[Image.Image]:
    """The map over the picture, and if wanted what its mask leaves of the picture, as large as they are drawn."""
    picture, sized = _resize(panel.picture, box.pixels), _resize_map(heatmap, box.pixels)
    views = [sized.overlay(picture, legend=False)]
    if masks:
        pixels, mask = np.asarray(picture), sized.mask()
        views.append(Image.fromarray(np.where(mask[..., None], pixels, pixels * UNSEEN_BRIGHTNESS).astype(np.uint8)))
    return views


def _foot(panel: WordPanel, masks: bool, y: float, right: float) -> tuple[list[_Mark], float]:
    """What the colors mean and what the scores are read against, and where that ends."""
    import matplotlib

    marks: list[_Mark] = []
    x, width, start = MARGIN, LEFT + GAP + right, y
    known = [heatmap for heatmap in panel.maps if heatmap is not None]
    text = ""
    if known:
        colors = Image.fromarray(matplotlib.colormaps[COLORS](np.arange(256)[None], bytes=True)).convert("RGB")
        marks.append(_Image(x, y + 0.03, LEFT, 0.07, colors, "scale"))
        y += 0.1 + _height(SMALL)
        marks.append(_Text(x, y - _drop(SMALL), "smallest", SMALL, color=GRAY))
        marks.append(_Text(x + LEFT, y - _drop(SMALL), "largest", SMALL, color=GRAY, align="right"))
        sources = dict.fromkeys(heatmap.source for heatmap in known if heatmap.source != "recording")
        of = "".join(f" ({source})" for source in sources)
        text = f"Maps: activation × sign{of}, each over its own range, which is stated below it"
        text += "; dark where no image token sees the picture. " if any(map(_is_partial, known)) else ". "
        text += "Below each map what lies above its 95th percentile. " if masks else ""
        x, width = x + LEFT + GAP, right
    note = f"Scores: {visible(panel.note)}." if panel.note else ""
    lines, end = _paragraph(text + note, x, start, width, SMALL, NOTE_LINES if width > LEFT * 2 else 9, GRAY)
    return marks + lines, max(y, end)


def _range(heatmap: Heatmap) -> str:
    values = heatmap.map()
    seen = values[~np.isnan(values)]
    return f"{number(float(seen.min()))} to {number(float(seen.max()))}" if seen.size else "sees no part"


def _is_partial(heatmap: Heatmap) -> bool:
    return bool(np.isnan(heatmap.map()).any())


def _resize(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    # of a picture of few pixels the pixels should be seen, not what was made up between them
    few = size[0] > 4 * picture.width
    return picture.convert("RGB").resize(size, Image.Resampling.NEAREST if few else Image.Resampling.LANCZOS)


def _resize_map(heatmap: Heatmap, size: tuple[int, int]) -> Heatmap:
    """The same map over the picture at another size."""
    old = heatmap.geometry
    x, y = size[0] / old.size[0], size[1] / old.size[1]

    def resized(grid: ImageGrid) -> ImageGrid:
        x0, y0, x1, y1 = grid.rectangle
        return replace(
            grid,
            rectangle=(x0 * x, y0 * y, x1 * x, y1 * y),
            x_spans=None if grid.x_spans is None else grid.x_spans * x,
            y_spans=None if grid.y_spans is None else grid.y_spans * y,
        )

    return replace(heatmap, geometry=replace(old, size=size, grids=tuple(map(resized, old.grids))))


def _paragraph(
    text: str, x: float, y: float, width: float, size: float, most: int, color: str = INK
) -> tuple[list[_Mark], float]:
    """A text in at most so many lines, and where it ends."""
    lines = [text[start:end] for start, end in _wrap(text, width, size)]
    if len(lines) > most:
        lines = [*lines[: most - 1], _cut(lines[most - 1] + " …", width, size)]
    marks: list[_Mark] = []
    for line in lines:
        y += _height(size)
        marks.append(_Text(x, y - _drop(size), line, size, color=color))
    return marks, y


def _wrap(text: str, width: float, size: float, bold: bool = False) -> list[tuple[int, int]]:
    """Where the lines of a text begin and end, broken at blanks, and in words that are wider than a line."""
    lines: list[tuple[int, int]] = []
    start = 0
    while start < len(text):
        end = start + _fitting(text[start:], width, size, bold)
        if end < len(text) and text[end] != " ":
            blank = text.rfind(" ", start, end)
            end = blank if blank > start else end
        lines.append((start, end))
        start = end + (len(text[end:]) - len(text[end:].lstrip(" ")))
    return lines


def _cut(text: str, width: float, size: float, bold: bool = False) -> str:
    if _advance(text, size, bold) <= width:
        return text
    return text[: _fitting(text, width - _advance("…", size, bold), size, bold)].rstrip(" ,") + "…"


def _fitting(text: str, width: float, size: float, bold: bool) -> int:
    """How many characters fit into a width, a blank at the end left out; at least one."""
    # more than a line could hold need not be measured, and a text may be very long
    first, last = 1, min(len(text), 20 + int(width * 72 / size * 8))
    while first < last:
        middle = (first + last + 1) // 2
        fits = _advance(text[:middle].rstrip(), size, bold) <= width
        first, last = (middle, last) if fits else (first, middle - 1)
    return first


def _height(size: float) -> float:
    """Of a line, in inches, for a font size in points."""
    return size * 1.3 / 72


def _drop(size: float) -> float:
    """How far above the lower end of a line its baseline is."""
    return size * 0.34 / 72


@cache
def _families() -> list[str]:
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    # the generic name is what a viewer of the SVG without these fonts falls back to
    return ["DejaVu Sans", *(name for name in _FALLBACKS if name in installed), "sans-serif"]


def _advance(text: str, size: float, bold: bool = False) -> float:
    """How wide a line is in inches, blanks at its end included."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family=_families(), size=size, weight="bold" if bold else "normal")

    def width(line: str) -> float:
        return text_to_path.get_text_width_height_descent(line, font, ismath=False)[0]

    # ink alone is measured, and a blank has none
    return (width(text + "|") - width("|")) / 72


def _draw(marks: Sequence[_Mark], width: float, height: float) -> matplotlib.figure.Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(drawn)
    families = _families()
    for mark in marks:
        if isinstance(mark, _Text):
            drawn.text(
                mark.x / width,
                1 - mark.baseline / height,
                mark.text,
                size=mark.size,
                weight="bold" if mark.bold else "normal",
                color=mark.color,
                family=families,
                ha=mark.align,
                va="baseline",
                parse_math=False,
            )
        else:
            bottom = 1 - (mark.y + mark.height) / height
            axes = drawn.add_axes(
                (mark.x / width, bottom, mark.width / width, mark.height / height), label=mark.label, frameon=False
            )
            axes.set_gid(mark.label.replace(" ", "-"))
            axes.set_axis_off()
            axes.imshow(np.asarray(mark.image), interpolation="none", aspect="auto")
    return drawn
