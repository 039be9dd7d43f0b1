"""Image tokens in another order: the picture's content without its places (Pan et al. 2024, region invariance)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Int
from torch import Tensor, nn

from mmneurons.errors import OptionError, RecordingError
from mmneurons.vlm.decoding import family_of
from mmneurons.vlm.hooks import hooked
from mmneurons.vlm.model import VLM

__all__ = ["shuffled_image_tokens"]

_LAYERED = "deepstack_visual_embeds"


@contextmanager
def shuffled_image_tokens(vlm: VLM, inputs: Mapping[str, Tensor], seed: int) -> Iterator[None]:
    """Permute a picture's tokens after the projector while the block runs; places in the sequence stay.

    Args:
        vlm: the model.
        inputs: what the model gets, one batch; the order is drawn anew for every row, from the same seed.
        seed: of the order.

    Raises:
        OptionError: there are no image tokens, or only one, so that there is nothing to shuffle.
        RecordingError: the block ran the model, and no image token came by.
    """
    projector = family_of(vlm).projector
    seen: list[bool] = []
    if projector is not None:
        with hooked(vlm.model, {}, {projector: _after(seed, seen)}):
            yield
    else:
        image = vlm.image_token_id
        ids = inputs.get("input_ids")
        places = None if ids is None or image is None else [(row == image).nonzero().flatten() for row in ids]
        if places is None or max(len(own) for own in places) < 2:
            raise OptionError("There are not two image tokens in these inputs, so there is nothing to shuffle.")
        before, entering = _before(places, seed, seen)
        first = vlm.anatomy.blocks[0].module
        with hooked(vlm.model, {vlm.anatomy.decoder: before}, {}), hooked(vlm.model, {first: entering}, {}):
            yield
    if not seen:
        raise RecordingError(f"No image token of {type(vlm.model).__name__} came by, so none was shuffled.")


def _order(count: int, seed: int) -> Int[Tensor, "count"]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def _after(seed: int, seen: list[bool]) -> Callable[..., object]:
    """Permute what a projector gives, token by token within each picture."""

    def shuffled(value: Tensor) -> Tensor:
        if value.dim() < 3 or value.shape[-2] < 2:
            return value
        seen.append(True)
        return value[..., _order(value.shape[-2], seed).to(value.device), :]

    def hook(_module: nn.Module, _args: tuple, _kwargs: dict, output: object) -> object:
        if isinstance(output, Tensor):
            return shuffled(output)
        if isinstance(output, tuple):
            return (shuffled(output[0]), *output[1:])
        value = getattr(output, "last_hidden_state", None)
        if not isinstance(value, Tensor):
            raise RecordingError(f"What a {type(output).__name__} holds of a picture is not known.")
        setattr(output, "last_hidden_state", shuffled(value))  # noqa: B010
        return output

    return hook


def _before(
    places: list[Tensor], seed: int, seen: list[bool]
) -> tuple[Callable[..., tuple | None], Callable[..., tuple | None]]:
    """Permute the embeddings at image positions where the prompt enters the decoder.

    Two hooks: on the decoder, and on block 0, where the decoder is given ids and makes the embeddings itself.
    """
    length = sum(len(own) for own in places)
    last = max(int(own.max()) for own in places if len(own))

    orders = [_order(len(own), seed).to(own.device) for own in places]
    done: list[bool] = []

    def shuffled(embeddings: Tensor) -> Tensor:
        seen.append(True)
        changed = embeddings.clone()
        for row, (own, order) in enumerate(zip(places, orders, strict=True)):
            changed[row, own] = embeddings[row, own[order]]
        return changed

    def before(_module: nn.Module, args: tuple, kwargs: dict) -> tuple | None:
        done.clear()
        embeddings = kwargs.get("inputs_embeds")
        if not isinstance(embeddings, Tensor) or embeddings.shape[1] <= last:
            return None
        done.append(True)
        kwargs = {**kwargs, "inputs_embeds": shuffled(embeddings)}
        if kwargs.get(_LAYERED) is not None:
            # what is added to image tokens in later blocks belongs to the same tokens
            begun = [sum(map(len, orders[:row])) for row in range(len(orders))]
            whole = torch.cat([order + start for order, start in zip(orders, begun, strict=True)])
            kwargs[_LAYERED] = [one[whole.to(one.device)] if len(one) == length else one for one in kwargs[_LAYERED]]
        return args, kwargs

    def entering(_module: nn.Module, args: tuple, kwargs: dict) -> tuple | None:
        if done or not args or args[0].shape[1] <= last:
            return None
        return (shuffled(args[0]), *args[1:]), kwargs

    return before, entering
