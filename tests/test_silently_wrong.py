"""Ways of asking that gave a recording or a contrast which was silently not what its docstring says."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image

import mmneurons as mmn
from helpers.tiny import tiny_llava
from mmneurons.errors import MMNeuronsError
from mmneurons.exactness import completeness
from mmneurons.vlm.recording import Recording, record_forced


@pytest.fixture
def vlm():
    return mmn.wrap(*tiny_llava())


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (60, 80, 3), dtype=np.uint8))


def is_right(vlm: mmn.VLM, recording: Recording) -> bool:
    """Whether a second forward over the same tokens sees the same activations."""
    again = record_forced(vlm, recording.request, recording.token_ids.tolist())
    return torch.allclose(again.activations, recording.activations, atol=1e-3)


def test_guidance_runs_the_model_twice_a_step(vlm):
    """The unconditional forward of guidance is heard, too, and every second step is taken for a step of its own."""
    try:
        recording = mmn.record(vlm, picture(), max_new_tokens=4, generation={"guidance_scale": 1.5})
    except MMNeuronsError:
        return
    assert is_right(vlm, recording)


def test_prompt_lookup_of_the_checkpoint(vlm):
    """Where all candidates are rejected there are as many forwards as tokens, but their last position is another."""
    vlm.model.generation_config.prompt_lookup_num_tokens = 2
    vlm.model.generation_config.max_matching_ngram_size = 1
    prefix = "dog and ate o bus a ball ate tomato ate dog ll ma i"
    for seed in range(3):
        try:
            recording = mmn.record(vlm, picture(seed), prefix=prefix, max_new_tokens=4)
        except MMNeuronsError:
            continue
        assert is_right(vlm, recording)


def test_pixels_that_are_no_tensor(vlm):
    """They are dropped, and the model says what it says of no picture at all."""
    inputs = mmn.record(vlm, picture(), max_new_tokens=2).inputs
    right = mmn.record(vlm, inputs=inputs, max_new_tokens=2)
    try:
        seen = mmn.record(vlm, inputs={**inputs, "pixel_values": inputs["pixel_values"].numpy()}, max_new_tokens=2)
    except MMNeuronsError:
        return
    assert torch.allclose(seen.activations, right.activations, atol=1e-3)


def test_two_threads(vlm):
    pictures = [picture(seed) for seed in range(2)]
    right = [mmn.record(vlm, one, max_new_tokens=12) for one in pictures]
    wrong: list[str] = []

    def work(index: int) -> None:
        for _ in range(4):
            try:
                seen = mmn.record(vlm, pictures[index], max_new_tokens=12)
            except MMNeuronsError:
                continue
            except (IndexError, ValueError, RuntimeError) as error:
                wrong.append(repr(error))
                continue
            same = seen.activations.shape == right[index].activations.shape
            if not same or not torch.allclose(seen.activations, right[index].activations, atol=1e-3):
                wrong.append("another activation")

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_write_site_that_was_changed_after_loading(vlm):
    """As an adapter does that is put on, or trained, later."""
    site = vlm.model.get_submodule(vlm.anatomy.blocks[1].sites[0].module)
    site.register_forward_hook(lambda _module, _args, output: output * 2)
    try:
        word = mmn.find(vlm, picture(), words=[], max_new_tokens=2).at(0)
    except MMNeuronsError:
        return
    assert completeness(word).error < 1e-4


def test_weights_changed_between_finding_and_scoring_a_step(vlm):
    found = mmn.find(vlm, picture(), words=[], max_new_tokens=2)
    with torch.no_grad():
        vlm.model.get_submodule(vlm.anatomy.blocks[1].sites[0].module).weight.mul_(3)
    try:
        word = found.at(0)
    except MMNeuronsError:
        return
    assert completeness(word).error < 1e-4


@pytest.mark.parametrize("other", ["", "\n", "<image>", "</s>"])
def test_contrast_with_what_is_no_word(vlm, other):
    with pytest.raises(MMNeuronsError):
        mmn.find(vlm, picture(), caption="An image of a dog", words=["dog"], against=other)


def test_contrast_does_not_depend_on_blanks_around_the_other_word(vlm):
    plain, blank = (
        mmn.find(vlm, picture(), caption="An image of a dog", words=["dog"], against=other)["dog"]
        for other in ("cat", " cat")
    )
    assert blank.targets == plain.targets


def test_an_end_that_was_asked_for_ends_every_row_of_a_batch(vlm):
    end = int(mmn.record(vlm, picture(), max_new_tokens=4).token_ids[2])
    options = {"max_new_tokens": 8, "generation": {"eos_token_id": end}}
    alone = mmn.record(vlm, picture(), **options)
    together = mmn.record(vlm, [picture(), picture(1)], **options)[0]
    assert together.token_ids.tolist() == alone.token_ids.tolist()


@pytest.mark.parametrize("caption", ["An image of a dog </s> cat", "An image of a <s> dog"])
def test_a_given_caption_is_recorded_as_it_was_given(vlm, caption):
    try:
        recording = mmn.record(vlm, picture(), caption=caption)
    except MMNeuronsError:
        return
    assert recording.caption == caption
