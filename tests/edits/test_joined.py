"""Several edits as one: what it adds is the sum of what they add."""

from dataclasses import replace

import pytest
import torch

import mmneurons as mmn
from helpers import tiny
from mmneurons.cli.common import asked_as_learned
from mmneurons.edits import Delta, Edit
from mmneurons.edits.joined import joined
from mmneurons.edits.stack import base_fingerprint
from mmneurons.errors import EditError
from mmneurons.vlm.sites import columns


def edit_of(vlm, block, places, rank, seed):
    draw = torch.Generator().manual_seed(seed)
    own = torch.randn(len(places), rank, generator=draw), torch.randn(rank, vlm.anatomy.hidden, generator=draw)
    model = {"name": "tiny", "fingerprint": base_fingerprint(vlm)}
    return Edit((Delta(block, torch.tensor(places), *own),), {"source": str(seed), "to": None}, model)


def test_it_adds_their_sum(tmp_path):
    vlm = mmn.wrap(*tiny.tiny_llava())
    edits = [edit_of(vlm, 1, [0, 3, 5], 2, 1), edit_of(vlm, 0, [2], 1, 2), edit_of(vlm, 1, [3, 4], 1, 3)]
    every = list(range(vlm.anatomy.width))
    sites = [block.sites[0] for block in vlm.anatomy.blocks]
    expected = {block: columns(vlm.model, sites[block], every).clone() for block in (0, 1)}
    for edit in edits:
        for delta in edit.deltas:
            expected[delta.block][delta.columns] += delta.weights @ delta.directions
    whole = joined(edits)
    assert [(delta.block, delta.columns.tolist()) for delta in whole.deltas] == [(0, [2]), (1, [0, 3, 4, 5])]
    whole.save(tmp_path / "whole.safetensors")
    with Edit.load(tmp_path / "whole.safetensors").on(vlm):
        for block, own in expected.items():
            torch.testing.assert_close(columns(vlm.model, sites[block], every), own)
    given = [
        replace(edit, recipe={**edit.recipe, "seen": [f"p{k}"], "texts": ["Why?"]}) for k, edit in enumerate(edits)
    ]
    assert joined([*given[:2], joined(given[2:])]).given("seen") == {"p0", "p1", "p2"}
    assert joined(given).given("texts") == {"Why?"}
    assert joined(edits).given("seen") == frozenset()
    assert repr(whole) == "Edit(3 edits as one, 5 neurons of 2 blocks)"


def test_how_captions_were_asked_for_is_kept_where_it_is_the_same():
    vlm = mmn.wrap(*tiny.tiny_llava())
    asked = [{"prompt": "What?", "prefix": "A", "max_new_tokens": number} for number in (5, 5, 6)]
    own = [edit_of(vlm, 0, [place], 1, place) for place in range(3)]
    edits = [replace(one, recipe={**one.recipe, **how}) for one, how in zip(own, asked, strict=True)]
    assert asked_as_learned(joined(edits[:2]), {}) == asked[0]
    assert asked_as_learned(joined(edits), {"prefix": "An"}) == {"prompt": "What?", "prefix": "An"}
    assert asked_as_learned(own[0], {}) == {}


def test_edits_of_different_models_are_not_joined():
    one, other = (mmn.wrap(*tiny.tiny_llava(seed=seed)) for seed in (0, 1))
    with pytest.raises(EditError, match="of different models"):
        joined([edit_of(one, 0, [1], 1, 0), edit_of(other, 0, [1], 1, 0)])
    with pytest.raises(EditError, match="no edit to join"):
        joined([])
