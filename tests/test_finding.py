import pytest
import torch
from PIL import Image

import mmneurons as mmn
from mmneurons.errors import OptionError, PictureError, WordNotFoundError
from mmneurons.finders import Contribution

CAPTION = "An image of a dog and two red apples, and a dog."


@pytest.fixture(scope="module")
def found(vlm, picture):
    return mmn.find(vlm, picture, caption=CAPTION)


def test_words_and_their_tokens(found):
    assert found.caption == CAPTION
    assert found.words == ("dog", "apple", "dog")
    tokenizer = found.vlm.processor.tokenizer
    for part in found:
        assert part.token_ids == tuple(found.recording.token_ids[list(part.steps)].tolist())
        start, end = part.span
        assert CAPTION[start:end] in tokenizer.decode(part.token_ids)
        assert part.log_probability == pytest.approx(
            float(found.recording.log_probabilities[list(part.steps)].sum()), abs=1e-5
        )
    assert found["dog"] is found.parts[0]
    assert [part.span[0] for part in found.all("dog")] == [14, 44]
    assert found["dog"].scores.shape == (3, 112)
    assert found["dog"].scores.dtype == torch.float32


def test_a_word_that_is_not_there(found, vlm, picture):
    with pytest.raises(KeyError, match="dog, apple"):
        found["cat"]
    with pytest.raises(WordNotFoundError, match="caption="):
        mmn.find(vlm, picture, caption=CAPTION, words=["cat"])


def test_a_form_of_a_word_finds_it(llava, picture):
    found = mmn.find(llava, picture, caption="An image of two dogs.", words=["dog"])
    assert found.words == ("dogs",)
    assert found["dog"] is found["dogs"]


def test_lists_in_lists_out(vlm, pictures):
    findings = mmn.find(vlm, pictures, max_new_tokens=6, batch_size=2, words=[])
    captions = mmn.caption(vlm, pictures, max_new_tokens=6, batch_size=2)
    assert [one.caption for one in findings] == captions
    assert [one.caption for one in mmn.record(vlm, tuple(pictures), max_new_tokens=6)] == captions
    assert isinstance(mmn.find(vlm, pictures[0], max_new_tokens=2, words=[]), mmn.Finding)
    assert mmn.find(vlm, [], words=[]) == []


def test_which_token_is_explained(llava, picture, unchecked):
    caption = "An image of a hot dog."
    finder = Contribution(None)

    def of(token):
        return mmn.find(llava, picture, caption=caption, token=token, finder=finder)["hot dog"]

    first, last, both = of("first"), of("last"), of("sum")
    steps = first.steps
    assert len(steps) > 1
    each = [first.found.at(step) for step in steps]
    torch.testing.assert_close(first.scores, each[0].scores)
    torch.testing.assert_close(last.scores, each[-1].scores)
    torch.testing.assert_close(both.scores, torch.stack([one.scores for one in each]).sum(0))
    assert both.total == pytest.approx(sum(one.total for one in each), rel=1e-5)
    with pytest.raises(OptionError, match="'first', 'last' or 'sum'"):
        of("middle")


def test_a_contrast_explains_the_first_token_that_differs(llava, picture):
    caption = "An image of a dog and a ball."
    found = mmn.find(llava, picture, caption=caption, words=["dog"], against="cat")
    tokenizer = llava.processor.tokenizer
    own = tokenizer(caption)["input_ids"]
    other = tokenizer(caption.replace("dog", "cat"))["input_ids"]
    differs = next(i for i, (a, b) in enumerate(zip(own, other, strict=False)) if a != b)
    step = differs - (len(own) - len(found.recording.token_ids) + 1)
    row = llava.model.lm_head.weight.detach()
    direction = row[own[differs]] - row[other[differs]]
    stream = found.recording.stream[step]
    with torch.no_grad():
        normed = llava.model.model.language_model.norm(stream)
    assert found["dog"].total == pytest.approx(float(direction @ normed), rel=1e-4)


@pytest.mark.parametrize(("word", "other"), [("dog", "dog"), ("hot dog", "hot")])
def test_a_contrast_without_a_difference_is_an_error(llava, picture, word, other):
    caption = "An image of a hot dog." if "hot" in word else "An image of a dog."
    with pytest.raises(OptionError, match="cannot be contrasted"):
        mmn.find(llava, picture, caption=caption, words=[word], against=other)


def test_at_any_step(found):
    part = found.at(0)
    assert part.steps == (0,)
    assert part.token_ids == (int(found.recording.token_ids[0]),)
    with pytest.raises(OptionError, match="There is no step"):
        found.at(len(found.recording))
    with pytest.raises(OptionError):
        found.at(-1)


def test_without_a_processor(llava, picture):
    own = mmn.find(llava, picture, max_new_tokens=5, words=[])
    bare = mmn.find(mmn.wrap(llava.model), inputs=dict(own.recording.inputs), max_new_tokens=5, against=None)
    assert bare.words == ()
    expected = mmn.find(llava, picture, max_new_tokens=5, words=[], against=None).at(2)
    torch.testing.assert_close(bare.at(2).scores, expected.scores)
    assert bare.at(2).top(3)[0].promotes[0].startswith("#")
    with pytest.raises(OptionError, match="no picture"):
        bare.at(2).heatmap()


def test_a_caption_without_the_prefix_is_taken_whole(llava, picture):
    found = mmn.find(llava, picture, caption="A dog and a ball.")
    assert found.caption == "A dog and a ball."
    assert found.words == ("dog", "ball")
    text = llava.processor.tokenizer.decode(found.recording.token_ids, skip_special_tokens=True)
    assert text.strip() == "A dog and a ball."
    assert found.recording.request.prefix == ""


def test_captions_for_a_list(llava, pictures):
    captions = ["An image of a dog.", "An image of a ball.", "An image of a tree."]
    findings = mmn.find(llava, pictures, caption=captions)
    assert [one.words for one in findings] == [("dog",), ("ball",), ("tree",)]
    with pytest.raises(OptionError, match="3 pictures and 2 captions"):
        mmn.find(llava, pictures, caption=captions[:2])


def test_an_empty_caption(llava, picture):
    found = mmn.find(llava, picture, caption="An image of")
    assert found.words == ()
    assert len(found.recording) == 1


def test_the_prompt_reaches_the_model(llava, picture):
    asked = mmn.record(llava, picture, prompt="What is this?", prefix="It is", max_new_tokens=2)
    text = llava.processor.tokenizer.decode(asked.inputs["input_ids"][0])
    assert "What is this?" in text
    assert text.endswith("It is")
    assert asked.caption.startswith("It is")


def test_options(llava, picture):
    with pytest.raises(OptionError, match="no option nonsense"):
        mmn.find(llava, picture, nonsense=1)
    with pytest.raises(OptionError, match="no finder"):
        mmn.find(llava, picture, finder="best")
    with pytest.raises(OptionError, match="Pass pictures"):
        mmn.find(llava)
    with pytest.raises(OptionError, match="batch_size=0"):
        mmn.find(llava, picture, batch_size=0)
    with pytest.raises(PictureError, match="There is no file"):
        mmn.find(llava, "nowhere.jpg")


def test_a_seed_reaches_the_finder_that_draws(llava, picture):
    one, other, again = (
        mmn.find(llava, picture, caption=CAPTION, finder="random", seed=seed)["apple"].scores for seed in (1, 2, 1)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_shares_are_of_the_logit(llava, picture):
    found = mmn.find(llava, picture, caption=CAPTION, against=None)["apple"]
    table = found.top(5)
    with torch.no_grad():
        stream = found.found.recording.stream[found.steps[0]]
        logits = llava.model.lm_head(llava.model.model.language_model.norm(stream))
    logit = float(logits[found.token_ids[0]])
    assert [row.share for row in table] == pytest.approx([row.score / logit for row in table], rel=1e-4)
    paper = mmn.find(llava, picture, caption=CAPTION, against=None, norm=None, activation="gate")["apple"].top(5)
    assert all(row.share is None for row in paper)
    assert "gate" in str(paper)


def test_a_heatmap_is_over_the_original_picture(vlm, picture):
    found = mmn.find(vlm, picture, caption=CAPTION)["apple"]
    painted = found.heatmap(0)
    assert isinstance(painted, Image.Image)
    assert painted.width >= picture.width
    look = found.look(0)
    assert look.map().shape == (picture.height, picture.width)
    place = found.neurons(1)[0]
    sign = -1 if found.activations[place] < 0 else 1
    kept = found.found.recording.image_activations[place[0], :, place[1]]
    assert look.values.tolist() == pytest.approx((kept * sign).tolist(), rel=1e-5)
    mean = found.look(first=4)
    each = torch.stack([torch.tensor(found.look(rank).values) for rank in range(4)])
    assert mean.values.tolist() == pytest.approx(each.mean(0).tolist(), abs=1e-5)


def test_a_heatmap_after_a_second_prefill_says_so(vlm, picture):
    kept = mmn.find(vlm, picture, caption=CAPTION)["apple"].look(2)
    again = mmn.find(vlm, picture, caption=CAPTION, image_budget=0)["apple"].look(2)
    assert (kept.source, again.source) == ("recording", "second prefill")
    assert again.values.tolist() == pytest.approx(kept.values.tolist(), abs=1e-4)


def test_near_misses_say_what_was_meant(llava, picture):
    for options, meant in (
        ({"wrods": ["a"]}, "words"),
        ({"agianst": None}, "against"),
        ({"temperature": 1.0}, "generation="),
    ):
        with pytest.raises(OptionError, match=meant):
            mmn.find(llava, picture, **options)
    with pytest.raises(OptionError, match="holds no word"):
        mmn.find(llava, picture, caption="  ")
    with pytest.raises(PictureError, match="not fetched"):
        mmn.find(llava, "https://example.org/dog.jpg")


def test_what_is_not_a_rank_or_a_word(found, unchecked):
    for rank in (-1, 336, "L1.u4", 1.5):
        with pytest.raises(OptionError, match="0 to 335"):
            found["dog"].look(rank)
    with pytest.raises(OptionError, match="one word of a finding"):
        mmn.completeness(found)
    with pytest.raises(OptionError, match="whole number"):
        found["dog"].top("x")


def test_shares_of_a_negative_sum_are_noted(llava, picture):
    words = mmn.find(llava, picture, caption=CAPTION, against="vocabulary")
    for word in words:
        assert ("negative sum" in word.top(1).note) == (word.total < 0)
    assert any(word.total < 0 for word in words)


def test_words_that_a_caption_lacks_are_skipped_where_that_is_asked_for(vlm, picture, unchecked):
    found = mmn.find(vlm, picture, caption="An image of two dogs.", words=["cat", "dog"], missing="skip")
    assert found.words == ("dogs",)
    assert mmn.find(vlm, picture, caption="An image of two dogs.", words=["cat"], missing="skip").words == ()
    with pytest.raises(WordNotFoundError):
        mmn.find(vlm, picture, caption="An image of two dogs.", words=["cat", "dog"])
    with pytest.raises(OptionError, match="missing='ignore'"):
        mmn.find(vlm, picture, words=["cat"], missing="ignore")
