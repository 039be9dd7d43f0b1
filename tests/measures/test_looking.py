"""Pointing and masks against maps computed by hand, in a picture whose tokens' places are known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import mmneurons as mmn
from helpers.tiny import tiny_llava
from mmneurons.measures.case import Case, Ranking
from mmneurons.measures.looking import Looking
from mmneurons.measures.truth import Outline, Truth

SIDE = 112


@pytest.fixture(scope="module")
def case():
    vlm = mmn.wrap(*tiny_llava())
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8))
    found = mmn.find(vlm, picture, caption="An image of a dog and a ball.", words=["dog"])
    word = found["dog"]
    places = word.neurons(12)
    signs = tuple(-1 if word.activations[place] < 0 else 1 for place in places)
    zeros = torch.zeros(len(vlm.anatomy.blocks), vlm.anatomy.width)
    return Case(word, {"contribution": Ranking(tuple(places), signs, (0.0,) * 12, zeros, 0.0)})


def by_hand(case, k):
    """The mean map of the first k neurons on the grid of the tokens, which covers the square picture evenly."""
    ranking = case.rankings["contribution"]
    recording = case.recording
    rows = [
        sign * recording.image_activations[block, :, column].float()
        for (block, column), sign in zip(ranking.places[:k], ranking.signs)
    ]
    side = int(len(recording.image_positions) ** 0.5)
    return torch.stack(rows).mean(0).view(side, side).numpy()


def seen(measure, case):
    return {(one.quantity, one.k): one.value for _, one in measure([case])}


@pytest.mark.parametrize("k", [1, 10])
def test_a_peak_in_the_box_is_a_hit(case, k):
    grid = by_hand(case, k)
    size = SIDE // len(grid)
    row, column = divmod(int(grid.argmax()), len(grid))
    box = (column * size, row * size, (column + 1) * size, (row + 1) * size)
    other = ((column + 1) % len(grid) * size, row * size, (column + 1) % len(grid) * size + size, (row + 1) * size)
    for own, hit in ((box, 1.0), (other, 0.0)):
        truth = Truth("a.png", ("dog",), (own,), size=(SIDE, SIDE))
        values = seen(Looking(ks=(k,)), replace(case, truth=truth))
        assert values == {("pointing", k): hit}


def test_the_mask_overlaps_with_what_it_is_made_of(case):
    word = case.word
    mask = word.look(0).mask()
    values, counts = _runs(mask.ravel())
    runs = [*([0] if values[0] else []), *counts.tolist()]
    box = (0, 0, SIDE, SIDE)
    truth = Truth("a.png", ("dog",), (box,), size=(SIDE, SIDE), outlines=(Outline("runs", (tuple(runs),)),))
    assert seen(Looking(ks=(1,)), replace(case, truth=truth))["mask IoU", 1] == 1
    nothing = Truth("a.png", ("dog",), (box,), size=(SIDE, SIDE), outlines=(Outline("runs", ((SIDE * SIDE,),)),))
    assert seen(Looking(ks=(1,)), replace(case, truth=nothing))["mask IoU", 1] == 0


def _runs(flat):
    edges = np.flatnonzero(np.diff(flat)) + 1
    starts = np.concatenate([[0], edges])
    return flat[starts], np.diff(np.concatenate([starts, [flat.size]]))


def test_words_that_name_no_object_are_left_out(case):
    truth = Truth("a.png", ("cat",), ((0, 0, 9, 9),), size=(SIDE, SIDE))
    assert seen(Looking(), replace(case, truth=truth)) == {}
    assert seen(Looking(lambda word: frozenset({"cat"}), ks=(1,)), replace(case, truth=truth)) != {}
    assert seen(Looking(), case) == {}
    without_boxes = Truth("a.png", ("dog",))
    assert seen(Looking(), replace(case, truth=without_boxes)) == {}
