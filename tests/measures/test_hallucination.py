"""Objects that texts name, CHAIR and POPE, counted by hand."""

import math

import pytest

from mmneurons.errors import OptionError, SourceError
from mmneurons.measures.hallucination import (
    Question,
    chair,
    is_yes,
    mentions,
    pope,
    pope_questions,
)
from mmneurons.measures.objects import coco_vocabulary, read_aliases, vocabulary, vocabulary_of_truth, with_names
from mmneurons.measures.summary import hallucination_table
from mmneurons.measures.truth import Truth


def test_the_longest_name_counts():
    known = coco_vocabulary()
    assert known.said("A hot dog next to two dogs and a teddy bear.") == ["hot dog", "dog", "teddy bear"]
    assert known.said("Children with kites, knives and a cell phone on the kitchen table") == [
        "person",
        "kite",
        "knife",
        "cell phone",
        "dining table",
    ]
    assert known.said("buses, people, geese, sheep") == ["bus", "person", "bird", "sheep"]
    assert known.said("nothing of the kind") == []
    assert len(known.names) == 80


def test_names_aliases_and_what_is_related():
    plain = vocabulary(["dog", "fire truck"], {"dog": ["hound"]})
    assert plain.said("A hound in a fire truck; the puppy") == ["dog", "fire truck"]
    related = vocabulary(["dog"], related=lambda noun: {"puppy": ("dog", "animal")}.get(noun, ()))
    assert related.said("Two puppies and a dog") == ["dog", "dog"]
    assert related.of_word("puppy") == {"dog"}
    assert related.of_word("cat") == frozenset()
    # an object of its own says no other one, whatever the aliases say
    own = vocabulary(["table", "desk"], {"table": ["desk"]})
    assert own.said("a desk") == ["desk"]


def test_wordnet_tells_kinds_and_no_likenesses():
    from mmneurons.measures.wordnet import WordNet, installed_folder

    try:
        wordnet = WordNet.read(installed_folder())
    except FileNotFoundError:
        pytest.skip("WordNet is not installed (requirements/measure.txt)")
    known = vocabulary(["dog", "chair", "food"], related=wordnet.related)
    assert known.of_word("poodle") == {"dog"}
    assert known.of_word("pizza") == {"food"}
    assert known.of_word("bench") == frozenset()
    # Günter Grass
    assert "plant" in wordnet.related("grass")
    assert "writer" not in wordnet.related("grass")


def test_further_objects_are_looked_for_too():
    known = vocabulary(["dog"], {"dog": ["puppy"]})
    more = with_names(known, ["Unicorn", "puppy", "dog"])
    assert more.names == {"dog", "unicorn"}
    assert more.said("A puppy and two unicorns.") == ["dog", "unicorn"]
    assert known.said("A puppy and two unicorns.") == ["dog"]
    assert "Added were: unicorn." in more.told
    assert with_names(known, ["dogs"]) is known


def test_aliases_that_cannot_be_read(tmp_path):
    path = tmp_path / "aliases.json"
    path.write_text('["dog"]')
    with pytest.raises(SourceError, match="JSON object"):
        read_aliases(path)
    with pytest.raises(OptionError, match="no objects"):
        vocabulary([])


@pytest.mark.parametrize("given", ['"puppy"', "null", '["puppy", 3]', '[" "]', '{"puppy": 1}'])
def test_other_names_are_lists_of_words(tmp_path, given):
    path = tmp_path / "aliases.json"
    path.write_text(f'{{"dog": {given}}}')
    with pytest.raises(SourceError, match=r"'dog' has .* Write a list"):
        read_aliases(path)


def test_a_name_in_two_spellings_has_the_aliases_of_both(tmp_path):
    path = tmp_path / "aliases.json"
    path.write_text('{"Dog": ["puppy"], "dog": ["hound"]}')
    assert read_aliases(path) == {"dog": ["puppy", "hound"]}


def test_chair_by_hand():
    known = coco_vocabulary()
    truths = [
        Truth("a", ("dog", "person"), captions=("A man with a ball.",)),
        Truth("b", ("cat",)),
        Truth("c", ("car", "bus")),
    ]
    captions = ["A dog and a cat and a cat.", "A cat.", "A street."]
    told = [mentions(text, truth, known) for text, truth in zip(captions, truths)]
    assert told[0].there == {"dog", "person", "sports ball"}
    assert told[0].hallucinated == ("cat", "cat")
    whole = chair(told)
    assert whole.sentences == pytest.approx(1 / 3)
    assert whole.instances == pytest.approx(2 / 4)
    assert whole.recall == pytest.approx(2 / 6)
    assert whole.captions == 3
    nothing = chair([mentions("A street.", Truth("d", ()), known)])
    assert nothing.sentences == 0
    assert math.isnan(nothing.instances)
    assert math.isnan(nothing.recall)
    with pytest.raises(OptionError):
        chair([])
    table = hallucination_table(dict(zip("abc", told)), known, 5, 200, 0)
    assert table.cells[0].estimate.value == pytest.approx(1 / 3)
    assert table.cells[0].estimate.low <= 1 / 3 <= table.cells[0].estimate.high
    assert "Over 3 of 5 captioned pictures, those that the truth is of." in table.note
    assert "the 80 objects of COCO" in table.note
    assert "No caption names" not in table.note


def test_captions_that_name_nothing_of_the_truth_are_told_of():
    known = vocabulary(["frisbox", "zorb"])
    said = {"a": mentions("A dog and a cat.", Truth("a", ("frisbox",)), known)}
    table = hallucination_table(said, known, 1, 50, 0)
    assert "No caption names any of them (frisbox, zorb)" in table.note
    assert "2 objects that the truth names, by their names and plurals." in table.note
    assert "COCO" not in table.note


def test_which_vocabulary_a_truth_gets():
    coco = vocabulary_of_truth(["dog", "Person"])
    assert coco.said("A puppy and a man.") == ["dog", "person"]
    assert coco.told == coco_vocabulary().told
    mixed = vocabulary_of_truth(["dog", "person", "frisbox"])
    assert mixed.said("A puppy and a man.") == []
    assert "not used, because 'frisbox' is none of them" in mixed.told
    given = vocabulary_of_truth(["dog", "person"], {"dog": ["puppy"]}, lambda noun: [noun])
    assert given.said("A puppy and a man.") == ["dog"]
    assert given.told.endswith(
        "names, plurals and the other names that were given, and by nouns that are a kind of one in WordNet."
    )
    assert "COCO" not in vocabulary_of_truth(["frisbox"]).told


TRUTHS = {
    "a": frozenset({"dog", "ball"}),
    "b": frozenset({"dog", "ball"}),
    "c": frozenset({"dog", "cat"}),
    "d": frozenset({"car"}),
    "e": frozenset({"car", "bus"}),
    "f": frozenset({"car"}),
    "g": frozenset({"car"}),
}


def test_pope_asks_for_what_is_frequent_or_seen_together():
    for kind in ("random", "popular", "adversarial"):
        questions = pope_questions(TRUTHS, kind, each=1, seed=3)
        assert questions == pope_questions(TRUTHS, kind, each=1, seed=3)
        assert sum(one.there for one in questions) == sum(not one.there for one in questions) == len(TRUTHS)
        for one in questions:
            assert (one.name in TRUTHS[one.file]) == one.there
    popular = {one.file: one.name for one in pope_questions(TRUTHS, "popular", each=1) if not one.there}
    assert popular["a"] == "car"
    assert popular["d"] == "dog"
    adversarial = {one.file: one.name for one in pope_questions(TRUTHS, "adversarial", each=1) if not one.there}
    assert adversarial["c"] == "ball"
    assert adversarial["a"] == "cat"
    assert adversarial["d"] == "bus"
    with pytest.raises(OptionError, match="every picture"):
        pope_questions({"a": frozenset({"dog"})}, "random")


def test_no_fewer_than_one_question():
    with pytest.raises(OptionError, match="each=0"):
        pope_questions(TRUTHS, "random", each=0)


def test_as_many_questions_of_either_kind_where_little_is_absent():
    """Of 5 objects the first picture shows 4: one is absent, so one question of either kind, however many are asked."""
    truths = {"a": frozenset("bcde"), "b": frozenset("bf")}
    own = [one for one in pope_questions(truths, "random", each=3) if one.file == "a"]
    assert [one.there for one in own] == [True, False]
    assert own[1].name == "f"


def test_a_kind_that_there_is_not(unchecked):
    with pytest.raises(OptionError, match="likely"):
        pope_questions(TRUTHS, "likely")


def test_answers():
    assert is_yes("Yes, there is. No doubt.")
    assert not is_yes("No.")
    assert not is_yes("There is not. Yes.")
    assert not is_yes("There isn't a dog")
    assert is_yes("A noble knot.")
    assert is_yes("I cannot see one. No.")
    assert is_yes("")
    assert not is_yes("NO")


def test_pope_by_hand():
    questions = [
        Question("a", name, there) for name, there in (("dog", True), ("cat", True), ("car", False), ("bus", False))
    ]
    whole = pope(questions, [True, False, True, True])
    assert whole.accuracy == 0.25
    assert whole.precision == pytest.approx(1 / 3)
    assert whole.recall == 0.5
    assert whole.f1 == pytest.approx(2 / 5)
    assert whole.yes_ratio == 0.75
    assert questions[0].text == "Is there a dog in the image? Answer yes or no."
    assert Question("a", "apple", True).text.startswith("Is there an apple")


def test_a_model_is_asked(llava):
    from PIL import Image

    from mmneurons.measures.hallucination import ask

    answers = ask(llava, {"a": Image.new("RGB", (64, 64))}, [Question("a", "dog", True)], max_new_tokens=2)
    assert len(answers) == 1
