"""The figures of what was measured: names stay inside, and a finder has one color everywhere."""

from io import BytesIO
from itertools import pairwise

import pytest
from matplotlib.figure import Figure

from mmneurons.finders import FINDERS
from mmneurons.measures.intervals import Estimate
from mmneurons.measures.suites import VARIANTS
from mmneurons.measures.tables import Cell, Table
from mmneurons.reports.measured_figures import SHOWN, color_of, draw_cost, draw_curve


def costs(seconds: dict[str, float]) -> Table:
    cells = []
    for place, (finder, own) in enumerate(seconds.items()):
        cells.append(Cell(finder, "relative fall, median", Estimate(float(place), place - 1.0, place + 1.0), 5))
        cells.append(Cell(finder, "seconds a word", Estimate(own, own, own), 5))
    return Table("finders", "Finders", "", tuple(cells))


def falls(finders) -> Table:
    cells = [Cell(one, f"k = {k}", Estimate(float(k), k - 1.0, k + 1.0), 5) for one in finders for k in (1, 10)]
    return Table("fall", "Fall", "", tuple(cells))


@pytest.mark.parametrize("seconds", [(1e-5, 1e-2, 1.0, 30.0), (1.0, 1.0, 1.0, 1.0), (0.1, 0.11, 0.12, 90.0)])
def test_names_of_points_stay_in_the_frame(seconds):
    names = ("log p increase", "contribution, vocabulary", "activation × unembedding", "integrated gradients, 4 steps")
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.subplots()
    draw_cost(axes, costs(dict(zip(names, seconds))))
    figure.savefig(BytesIO())
    frame = axes.get_window_extent()
    assert {text.get_text() for text in axes.texts} == set(names)
    for text in axes.texts:
        own = text.get_window_extent()
        assert frame.x0 <= own.x0 < own.x1 <= frame.x1
        assert frame.y0 <= own.y0 < own.y1 <= frame.y1


def test_a_finder_has_its_color_whatever_stands_beside_it():
    colors = []
    for finders in (("contribution", "total", "greedy"), ("ablation", "greedy", "total"), ("total",)):
        axes = Figure().subplots()
        draw_curve(axes, falls(finders), "", "")
        lines = {line.get_label(): line.get_color() for line in axes.lines}
        assert set(lines) == set(finders)
        colors.append(lines["total"])
        points = Figure().subplots()
        draw_cost(points, costs(dict.fromkeys(finders, 1.0)))
        colors.append(points.lines[finders.index("total")].get_color())
    assert all(one == other for one, other in pairwise(colors))


def test_finders_have_colors_of_their_own():
    names = list(dict.fromkeys([*SHOWN, *VARIANTS, *FINDERS]))
    assert len({color_of(name) for name in names}) == len(names)
