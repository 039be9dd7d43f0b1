"""Overlaps between words, counted by hand."""

import numpy as np
import pytest

from mmneurons.measures.across_pictures import Told, concepts, cross_image, specificity

WORDS = [
    Told("1", "dog", (1, 2, 3, 4)),
    Told("2", "dog", (1, 2, 8, 9)),
    Told("3", "cat", (5, 6, 7, 1)),
    Told("4", "cat", (5, 6, 3, 2)),
    Told("4", "ball", (20, 21, 22, 23)),
]


def seen(pairs):
    return {(told.word, one.quantity): one.value for told, one in pairs}


def test_the_same_word_in_other_pictures():
    found = {id(word): {one.quantity: one.value for one in own} for word, own in cross_image(WORDS, "x", 4)}
    assert len(found) == 4
    assert found[id(WORDS[0])]["own overlap"] == 0.5
    # of the others in other pictures: 1 of 4, 2 of 4, none
    assert found[id(WORDS[0])]["other overlap"] == pytest.approx(np.mean([1, 2, 0]) / 4)
    assert found[id(WORDS[3])]["own overlap"] == 0.5


def test_equal_and_disjoint_sets():
    same = [Told(str(k), "dog", (1, 2)) for k in range(3)] + [Told("9", "cat", (3, 4))]
    for word, own in cross_image(same, "x", 2):
        values = {one.quantity: one.value for one in own}
        assert word.word == "dog"
        assert values == {"own overlap": 1.0, "other overlap": 0.0}


def test_a_concept_has_the_neurons_that_most_of_its_words_have():
    known = {one.word: one for one in concepts(WORDS, 2)}
    assert set(known) == {"dog", "cat"}
    assert known["dog"].neurons == (1, 2)
    assert known["cat"].neurons == (5, 6)
    assert known["dog"].pictures == 2


def test_what_is_a_concepts_own():
    values = seen(specificity(WORDS, "x", 2))
    assert values["dog", "exclusive"] == 1
    assert values["dog", "own share"] == 1
    assert values["dog", "other share"] == 0
    shared = [Told(str(k), name, (1, 2)) for k, name in enumerate(["dog", "dog", "cat", "cat"])]
    values = seen(specificity(shared, "x", 2))
    assert values["dog", "exclusive"] == 0
    assert values["dog", "own share"] == values["dog", "other share"] == 1
    half = [Told("1", "dog", (1, 2)), Told("2", "dog", (1, 2)), Told("3", "cat", (2, 3)), Told("4", "cat", (2, 3))]
    assert seen(specificity(half, "x", 2))["cat", "exclusive"] == 0.5


def test_one_concept_alone_has_nothing_to_be_told_from():
    assert list(specificity(WORDS[:2], "x", 2)) == []
