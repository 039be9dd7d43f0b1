"""Running one step of a recording again, against its keys and values."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache

from mmneurons.vlm.hooks import Listener, evaluating, listening
from mmneurons.vlm.model import VLM
from mmneurons.vlm.recording import Recording

__all__ = ["streams_without"]


def streams_without(
    vlm: VLM, recording: Recording, step: int, index: int, columns: Int[Tensor, "columns"]
) -> Float[Tensor, "rows hidden"]:
    """The stream before the final norm: row 0 as it is, every other row with one unit of one block at zero."""
    model, anatomy = vlm.model, vlm.anatomy
    prompt = recording.inputs["input_ids"]
    tokens = torch.cat([prompt, recording.token_ids[None, :step].to(prompt)], 1)
    rows = len(columns) + 1
    found: dict[str, Tensor] = {}

    def drop(z: Tensor) -> Tensor:
        # all other positions stay row 0's, so one position per row is enough to tell the rows apart
        z = z.clone()
        z[torch.arange(1, rows), -1, columns.to(z.device)] = 0
        return z

    def hold(x: Tensor) -> Tensor:
        return x[:1].expand_as(x)

    def keep(x: Tensor) -> None:
        found["stream"] = x[:, -1].detach().double().cpu()

    later = [write.module for block in anatomy.blocks[index + 1 :] for write in block.writes]
    later += [block.ffn.module for block in anatomy.blocks[index + 1 :]]
    inputs: dict[str, Listener] = {anatomy.blocks[index].ffn.module: drop, anatomy.norm.module: keep}
    outputs: dict[str, Listener] = {name: hold for name in later}
    with evaluating(model):
        cache, last = _prefill(vlm, recording, tokens)
        cache.batch_repeat_interleave(rows)
        mask = torch.ones(rows, tokens.shape[1], dtype=torch.long, device=tokens.device)
        with listening(model, inputs, outputs):
            model(input_ids=last.expand(rows, -1), attention_mask=mask, past_key_values=cache, use_cache=True)
    return found["stream"]


def _prefill(vlm: VLM, recording: Recording, tokens: Tensor) -> tuple[Cache, Tensor]:
    """The keys and values of all positions but the last, and the last token."""
    inputs = {**recording.inputs, "input_ids": tokens[:, :-1], "attention_mask": torch.ones_like(tokens[:, :-1])}
    output = vlm.model(**inputs, use_cache=True)
    return output.past_key_values, tokens[:, -1:]
