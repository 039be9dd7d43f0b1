"""Measures tell neurons that are known to matter from such that are known not to, in a model changed by hand."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image

import mmneurons as mmn
from helpers.speaking import SAID, make_it_say
from helpers.tiny import tiny_llava
from mmneurons.errors import OptionError
from mmneurons.finders import Scores
from mmneurons.measures.case import Case, Observation, Ranking
from mmneurons.measures.causal_effect import CausalEffect, regenerated, rest_likeness
from mmneurons.measures.controls import matched_neurons, written_norms
from mmneurons.measures.effects import divergence, effects
from mmneurons.measures.looking import Looking
from mmneurons.measures.overlap import overlap
from mmneurons.measures.region_invariance import RegionInvariance
from mmneurons.vlm.recording import Keep, record_forced


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 70, 3), dtype=np.uint8))


def ranking(vlm, places, values=None):
    zeros = torch.zeros(len(vlm.anatomy.blocks), vlm.anatomy.width)
    return Ranking(tuple(places), (1,) * len(places), (0.0,) * len(places), zeros if values is None else values, 0.0)


@pytest.fixture(scope="module")
def planted():
    """A model in which three neurons of the last block write the word's token, and three others write nothing."""
    vlm = mmn.wrap(*tiny_llava())
    make_it_say(vlm, SAID)
    found = mmn.find(vlm, picture())
    word = found.parts[0]
    step, token = word.steps[0], word.token_ids[0]
    layer = vlm.model.model.language_model.layers[-1]
    direction = vlm.model.lm_head.weight[token].detach()
    direction = direction / direction.norm()
    z = found.recording.activations[step, -1]
    last = len(vlm.anatomy.blocks) - 1
    strong = z.abs().topk(6).indices.tolist()
    matter, idle = [(last, unit) for unit in strong[:3]], [(last, unit) for unit in strong[3:]]
    with torch.no_grad():
        for _, unit in matter:
            # each adds as much along the token's own direction, whatever its activation
            layer.mlp.down_proj.weight[:, unit] = direction * 2.0 / z[unit]
        for _, unit in idle:
            layer.mlp.down_proj.weight[:, unit] = 0
    found = mmn.find(vlm, picture(), caption=found.caption, words=[word.word])
    rankings = {"matter": ranking(vlm, matter), "idle": ranking(vlm, idle), "half": ranking(vlm, [matter[0], idle[0]])}
    return Case(found.parts[0], rankings)


def observed(measure, case):
    return {(o.finder, o.quantity, o.k): o.value for _, o in measure([case])}


def test_planted_neurons_matter_and_idle_ones_do_not(planted):
    seen = observed(CausalEffect(ks=(1, 3), at=3, regenerate=False), planted)
    assert seen["matter", "fall", 3] > 0.5
    assert seen["matter", "relative fall", 3] > 0.5
    assert seen["matter", "fall", 3] > seen["matter", "fall", 1] > 0.05
    for quantity in ("fall", "relative fall", "noise fall", "noise relative fall"):
        k = 3
        if not quantity.startswith("noise"):
            assert abs(seen["idle", quantity, k]) < 1e-4
    assert abs(seen["idle", "KL elsewhere", 3]) < 1e-5
    assert seen["matter", "KL elsewhere", 3] >= 0
    assert seen["half", "fall", 1] == pytest.approx(seen["matter", "fall", 1], abs=1e-5)
    assert set(CausalEffect().quantities) >= {quantity for _, quantity, _ in seen}


def test_the_fall_is_that_of_a_forward_without_the_neurons(planted):
    """Nothing of ours but the recording's tokens: what the write site is given is zeroed at the last position."""
    recording, target = planted.recording, planted.target
    vlm = planted.vlm
    tokens = torch.cat([recording.inputs["input_ids"], recording.token_ids[None, : target.step]], 1)
    inputs = {**recording.inputs, "input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    site = vlm.model.model.language_model.layers[-1].mlp.down_proj
    units = [column for _, column in planted.rankings["matter"].places]

    def drop(_module, args):
        z = args[0].clone()
        z[:, -1, units] = 0
        return (z,)

    with torch.no_grad():
        before = vlm.model(**inputs).logits[0, -1].log_softmax(-1)
        handle = site.register_forward_pre_hook(drop)
        after = vlm.model(**inputs).logits[0, -1].log_softmax(-1)
        handle.remove()
    seen = observed(CausalEffect(ks=(3,), at=3, regenerate=False), planted)
    fall = before - after
    assert seen["matter", "fall", 3] == pytest.approx(float(fall[target.token]), abs=1e-4)
    others = [token for token in before.argsort(descending=True).tolist() if token != target.token][:10]
    assert seen["matter", "relative fall", 3] == pytest.approx(
        float(fall[target.token] - fall[others].mean()), abs=1e-4
    )
    rank = 1 + int((after > after[target.token]).sum())
    assert seen["matter", "rank", 3] == rank


def test_regeneration_is_a_generation_with_the_neurons_at_zero(planted):
    from mmneurons.interventions import zeroed

    vlm = planted.vlm
    places = list(planted.rankings["matter"].places)
    longest = len(planted.recording) + 8
    captions = regenerated(planted, [places, list(planted.rankings["idle"].places)], longest)
    assert captions[0] == captions[2] == mmn.caption(vlm, picture(), max_new_tokens=longest)
    with zeroed(vlm, places):
        assert captions[1] == mmn.caption(vlm, picture(), max_new_tokens=longest)


def test_effects_by_hand():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2], [0.25, 0.5, 0.25], [0.5, 0.3, 0.2]]))
    seen = effects(logits, 0, runners_up=2)
    assert seen.fall.tolist() == pytest.approx([np.log(2), 0.0], abs=1e-6)
    falls = [np.log(0.3 / 0.5), np.log(0.2 / 0.25)]
    assert seen.relative.tolist() == pytest.approx([np.log(2) - np.mean(falls), 0.0], abs=1e-6)
    assert seen.rank.tolist() == [2, 1]


def test_a_token_that_was_not_the_likeliest_has_the_likeliest_among_its_runners_up():
    p = torch.tensor([[0.5, 0.2, 0.2, 0.1], [0.25, 0.4, 0.1, 0.25]])
    # logits are log p up to a constant of their row
    seen = effects(p.log() + torch.tensor([[3.0], [-1.0]]), 3, runners_up=1)
    assert seen.fall.tolist() == pytest.approx([np.log(0.1 / 0.25)], abs=1e-6)
    assert seen.relative.tolist() == pytest.approx([np.log(0.1 / 0.25) - np.log(2)], abs=1e-6)


def test_effects_do_not_count_what_falls_for_all_alike():
    """Halving every probability but one takes as much from the runners-up as from the token."""
    logits = torch.log(torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.2, 0.15, 0.1, 0.55]]))
    seen = effects(logits, 0, runners_up=2)
    assert float(seen.fall[0]) == pytest.approx(np.log(2), abs=1e-6)
    assert float(seen.relative[0]) == pytest.approx(0, abs=1e-6)


def test_divergence_by_hand():
    p, q = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.25, 0.5, 0.25]])
    expected = 0.5 * np.log(2)
    assert float(divergence(p.log(), q.log())[0]) == pytest.approx(expected, abs=1e-6)
    assert float(divergence(q.log(), q.log())[0]) == 0


def test_matched_neurons_write_as_much_in_the_same_block(planted):
    vlm, recording = planted.vlm, planted.recording
    norms = written_norms(vlm, recording, planted.target.step)
    for index, layer in enumerate(vlm.model.model.language_model.layers):
        z = recording.activations[planted.target.step, index]
        torch.testing.assert_close(norms[index], z.abs() * layer.mlp.down_proj.weight.detach().norm(dim=0))
    widths = [block.width for block in vlm.anatomy.blocks]
    chosen = [(0, 3), (1, 5), (1, 6)]
    matched = matched_neurons(norms, chosen, widths, seed=1)
    assert [block for block, _ in matched] == [0, 1, 1]
    assert not set(matched) & set(chosen)
    assert matched == matched_neurons(norms, chosen, widths, seed=1)
    for (block, column), (_, own) in zip(chosen, matched):
        nearer = (norms[block] - norms[block, column]).abs() < (norms[block, own] - norms[block, column]).abs()
        assert int(nearer.sum()) <= 25


def test_overlaps():
    assert overlap([1, 2, 3], [3, 2, 1]) == 1
    assert overlap([1, 2], [3, 4]) == 0
    assert overlap([1, 2, 3, 4], [3, 4, 5, 6]) == 0.5
    assert np.isnan(overlap([], []))


def test_the_rest_of_a_caption():
    assert rest_likeness("a dog and a ball", "a cat and a ball", "dog") == pytest.approx(2 * 4 / (4 + 5))
    assert rest_likeness("a dog", "a dog", "dog") == 1
    assert rest_likeness("two dogs run", "three cats sleep", "dog") == 0
    assert rest_likeness("dogs", "dog", "dog") == 1
    assert rest_likeness("two men and buses", "two women and trains", "man", "woman", "bus", "train") == 1
    assert rest_likeness("a police dog runs", "a cat runs", "police dog", "cat") == 1
    assert rest_likeness("a car", "a cat") == 0.5


@dataclass(frozen=True)
class Same:
    """The same order whatever the picture says."""

    def __call__(self, vlm, recording, targets):
        draw = torch.rand(recording.activations.shape[1:], generator=torch.Generator().manual_seed(0))
        return [Scores(draw, draw, None) for _ in targets]


@dataclass(frozen=True)
class Other:
    """Another half of the neurons where image tokens are in another order."""

    def __call__(self, vlm, recording, targets):
        half = torch.zeros(recording.activations.shape[1:])
        middle = half.shape[1] // 2
        half[:, :middle] = 1.0
        own = half if recording.shuffle is None else 1 - half
        return [Scores(own, own, None) for _ in targets]


def test_region_invariance_of_equal_and_disjoint_sets(planted):
    vlm, recording = planted.vlm, planted.recording
    widths = [block.width for block in vlm.anatomy.blocks]
    finders = {"same": Same(), "other": Other()}
    rankings = {}
    for name, finder in finders.items():
        (scores,) = finder(vlm, recording, [planted.target])
        rankings[name] = ranking(vlm, scores.best(50, widths), scores.values)
    case = replace(planted, rankings=rankings)
    seen = observed(RegionInvariance(finders, ks=(10, 50), seeds=range(2)), case)
    assert seen["same", "region overlap", 10] == seen["same", "region overlap", 50] == 1
    assert seen["other", "region overlap", 10] == seen["other", "region overlap", 50] == 0


def test_region_invariance_is_asked_of_shuffled_recordings(planted):
    """By hand, with the finder that looks at activations."""
    from mmneurons.finders import Activation

    finder = Activation()
    vlm, recording = planted.vlm, planted.recording
    widths = [block.width for block in vlm.anatomy.blocks]
    (whole,) = finder(vlm, recording, [planted.target])
    case = replace(planted, rankings={"activation": ranking(vlm, whole.best(20, widths), whole.values)})
    expected = []
    for seed in (4, 9):
        again = record_forced(vlm, recording.request, recording.token_ids.tolist(), Keep(shuffle=seed))
        best = again.activations[planted.target.step].abs().flatten().topk(20).indices.tolist()
        own = whole.values.flatten().topk(20).indices.tolist()
        expected.append(len(set(best) & set(own)) / 20)
    seen = observed(RegionInvariance({"activation": finder}, ks=(20,), seeds=(4, 9)), case)
    assert seen["activation", "region overlap", 20] == pytest.approx(np.mean(expected))
    assert isinstance(next(iter(seen.values())), float)
    assert Observation("activation", "region overlap", 20, 1.0).k == 20


def test_total_can_be_asked_of_a_shuffled_picture(planted):
    """What lies before the step is run with the same order again; the gradients are those of the full pass."""
    from mmneurons.finders import Total
    from mmneurons.vlm.replay import logits_without

    vlm, recording = planted.vlm, planted.recording
    again = record_forced(vlm, recording.request, recording.token_ids.tolist(), Keep(shuffle=5))
    assert not torch.allclose(again.logits[0], recording.logits[0], atol=1e-3)
    torch.testing.assert_close(
        logits_without(vlm, again, planted.target.step, [])[0], again.logits[planted.target.step], rtol=1e-3, atol=1e-3
    )
    (scores,) = Total()(vlm, again, [planted.target])
    torch.testing.assert_close(scores.activations, again.activations[planted.target.step], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: CausalEffect(ks=()), r"ks=\(\)"),
        (lambda: CausalEffect(ks=5), "ks=5"),
        (lambda: CausalEffect(ks=(0, 1)), r"ks=\(0, 1\)"),
        (lambda: CausalEffect(ks=(1, 2.5)), r"ks=\(1, 2.5\)"),
        (lambda: CausalEffect(ks=(True, 2)), r"ks=\(True, 2\)"),
        (lambda: CausalEffect(ks=(5, 1)), "growing order"),
        (lambda: CausalEffect(ks=(1, 1)), "growing order"),
        (lambda: CausalEffect(ks="12"), "ks='12'"),
        (lambda: CausalEffect(at=0), "at=0"),
        (lambda: CausalEffect(longer=-1), "longer=-1"),
        (lambda: CausalEffect(sigma=float("nan")), "sigma=nan"),
        (lambda: CausalEffect(sigma=-1.0), "sigma=-1.0"),
        (lambda: RegionInvariance({}, ks=(10, 5)), "growing order"),
        (lambda: RegionInvariance({}, seeds=()), "at least one order"),
        (lambda: RegionInvariance({}, seeds=(-1,)), "seed=-1"),
        (lambda: Looking(ks=(0,)), "ks="),
    ],
)
def test_options_that_cannot_be_are_told_at_once(unchecked, make, says):
    with pytest.raises(OptionError, match=says):
        make()
