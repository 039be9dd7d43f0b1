"""Running one step of a recording again, against its keys and values.

The emitting position is the last one: nothing that happens there is seen by another position. So what lies before it is
run once, its keys and values are shared by as many rows as there are variants of that one position, and every row costs
what one step of generation costs.
"""

from collections.abc import Mapping, Sequence
from inspect import signature

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmneurons.vlm.hooks import Listener, evaluating, listening
from mmneurons.vlm.model import VLM
from mmneurons.vlm.recording import Recording

__all__ = ["logits_without", "streams_without"]


def streams_without(
    vlm: VLM, recording: Recording, step: int, index: int, columns: Int[Tensor, "columns"]
) -> Float[Tensor, "rows hidden"]:
    """The stream before the final norm: row 0 as it is, every other row with one unit of one block at zero.

    Later writes are held at what row 0 wrote, so that the stream changes by what the unit wrote and by nothing else.
    """
    anatomy = vlm.anatomy
    found: dict[str, Tensor] = {}

    def hold(x: Tensor) -> Tensor:
        return x[:1].expand_as(x)

    def keep(x: Tensor) -> None:
        found["stream"] = x[:, -1].detach().double().cpu()

    later = [write.module for block in anatomy.blocks[index + 1 :] for write in block.writes]
    later += [block.ffn.module for block in anatomy.blocks[index + 1 :]]
    rows = torch.arange(1, len(columns) + 1)
    inputs = {anatomy.blocks[index].ffn.module: _drop(rows, columns), anatomy.norm.module: keep}
    _replay(vlm, recording, step, len(columns) + 1, inputs, {name: hold for name in later})
    return found["stream"]


def logits_without(
    vlm: VLM, recording: Recording, step: int, sets: Sequence[Sequence[tuple[int, int]]]
) -> Float[Tensor, "rows vocabulary"]:
    """The logits of a step: row 0 as they are, then a row for every set of neurons with their activations at zero.

    They are zero at the emitting position alone, and later blocks react. Float32 on the CPU, as the model gives them:
    behind the head's scale and soft-cap, before any logits processor.

    Args:
        vlm: the model, with the weights that it was recorded with.
        recording: of any caption.
        step: whose logits.
        sets: block and column of the neurons of each set; all sets are run at once, each with its own copy of the keys
            and values.
    """
    places = [(block, row, column) for row, group in enumerate(sets, 1) for block, column in group]
    inputs: dict[str, Listener] = {}
    for index in {block for block, _, _ in places}:
        rows, columns = zip(*((row, column) for block, row, column in places if block == index))
        inputs[vlm.anatomy.blocks[index].ffn.module] = _drop(torch.tensor(rows), torch.tensor(columns))
    return _replay(vlm, recording, step, len(sets) + 1, inputs, {})


def _drop(rows: Int[Tensor, "units"], columns: Int[Tensor, "units"]) -> Listener:
    """Put units to zero at the last position, each in its row."""

    def listener(z: Tensor) -> Tensor:
        z = z.clone()
        z[rows.to(z.device), -1, columns.to(z.device)] = 0
        return z

    return listener


def _replay(
    vlm: VLM,
    recording: Recording,
    step: int,
    rows: int,
    inputs: Mapping[str, Listener],
    outputs: Mapping[str, Listener],
) -> Float[Tensor, "rows vocabulary"]:
    """Run the emitting position of a step in several rows that share what came before; return its logits."""
    prompt = recording.inputs["input_ids"]
    tokens = torch.cat([prompt, recording.token_ids[None, :step].to(prompt)], 1)
    length = tokens.shape[1]
    before = {**recording.inputs, "input_ids": tokens[:, :-1], "attention_mask": torch.ones_like(tokens[:, :-1])}
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in before:
            kinds = torch.nn.functional.pad(before[name], (0, step))
            before[name] = kinds[:, :-1]
    # the head over a whole prompt is a fifth of the work, where a model lets one leave it out
    few = {"logits_to_keep": 1} if "logits_to_keep" in signature(vlm.model.forward).parameters else {}
    with evaluating(vlm.model):
        cache = vlm.model(**before, use_cache=True, **few).past_key_values
        cache.batch_repeat_interleave(rows)
        mask = torch.ones(rows, length, dtype=torch.long, device=tokens.device)
        last = tokens[:, -1:].expand(rows, -1)
        with listening(vlm.model, inputs, outputs):
            output = vlm.model(input_ids=last, attention_mask=mask, past_key_values=cache, use_cache=True)
    return output.logits[:, -1].float().cpu()
