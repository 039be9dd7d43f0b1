"""What a request means: which words of a caption it is about, and when it is met."""

from pathlib import Path

import pytest

import mmneurons as mmn
from mmneurons.edits.task import Swap, make_task, says
from mmneurons.errors import EditError
from mmneurons.measures.edit_outcome import Pool, caption_outcome


@pytest.mark.parametrize(
    ("swap", "text", "said"),
    [
        (Swap("dog", "cat"), "a dog and two dogs", ["dog", "dogs"]),
        (Swap("dog", "cat", inflections=False), "a dog and two dogs", ["dog"]),
        (Swap("dog", "cat", inflections=False), "two dogs", []),
        (Swap("dogs", None, inflections=False), "a dog and two dogs", ["dogs"]),
        (Swap("dog", "cat"), "a hot dog", []),
        # what takes its place is no failure to leave it out
        (Swap("dog", "police dog"), "a police dog", []),
        (Swap("dog", "police dog"), "two police dogs and a dog", ["dog"]),
        (Swap("dog", "police dog"), "a police dog and two dogs", ["dogs"]),
        (Swap("dog", "police dog", inflections=False), "two police dogs", []),
        (Swap("dog", "police dog"), "two police dogs and a police dog", []),
        (Swap("glass", "wine glass"), "glasses and wine glasses", ["glasses"]),
        (Swap("wine glass", "glass"), "a wine glass", ["wine glass"]),
    ],
)
def test_where_a_word_is_said(swap, text, said):
    assert [text[slice(*place)] for place in swap.places_in(text, 0)] == said
    assert not swap.places_in(text, len(text))


@pytest.fixture(scope="module")
def picture():
    return next(own.path for own in mmn.demo.pictures() if Path(own.path).name == "dog-bone.jpg")


@pytest.fixture(scope="module")
def dogs(demo, picture):
    return mmn.record(demo, picture, image_budget=0)


@pytest.mark.demo
def test_plurals_are_let_be_where_they_are_not_meant(demo, picture, dogs):
    plural = mmn.record(demo, picture, caption="two dogs", image_budget=0)
    assert says(plural, Swap("dog", "cat"))
    plain = Swap("dog", "cat", inflections=False)
    assert not says(plural, plain)
    with pytest.raises(EditError, match="No caption says 'dog'"):
        make_task(demo, plain, [(plural, None)], [])
    (kept,) = make_task(demo, plain, [(dogs, None)], [plural]).kept[-1:]
    assert kept.recording is plural
    for after, gone in (("An image of two dogs", True), ("An image of a dog", False)):
        assert caption_outcome(demo, dogs, after, plain).gone is gone


@pytest.mark.demo
def test_a_target_that_holds_the_word(demo, picture, dogs):
    edit = mmn.edit(demo, "dog", "police dog", pictures=dogs, bundled=False)
    (outcome,) = Pool(demo, [dogs]).outcomes(edit)
    assert outcome.after == dogs.caption.replace("dog", "police dog")
    assert outcome.said
    assert outcome.swapped
    # it is said already, as the edit has it
    with edit.on(demo):
        already = mmn.record(demo, picture, image_budget=0)
    assert not says(already, Swap("dog", "police dog"))


@pytest.mark.parametrize(
    ("text", "to", "fits"),
    [
        ("an image of a apple", "apple", [False]),
        ("an image of an apple", "apple", [True]),
        ("an image of an owl and a sock", "sock", [True]),
        ("an image of an sock, a sock and two socks", "sock", [False, True]),
        ("an image of the apple", "apple", []),
        ("an image of a unicorn", "unicorn", [True]),
        ("a red apple", "apple", []),
    ],
)
def test_articles_before_what_takes_the_place(text, to, fits):
    assert Swap("dog", to).articles_in(text, 0) == fits
