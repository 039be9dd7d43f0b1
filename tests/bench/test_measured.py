"""Falls of log p, by hand and by full forwards without ours."""

import numpy as np
import pytest
import torch
from bench.measured import ZEROED, measure
from PIL import Image

import mmneurons as mmn
from helpers.tiny import tiny_llava
from mmneurons.finders import Activation, Contribution, Random

WAYS = {"distribution": Contribution(against="distribution"), "most active": Activation(), "random": Random()}


@pytest.fixture(scope="module")
def found():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 70, 3), dtype=np.uint8))
    vlm = mmn.wrap(*tiny_llava())
    return mmn.find(vlm, picture, caption="An image of two red apples and a dog.", words=["apples", "dog"])


def test_measured_falls_are_those_of_a_full_forward(found):
    vlm, recording = found.vlm, found.recording
    measured = measure(vlm, 7, found.parts, WAYS)
    assert [(word.scene, word.word, word.tokens) for word in measured] == [
        (7, part.word, len(part.token_ids)) for part in found
    ]
    for word, part in zip(measured, found, strict=True):
        step, token = part.steps[0], part.token_ids[0]
        before = _log_p(vlm, recording, step, [])
        assert word.probability == pytest.approx(float(before[token].exp()), rel=1e-3)
        neurons = mmn.find(vlm, found.picture, caption=found.caption, words=[word.word], finder=WAYS["distribution"])[
            word.word
        ].neurons(ZEROED)
        after = _log_p(vlm, recording, step, neurons)
        assert word.fall["distribution"] == pytest.approx(float((before - after)[token]), abs=1e-3)
        others = [index for index in before.argsort(descending=True).tolist() if index != token][:10]
        expected = float((before - after)[token] - (before - after)[others].mean())
        assert word.relative["distribution"] == pytest.approx(expected, abs=1e-3)
        assert abs(word.fall["distribution"]) > 0.01
        for block, column, sign in word.units["most active"]:
            assert sign == (1 if recording.activations[step, block, column] >= 0 else -1)


def test_random_neurons_are_others_in_every_scene(found):
    one, other = (measure(found.vlm, scene, found.parts, WAYS)[0].units["random"] for scene in (0, 1))
    again = measure(found.vlm, 0, found.parts, WAYS)[0].units["random"]
    assert one == again != other


def _log_p(vlm, recording, step, neurons):
    tokens = torch.cat([recording.inputs["input_ids"], recording.token_ids[None, :step]], 1)
    inputs = {**recording.inputs, "input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    handles = []
    for index, layer in enumerate(vlm.model.model.language_model.layers):

        def drop(_module, args, columns=[column for block, column in neurons if block == index]):  # noqa: B006
            z = args[0].clone()
            z[:, -1, columns] = 0
            return (z,)

        handles.append(layer.mlp.down_proj.register_forward_pre_hook(drop))
    with torch.no_grad():
        logits = vlm.model(**inputs, use_cache=False).logits[0, -1]
    for handle in handles:
        handle.remove()
    return logits.log_softmax(-1)
