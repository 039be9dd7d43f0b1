"""Captions are sorted by the words that they say; nothing is both learned from and measured on."""

import sys
from collections import Counter
from dataclasses import replace

import pytest

import mmneurons as mmn
from mmneurons.errors import EditError
from mmneurons.mitigation.survey import Sizes, survey
from mmneurons.mitigation.wishes import Wish


@pytest.fixture
def saying(llava, picture, monkeypatch):
    """From captions to what a survey makes of them: the model is made to say one for each picture."""
    recording = mmn.record(llava, picture, prefix="")

    def run(captions, wishes, **options):
        told = iter(captions)
        monkeypatch.setattr(
            sys.modules["mmneurons.mitigation.survey"],
            "record_pictures",
            lambda vlm, own, **how: [replace(recording, caption=next(told)) for _ in own],
        )
        named = [(f"{index}.png", picture) for index in range(len(captions))]
        return survey(llava, named, wishes, **options)

    return run


def names(part):
    return [one.name for one in part]


def test_every_other_caption_is_measured_on(saying):
    captions = ["a dog", "a tree", "two dogs", "a hot dog", "a dog", "the dog", "a house"]
    found = saying(captions, [Wish("dog"), Wish("zebra")])
    dog, zebra = found.found
    assert (dog.count, names(dog.learned), names(dog.held)) == (4, ["0.png", "4.png"], ["2.png", "5.png"])
    assert (zebra.count, zebra.learned, zebra.held) == (0, (), ())
    assert found.saying == (dog,)
    # a hot dog is no dog
    assert sorted(names(found.kept) + names(found.others)) == ["1.png", "3.png", "6.png"]
    assert found.pictures == 7


def test_no_caption_is_on_both_sides_of_one_word(saying):
    captions = ["a dog and a cat", "a cat", "a dog", "a cat and a dog", "a dog", "a cat", "a dog and a cat"]
    found = saying(captions, [Wish("dog"), Wish("cat")])
    for own in found.found:
        assert not set(names(own.learned)) & set(names(own.held))
        assert own.count == len(own.learned) + len(own.held) == 5
    both = [set(names(part)) for part in (found.found[0].learned + found.found[1].learned,)]
    held = {name for own in found.found for name in names(own.held)}
    assert not {"0.png", "3.png", "6.png"} & both[0] & held


def test_so_many_are_kept_and_each_is_as_likely(saying):
    captions = [f"scene {index}" for index in range(60)]
    drawn = Counter()
    for seed in range(100):
        found = saying(captions, [Wish("dog")], sizes=Sizes(kept=4, others=8), seed=seed)
        assert (len(found.kept), len(found.others), found.pictures) == (4, 8, 60)
        assert not set(names(found.kept)) & set(names(found.others))
        drawn.update(names(found.kept) + names(found.others))
    # 100 draws of 12 out of 60: 20 each, and 4 standard deviations are 16
    assert all(4 <= drawn[f"{index}.png"] <= 36 for index in range(60))
    again = saying(captions, [Wish("dog")], sizes=Sizes(kept=4, others=8), seed=99)
    assert names(again.kept) == names(found.kept)


def test_no_more_of_a_word_than_asked_for(saying):
    found = saying(["a dog"] * 11, [Wish("dog")], sizes=Sizes(learned=2, held=3))
    (dog,) = found.found
    assert (dog.count, len(dog.learned), len(dog.held)) == (11, 2, 3)


def test_something_of_every_kind_is_kept():
    with pytest.raises(EditError, match="at least one caption"):
        Sizes(kept=0, others=0)
