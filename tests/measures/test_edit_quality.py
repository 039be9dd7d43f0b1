"""The figures of an edit, by hand."""

import math

import pytest

from mmneurons.edits import Edit
from mmneurons.measures.edit_outcome import Agreement, Outcome
from mmneurons.measures.edit_quality import Quality, figures
from mmneurons.measures.intervals import wilson


def outcome(before, after, said=False, said_target=False, swapped=False, intruded=False, agreement=None):
    return Outcome(before, after, said, said_target, swapped, swapped, intruded, agreement)


def edit(to="cat"):
    return Edit((), {"source": "dog", "to": to}, {})


OTHERS = [
    outcome("a dog and a ball", "a cat and a ball", said=True, swapped=True),
    outcome("a dog", "a dog", said=True),
    outcome("a tree", "a tree", agreement=Agreement(1.0, 0.5, 0.1)),
    outcome("a car", "a cat", intruded=True, agreement=Agreement(0.5, 0.0, 0.3)),
    outcome("a cat", "a cat", said_target=True),
]


def test_figures_by_hand():
    quality = Quality(tuple(figures(edit(), {"others": OTHERS, "learned": OTHERS[:1]})), {})
    assert quality["reliability"].value == 1
    assert quality["generality"].value == 0.5
    assert quality["unchanged"].value == 0.5
    assert quality["intrusion"].value == 0.5
    assert quality["same top 1"].value == 0.75
    assert quality["same top 10"].value == 0.25
    assert quality["KL"].value == pytest.approx(0.2)
    assert quality["rest kept"].value == 1
    assert [one.captions for one in quality.figures] == [1, 2, 2, 2, 2, 2, 2, 1]
    assert quality.as_json()["generality"]["captions"] == 2


def test_pictures_that_show_either_are_no_test_of_what_stays():
    shown = [frozenset(), frozenset(), frozenset({"dog"}), frozenset({"car"}), frozenset()]
    quality = Quality(tuple(figures(edit(), {"others": OTHERS}, shown)), {})
    assert quality["unchanged"].value == 0
    assert quality["intrusion"].value == 1


def test_a_word_that_is_only_dropped_has_no_target():
    names = [one.name for one in figures(edit(None), {"others": OTHERS})]
    assert "intrusion" not in names
    assert {"generality", "unchanged"} <= set(names)


def test_score_intervals():
    # worked out by Brown, Cai and DasGupta's formula (2001, equation 4)
    found = wilson(9, 10)
    assert (found.value, round(found.low, 4), round(found.high, 4)) == (0.9, 0.5958, 0.9821)
    assert wilson(10, 10).high == pytest.approx(1)
    assert wilson(0, 10).low == pytest.approx(0)
    assert math.isnan(wilson(0, 0).value)
