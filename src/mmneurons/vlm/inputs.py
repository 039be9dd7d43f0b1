"""From a picture and a prompt to what the model gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from transformers import ProcessorMixin

from mmneurons.errors import OptionError, PictureError, RecordingError
from mmneurons.vlm.decoding import PER_TOKEN, family_of
from mmneurons.vlm.model import VLM

__all__ = [
    "PREFIX",
    "PROMPT",
    "Request",
    "check_inputs",
    "check_sides",
    "collate",
    "continuation",
    "make_inputs",
    "make_text_inputs",
    "prefix_of",
    "word_ids",
    "write_prompt",
]

PROMPT = "Describe the image in few words."
"""The paper's prompt."""

PREFIX = "An image of"
"""How the paper lets every caption begin."""

LONGEST = 200
"""How many times as long as the other a side may be. Processors that enlarge the short side to a few hundred pixels
take gigabytes for longer ones, and keep a sliver of them."""


@dataclass(frozen=True)
class Request:
    """What one generation is asked.

    Attributes:
        inputs: what the model gets, a batch of one, unpadded, image placeholders expanded.
        text: the whole prompt as the tokenizer got it, the prefix included; None where inputs were given by hand.
        prefix: how the caption was begun.
        size: width and height of the picture in pixels, where there was one.
    """

    inputs: Mapping[str, Tensor]
    text: str | None
    prefix: str
    size: tuple[int, int] | None


def write_prompt(vlm: VLM, prompt: str, prefix: str) -> str:
    """The text around one picture: the checkpoint's chat template over the prompt, then the prefix.

    A processor without a chat template gets the image token, a line break and the prompt; one that puts the image's
    tokens into the prompt itself, the prompt alone. An encoder-decoder is not begun with a prefix: what its encoder
    reads is no part of the answer.
    """
    prefix = prefix_of(vlm, prefix)
    processor = _processor(vlm)
    image_token = getattr(processor, "image_token", None)
    if getattr(processor, "chat_template", None):
        chat: list = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
        text = processor.apply_chat_template(chat, add_generation_prompt=True)
    elif family_of(vlm).plain:
        text = f"{prompt}\n" if prefix and prompt else prompt
    elif isinstance(image_token, str):
        text = prompt if image_token in prompt else f"{image_token}\n{prompt}\n"
    else:
        raise RecordingError(f"{type(processor).__name__} has no chat template and no image token. Pass inputs={{…}}.")
    if prefix and text and not text[-1:].isspace() and not prefix[0].isspace():
        text += " "
    return text + prefix


def prefix_of(vlm: VLM, prefix: str) -> str:
    """How a caption is begun: an encoder-decoder's is not."""
    return "" if vlm.is_encoder_decoder else prefix


def check_sides(picture: Image.Image, name: str = "The picture") -> None:
    """Refuse a picture of a shape that processors make gigabytes of.

    Raises:
        PictureError: it is too long and thin.
    """
    if max(picture.size) > LONGEST * min(picture.size):
        raise PictureError(
            f"{name} is too long and thin: {picture.width} × {picture.height} pixels, and one side may be at most "
            f"{LONGEST} times the other. Crop it."
        )


def make_inputs(vlm: VLM, picture: Image.Image, prompt: str = PROMPT, prefix: str = PREFIX) -> Request:
    """Prepare one picture.

    Raises:
        RecordingError: the model has no processor, or its processor cannot be asked about a picture.
        PictureError: the picture is too long and thin.
    """
    check_sides(picture)
    text = write_prompt(vlm, prompt, prefix)
    processor = _processor(vlm)
    options: dict = {"return_tensors": "pt"}
    if _begins(processor, text):
        options["add_special_tokens"] = False
    try:
        inputs = processor(images=[picture], text=[text], **options)
    except ValueError as error:
        raise RecordingError(f"The processor refused the prompt {text!r}: {error}") from error
    return Request(_unended(vlm, _to_model(vlm, inputs)), text, prefix_of(vlm, prefix), picture.size)


def make_text_inputs(vlm: VLM, prompt: str) -> Request:
    """Prepare a prompt without a picture: in the checkpoint's chat template, where it has one.

    Raises:
        RecordingError: the model has no processor, or reads prompts only beside a picture, as an encoder-decoder does.
    """
    processor = _processor(vlm)
    if vlm.is_encoder_decoder or family_of(vlm).unread:
        raise RecordingError(f"{type(vlm.model).__name__} cannot be asked without a picture. Leave text prompts out.")
    text = prompt
    if getattr(processor, "chat_template", None):
        chat: list = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
        text = processor.apply_chat_template(chat, add_generation_prompt=True)
    special = not _begins(processor, text)
    inputs = processor.tokenizer([text], return_tensors="pt", add_special_tokens=special)
    return Request(_unended(vlm, _to_model(vlm, inputs)), text, "", None)


def _unended(vlm: VLM, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs without the token that a tokenizer ends every text with: the answer goes on where the prompt stops."""
    tokenizer = _processor(vlm).tokenizer
    ends = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
    if vlm.is_encoder_decoder or family_of(vlm).unread or int(inputs["input_ids"][0, -1]) not in ends:
        return inputs
    length = inputs["input_ids"].shape[1]
    return {
        name: value[:, :-1] if name in PER_TOKEN and value.dim() > 1 and value.shape[1] == length else value
        for name, value in inputs.items()
    }


def continuation(vlm: VLM, request: Request, text: str) -> list[int]:
    """The ids of a text that goes on from the prompt, tokenised in its context.

    Raises:
        RecordingError: the text and the end of the prompt share a token, so that neither can be told from the other.
    """
    processor = _processor(vlm)
    if request.text is None:
        raise RecordingError("Inputs given by hand have no text to go on from. Append the caption's ids to input_ids.")
    tokenizer = processor.tokenizer
    if vlm.is_encoder_decoder:
        return tokenizer(text.strip(), add_special_tokens=False)["input_ids"]
    options = {"add_special_tokens": not _begins(processor, request.text)}
    before, whole = (tokenizer(part, **options)["input_ids"] for part in (request.text, request.text + text))
    end = tokenizer("", add_special_tokens=options["add_special_tokens"])["input_ids"]
    if end and end[-1] == before[-1] and end[-1] in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        before, whole = before[:-1], whole[:-1]
    if whole[: len(before)] != before:
        raise RecordingError(
            f"The caption's beginning {text[:20]!r} melts into the last token of the prompt. Begin it with a blank, or "
            "choose another prefix."
        )
    ids = whole[len(before) :]
    control = {vlm.image_token_id, *tokenizer.all_special_ids}
    if any(index in control for index in ids):
        raise RecordingError(
            f"{text!r} holds a control token such as {tokenizer.decode([i for i in ids if i in control])!r}."
        )
    return ids


def word_ids(vlm: VLM, text: str) -> list[int]:
    """The ids of a word, or phrase, that stands behind another word.

    A tokenizer that puts a blank in front of every text (Llama's) has a token for that blank alone where the text
    begins with one, too; so the word is written behind another one.
    """
    tokenizer = _processor(vlm).tokenizer
    before, whole = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in ("a", f"a {text}"))
    if whole[: len(before)] == before:
        return whole[len(before) :]
    return tokenizer(f" {text}", add_special_tokens=False)["input_ids"]


def collate(requests: Sequence[Request], pad_token_id: int, left: bool = True) -> dict[str, Tensor]:
    """One batch; tensors that belong to pictures are joined along their first dimension.

    Args:
        requests: of one model.
        pad_token_id: what stands for no token.
        left: pad on the left, where the prompt is gone on with on the right; on the right for an encoder, whose
            positions may be counted from the beginning.

    Raises:
        RecordingError: they have different inputs: what only some have would be left out.
    """
    every = [set(request.inputs) for request in requests]
    if some := sorted(set.union(*every) - set.intersection(*every)):
        raise RecordingError(f"Only some of these have {', '.join(some)}, so they cannot be one batch. Ask them apart.")
    batch: dict[str, Tensor] = {}
    for name in requests[0].inputs:
        tensors = [request.inputs[name] for request in requests]
        if name in PER_TOKEN:
            fill = pad_token_id if name == "input_ids" else 0
            length = max(tensor.shape[1] for tensor in tensors)
            missing = [length - tensor.shape[1] for tensor in tensors]
            sides = [
                [0, 0] * (tensor.dim() - 2) + ([count, 0] if left else [0, count])
                for tensor, count in zip(tensors, missing, strict=True)
            ]
            tensors = [torch.nn.functional.pad(t, side, value=fill) for t, side in zip(tensors, sides, strict=True)]
        else:
            shape = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors))]
            tensors = [_grow(tensor, shape) for tensor in tensors]
        batch[name] = torch.cat(tensors)
    return batch


def check_inputs(vlm: VLM, inputs: Mapping[str, Tensor]) -> Request:
    """Take inputs that somebody else prepared: a batch of one without padding.

    Raises:
        OptionError: there are no input_ids, several rows, or padding.
    """
    ids = inputs.get("input_ids")
    if ids is None and vlm.is_encoder_decoder and inputs:
        return Request(_to_model(vlm, inputs), None, "", None)
    if ids is None or ids.dim() != 2 or len(ids) != 1:
        raise OptionError("inputs= takes one batch of one: a mapping with input_ids of shape (1, length).")
    others = {name: value for name, value in inputs.items() if value is not None}
    if wrong := [name for name, value in others.items() if not isinstance(value, Tensor)]:
        raise OptionError(f"inputs= takes tensors; {', '.join(wrong)} is none.")
    if extra := others.keys() & {"position_ids", "labels", "past_key_values", "inputs_embeds"}:
        raise OptionError(
            f"inputs= takes what generate takes for a whole prompt; leave {', '.join(sorted(extra))} out."
        )
    pictured = any(value.is_floating_point() for value in others.values())
    placed = family_of(vlm).image_tokens == "placeholders" and vlm.image_token_id is not None
    if placed and bool((ids == vlm.image_token_id).any()) != pictured:
        raise OptionError("inputs= has image placeholders without a picture's tensors, or the other way round.")
    mask = others.get("attention_mask", torch.ones_like(ids))
    if not bool(mask.all()):
        raise OptionError("inputs= takes inputs without padding; this attention_mask has zeros.")
    return Request(_to_model(vlm, {**others, "attention_mask": mask}), None, "", None)


def _processor(vlm: VLM) -> ProcessorMixin:
    if vlm.processor is None:
        raise RecordingError(
            "This model was wrapped without a processor, so pictures cannot be prepared for it. "
            "Pass mmn.wrap(model, processor), or what the model gets as inputs={…}."
        )
    return vlm.processor


def _begins(processor: ProcessorMixin, text: str) -> bool:
    """Whether the chat template has written the token already with which the tokenizer would begin."""
    bos = getattr(processor.tokenizer, "bos_token", None)
    return bool(bos) and text.startswith(bos)


def _to_model(vlm: VLM, inputs: Mapping[str, object]) -> dict[str, Tensor]:
    tensors = {name: value.to(vlm.device) for name, value in inputs.items() if isinstance(value, Tensor)}
    return {name: value.to(vlm.model.dtype) if value.is_floating_point() else value for name, value in tensors.items()}


def _grow(tensor: Tensor, shape: list[int]) -> Tensor:
    missing = [size - own for own, size in zip(tensor.shape[1:], shape)]
    return torch.nn.functional.pad(tensor, [pad for size in reversed(missing) for pad in (0, size)])
