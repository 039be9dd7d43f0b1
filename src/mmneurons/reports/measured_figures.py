"""The figures of what was measured: curves over numbers of neurons, effect against time, and where neurons lie."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars

from mmneurons.errors import ExtraMissingError
from mmneurons.finders import FINDERS
from mmneurons.measures.intervals import Estimate
from mmneurons.measures.suites import BASELINE, RANDOM, VARIANTS
from mmneurons.measures.summary import Observed
from mmneurons.measures.tables import Table

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

__all__ = ["color_of", "draw_cost", "draw_curve", "draw_figures"]

SHOWN = (
    BASELINE,
    "contribution, raw",
    "paper (gate, no norm)",
    "total",
    "greedy",
    "integrated gradients, 4 steps",
    "activation",
    RANDOM,
)
"""The lines of figures, and others where these are not all there; a line for every finder could not be read."""


@cache
def color_of(finder: str) -> tuple[float, float, float]:
    """The color of a finder, the same in every figure; those that figures show first have the plainest ones."""
    from matplotlib import colormaps

    plain, paired, more = (
        colormaps[name](range(size)) for name, size in (("tab10", 10), ("tab20", 20), ("tab20b", 20))
    )
    colors = [*plain, *paired[1::2], *more]
    names = list(dict.fromkeys([*SHOWN, *VARIANTS, *FINDERS]))
    place = names.index(finder) if finder in names else len(names)
    red, green, blue, _ = colors[place % len(colors)]
    return float(red), float(green), float(blue)


def draw_figures(observed: Observed, shown: Sequence[Table], folder: Path) -> list[tuple[str, str]]:
    """Draw what there is to draw, as SVG and PNG.

    Returns:
        The names and titles of the figures.

    Raises:
        ExtraMissingError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ExtraMissingError("Figures need matplotlib: pip install 'mmneurons[report]'.") from error
    known = {table.name: table for table in shown}
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, title, across_axis in (
        ("fall", "Fall of log p(word), top k at zero (nats)", "neurons at zero"),
        ("relative-fall", "The same, relative to the runners-up (nats)", "neurons at zero"),
        ("region-overlap", "Top k found again with shuffled image tokens", "k"),
    ):
        if name in known:
            figure = Figure(figsize=(7, 4.2), layout="constrained")
            draw_curve(figure.subplots(), known[name], title, across_axis)
            _save(figure, folder / name)
            drawn.append((name, title))
    if "finders" in known:
        figure = Figure(figsize=(7, 4.6), layout="constrained")
        draw_cost(figure.subplots(), known["finders"])
        _save(figure, folder / "cost")
        drawn.append(("cost", "Effect against time"))
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    _layers(figure.subplots(), observed)
    _save(figure, folder / "layers")
    drawn.append(("layers", "Where the first neurons lie"))
    return drawn


def _lines(finders: Sequence[str]) -> list[str]:
    first = [one for one in SHOWN if one in finders]
    return [*first, *(one for one in finders if one not in SHOWN)][: len(SHOWN)]


def _save(figure: matplotlib.figure.Figure, path: Path) -> None:
    import matplotlib

    # the same numbers give the same file
    with matplotlib.rc_context({"svg.hashsalt": "mmneurons"}):
        for kind in ("svg", "png"):
            waiting = path.with_name(f".{path.name}.{kind}")
            # a date would make every file another one
            figure.savefig(waiting, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else {})
            waiting.rename(path.with_suffix(f".{kind}"))


def draw_curve(axes: matplotlib.axes.Axes, table: Table, title: str, label: str) -> None:
    """A quantity over numbers of neurons, a line a finder, with its interval."""
    for finder in _lines(table.rows):
        own = [cell for cell in table.cells if cell.row == finder]
        ks = [int(cell.column.removeprefix("k = ")) for cell in own]
        low, high = ([getattr(cell.estimate, end) for cell in own] for end in ("low", "high"))
        axes.plot(
            ks, [cell.estimate.value for cell in own], marker="o", markersize=3, label=finder, color=color_of(finder)
        )
        axes.fill_between(ks, low, high, alpha=0.12, color=color_of(finder), linewidth=0)
    axes.set_xscale("log")
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(label)
    axes.legend(fontsize=7, frameon=False)


def draw_cost(axes: matplotlib.axes.Axes, table: Table) -> None:
    """What the first neurons of finders do, against the time that it takes to find them."""
    points: dict[str, tuple[float, Estimate]] = {}
    for finder in table.rows:
        own = {cell.column: cell.estimate for cell in table.cells if cell.row == finder}
        seconds, effect = max(own["seconds a word"].value, 1e-4), own["relative fall, median"]
        points[finder] = seconds, effect
        axes.errorbar(
            [seconds],
            [effect.value],
            yerr=[[effect.value - effect.low], [effect.high - effect.value]],
            marker="o",
            markersize=4,
            color=color_of(finder),
        )
    axes.set_xscale("log")
    axes.margins(0.08)
    first, last = np.log(axes.get_xlim())
    for finder, (seconds, effect) in points.items():
        # towards the middle, or a name beside the last point would be cut off
        left = np.log(seconds) > (first + last) / 2
        axes.annotate(
            finder,
            (seconds, effect.value),
            fontsize=6,
            xytext=(-4 if left else 4, 3),
            textcoords="offset points",
            ha="right" if left else "left",
        )
    axes.set_xlabel("seconds a word")
    axes.set_title("Relative fall without the 20 first neurons (median, nats) against time", fontsize=10)


def _layers(axes: matplotlib.axes.Axes, observed: Observed) -> None:
    blocks = observed.blocks
    width = observed.neurons // blocks
    for finder in _lines(observed.finders):
        tops = observed.tops.filter(polars.col("finder") == finder)["neurons"].to_list()
        places = [neuron // width for own in tops for neuron in own[:20]]
        shares = [places.count(block) / max(len(places), 1) for block in range(blocks)]
        axes.plot(range(blocks), shares, marker="o", markersize=2, label=finder, color=color_of(finder))
    axes.set_xlabel("block")
    axes.set_title("Share of the 20 first neurons in each block", fontsize=10)
    axes.legend(fontsize=7, frameon=False)
