"""Sums over positions are those of a forward that keeps every activation, in every kind of FFN."""

from dataclasses import replace
from functools import reduce
from operator import add

import numpy as np
import pytest
import torch
from PIL import Image

import mmneurons as mmn
from helpers.families import FAMILIES
from helpers.tiny import tiny_llava
from mmneurons.errors import OptionError, RecordingError
from mmneurons.interventions import zeroed
from mmneurons.vlm import statistics as module
from mmneurons.vlm.decoding import forced_inputs
from mmneurons.vlm.statistics import activation_statistics, statistics_at

SETS = ("text", "image", "all", "last")
FIELDS = ("positive", "above", "total", "absolute", "squares", "maximum")


def noise(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (70, 90, 3), dtype=np.uint8))


class Studied:
    """A model, what it said, and every activation of a forward over it, heard with hooks of torch alone."""

    def __init__(self, name):
        if name == "tiny_llava":
            self.vlm = mmn.wrap(*tiny_llava())
            self.recording = mmn.record(self.vlm, noise(0), max_new_tokens=5)
        else:
            case = FAMILIES[name]()
            if hasattr(case.model, "set_experts_implementation"):
                case.model.set_experts_implementation("eager")
            self.vlm = mmn.wrap(case.model, inputs=None if case.text else case.inputs)
            self.recording = mmn.record(self.vlm, inputs=case.inputs, max_new_tokens=5)

    @property
    def dense(self):
        return all(site.experts is None for block in self.vlm.anatomy.blocks for site in block.sites)

    def everything(self):
        """The input of every write site at every position, (positions, blocks, width)."""
        model, anatomy = self.vlm.model, self.vlm.anatomy
        heard, handles = {}, []
        for index, block in enumerate(anatomy.blocks):
            for site in block.sites:
                own = model.get_submodule(site.module)
                handles += hear_dense(own, index, site, heard) if site.experts is None else []
                handles += hear_experts(own, index, site, heard) if site.experts is not None else []
        inputs = forced_inputs(self.vlm, self.recording.inputs, self.recording.token_ids.tolist())
        with torch.no_grad():
            model(**inputs, use_cache=False)
        for handle in handles:
            handle.remove()
        length = len(next(iter(heard.values())))
        z = np.zeros((length, len(anatomy.blocks), anatomy.width))
        for (block, start), values in heard.items():
            z[:, block, start : start + values.shape[1]] = values.double().numpy()
        return z

    def rows(self, length):
        """Which positions are in each set, from the ids."""
        inputs = forced_inputs(self.vlm, self.recording.inputs, self.recording.token_ids.tolist())
        ids = inputs["decoder_input_ids" if self.vlm.is_encoder_decoder else "input_ids"][0]
        image = ids == (-1 if self.vlm.image_token_id is None else self.vlm.image_token_id)
        front = length - len(ids)
        every = np.arange(length)
        text = every[front:][~image.numpy()]
        return {"image": every[front:][image.numpy()], "text": text, "all": every, "last": every[-1:]}


def hear_dense(own, block, site, heard):
    def hook(_module, args):
        heard[block, site.start] = args[0].detach().reshape(-1, args[0].shape[-1])

    return [own.register_forward_pre_hook(hook)]


def hear_experts(own, block, site, heard):
    """Every expert for every token with its own matrices, a loop over tokens; not chosen ones are zero."""

    def hook(_module, args):
        experts, width = site.experts.count, site.experts.width
        if site.experts.layout == "sorted":
            hidden = args[0].view(experts, -1, args[0].shape[-1])
            z = torch.zeros(hidden.shape[1], experts * width)
            for e in range(experts):
                both = hidden[e] @ own.gate_up_proj[e]
                z[:, e * width : (e + 1) * width] = own.act_fn(both[:, :width]) * both[:, width:]
        else:
            hidden, chosen, factors = args
            z = torch.zeros(len(hidden), experts * width)
            for t in range(len(hidden)):
                for slot, e in enumerate(chosen[t].tolist()):
                    both = own.gate_up_proj[e] @ hidden[t]
                    z[t, e * width : (e + 1) * width] = own.act_fn(both[:width]) * both[width:] * factors[t, slot]
        heard[block, site.start] = z.detach()

    return [own.register_forward_pre_hook(hook)]


@pytest.fixture(
    scope="module", params=("tiny_llava", "qwen3_vl_moe", "llama4", "qwen3_5_moe", "gemma3", "florence2", "git")
)
def studied(request):
    return Studied(request.param)


def same(own, z, exact):
    """Whether sums are those of (positions, blocks, width), to rounding.

    Experts are computed by the test itself, so that theirs may lie on the other side of a threshold that they are at.
    """
    assert own.count == len(z)
    scale = max(1.0, float(np.abs(z).max()))
    close = dict(rtol=1e-4, atol=1e-4 * scale)
    np.testing.assert_allclose(own.total, z.sum(0), **close)
    np.testing.assert_allclose(own.absolute, np.abs(z).sum(0), **close)
    np.testing.assert_allclose(own.squares, (z**2).sum(0), rtol=1e-4, atol=1e-4 * scale**2)
    np.testing.assert_allclose(own.maximum, z.max(0), **close)
    for counted, level in ((own.positive, 0), (own.above, 0.1)):
        near = ((np.abs(z - level) < 1e-5 * scale) & (z != 0)).sum(0) * (not exact)
        assert (np.abs(counted.numpy() - (z > level).sum(0)) <= near).all()
        assert near.sum() < 0.01 * z.size
    np.testing.assert_allclose(own.mean, z.mean(0), **close)
    np.testing.assert_allclose(own.variance, z.var(0), rtol=1e-3, atol=1e-4 * scale**2)
    np.testing.assert_allclose(own.probability, own.positive.numpy() / len(z))


def test_sums_are_those_of_all_activations(studied):
    z = studied.everything()
    rows = studied.rows(len(z))
    names = [name for name in SETS if len(rows[name]) and (name != "image" or len(studied.recording.image_positions))]
    assert len(names) == (3 if studied.vlm.is_encoder_decoder or "Git" in type(studied.vlm.model).__name__ else 4)
    own = statistics_at(studied.vlm, [studied.recording], names)
    for name in names:
        same(own[name], z[rows[name]], studied.dense)
    assert (own["all"].positive > 0).any()


def test_counts_are_exact_in_small_pieces(studied, monkeypatch):
    before = activation_statistics(studied.vlm, [studied.recording], "text")
    monkeypatch.setattr(module, "_ROOM", 3 * studied.vlm.anatomy.width)
    after = activation_statistics(studied.vlm, [studied.recording], "text")
    assert before.count == after.count
    for name in FIELDS:
        torch.testing.assert_close(getattr(after, name), getattr(before, name), rtol=1e-6, atol=1e-4)


def test_a_maximum_may_be_below_zero(studied):
    z = studied.everything()
    own = activation_statistics(studied.vlm, [studied.recording], "last")
    below = (z[-1] < -1e-3) & own.there.numpy()
    assert below.any()
    np.testing.assert_allclose(own.maximum.numpy()[below], z[-1][below], rtol=1e-3, atol=1e-3)


def test_units_that_are_not_there_are_zero(studied):
    own = activation_statistics(studied.vlm, [studied.recording])
    widths = [block.width for block in studied.vlm.anatomy.blocks]
    assert own.widths == tuple(widths)
    assert own.there.sum(1).tolist() == widths
    for name in FIELDS:
        assert (getattr(own, name)[~own.there] == 0).all()


def test_a_narrow_block_has_units_that_are_not_there():
    """GLM-4V's mixture begins with a dense block."""
    studied = Studied("glm4v_moe")
    assert len({block.width for block in studied.vlm.anatomy.blocks}) > 1
    own = activation_statistics(studied.vlm, [studied.recording])
    assert (~own.there).any()
    assert (own.maximum[~own.there] == 0).all()
    same(own, studied.everything(), exact=False)


def test_hooks_are_gone_and_nothing_has_changed(studied):
    def hooks():
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in studied.vlm.model.modules())

    before = hooks()
    activation_statistics(studied.vlm, [studied.recording])
    assert hooks() == before


@pytest.fixture(scope="module")
def llava_of_two():
    studied = Studied("tiny_llava")
    return studied.vlm, [studied.recording, mmn.record(studied.vlm, noise(5), max_new_tokens=7)]


def test_recordings_add_up(llava_of_two):
    vlm, recordings = llava_of_two
    whole = activation_statistics(vlm, recordings, "image")
    parts = reduce(add, [activation_statistics(vlm, [one], "image") for one in recordings])
    assert whole.count == parts.count == sum(len(one.image_positions) for one in recordings)
    assert whole.recordings == 2
    for name in FIELDS:
        assert torch.equal(getattr(whole, name), getattr(parts, name))
    kept = torch.cat([one.image_activations for one in recordings], 1).double()
    torch.testing.assert_close(whole.maximum, kept.amax(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whole.total, kept.sum(1), rtol=1e-4, atol=1e-3)


def test_text_and_image_are_all(llava_of_two):
    vlm, recordings = llava_of_two
    own = statistics_at(vlm, recordings, ("text", "image", "all"))
    assert own["text"].count + own["image"].count == own["all"].count
    assert torch.equal(own["text"].positive + own["image"].positive, own["all"].positive)
    torch.testing.assert_close(own["text"].squares + own["image"].squares, own["all"].squares)


def test_gates_are_those_of_the_activation_function(llava_of_two):
    vlm, recordings = llava_of_two
    heard = {}
    handles = [
        layer.mlp.act_fn.register_forward_hook(lambda _m, _a, out, i=index: heard.__setitem__(i, out[0].double()))
        for index, layer in enumerate(vlm.model.model.language_model.layers)
    ]
    inputs = forced_inputs(vlm, recordings[0].inputs, recordings[0].token_ids.tolist())
    with torch.no_grad():
        vlm.model(**inputs, use_cache=False)
    for handle in handles:
        handle.remove()
    own = activation_statistics(vlm, recordings[:1], "all", "gate")
    z = torch.stack([heard[index] for index in range(len(heard))], 1).numpy()
    same(own, z, exact=True)
    product = activation_statistics(vlm, recordings[:1], "all", "product")
    assert not torch.equal(product.positive, own.positive)
    with pytest.raises(OptionError, match="activation"):
        own + product
    with pytest.raises(OptionError, match="positions"):
        own + activation_statistics(vlm, recordings[:1], "text", "gate")
    with pytest.raises(OptionError, match="widths"):
        own + replace(own, widths=(1, 1, 1))


@pytest.mark.parametrize("name", ["qwen3_vl_moe", "llava/phi"])
def test_gates_that_cannot_be_heard_are_refused(name):
    studied = Studied(name)
    with pytest.raises(OptionError, match="gate"):
        activation_statistics(studied.vlm, [studied.recording], "all", "gate")


def test_what_cannot_be_measured_is_refused(llava_of_two, picture, unchecked):
    vlm, recordings = llava_of_two
    shuffled = mmn.record(vlm, picture, max_new_tokens=3, shuffle_image_tokens=1)
    for positions in SETS:
        with pytest.raises(OptionError, match="shuffled"):
            activation_statistics(vlm, [shuffled], positions)
    with pytest.raises(OptionError, match="no recordings"):
        activation_statistics(vlm, [])
    with pytest.raises(OptionError, match="positions"):
        activation_statistics(vlm, recordings, "picture")
    with pytest.raises(OptionError, match="activation"):
        activation_statistics(vlm, recordings, "all", "up")
    ids = torch.tensor([[1, 40, 41, 42]])
    text = mmn.record(vlm, inputs={"input_ids": ids, "attention_mask": torch.ones_like(ids)}, max_new_tokens=3)
    with pytest.raises(OptionError, match="no image tokens"):
        statistics_at(vlm, [text], ("text", "image"))
    own = statistics_at(vlm, [text], ("text", "all"))
    assert own["text"].count == own["all"].count == 4 + len(text) - 1


def test_another_model_than_was_recorded_is_refused(picture):
    vlm = mmn.wrap(*tiny_llava())
    recording = mmn.record(vlm, picture, max_new_tokens=4)
    alive = recording.activations.abs().mean(0)
    block, columns = len(alive) - 1, alive[-1].topk(40).indices.tolist()
    with zeroed(vlm, [(block, column) for column in columns]):
        held = mmn.record(vlm, picture, max_new_tokens=4)
        inside = activation_statistics(vlm, [held])
    assert (inside.maximum[block, columns] == 0).all()
    with pytest.raises(RecordingError, match="something else"):
        activation_statistics(vlm, [held])


def test_a_picture_that_was_shuffled_for_an_encoder_is_seen_by_its_logits():
    case = FAMILIES["florence2"]()
    vlm = mmn.wrap(case.model, inputs=None if case.text else case.inputs)
    shuffled = mmn.record(vlm, inputs=case.inputs, max_new_tokens=4, shuffle_image_tokens=3)
    with pytest.raises(RecordingError, match="shuffled"):
        activation_statistics(vlm, [shuffled])
