"""What is said of things that are not there is found, learned from, and measured before and after."""

from dataclasses import replace

import pytest

import mmneurons as mmn
from helpers.command import mmn as command
from mmneurons.edits import Edit
from mmneurons.edits.edit import SEEN
from mmneurons.errors import EditError
from mmneurons.measures.objects import vocabulary
from mmneurons.measures.truth import Truth, truth_of_bundled
from mmneurons.mitigation.grounded import ground_captions
from mmneurons.mitigation.grounding import Settings
from mmneurons.mitigation.hallucination import check_general, learn
from mmneurons.mitigation.lesson import Shown, read_lesson, split
from mmneurons.vlm.inputs import PREFIX, PROMPT
from mmneurons.vlm.pictures import PictureLike, open_picture, pixel_digest

pytestmark = pytest.mark.demo

NAMES = ("cat", "dog", "chicken", "ball", "horse", "mouse", "violin", "piano")


@pytest.fixture(scope="module")
def shown():
    """Pictures with a dog, whose truth says that there is a cat, and others with their own truth."""
    truths = truth_of_bundled()
    found = []
    for picture in mmn.demo.pictures()[:10]:
        truth = truths[picture.path.name]
        objects = tuple("cat" if name == "dog" else name for name in truth.objects)
        found.append(Shown(picture.path.name, lambda path=picture.path: open_picture(path), Truth(truth.file, objects)))
    return found


@pytest.fixture(scope="module")
def known(shown):
    return vocabulary({name for one in shown for name in one.truth.objects} | set(NAMES))


@pytest.fixture(scope="module")
def lesson(demo, shown, known):
    return read_lesson(demo, shown, known)


def test_false_mentions_are_counted_by_word(demo, shown, known, lesson):
    captions = mmn.caption(demo, [one.open() for one in shown])
    dogs = sum("dog" in known.said(text) for text in captions)
    assert dogs
    words = {word.name: word for word in lesson.words}
    assert (words["dog"].false, words["dog"].true) == (dogs, 0)
    assert lesson.words[0].false >= lesson.words[-1].false
    named = sum(len(known.said(text)) for text in captions)
    assert sum(word.false + word.true for word in lesson.words) == named
    assert sum(step.mention is not None for step in lesson.steps) == named
    for step in lesson.steps:
        if step.mention is not None and step.mention.name == "dog":
            assert "cat" in step.missed


def test_what_is_learned_is_an_edit_of_the_last_block(demo, shown, lesson, known, tmp_path):
    edit = learn(demo, lesson, known, settings=Settings(rounds=20, folds=2))
    assert [delta.block for delta in edit.deltas] == [29]
    # asked as the lesson was, of these pictures
    assert [edit.recipe[name] for name in ("prompt", "prefix", "max_new_tokens")] == [PROMPT, PREFIX, 50]
    assert edit.given(SEEN) == {pixel_digest(one.open()) for one in shown}
    edit.save(tmp_path / "edit.safetensors")
    assert Edit.load(tmp_path / "edit.safetensors").edit_id == edit.edit_id
    assert repr(edit).startswith("Edit(less of what is not there, grounding, ")
    # a step that says the general word already is no name to be ahead of
    token = demo.processor.tokenizer(" thing", add_special_tokens=False)["input_ids"][0]
    plain = next(step for step in lesson.steps if step.mention is None)
    more = replace(lesson, steps=(*lesson.steps, replace(plain, token=token)))
    again = learn(demo, more, known, general=" thing", settings=Settings(rounds=20, folds=2))
    assert again.edit_id == edit.edit_id
    with pytest.raises(EditError, match="'dog' is itself one of the objects"):
        learn(demo, lesson, known, general="dog")


@pytest.mark.parametrize(
    ("general", "says"),
    [
        (" ", "is empty"),
        ("dogs", "itself one of the objects"),
        ("what so ever", "is 3 tokens in this model"),
        ("dog,cat", "is 3 tokens in this model"),
    ],
)
def test_words_that_cannot_stand_for_any_name(demo, known, general, says):
    with pytest.raises(EditError, match=says):
        check_general(demo, known, general)


def test_a_general_word_that_begins_as_a_name_does(demo):
    """The token of "ice" also begins "ice cream", so lifting it would lift the name."""
    with pytest.raises(EditError, match="begins with the same token as 'ice cream'"):
        check_general(demo, vocabulary({"ice cream"}), "ice")


def test_a_general_word_is_refused_before_any_picture_is_captioned(tmp_path):
    asked = ("mitigate", "hallucination", "demo:pictures", "--limit", 8, "--truth", "demo:pictures")
    result = command(*asked, "--out", tmp_path / "out", "--general", "what so ever")
    assert result.code != 0
    assert "Choose a word of one" in " ".join(result.err.split())
    assert "learned from" not in result.err


def test_hallucinations_before_and_after(demo, shown, known):
    """By the made-up truth a dog is wrong and a cat is right, so an edit from dog to cat mends captions."""
    paths: list[PictureLike] = [picture.path for picture in mmn.demo.pictures()[:10]]
    edit = mmn.edit(demo, "dog", "cat", pictures=paths, bundled=False)
    found = ground_captions(demo, edit, shown, known, at_least=0.5, recall=0.02)
    before = mmn.caption(demo, paths)
    after = [text.replace("dog", "cat") for text in before]
    for name, texts in (("CHAIRi before", before), ("CHAIRi after", after)):
        said = [(known.said(text), known_things(one.truth, known)) for text, one in zip(texts, shown, strict=True)]
        false = sum(name not in there for own, there in said for name in own)
        assert found[name].estimate.value == pytest.approx(false / sum(len(own) for own, _ in said))
    assert found["CHAIRi after"].estimate.value < found["CHAIRi before"].estimate.value
    assert found["recall added"].estimate.value > 0
    assert found.refusal == ""
    assert {(one.before, one.after) for one in found.changes} == {
        (old, new) for old, new in zip(before, after, strict=True) if old != new
    }


def known_things(truth, known):
    return {name for thing in truth.objects for name in known.of_word(thing)}


def test_nothing_wrong_is_nothing_to_learn_from(demo, shown, known, lesson):
    right = replace(lesson, words=tuple(word for word in lesson.words if not word.false))
    with pytest.raises(EditError, match="Nothing is said in these 10 captions of what is not there"):
        learn(demo, right, known)


def test_a_dry_run_writes_nothing(tmp_path):
    asked = ("mitigate", "hallucination", "demo:pictures", "--limit", 8, "--truth", "demo:pictures")
    result = command(*asked, "--out", tmp_path / "out", "--dry-run", "--json")
    assert result.code == 0, result.out
    assert result.events[-1]["captions"] == 4
    assert not (tmp_path / "out").exists()


def test_a_share_is_held_out_and_not_learned_from(shown):
    learned, held = split(shown, 0.3, seed=1)
    assert (len(learned), len(held)) == (7, 3)
    assert {one.name for one in learned + held} == {one.name for one in shown}
    assert [one.name for one in split(shown, 0.3, seed=1)[1]] == [one.name for one in held]
    assert len({tuple(one.name for one in split(shown, 0.3, seed)[1]) for seed in range(8)}) > 1


@pytest.mark.parametrize(
    ("share", "parts"), [("0", "4 would be learned from and 0"), ("1", "0 would be learned from and 4")]
)
def test_something_is_learned_from_and_something_held_out(tmp_path, share, parts):
    asked = ("mitigate", "hallucination", "demo:pictures", "--limit", 4, "--truth", "demo:pictures")
    result = command(*asked, "--out", tmp_path / "out", "--held", share)
    assert result.code != 0
    assert parts in " ".join(result.err.split())
