"""What is known of English."""

import pytest

from mmneurons.english import takes_an


@pytest.mark.parametrize(
    "word", ["apple", "owl", "umbrella", "onion", "hour", "honest", "oven", "igloo", "usher", "SUV", "unidentified"]
)
def test_an(word):
    assert takes_an(word)
    assert takes_an(word.title()) or word.isupper()


@pytest.mark.parametrize(
    "word", ["dog", "unicorn", "uniform", "user", "ukulele", "utensil", "ewe", "euro", "one-eyed", "hat", "TV", "UFO"]
)
def test_a(word):
    assert not takes_an(word)
