"""Captions with one edit, or several together, in force, against captions generated anew."""

import re
from dataclasses import replace

import pytest
import torch

import mmneurons as mmn
from helpers import edited, tiny
from mmneurons.edits.edit import Delta
from mmneurons.edits.solution import live
from mmneurons.edits.task import Swap
from mmneurons.errors import EditError, OptionError
from mmneurons.measures import edit_outcome
from mmneurons.measures.edit_outcome import Pool, swap_of
from mmneurons.measures.edit_quality import edit_quality
from mmneurons.vlm.decoding import changes_logits
from mmneurons.vlm.sites import columns


@pytest.fixture(scope="module")
def model():
    """A model of one's own: edits are put into its weights."""
    return mmn.wrap(*tiny.tiny_llava(seed=3))


@pytest.fixture(scope="module")
def pool(model, pictures):
    return Pool(model, mmn.record(model, pictures, max_new_tokens=6), max_new_tokens=6)


@pytest.fixture(scope="module")
def edits(model):
    """Three of different blocks that share columns of one."""
    return [
        edited.draw(model, blocks=[2], size=0.5),
        edited.draw(model, kinds=("few",), blocks=[1, 2], size=0.4),
        edited.draw(model, kinds=("own",), blocks=[1], size=0.6),
    ]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_edits_together_are_what_the_changed_weights_say(model, pool, pictures, edits, count):
    chosen = edits[:count]
    swap = Swap("dog", "cat")
    found = pool.outcomes(chosen, swap)
    for edit in chosen:
        edit.apply(model)
    after = mmn.caption(model, pictures, max_new_tokens=6)
    forced = [
        mmn.record(model, inputs=dict(one.inputs), max_new_tokens=1).logits[0].log_softmax(-1)
        for one in pool.recordings
    ]
    for edit in chosen:
        edit.revert(model)
    assert [one.after for one in found] == after
    assert any(not one.unchanged for one in found)
    said = [mmn.record(model, picture, max_new_tokens=6).logits[0] for picture in pictures]
    # the first step alone, by hand
    short = Pool(model, mmn.record(model, pictures, max_new_tokens=1), 1)
    for one, old, new in zip(short.outcomes(chosen, swap), said, forced, strict=True):
        p = old.log_softmax(-1)
        assert one.agreement.divergence == pytest.approx(float((p.exp() * (p - new)).sum()), rel=1e-3)


@pytest.mark.parametrize("begins", ["in the caption", "in the prompt"])
@pytest.mark.parametrize("beside", [False, True])
def test_only_captions_that_hold_what_is_banned_are_generated_anew(
    model, pool, pictures, edits, begins, beside, monkeypatch
):
    """What is banned may begin with the prompt's last token; an edit beside it changes others."""
    first = pool.recordings[0]
    ids = first.token_ids.tolist()
    last = int(first.request.inputs["input_ids"][0, -1])
    banned = tuple(ids[1:3]) if begins == "in the caption" else (last, ids[0])
    ban = replace(edited.draw(model), deltas=(), banned=(banned, (*ids, 7)))
    chosen = [ban, edits[0]] if beside else [ban]
    asked = []
    again = edit_outcome.say_again
    monkeypatch.setattr(edit_outcome, "say_again", lambda *given: asked.append(len(given[1])) or again(*given))
    found = pool.outcomes(chosen, Swap("dog", "cat"))
    for edit in chosen:
        edit.apply(model)
    after = mmn.caption(model, pictures, max_new_tokens=6)
    for edit in chosen:
        edit.revert(model)
    assert [one.after for one in found] == after
    assert not found[0].unchanged
    holding = sum(
        (last, *own)[k : k + 2] == banned
        for own in (tuple(one.token_ids.tolist()) for one in pool.recordings)
        for k in range(len(own))
    )
    assert 0 < holding < len(pool)
    assert holding <= asked[0]
    assert beside or asked == [holding]


def test_deltas_of_one_block_sum_up_before_they_are_rounded():
    model, processor = tiny.tiny_llava(seed=3)
    vlm = mmn.wrap(model.to(torch.bfloat16), processor)
    generator = torch.Generator().manual_seed(0)
    first = Delta.of_vectors(1, torch.tensor([2, 5]), 0.01 * torch.randn(2, 64, generator=generator))
    second = Delta(1, torch.tensor([5, 9]), torch.ones(2, 1), 0.01 * torch.randn(1, 64, generator=generator))
    (added,) = live(vlm, [first, second])
    assert added.columns.tolist() == [2, 5, 9]
    base = columns(vlm.model, vlm.anatomy.blocks[1].sites[0], [2, 5, 9]).float()
    sums = torch.stack([first.vectors[0], first.vectors[1] + second.vectors[0], second.vectors[1]])
    torch.testing.assert_close(base + added.vectors, (base + sums).to(torch.bfloat16).float())


def test_nothing_added_changes_nothing_in_half_precision(pictures):
    model, processor = tiny.tiny_llava(seed=3)
    vlm = mmn.wrap(model.to(torch.bfloat16), processor)
    recordings = mmn.record(vlm, pictures, max_new_tokens=6)
    # what was recorded came about in another batch, and rounds otherwise
    recordings = [replace(one, logits=one.logits + 0.01 * torch.randn_like(one.logits)) for one in recordings]
    nothing = Delta.of_vectors(1, torch.tensor([3]), torch.zeros(1, 64))
    edit = replace(edited.draw(vlm, blocks=[1]), deltas=(nothing,))
    for one in Pool(vlm, recordings, 6).outcomes(edit):
        assert one.unchanged
        assert (one.agreement.top, one.agreement.top_ten, one.agreement.divergence) == (1, 1, 0)


def test_captions_of_a_checkpoint_that_changes_logits_are_generated_anew(pictures):
    vlm = mmn.wrap(*tiny.tiny_llava(seed=3))
    vlm.model.generation_config.repetition_penalty = 1.02
    pool = Pool(vlm, mmn.record(vlm, pictures, max_new_tokens=6), 6)
    edit = edited.draw(vlm, blocks=[2], size=0.5)
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        own = edit_outcome.say_again
        patch.setattr(
            edit_outcome, "say_again", lambda vlm, given, longest: asked.extend(given) or own(vlm, given, longest)
        )
        found = pool.outcomes(edit)
    assert len(asked) == len(pictures)
    with edit.on(vlm):
        assert [one.after for one in found] == mmn.caption(vlm, pictures, max_new_tokens=6)


@pytest.mark.parametrize(
    ("name", "value", "changes"),
    [
        ("repetition_penalty", 1.1, True),
        ("repetition_penalty", 1.0, False),
        ("guidance_scale", 3.0, True),
        ("guidance_scale", 1, False),
        ("no_repeat_ngram_size", 1, True),
        ("no_repeat_ngram_size", 0, False),
        ("min_new_tokens", 1, True),
        ("forced_bos_token_id", 0, True),
        ("forced_eos_token_id", 1, True),
        ("suppress_tokens", [], False),
        ("suppress_tokens", [5], True),
        ("bad_words_ids", [[5]], True),
        ("max_new_tokens", 3, False),
    ],
)
def test_which_settings_of_a_checkpoint_change_logits(model, monkeypatch, name, value, changes):
    monkeypatch.setattr(model.model.generation_config, "suppress_tokens", [model.image_token_id])
    monkeypatch.setattr(model.model.generation_config, name, value)
    assert changes_logits(model) == ([name] if changes else [])


def test_nothing_is_rounded_where_a_hook_adds_it():
    """As the edit itself is: a weight that is made of others cannot be written to."""

    class Doubled(torch.nn.Module):
        def forward(self, weight):
            return weight * 2

    model, processor = tiny.tiny_llava(seed=3)
    vlm = mmn.wrap(model.to(torch.bfloat16), processor)
    delta = Delta.of_vectors(1, torch.tensor([3]), torch.full((1, 64), 1e-3))
    (written,) = live(vlm, [delta])
    assert not torch.equal(written.vectors, delta.vectors)
    module = vlm.model.get_submodule(vlm.anatomy.blocks[1].sites[0].module)
    torch.nn.utils.parametrize.register_parametrization(module, "weight", Doubled())
    (heard,) = live(vlm, [delta])
    assert torch.equal(heard.vectors, delta.vectors)


def test_several_requests_are_judged_by_what_was_said_once(pool, edits):
    after = pool.afterwards(edits)
    # words that some captions say
    captions = [one.caption for one in (*pool.recordings, *after)]
    for word in [re.findall("[a-z]{4,}", text.removeprefix("An image of"))[-1] for text in captions]:
        judged = pool.judged(after, Swap(word, None, inflections=False))
        assert [one.said for one in judged] == [bool(re.search(rf"\b{word}\b", one.caption)) for one in pool.recordings]
        assert [not one.gone for one in judged] == [bool(re.search(rf"\b{word}\b", one.caption)) for one in after]
    assert pool.outcomes(edits[0]) == pool.outcomes(edits[:1], swap_of(edits[0]))


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_pool_and_no_edit(model, pool, edits, picture):
    for wrong in (["dog.jpg"], picture, pool.recordings[0]):
        with pytest.raises(OptionError, match=r"Pool takes recordings: Pool\(vlm, mmn.record"):
            Pool(model, wrong)
    with pytest.raises(OptionError, match="others takes a pool"):
        edit_quality(edits[0], None, None)
    with pytest.raises(OptionError, match="learned takes a pool"):
        edit_quality(edits[0], pool, ["dog.jpg"])
    with pytest.raises(OptionError, match="whose request is judged"):
        pool.outcomes(edits)
    with pytest.raises(OptionError, match="Pass an edit"):
        pool.outcomes([])
    with pytest.raises(OptionError, match="stands there twice"):
        pool.outcomes([edits[0], edits[0]], Swap("dog", "cat"))


def test_edits_in_force_or_of_another_model_are_refused(model, pool, edits, llava):
    with edits[0].on(model), pytest.raises(EditError, match="in force in this model"):
        pool.outcomes(edits[1])
    with pytest.raises(EditError, match="fingerprint"):
        pool.outcomes(edited.draw(llava))
