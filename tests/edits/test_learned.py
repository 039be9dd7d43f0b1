"""Learning an edit: the loss, on a tiny model."""

import pytest
import torch
from PIL import Image

import mmneurons as mmn
from mmneurons.edits.learned import Learned
from mmneurons.edits.task import Kept, Swap, Task, Want


@pytest.fixture(scope="module")
def masked():
    """A model that cannot say half of its tokens, as some have for rows that pad their vocabulary."""
    from helpers import tiny

    vlm = mmn.wrap(*tiny.tiny_llava())
    head = vlm.model.get_submodule(vlm.anatomy.head.module)
    rows = head.weight.shape[0]
    mask = torch.zeros(rows).index_fill(0, torch.arange(rows // 2, rows), -torch.inf)
    head.register_forward_hook(lambda _module, _args, output: output + mask.to(output))
    return vlm


@pytest.mark.parametrize("to", [None, "cat"])
def test_what_was_recorded_is_only_read(masked, to):
    """Tokens that are not to be said are at −inf in the loss, where others are already, and nowhere else."""
    said, other = mmn.record(masked, [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")])
    assert bool((said.logits == -torch.inf).any())
    likeliest = said.logits[1].topk(2).indices.tolist()
    want = Want(said, 1, None if to is None else likeliest[1], (likeliest[0],))
    kept = (Kept(said, (0,), own=True), Kept(other, tuple(range(len(other)))))
    task = Task(masked, Swap("dog", to), (want,), kept)
    before = said.logits.clone()
    solution = Learned(k=3, steps=4)(task)
    vectors = torch.cat([delta.vectors for delta in solution.deltas])
    assert bool(vectors.isfinite().all())
    assert bool(vectors.any())
    assert torch.equal(said.logits, before)
