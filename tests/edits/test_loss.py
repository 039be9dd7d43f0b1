"""The loss of edits that are learned, beside the same from whole forwards of a model with the edit in its weights."""

import random
from dataclasses import replace

import pytest
import torch
from PIL import Image

import mmneurons as mmn
from mmneurons.edits.edit import Delta, Edit
from mmneurons.edits.loss import Weights, losses, with_next
from mmneurons.edits.origin import about
from mmneurons.edits.task import Kept, Swap, Task, Want, ids_of
from mmneurons.vlm.recording import LEAN, record_forced
from mmneurons.vlm.upper import Said, upper

BLOCK = 1


@pytest.fixture(scope="module")
def said(llava):
    """Two captions."""
    return mmn.record(llava, [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")], max_new_tokens=6)


@pytest.fixture(scope="module")
def delta(llava):
    draw = torch.Generator().manual_seed(0)
    return Delta.of_vectors(BLOCK, torch.tensor([0, 5, 9]), torch.randn(3, llava.anatomy.hidden, generator=draw))


def task_of(vlm, said, to):
    """Two tokens of the first caption's word, one of the second's."""
    first, second = said

    def want(recording, step, rank):
        likeliest = recording.logits[step].topk(5).indices.tolist()
        return Want(recording, step, None if to is None else likeliest[rank], (likeliest[0], likeliest[4]))

    wants = (want(first, 1, 1), want(first, 2, 3), want(second, 2, 2))
    kept = (Kept(first, (0, 3), own=True), Kept(second, (0, 1, 4)))
    return Task(vlm, Swap("dog", to), wants, kept)


@pytest.fixture(scope="module")
def edited(llava, said, delta):
    """Log p of every step of every caption, by whole forwards with the edit in the weights."""
    with Edit((delta,), {"source": "dog"}, about(llava)).on(llava):
        return {
            id(one): record_forced(llava, one.request, ids_of(one), LEAN).logits.log_softmax(-1).double()
            for one in said
        }


def computed(vlm, task, delta, weights, kept):
    shown = [(delta, delta.weights, delta.directions)]
    wanted = upper(vlm, [with_next(want) for want in task.wants], BLOCK)
    terms = []
    for one in kept:
        above = upper(vlm, [Said(one.recording.request, ids_of(one.recording), one.steps)], BLOCK)
        terms.append((2.0, [([one], above)]))
    return [float(one) for one in losses(task, wanted, terms, shown, weights, random.Random(0))]


def nll(edited, want):
    return -float(edited[id(want.recording)][want.step, want.target])


def again(edited, want):
    """−log(1 − p) of the target right behind itself."""
    return -float(torch.log1p(-edited[id(want.recording)][want.step + 1, want.target].exp()))


def test_the_target_and_its_worst_token(llava, said, delta, edited):
    task = task_of(llava, said, "cat")
    one, two, three = task.wants
    (loss,) = computed(llava, task, delta, Weights(0.0, 0.0, 0.0, 0.0), [])
    expected = (max(nll(edited, one), nll(edited, two)) + nll(edited, three)) / 2
    assert loss == pytest.approx(expected, rel=1e-4)


def test_the_target_twice_and_the_size(llava, said, delta, edited):
    task = task_of(llava, said, "cat")
    one, two, three = task.wants
    (plain,) = computed(llava, task, delta, Weights(0.0, 0.0, 0.0, 0.0), [])
    (loss,) = computed(llava, task, delta, Weights(0.0, 0.0, 10.0, 0.0), [])
    expected = (max(again(edited, one), again(edited, two)) + again(edited, three)) / 2
    assert loss - plain == pytest.approx(10 * expected, rel=1e-3)
    (loss,) = computed(llava, task, delta, Weights(0.0, 0.0, 0.0, 0.5), [])
    assert loss - plain == pytest.approx(0.5 * float(delta.vectors.square().sum().sqrt()), rel=1e-4)


def test_a_word_that_is_not_to_be_said(llava, said, delta, edited):
    """What the model says without the word's tokens, the rest renormalised, is what it is to say."""
    task = task_of(llava, said, None)
    (loss,) = computed(llava, task, delta, Weights(0.0, 0.0, 0.0, 0.0), [])
    found = []
    for want in task.wants:
        before = want.recording.logits[want.step].double().softmax(-1)
        before[list(want.sources)] = 0
        before /= before.sum()
        there = before > 0
        after = edited[id(want.recording)][want.step]
        found.append(float((before[there] * (before[there].log() - after[there])).sum()))
    assert loss == pytest.approx((max(found[:2]) + found[2]) / 2, rel=1e-4)


def test_what_must_stay(llava, said, delta, edited):
    task = task_of(llava, said, "cat")
    found = computed(llava, task, delta, Weights(0.0, 0.0, 0.0, 0.0), task.kept)
    for kept, loss in zip(task.kept, found[1:], strict=True):
        steps = list(kept.steps)
        before = kept.recording.logits[steps].double().log_softmax(-1)
        after = edited[id(kept.recording)][steps]
        assert loss == pytest.approx(2 * float((before.exp() * (before - after)).sum(-1).mean()), rel=1e-3)
        assert loss > 1e-4


def test_the_last_step_has_nothing_behind_it(said):
    last = len(said[0]) - 1
    want = Want(said[0], last, 7, (3,))
    assert with_next(want).steps == (last,)
    assert with_next(replace(want, step=last - 1)).steps == (last - 1, last)
    assert with_next(replace(want, step=0, target=None)).steps == (0,)
