"""From pictures to recordings: what the model is asked, what it says, and what its neurons did meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TypedDict, TypeVar, Unpack, overload

from PIL import Image
from torch import Tensor

from mmneurons.errors import OptionError, RecordingError
from mmneurons.options import check_seed, check_whole, refuse_unknown
from mmneurons.vlm.inputs import (
    PREFIX,
    PROMPT,
    Request,
    check_inputs,
    continuation,
    make_inputs,
    make_text_inputs,
    prefix_of,
)
from mmneurons.vlm.model import VLM
from mmneurons.vlm.pictures import PictureLike, open_picture
from mmneurons.vlm.recording import (
    IMAGE_BUDGET,
    LEAN,
    Keep,
    Recording,
    end_token_id,
    record_forced,
    record_generation,
)
from mmneurons.words import token_spans

__all__ = [
    "BATCH_SIZE",
    "MAX_NEW_TOKENS",
    "CaptionOptions",
    "RecordOptions",
    "as_list",
    "batches",
    "caption",
    "is_many",
    "read",
    "record",
    "record_pictures",
    "record_texts",
    "say_again",
    "spell",
]

T = TypeVar("T")

BATCH_SIZE = 8
MAX_NEW_TOKENS = 50


class CaptionOptions(TypedDict, total=False):
    """How captions come about, as far as most callers say it.

    Attributes:
        prompt: what the model is asked.
        prefix: how its answer begins.
        max_new_tokens: where it is cut.
    """

    prompt: str
    prefix: str
    max_new_tokens: int


class RecordOptions(TypedDict, total=False):
    """How a caption comes about.

    Attributes:
        prompt: what the model is asked, by default what the paper asks; the chat template is put around it.
        prefix: how the caption is begun (by default "An image of"). It is part of the input; its words cannot be
            explained.
        caption: a caption to record instead of what the model would say. Where it does not begin with the prefix, it is
            taken whole, without a prefix. For a list of pictures one for all, or a list.
        inputs: what the model gets, instead of a picture: a batch of one, unpadded, image placeholders expanded.
        batch_size: how many pictures are generated for at once; 8.
        max_new_tokens: where a caption is cut; 50.
        seed: of whatever is drawn: sampling, where ``generation`` asks for it, and finders that draw.
        image_budget: how many bytes of activations at image positions are kept of one picture, for heatmaps; 512 MiB.
            Beyond it a heatmap costs one more prefill.
        shuffle_image_tokens: the seed of another order of the picture's tokens behind the projector; there are no
            heatmaps then.
        gates: whether the gates alone are kept, for ``activation="gate"``; ``find`` keeps them where its finder needs
            them.
        generation: further options of transformers' ``generate``. Greedy by default.
    """

    prompt: str
    prefix: str
    caption: str | Sequence[str] | None
    inputs: Mapping[str, Tensor] | None
    batch_size: int
    max_new_tokens: int
    seed: int | None
    image_budget: int
    shuffle_image_tokens: int | None
    gates: bool
    generation: Mapping[str, object] | None


@overload
def record(vlm: VLM, images: PictureLike | None = None, **options: Unpack[RecordOptions]) -> Recording: ...
@overload
def record(
    vlm: VLM, images: list[PictureLike] | tuple[PictureLike, ...], **options: Unpack[RecordOptions]
) -> list[Recording]: ...
def record(
    vlm: VLM,
    images: PictureLike | list[PictureLike] | tuple[PictureLike, ...] | None = None,
    **options: Unpack[RecordOptions],
) -> Recording | list[Recording]:
    """Let the model caption a picture once and keep what its neurons did.

    Args:
        vlm: the model.
        images: one picture, or a list of them.
        **options: see ``RecordOptions``.

    Returns:
        One recording, or a list of them for a list of pictures.

    Raises:
        OptionError: an option has a value that it cannot have.
        PictureError: a picture cannot be read.
        RecordingError: the generation cannot be recorded as asked.
    """
    pictures = None if images is None else [open_picture(image) for image in as_list(images)]
    recordings = record_pictures(vlm, pictures, **options)
    return recordings if is_many(images) else recordings[0]


@overload
def caption(vlm: VLM, images: PictureLike, **options: Unpack[RecordOptions]) -> str: ...
@overload
def caption(
    vlm: VLM, images: list[PictureLike] | tuple[PictureLike, ...], **options: Unpack[RecordOptions]
) -> list[str]: ...
def caption(
    vlm: VLM, images: PictureLike | list[PictureLike] | tuple[PictureLike, ...], **options: Unpack[RecordOptions]
) -> str | list[str]:
    """What the model says of a picture: the caption that ``find`` explains. Arguments and errors as in ``record``."""
    options["image_budget"] = 0
    captions = [
        recording.caption for recording in record_pictures(vlm, [open_picture(p) for p in as_list(images)], **options)
    ]
    return captions if is_many(images) else captions[0]


def record_pictures(
    vlm: VLM, pictures: Sequence[Image.Image] | None, **options: Unpack[RecordOptions]
) -> list[Recording]:
    """As ``record``, for pictures that are opened already."""
    refuse_unknown(options, list(RecordOptions.__annotations__))
    prompt, prefix = options.get("prompt", PROMPT), options.get("prefix", PREFIX)
    shuffle = options.get("shuffle_image_tokens")
    if shuffle is not None:
        check_seed(shuffle)
    keep = Keep(options.get("image_budget", IMAGE_BUDGET), options.get("gates", False), shuffle)
    batch_size, max_new_tokens = options.get("batch_size", BATCH_SIZE), options.get("max_new_tokens", MAX_NEW_TOKENS)
    inputs, given = options.get("inputs"), options.get("caption")
    check_whole("batch_size", batch_size)
    check_whole("max_new_tokens", max_new_tokens)
    seed = options.get("seed")
    if seed is not None:
        check_seed(seed)
    if given is not None and pictures is not None:
        return _record_captions(vlm, pictures, prompt, prefix, given, keep)
    if inputs is not None and pictures is None and given is None:
        requests = [check_inputs(vlm, inputs)]
    elif pictures is not None and inputs is None:
        requests = [make_inputs(vlm, picture, prompt, prefix) for picture in pictures]
    else:
        raise OptionError("Pass pictures, or inputs={…} without a caption, and not both.")
    generation = options.get("generation") or {}
    return [
        read(vlm, recording)
        for batch in batches(requests, batch_size)
        for recording in record_generation(vlm, batch, max_new_tokens, seed, keep, **generation)
    ]


def say_again(vlm: VLM, requests: Iterable[Request], max_new_tokens: int) -> list[Recording]:
    """What the model says as it is now, asked what it was asked before; greedily, without image positions.

    What is asked of pictures and what is asked without one stand in batches of their own.
    """
    asked = list(requests)
    alike: dict[frozenset[str], list[int]] = {}
    for place, request in enumerate(asked):
        alike.setdefault(frozenset(request.inputs), []).append(place)
    said: dict[int, Recording] = {}
    for places in alike.values():
        for own in batches(places):
            made = record_generation(vlm, [asked[place] for place in own], max_new_tokens, keep=LEAN)
            said.update(zip(own, (read(vlm, one) for one in made), strict=True))
    return [said[place] for place in range(len(asked))]


def record_texts(vlm: VLM, prompts: Sequence[str], max_new_tokens: int) -> list[Recording]:
    """What a model answers to prompts without a picture, greedily.

    Args:
        vlm: the model.
        prompts: what it is asked; the chat template is put around each.
        max_new_tokens: where an answer is cut.

    Raises:
        OptionError: a prompt is empty.
        RecordingError: the model cannot be asked without a picture.
    """
    if not all(prompt.strip() for prompt in prompts):
        raise OptionError("A prompt without a picture is empty. Leave it out, or say what is asked.")
    requests = [make_text_inputs(vlm, prompt) for prompt in prompts]
    try:
        return say_again(vlm, requests, max_new_tokens)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        # whatever a model's code says that misses its picture
        raise RecordingError(
            f"{type(vlm.model).__name__} cannot be asked without a picture "
            f"({type(error).__name__}: {str(error)[:80]}). Leave text prompts out."
        ) from error


def batches(items: Iterable[T], size: int = BATCH_SIZE) -> Iterator[list[T]]:
    """So many at a time, taken as they are needed."""
    stream = iter(items)
    while batch := list(islice(stream, size)):
        yield batch


def _record_captions(
    vlm: VLM,
    pictures: Sequence[Image.Image],
    prompt: str,
    prefix: str,
    caption: str | Sequence[str],
    keep: Keep,
) -> list[Recording]:
    captions = [caption] * len(pictures) if isinstance(caption, str) else list(caption)
    if len(captions) != len(pictures):
        raise OptionError(f"There are {len(pictures)} pictures and {len(captions)} captions.")
    recordings = []
    for picture, text in zip(pictures, captions, strict=True):
        if not text.strip():
            raise OptionError("The caption to explain holds no word.")
        own = prefix_of(vlm, prefix)
        begun = own if text.startswith(own) else ""
        request = make_inputs(vlm, picture, prompt, begun)
        rest = text.removeprefix(begun)
        tokens = [*spell(vlm, request, rest), *end_token_id(vlm)]
        recordings.append(read(vlm, record_forced(vlm, request, tokens, keep)))
    return recordings


def read(vlm: VLM, recording: Recording) -> Recording:
    """Add the caption and where each token stands in it."""
    tokenizer = getattr(vlm.processor, "tokenizer", None)
    if tokenizer is None:
        return recording
    prompt = [] if vlm.is_encoder_decoder else recording.inputs["input_ids"][0].tolist()
    text, spans = token_spans(tokenizer, prompt, recording.token_ids.tolist())
    prefix = recording.request.prefix
    # without a prefix the blank that joins the caption to the prompt is no part of it
    blank = 0 if prefix else len(text) - len(text.lstrip())
    shift = len(prefix) - blank
    moved = tuple((max(0, start + shift), max(0, end + shift)) for start, end in spans)
    return replace(recording, caption=prefix + text[blank:], spans=moved)


def spell(vlm: VLM, request: Request, text: str) -> list[int]:
    """The ids of a caption after its prefix; without a prefix a blank joins it to the prompt."""
    joined = bool(request.prefix) or not request.text or request.text[-1].isspace()
    return continuation(vlm, request, text if joined else f" {text}")


def is_many(images: object) -> bool:
    """Whether a list of pictures was passed, so that a list is to be returned."""
    return isinstance(images, list | tuple)


def as_list(images: PictureLike | list[PictureLike] | tuple[PictureLike, ...]) -> list[PictureLike]:
    """One picture or several as a list."""
    return list(images) if isinstance(images, list | tuple) else [images]
