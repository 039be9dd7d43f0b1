"""Neurons taken away by hooks and against the cache do what a full forward with the same zeros does."""

import numpy as np
import pytest
import torch
from PIL import Image

import mmneurons as mmn
from helpers.tiny import tiny_llava, tiny_llava_next, tiny_llava_onevision
from mmneurons.errors import AnatomyError, OptionError
from mmneurons.interventions import held_at, logits_without, mean_activations, noisy, scaled, zeroed
from mmneurons.vlm.recording import record_forced

MAKERS = {
    "llava": tiny_llava,
    "llava-mistral": lambda: tiny_llava("mistral"),
    "llava_next": tiny_llava_next,
    "llava_onevision": tiny_llava_onevision,
}


@pytest.fixture(scope="module", params=MAKERS)
def found(request):
    vlm = mmn.wrap(*MAKERS[request.param]())
    return mmn.find(vlm, picture(), caption="An image of two red apples and a dog.", words=["apples", "dog"])


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 70, 3), dtype=np.uint8))


def draw(vlm, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(len(vlm.anatomy.blocks), (count,), generator=generator).tolist()
    columns = torch.randint(vlm.anatomy.width, (count,), generator=generator).tolist()
    return list(zip(blocks, columns))


def write_sites(model) -> list[torch.nn.Linear]:
    return [layer.mlp.down_proj for layer in model.model.language_model.layers]


def full_forward(vlm, recording, step, neurons, position) -> torch.Tensor:
    """Without any cache and without anything of ours: hooks of torch on modules found by their names."""

    def hook(columns):
        def drop(_module, args):
            z = args[0].clone()
            z[:, position, columns] = 0
            return (z,)

        return drop

    tokens = torch.cat([recording.inputs["input_ids"], recording.token_ids[None, :step]], 1)
    inputs = {**recording.inputs, "input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    handles = [
        site.register_forward_pre_hook(hook([column for block, column in neurons if block == index]))
        for index, site in enumerate(write_sites(vlm.model))
    ]
    with torch.no_grad():
        logits = vlm.model(**inputs, use_cache=False).logits[0, -1]
    for handle in handles:
        handle.remove()
    return logits


def hooks_of(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("word", ["apples", "dog"])
def test_the_replay_is_the_full_forward(found, word):
    part, vlm = found[word], found.vlm
    sets = [part.neurons(20), draw(vlm, 5), [(0, 3)], [(len(vlm.anatomy.blocks) - 1, 7), (0, 7)], []]
    logits = logits_without(part, sets)
    assert logits.dtype == torch.float32
    for row, neurons in zip(logits, [[], *sets], strict=True):
        expected = full_forward(vlm, found.recording, part.steps[0], neurons, -1)
        torch.testing.assert_close(row, expected, atol=2e-4, rtol=1e-4)
    # the zeros matter, or the comparison would show nothing
    assert (logits[1:-1] - logits[0]).abs().amax(1).min() > 1e-2
    torch.testing.assert_close(logits[-1], logits[0])


def test_row_0_is_what_was_recorded(found):
    for part in found:
        for step, token in zip(part.steps, part.token_ids, strict=True):
            logits = logits_without(part, [], step)
            assert logits.shape[0] == 1
            recorded = found.recording.log_probabilities[step]
            torch.testing.assert_close(logits[0].log_softmax(-1)[token], recorded, atol=1e-4, rtol=1e-4)


def test_zeroed_everywhere_is_a_model_without_these_columns(found):
    vlm, neurons = found.vlm, draw(found.vlm, 12)
    before = [site.weight.detach().clone() for site in write_sites(vlm.model)]
    with zeroed(vlm, neurons):
        held = vlm.model(**found.recording.inputs).logits
    with torch.no_grad():
        for block, column in neurons:
            write_sites(vlm.model)[block].weight[:, column] = 0
        expected = vlm.model(**found.recording.inputs).logits
        for site, weight in zip(write_sites(vlm.model), before, strict=True):
            site.weight.copy_(weight)
    torch.testing.assert_close(held, expected, atol=1e-5, rtol=1e-5)
    plain = vlm.model(**found.recording.inputs).logits
    assert (held - plain).abs().max() > 1e-2


def test_zeroed_at_emitting_positions_while_generating(found):
    vlm, neurons = found.vlm, draw(found.vlm, 12)
    options = dict(max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True)
    with zeroed(vlm, neurons, "emitting"):
        output = vlm.model.generate(**found.recording.inputs, **options)
    tokens = output.sequences[0, found.recording.inputs["input_ids"].shape[1] :]
    generated = mmn.find(vlm, picture(), max_new_tokens=1)
    torch.testing.assert_close(output.logits[0][0], logits_without(generated.at(0), [neurons])[1], atol=2e-4, rtol=1e-4)
    # later steps also see keys and values of earlier emitting positions without these neurons
    first = found.recording.inputs["input_ids"].shape[1] - 1
    step = 2
    said = record_forced(vlm, generated.recording.request, tokens[: step + 1].tolist())
    expected = full_forward(vlm, said, step, neurons, slice(first, None))
    torch.testing.assert_close(output.logits[step][0], expected, atol=2e-4, rtol=1e-4)


def test_nothing_stays_behind(found):
    vlm = found.vlm
    before = hooks_of(vlm.model)  # transformers has some of its own
    with zeroed(vlm, draw(vlm, 3)):
        assert hooks_of(vlm.model) > before
    assert hooks_of(vlm.model) == before
    with pytest.raises(KeyboardInterrupt), zeroed(vlm, draw(vlm, 3)):
        raise KeyboardInterrupt
    assert hooks_of(vlm.model) == before
    logits_without(found["dog"], [draw(vlm, 3)])
    assert hooks_of(vlm.model) == before


def test_what_is_not_there_is_refused(found):
    vlm = found.vlm
    with pytest.raises(AnatomyError), zeroed(vlm, [(99, 0)]):
        pass
    with pytest.raises(AnatomyError):
        logits_without(found["dog"], [[(0, 10**6)]])
    with pytest.raises(OptionError):
        logits_without(found["dog"], [[(0, 1)]], step=1000)


def test_neurons_may_be_named_as_they_are_shown(found):
    """By their names, and by the table that ``top`` gives: the same as by block and column."""
    part, vlm = found["dog"], found.vlm
    places, table = part.neurons(5), part.top(5)
    names = [row.neuron for row in table]
    expected = logits_without(part, [places])
    assert not torch.allclose(expected[0], expected[1], atol=1e-3)
    for named in (table, names, list(table), [vlm.neuron(name) for name in names]):
        torch.testing.assert_close(logits_without(part, [named]), expected)
        with zeroed(vlm, named):
            again = record_forced(vlm, found.recording.request, found.recording.token_ids.tolist())
        assert float(again.activations[:, *zip(*places)].abs().max()) == 0
        torch.testing.assert_close(
            mean_activations(vlm, [found.recording], named), mean_activations(vlm, [found.recording], places)
        )
    with zeroed(vlm, names[0]):
        again = record_forced(vlm, found.recording.request, found.recording.token_ids.tolist())
    assert float(again.activations[:, *places[0]].abs().max()) == 0


@pytest.mark.parametrize("values", [3.0, [3.0, 3.0], torch.tensor([3.0, 3.0])])
def test_neurons_are_held_at_a_number_or_at_one_for_each(found, values):
    with held_at(found.vlm, found["dog"].top(2), values):
        again = record_forced(found.vlm, found.recording.request, found.recording.token_ids.tolist())
    for place in found["dog"].neurons(2):
        assert again.activations[:, *place].tolist() == pytest.approx([3.0] * len(again), abs=1e-5)


def test_what_is_no_neuron_and_no_number_is_told(found, unchecked):
    vlm = found.vlm
    for neurons, says in (
        (found["dog"], "no list of neurons"),
        (3, "no list of neurons"),
        ((0, 3), "0 is no neuron"),
        ([(0, 3, 1)], "is no neuron"),
        ([(0, 3.5)], "is no neuron"),
    ):
        for make in (lambda own: zeroed(vlm, own), lambda own: scaled(vlm, own, 0.5), lambda own: noisy(vlm, own)):
            with pytest.raises(OptionError, match=says), make(neurons):
                pass
    for value in ("much", [1.0, "much"], float("nan"), [float("inf")], None, True, torch.zeros(1, 1)):
        with pytest.raises(OptionError, match="values="), held_at(vlm, ["L0.u3"], value):
            pass
    with pytest.raises(AnatomyError, match="does not name a neuron"), zeroed(vlm, ["u3"]):
        pass
