"""``mmn.edit``: from a word to an edit, on the demo model."""

import pytest
import torch

import mmneurons as mmn
from mmneurons.edits import make
from mmneurons.edits.task import Swap, check_words, ids_of, make_task, says
from mmneurons.errors import EditError, OptionError, RecordingError
from mmneurons.recordings import record_texts, say_again
from mmneurons.vlm.inputs import collate, word_ids
from mmneurons.vlm.upper import Said, upper

pytestmark = pytest.mark.demo


@pytest.fixture(scope="module")
def pictures():
    return [picture.path for picture in mmn.demo.pictures()[:20]]


@pytest.fixture(scope="module")
def recordings(demo, pictures):
    return mmn.record(demo, pictures, image_budget=0)


@pytest.fixture(scope="module")
def swap(demo, pictures):
    return mmn.edit(demo, "dog", "cat", pictures=pictures, bundled=False)


def test_the_word_is_swapped_and_nothing_else(demo, pictures, recordings, swap):
    before = [one.caption for one in recordings]
    assert swap.converged
    with swap.on(demo):
        after = mmn.caption(demo, pictures)
    swapped = [text for text in before if "dog" in text]
    assert swapped
    for old, new in zip(before, after, strict=True):
        assert new == old.replace("dog", "cat")
    assert mmn.caption(demo, pictures) == before


def test_a_word_is_not_said_any_more(demo, pictures, recordings):
    edit = mmn.edit(demo, "dog", None, pictures=pictures, bundled=False)
    with edit.on(demo):
        after = mmn.caption(demo, pictures)
    for old, new in zip(recordings, after, strict=True):
        assert "dog" not in new
        assert says(old, Swap("dog", None)) or new == old.caption
    assert edit.converged


def test_a_word_is_not_said_a_little_later_instead(demo, recordings):
    zebra = next(picture.path for picture in mmn.demo.pictures() if picture.path.name == "lion-zebra.jpg")
    keep = [one for one in recordings if not says(one, Swap("zebra", None))]
    edit = mmn.edit(demo, "zebra", None, pictures=zebra, keep=keep, bundled=False)
    with edit.on(demo):
        assert "zebra" not in mmn.caption(demo, zebra)


def test_the_same_from_a_finding(demo, pictures, recordings):
    place = next(k for k, one in enumerate(recordings) if says(one, Swap("dog", None)))
    found = mmn.find(demo, pictures[place])
    keep = [one for one in recordings if not says(one, Swap("dog", None))]
    edit = mmn.edit(demo, found["dog"], "cat", keep=keep, bundled=False)
    with edit.on(demo):
        assert mmn.caption(demo, pictures[place]) == found.caption.replace("dog", "cat")


def test_what_is_wanted_and_what_is_kept(demo, recordings):
    dogs = [(one, None) for one in recordings if says(one, Swap("dog", None))]
    keep = [one for one in recordings if not says(one, Swap("dog", None))]
    task = make_task(demo, Swap("dog", "cat"), dogs, keep)
    decode = demo.processor.tokenizer.decode
    wanted = {decode([want.target]) for want in task.wants}
    assert wanted == {" cat", " cats"}
    for want in task.wants:
        ids = want.recording.token_ids.tolist()
        assert ids[want.step] == want.target
        assert int(want.recording.logits[want.step].argmax()) in want.sources
    said = {decode([int(kept.recording.token_ids[step])]).strip() for kept in task.kept for step in kept.steps}
    assert not said & {"dog", "dogs"}
    assert {"a", "and"} <= said
    plain = make_task(demo, Swap("dog", "cat", inflections=False), dogs, keep)
    assert {decode([want.target]) for want in plain.wants} == {" cat"}


def test_a_target_of_several_tokens(demo, pictures, recordings):
    edit = mmn.edit(demo, "dog", "polar bear", pictures=pictures, bundled=False)
    with edit.on(demo):
        after = mmn.caption(demo, pictures)
    for old, new in zip(recordings, after, strict=True):
        assert new == old.caption.replace("dog", "polar bear")


def test_a_source_of_several_tokens_and_a_target_of_one(demo, pictures):
    assert len(word_ids(demo, "hamburger")) > len(word_ids(demo, "cat")) == 1
    picture = next(own.path for own in mmn.demo.pictures() if own.path.name == "hamburger-fries.jpg")
    before = mmn.caption(demo, [picture, *pictures[:2]])
    assert "hamburger" in before[0]
    edit = mmn.edit(demo, "hamburger", "cat", pictures=[picture, *pictures[:2]], bundled=False)
    with edit.on(demo):
        after = mmn.caption(demo, [picture, *pictures[:2]])
    assert after == [text.replace("hamburger", "cat") for text in before]


@pytest.mark.parametrize(
    ("caption", "swap", "wanted"),
    [
        ("An image of a TV and two TVs.", Swap("TV", "radio"), ["a radio", "two radios"]),
        ("A TV. Dogs on a bench.", Swap("dog", "cat"), ["TV. Cats on"]),
        ("A TV. TVs on a bench.", Swap("TV", "cat"), ["A cat. TVs", "TV. Cats on"]),
    ],
)
def test_capitals_of_what_is_wanted(demo, pictures, caption, swap, wanted):
    said = mmn.record(demo, pictures[0], caption=caption, image_budget=0)
    task = make_task(demo, swap, [(said, None)], [])
    captions = {want.recording.caption for want in task.wants}
    for text in wanted:
        assert any(text in own for own in captions), captions


def test_answers_to_prompts_without_a_picture(demo):
    """Those that say the word are learned from, the others must stay; both are said in the recipe."""
    asked = ["Write one sentence about a dog.", "Name a color.", "Name a color."]
    before = [one.caption for one in record_texts(demo, asked[:2], 20)]
    assert before == ["A dog.", "A color."]
    picture = next(own.path for own in mmn.demo.pictures() if own.path.name == "dog-bone.jpg")
    edit = mmn.edit(demo, "dog", "cat", pictures=picture, texts=asked, bundled=False, max_new_tokens=20)
    assert edit.recipe["texts"] == asked[:2]
    assert edit.recipe["captions"] == [mmn.caption(demo, picture), "A dog."]
    # of what is kept a text is one
    assert edit.kept_changed == (0, 1)
    with edit.on(demo):
        assert [one.caption for one in record_texts(demo, asked[:2], 20)] == ["A cat.", "A color."]
        assert mmn.caption(demo, picture) == "An image of a bone and a cat."


@pytest.mark.usefixtures("unchecked")
def test_prompts_that_are_none(demo):
    for wrong in ("Name a color.", [3]):
        with pytest.raises(OptionError, match="texts is a list of prompts"):
            mmn.edit(demo, "dog", "cat", texts=wrong)
    with pytest.raises(OptionError, match="without a picture is empty"):
        mmn.edit(demo, "dog", "cat", texts=["  "])


def test_what_is_asked_of_pictures_and_without_one_is_told_apart(llava, pictures):
    """They can stand in no batch together; what is said comes back in the order in which it was asked."""
    seen = mmn.record(llava, pictures[0], max_new_tokens=4)
    answers = record_texts(llava, ["Which?", "Name a color of the sky."], 4)
    asked = [answers[0], seen, answers[1]]
    requests = [one.request for one in asked]
    again = say_again(llava, requests, 4)
    assert [one.token_ids.tolist() for one in again] == [one.token_ids.tolist() for one in asked]
    said = [Said(one.request, ids_of(one), tuple(range(len(one)))) for one in asked]
    for size in (1, 16):
        found = upper(llava, said, 1, size).logits([])
        torch.testing.assert_close(found, torch.cat([one.logits for one in asked]), rtol=1e-4, atol=1e-5)
    with pytest.raises(RecordingError, match="Only some of these have pixel_values, so they cannot be one batch"):
        collate(requests, 0)


@pytest.mark.parametrize(
    ("source", "to", "says_"),
    [
        ("dog", "dog", "nothing to change"),
        ("dog", "dogs", "nothing to change"),
        ("dog", "  ", "empty"),
        ("", "cat", "empty"),
        ("dog", "<|im_end|>", "cannot be said"),
        ("zebra", "cat", "No picture's caption says 'zebra'"),
    ],
)
def test_requests_that_cannot_be_met(demo, pictures, source, to, says_, monkeypatch):
    if source != "zebra":
        monkeypatch.setattr(make, "record_pictures", lambda *_, **__: pytest.fail("captions were made"))
    with pytest.raises(EditError, match=says_.replace("|", r"\|")):
        mmn.edit(demo, source, to, pictures=pictures[:2], bundled=False)


def test_words_that_the_checkpoint_never_says(demo, pictures, monkeypatch):
    settings = demo.model.generation_config
    (cat,) = word_ids(demo, "cat")
    monkeypatch.setattr(settings, "suppress_tokens", [cat])
    with pytest.raises(EditError, match="'cat' is never said by this model"):
        mmn.edit(demo, "dog", "cat", pictures=pictures[:2], bundled=False)
    monkeypatch.setattr(settings, "suppress_tokens", None)
    monkeypatch.setattr(settings, "bad_words_ids", [[3, 4], word_ids(demo, "traffic light")])
    with pytest.raises(EditError, match="'traffic light' is never said"):
        mmn.edit(demo, "dog", "traffic light", pictures=pictures[:2], bundled=False)
    check_words(demo, Swap("dog", "traffic"))


def test_a_keep_set_that_holds_the_word(demo, pictures, recordings, monkeypatch):
    dogs = [one for one in recordings if says(one, Swap("dog", None))]
    monkeypatch.setattr(make, "record_pictures", lambda *_, **__: pytest.fail("captions were made"))
    with pytest.raises(EditError, match="must stay as it is says 'dog'"):
        mmn.edit(demo, "dog", "cat", pictures=pictures, keep=dogs[:1])


def test_methods_and_options_that_there_are_not(demo, pictures):
    with pytest.raises(OptionError, match="There are: 'least_squares'"):
        mmn.edit(demo, "dog", "cat", pictures=pictures, method="rome")
    with pytest.raises(OptionError, match="has no option k"):
        mmn.edit(demo, "dog", "cat", pictures=pictures, k=3)


@pytest.mark.parametrize(
    ("method", "options", "says_"),
    [
        ("learned", {"finder": "nonsense"}, "There is no finder 'nonsense'"),
        ("fine", {"skip_last": 30}, "skip_last=30 is not possible"),
        ("erase", {"k": 10**6}, "k=1000000 is not possible: there are 46080 neurons"),
        ("scale", {"finder": "nonsense"}, "There is no finder"),
        ("knowledge_neurons", {"k": 10**6}, "k=1000000 is not possible"),
        ("finetune", {"k": 10**6}, "k=1000000 is not possible"),
        ("finetune", {"k": None, "blocks": (30,)}, "There is no block 30"),
        ("lora", {"blocks": (-31,)}, "There is no block -31"),
        ("lora", {"rank": 577}, "rank=577 is not possible: it has to be a whole number from 1 to 576"),
        ("least_squares", {"blocks": (30,)}, "There is no block 30"),
    ],
)
def test_what_the_model_does_not_have_is_refused_before_any_work(demo, pictures, method, options, says_, monkeypatch):
    monkeypatch.setattr(make, "record_pictures", lambda *_, **__: pytest.fail("captions were made"))
    with pytest.raises(OptionError, match=says_):
        mmn.edit(demo, "dog", "cat", pictures=pictures[:2], method=method, **options)


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_finite_number_is_no_edit(demo, recordings):
    with pytest.raises(EditError, match="holds NaN or infinity"):
        mmn.edit(demo, "dog", "cat", pictures=recordings[:4], bundled=False, margin=1e300)


def test_an_edit_is_not_learned_while_one_is_in_force(demo, pictures, swap):
    with swap.on(demo), pytest.raises(EditError, match="in force"):
        mmn.edit(demo, "dog", "cat", pictures=pictures)
