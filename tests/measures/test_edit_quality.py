"""The figures of an edit, by hand."""

import math
from dataclasses import replace

import pytest

from mmneurons.edits import Edit
from mmneurons.errors import OptionError
from mmneurons.measures.edit_outcome import Agreement, Outcome, Surprise
from mmneurons.measures.edit_quality import Quality, figures
from mmneurons.measures.intervals import wilson


def outcome(before, after, said=False, said_target=False, swapped=False, intruded=False, agreement=None):
    return Outcome(before, after, said, said_target, swapped, swapped, intruded, agreement)


def edit(to="cat", source="dog"):
    return Edit((), {"source": source, "to": to}, {"fingerprint": source})


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
    # "a tree" is as it was, "a car" and "a cat" have one word of two in common
    assert quality["likeness"].value == 0.75
    assert quality["rest kept"].value == 1
    assert quality["articles fit"].value == 1
    assert [one.captions for one in quality.figures] == [1, 2, 2, 2, 2, 2, 2, 2, 1, 1]
    assert quality.as_json()["generality"]["captions"] == 2


def test_articles_are_reported_and_do_not_count():
    captions = [("a dog", "a owl"), ("a dog", "an owl"), ("two dogs", "two owls"), ("a dog", "a cat")]
    others = [outcome(*own, said=True, swapped=own[1] != "a cat") for own in captions]
    quality = Quality(tuple(figures(edit("owl"), {"others": others})), {})
    assert quality["generality"].value == 0.75
    assert quality["articles fit"].value == 0.5
    assert [one.captions for one in quality.figures if one.name == "articles fit"] == [2]


def test_the_prefix_is_no_part_of_what_is_compared():
    begun = len("An image of")
    others = [
        replace(outcome("An image of a car", "An image of a cup"), begun=begun),
        replace(outcome("An image of two men", "An image of two women", said=True, swapped=True), begun=begun),
    ]
    quality = Quality(tuple(figures(edit("woman", "man"), {"others": others})), {})
    assert quality["likeness"].value == 0.5
    assert quality["rest kept"].value == 1


def test_pictures_that_show_either_are_no_test_of_what_stays():
    shown = [frozenset(), frozenset(), frozenset({"dog"}), frozenset({"car"}), frozenset()]
    quality = Quality(tuple(figures(edit(), {"others": OTHERS}, shown)), {})
    assert quality["unchanged"].value == 0
    assert quality["intrusion"].value == 1


def test_a_word_that_is_only_dropped_has_no_target():
    names = [one.name for one in figures(edit(None), {"others": OTHERS})]
    assert "intrusion" not in names
    assert {"generality", "unchanged"} <= set(names)


def test_several_edits_in_force_are_judged_each_by_its_own_request():
    both = [edit(), edit("bus", "car")]
    captions = [
        ("a dog", "a cat"),
        ("a car and a dog", "a bus and a dog"),
        ("a tree", "a tree"),
        ("a house", "a bus"),
        ("a bus", "a van"),
    ]
    dog = [
        outcome(*captions[0], said=True, swapped=True),
        outcome(*captions[1], said=True),
        *(outcome(*own) for own in captions[2:]),
    ]
    car = [
        outcome(*captions[0]),
        outcome(*captions[1], said=True, swapped=True),
        outcome(*captions[2]),
        outcome(*captions[3], intruded=True),
        outcome(*captions[4], said_target=True),
    ]
    quality = Quality(tuple(figures(both, {"others": [*dog, *car]})), {})
    # two dogs of which one is a cat, one car that is a bus
    assert quality["generality"].value == pytest.approx(2 / 3)
    # the tree and the house concern neither
    assert quality["unchanged"].value == 0.5
    assert quality["intrusion"].value == 0.5
    with pytest.raises(OptionError, match="cannot be those of 2 edits"):
        figures(both, {"others": [*dog, *car][:-1]})


def test_answers_without_a_picture_and_other_prompts():
    texts = [
        outcome("Paris", "Paris", agreement=Agreement(1.0, 0.8, 0.0)),
        outcome("a dog", "a cat", said=True, agreement=Agreement(0.0, 0.0, 9.0)),
        outcome("Rome", "Oslo", agreement=Agreement(0.5, 0.2, 0.4)),
    ]
    twice = [replace(OTHERS[0], picture="one"), replace(OTHERS[1], picture="one"), replace(OTHERS[0], picture="two")]
    quality = Quality(tuple(figures(edit(), {"others": OTHERS, "texts": texts, "rephrased": twice})), {})
    assert quality["text: unchanged"].value == 0.5
    assert quality["text: same top 1"].value == 0.75
    assert quality["text: same top 10"].value == 0.5
    assert quality["text: KL"].value == pytest.approx(0.2)
    own = quality["generality, other prompts"]
    assert own.value == pytest.approx(2 / 3)
    # three captions of two pictures tell no more than two do
    assert (own.low, own.high) == pytest.approx((wilson(4 / 3, 2).low, wilson(4 / 3, 2).high))


def test_surprise_before_and_after():
    told = [
        replace(OTHERS[0], surprise=Surprise(1.0, 3.0)),
        replace(OTHERS[2], surprise=Surprise(0.5, 0.5)),
        replace(OTHERS[3], surprise=Surprise(1.5, 2.0)),
    ]
    quality = Quality(tuple(figures(edit(), {"others": told})), {})
    assert quality["nats a token before"].value == 1
    assert quality["nats a token after"].value == pytest.approx(11 / 6)
    added = quality["nats a token added"]
    assert added.value == pytest.approx(5 / 6)
    assert 0 <= added.low < 5 / 6 < added.high <= 2
    assert quality["nats a token elsewhere added"].value == 0.25


def test_what_is_printed_is_short():
    quality = Quality(tuple(figures(edit(), {"others": OTHERS})), {"others": OTHERS})
    lines = repr(quality).splitlines()
    assert len(lines) == len(quality.figures)
    assert lines[0].split() == ["generality", "0.5", "[0.0945,", "0.905]", "n", "=", "2"]
    with pytest.raises(OptionError, match="There are: generality"):
        _ = quality["reliability"]


def test_score_intervals():
    # worked out by Brown, Cai and DasGupta's formula (2001, equation 4)
    found = wilson(9, 10)
    assert (found.value, round(found.low, 4), round(found.high, 4)) == (0.9, 0.5958, 0.9821)
    for count in range(1, 50):
        assert wilson(count, count).high == 1
        assert wilson(0, count).low == 0
    assert math.isnan(wilson(0, 0).value)
