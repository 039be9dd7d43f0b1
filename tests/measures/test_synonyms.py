"""Which objects captions name: every case read by a person, not by a program."""

import pytest

from mmneurons.errors import OptionError
from mmneurons.measures.objects import coco_vocabulary, vocabulary


@pytest.mark.parametrize(
    ("text", "objects"),
    [
        ("An orange cat on a red couch.", ["cat", "couch"]),
        ("A man ties his shoe.", ["person"]),
        ("He can bear it.", []),
        ("A baby elephant.", ["elephant"]),
        ("A train track next to a bus stop.", []),
        ("A police car.", ["car"]),
        ("A chicken sandwich.", ["sandwich"]),
        ("The dog's ball.", ["dog", "sports ball"]),
        ("A teddy-bear and a table-cloth.", ["teddy bear"]),
        ("Two dogs, a dog and a puppy.", ["dog", "dog", "dog"]),
        ("A pair of scissors.", ["scissors"]),
        ("A Hot Dog on a plate.", ["hot dog"]),
    ],
)
def test_nouns_name_objects(text, objects):
    assert coco_vocabulary().said(text) == objects


def test_compounds_of_their_own_are_none_of_their_words():
    """Also where nothing but the word is an object."""
    known = vocabulary(["dog", "bear", "horse"])
    assert known.said("A hot dog, a teddy bear, two sea horses and a horse.") == ["horse"]
    assert known.said("A polar bear and a hot-dog.") == ["bear"]


def test_names_with_hyphens_are_said_with_blanks_and_without():
    known = vocabulary(["t-shirt", "cell phone"])
    assert known.said("A man in a t-shirt with a cell-phone.") == ["t-shirt", "cell phone"]
    assert known.of_word("T-Shirt") == {"t-shirt"}
    with pytest.raises(OptionError, match="no text can say"):
        vocabulary(["?!"])


KINDS = {
    "puppy": {"puppy", "dog", "animal"},
    "dog": {"dog", "animal"},
    "animal": {"animal"},
    "white": {"white", "person"},
    "pot": {"pot", "stool", "toilet"},
    "bat": {"bat", "animal", "club"},
    "club": {"club"},
    "stool": {"stool", "chair"},
}


def related(noun):
    return KINDS.get(noun, frozenset())


def test_the_nearest_kind_counts():
    assert vocabulary(["animal", "dog"], related=related).said("Two puppies.") == ["dog"]
    assert vocabulary(["animal", "cat"], related=related).said("Two puppies.") == ["animal"]


def test_what_may_be_two_things_is_none():
    known = vocabulary(["animal", "club"], related=related)
    assert known.said("A bat.") == []
    assert known.of_word("bat") == frozenset()


def test_only_nouns_are_asked_for_what_they_are():
    known = vocabulary(["person", "dog"], related=related)
    assert known.said("A white dog.") == ["dog"]


def test_a_kind_is_told_by_an_objects_name_not_by_its_aliases():
    """The stool that is a pot is not the stool that is a chair."""
    known = vocabulary(["chair"], {"chair": ["stool"]}, related=related)
    assert known.said("A stool and a pot.") == ["chair"]
