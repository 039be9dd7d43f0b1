"""How many of the captions that must stay an edit changes, against the weights changed by hand."""

import pytest
import torch

from helpers.edited import by_hand, draw, studied
from mmneurons.edits import kept
from mmneurons.edits.solution import Solution
from mmneurons.edits.task import Kept, Swap, Task
from mmneurons.vlm.inputs import Request
from mmneurons.vlm.recording import record_forced, record_generation

DTYPES = (torch.float32, torch.bfloat16)


def recordings(vlm, inputs, count=6):
    """What a model says of pictures drawn at random."""
    generator = torch.Generator().manual_seed(0)
    requests = []
    for _ in range(count):
        pixels = torch.randn(inputs["pixel_values"].shape, generator=generator)
        own = {**inputs, "pixel_values": pixels.to(inputs["pixel_values"])}
        requests.append(Request(own, None, "", None))
    return [record_generation(vlm, [request], 5)[0] for request in requests]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("blocks", [(-1,), (0, -1)])
@pytest.mark.parametrize("family", ["llava", "blip"])
def test_captions_that_change_are_counted(family, blocks, dtype):
    """In the last block of a LLaVA the recordings tell it; elsewhere, and before a norm, the whole model is run."""
    vlm, inputs = studied(family, dtype)
    count = len(vlm.anatomy.blocks)
    said = recordings(vlm, inputs)
    task = Task(vlm, Swap("dog", "cat"), (), tuple(Kept(one, tuple(range(1, len(one)))) for one in said))
    counts = []
    for size in (0.001, 0.1, 10.0):
        edit = draw(vlm, blocks=[block % count for block in blocks], size=size)
        found = kept.changed_captions(task, Solution(edit.deltas, {}))
        before = {name: weight.clone() for name, weight in vlm.model.state_dict().items()}
        plain = [_likeliest(vlm, one) for one in said]
        by_hand(vlm, edit)
        changed = sum(not torch.equal(_likeliest(vlm, one), own) for one, own in zip(said, plain, strict=True))
        vlm.model.load_state_dict(before)
        # in half precision two tokens may be as likely, and a sum in another order decides
        assert found.of == len(said)
        assert abs(found.changed - changed) <= (dtype == torch.bfloat16)
        counts.append(changed)
    assert counts[0] < counts[-1]
    tells = blocks == (-1,) and family == "llava"
    assert kept._tells(vlm, kept.live(vlm, draw(vlm, blocks=[block % count for block in blocks]).deltas)) == tells


def _likeliest(vlm, recording):
    """Of every step but the first, whole forward."""
    return record_forced(vlm, recording.request, recording.token_ids.tolist()).logits[1:].argmax(-1)


def test_a_ban_changes_captions_that_hold_what_is_banned():
    vlm, inputs = studied("llava")
    said = recordings(vlm, inputs, 3)
    ids = said[0].token_ids.tolist()
    task = Task(vlm, Swap("dog", None), (), tuple(Kept(one, (0, 1)) for one in said))
    holding = sum(
        ids[1:3] == own[k : k + 2] for own in (one.token_ids.tolist() for one in said) for k in range(len(own))
    )
    assert kept.changed_captions(task, Solution((), {}, banned=(tuple(ids[1:3]),))) == kept.Changed(holding, 3)
    assert kept.changed_captions(task, Solution((), {}, banned=((*ids, 7),))) == kept.Changed(0, 3)


def test_captions_that_say_the_word_do_not_count():
    vlm, inputs = studied("llava")
    said = recordings(vlm, inputs, 2)
    task = Task(vlm, Swap("dog", "cat"), (), (Kept(said[0], (0,), own=True), Kept(said[1], (0,))))
    edit = draw(vlm, blocks=[0], size=0.0)
    assert kept.changed_captions(task, Solution(edit.deltas, {})) == kept.Changed(0, 1)
