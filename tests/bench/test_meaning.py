"""Choosing a reference, and the report as a whole on a tiny model."""

import numpy as np
import pytest
from bench.meaning import REFERENCES, WAYS, Report, choose, mean, median, write
from bench.measured import measure
from PIL import Image

import mmneurons as mmn
from helpers.tiny import tiny_llava
from mmneurons.finders import Contribution
from mmneurons.measures.intervals import resample

NAMES = ("simple", "middle", "complex")


def made(excess, relative):
    """A report of three ways whose words differ by constants and a little noise."""
    draw = np.random.default_rng(0)
    common = draw.normal(0, 1, (200, 1))

    def part(shifts, statistic=mean):
        values = common + np.array(shifts) + draw.normal(0, 0.05, (200, 3))
        return resample(range(200), values, statistic, draws=300)

    return Report(NAMES, part([0, 0, 0]), part([0, 0, 0]), part(excess), part([0, 0, 0]), part(relative, median))


@pytest.mark.parametrize(
    ("excess", "relative", "chosen"),
    [
        ([0, 0, 0], [0, 0, 0], "simple"),
        ([0, 0, 0], [0, 0.5, 0.5], "middle"),
        ([0, 0.1, 0.1], [0, 0, 0.5], "complex"),
        ([0, 0.1, 0.1], [0, -0.5, 0.5], "complex"),
        ([0, 0.1, -0.1], [0, -0.5, 0.5], "simple"),
        ([0, -0.1, -0.1], [0, -0.5, -0.5], "simple"),
    ],
)
def test_ties_and_contradictions_go_to_the_simpler(excess, relative, chosen):
    assert choose(made(excess, relative), NAMES) == chosen


def test_the_default_of_the_code_is_among_the_references():
    assert Contribution() in REFERENCES.values()


class Hypernyms:
    """In WordNet's place."""

    def hypernyms(self, noun, senses):
        return frozenset({"animal"})


def test_the_report_on_a_tiny_model():
    vlm = mmn.wrap(*tiny_llava())
    words = []
    for scene, things in enumerate((("apples", "dog"), ("dogs", "ball"), ("house", "boat"))):
        picture = Image.fromarray(np.random.default_rng(scene).integers(0, 255, (60, 60, 3), dtype=np.uint8))
        caption = f"An image of two {things[0]} and a {things[1]}."
        found = mmn.find(vlm, picture, caption=caption, words=list(things), gates=True)
        words += measure(vlm, scene, found.parts, WAYS)
    text = write(vlm, (words, "three scenes"), (words, "three others"), Hypernyms())
    lines = [line for line in text.splitlines() if line.startswith("| most active")]
    assert len(lines) >= 4
    cells = [float(cell.split("[")[0]) for cell in lines[0].strip("| ").split("|")[1:]]
    assert cells[3] == pytest.approx(np.median([word.fall["most active"] for word in words]), abs=0.006)
    assert cells[4] == pytest.approx(np.median([word.relative["most active"] for word in words]), abs=0.006)
    assert "nan" not in text
