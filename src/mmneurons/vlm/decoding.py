"""What a family's way of decoding asks for: how its prompt is gone on with, and where its image tokens are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from mmneurons.errors import RecordingError
from mmneurons.vlm.families import FAMILIES, Family
from mmneurons.vlm.model import VLM

__all__ = [
    "PER_TOKEN",
    "changes_logits",
    "decoder_start",
    "family_of",
    "forced_inputs",
    "generator",
    "image_positions",
    "may_not_say",
    "never_said",
    "prompt_length",
]

PER_TOKEN: Mapping[str, int | None] = {
    "input_ids": 0,
    "attention_mask": 1,
    "token_type_ids": 0,
    "mm_token_type_ids": 0,
    "image_embeds_position_mask": 0,
    "cross_attention_mask": None,
    "image_attention_mask": None,
}
"""Tensors with a place for every token of the prompt, and what they hold for a generated one; None: as the last."""


def family_of(vlm: VLM) -> Family:
    """What is known of the model's family beyond the general rule."""
    return FAMILIES.get(vlm.model.config.model_type, Family(vlm.model.config.model_type))


def generator(vlm: VLM) -> PreTrainedModel:
    """The part of the model whose ``generate`` does the work, and whose generation settings count."""
    name = family_of(vlm).generator
    part = vlm.model if name is None else vlm.model.get_submodule(name)
    assert isinstance(part, PreTrainedModel)
    return part


_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "guidance_scale": (1, 1.0),
    "repetition_penalty": (1, 1.0),
    "encoder_repetition_penalty": (1, 1.0),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "bad_words_ids": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "sequence_bias": ([], {}),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
}
"""Options of transformers' ``generate`` that work on the logits, and with what value, beside None, they do nothing."""


def never_said(vlm: VLM, suppressed: Iterable[int] | None = None) -> set[int]:
    """The tokens that are suppressed, and the placeholder of a picture.

    A placeholder that was generated would be taken for a part of the picture when the caption is fed again.

    Args:
        vlm: the model.
        suppressed: what is suppressed instead of what the checkpoint suppresses, where it is anything.
    """
    own = set(suppressed or getattr(generator(vlm).generation_config, "suppress_tokens", None) or ())
    return own if vlm.image_token_id is None else own | {vlm.image_token_id}


def may_not_say(vlm: VLM, tokens: Sequence[int]) -> bool:
    """Whether the checkpoint's own settings keep generation from saying these tokens in a row."""
    banned = [list(one) for one in getattr(generator(vlm).generation_config, "bad_words_ids", None) or ()]
    return bool(never_said(vlm).intersection(tokens)) or any(
        list(tokens[start : start + len(one)]) == one for one in banned for start in range(len(tokens))
    )


def changes_logits(vlm: VLM) -> list[str]:
    """The options of ``generate`` that the checkpoint brings along and that change logits before a token is chosen."""
    settings = generator(vlm).generation_config
    given = {name: getattr(settings, name, None) for name in _NEUTRAL}
    given["suppress_tokens"] = sorted(never_said(vlm) - {vlm.image_token_id})
    return [name for name, value in given.items() if value is not None and value not in _NEUTRAL[name]]


def decoder_start(vlm: VLM) -> list[int]:
    """What an encoder-decoder's decoder begins with; empty for other models.

    Raises:
        RecordingError: the model does not say.
    """
    if not vlm.is_encoder_decoder:
        return []
    config = vlm.model.config
    for holder in (generator(vlm).generation_config, config.get_text_config(decoder=True), config):
        for key in ("decoder_start_token_id", "bos_token_id"):
            if isinstance(getattr(holder, key, None), int):
                return [getattr(holder, key)]
    raise RecordingError(f"{type(vlm.model).__name__} does not say with which token its decoder begins.")


def prompt_length(vlm: VLM, inputs: Mapping[str, Tensor]) -> int:
    """How many tokens of a sequence that ``generate`` returns are the prompt's."""
    if vlm.is_encoder_decoder:
        return len(decoder_start(vlm))
    return inputs["input_ids"].shape[1] - family_of(vlm).unread


def forced_inputs(vlm: VLM, inputs: Mapping[str, Tensor], token_ids: Sequence[int]) -> dict[str, Tensor]:
    """What a forward gets so that it says ``token_ids``: its last ``len(token_ids)`` positions emit them.

    Args:
        vlm: the model.
        inputs: a batch of one without padding.
        token_ids: what is said; the last one is not fed.
    """
    said = torch.tensor([list(token_ids[:-1])], dtype=torch.long, device=vlm.device)
    if vlm.is_encoder_decoder:
        start = torch.tensor([decoder_start(vlm)], device=vlm.device)
        return {**inputs, "decoder_input_ids": torch.cat([start, said], 1)}
    unread = family_of(vlm).unread
    prompt = inputs["input_ids"].shape[1]
    length = prompt - unread + said.shape[1]
    fed = dict(inputs)
    for name, value in inputs.items():
        if name not in PER_TOKEN or value.dim() < 2 or value.shape[1] != prompt:
            continue
        value = value[:, : prompt - unread]
        filling = family_of(vlm).said_type if name == "token_type_ids" else PER_TOKEN[name]
        more = value[:, -1:] if filling is None else torch.full_like(value[:, -1:], filling)
        fed[name] = torch.cat([value, more.expand(-1, length - value.shape[1], *value.shape[2:])], 1)
    fed["input_ids"] = torch.cat([fed["input_ids"][:, : prompt - unread], said.to(fed["input_ids"])], 1)
    first = family_of(vlm).first
    if first is not None:
        fed["input_ids"][:, 0] = getattr(vlm.model.config.get_text_config(decoder=True), first)
    fed["attention_mask"] = torch.ones_like(fed["input_ids"])
    return fed


def image_positions(vlm: VLM, inputs: Mapping[str, Tensor]) -> Int[Tensor, "image"]:
    """Where the picture's tokens lie among the decoder's positions, for a batch of one; empty where it has none."""
    where = family_of(vlm).image_tokens
    if vlm.is_encoder_decoder or where == "none" or "input_ids" not in inputs:
        return torch.zeros(0, dtype=torch.long)
    if where in inputs:
        return inputs[where][0].nonzero().flatten().cpu()
    image = vlm.image_token_id
    return (inputs["input_ids"][0] == (-1 if image is None else image)).nonzero().flatten().cpu()
