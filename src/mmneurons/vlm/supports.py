"""Which processed pixels an image token is made of: measured, for any family.

The layers of the vision tower let every token see the whole picture. Without them (each gives on what it was given) a
token is made of its own patch, or patches, alone. Which these are the derivative of the tokens by the pixels says; not
one token at a time, but one binary digit of the tokens' numbers at a time: a pixel that answers to the tokens with a 1
in that place has a 1 there. Twenty backward passes through nothing but patches and projector serve a thousand tokens. A
pixel that answers to a digit both ways belongs to several tokens; where most do, every token is made of the whole
picture (a resampler, queries).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from mmneurons.errors import AnatomyError
from mmneurons.vlm.anatomy import Anatomy
from mmneurons.vlm.hooks import hooked

__all__ = ["Supports", "features_of", "supports", "tokens_per_image"]

NOBODY, SHARED = -1, -2

PIXELS = ("pixel_values", "pixel_values_images")
"""What models call the pixels of pictures."""

_MIXES = re.compile(r"attn|attention", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Supports:
    """Whose every processed pixel is.

    Attributes:
        owners: the number of the token that a pixel belongs to, in the shape of ``pixel_values`` without its channels;
            −1 for none, −2 for several.
        tokens: how many tokens there are.
    """

    owners: Int[np.ndarray, "..."]
    tokens: int

    @property
    def whole(self) -> bool:
        """Whether tokens are made of the whole picture alike."""
        return bool((self.owners == SHARED).sum() > (self.owners >= 0).sum())


def features_of(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """The image tokens that a model makes of its inputs, picture by picture.

    Raises:
        AnatomyError: the model has no way that is known to make them.
    """
    holder: nn.Module = getattr(model, "model", model)
    holder = holder if hasattr(holder, "get_image_features") else model
    make = getattr(holder, "get_image_features", None)
    if make is None:
        raise AnatomyError(f"{type(model).__name__} has no get_image_features.")
    known = inspect.signature(make).parameters
    given = {name: value for name, value in inputs.items() if name in known and name != "input_ids"}
    if "qformer_input_ids" in known and "qformer_input_ids" not in given:
        # which words its queries are asked with makes no difference to where they look
        given["qformer_input_ids"] = torch.ones(1, 1, dtype=torch.long, device=next(iter(given.values())).device)
    features = make(**given)
    pooled = getattr(features, "pooler_output", features)
    features = getattr(features, "last_hidden_state", None) if pooled is None else pooled
    if features is None:
        raise AnatomyError(f"What get_image_features of {type(model).__name__} gives is not known.")
    parts = list(features) if isinstance(features, list | tuple) or features.dim() > 2 else [features]
    return [part.reshape(-1, part.shape[-1]) for part in parts]


def tokens_per_image(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> list[int]:
    """How many image tokens each picture of a prompt has, in order; adjacent ones are told apart, too.

    Args:
        model: the model.
        inputs: what it gets, a batch of one.

    Raises:
        AnatomyError: the model does not make its image tokens picture by picture.
    """
    with torch.no_grad():
        return [len(part) for part in features_of(model, inputs)]


def supports(model: PreTrainedModel, anatomy: Anatomy, inputs: Mapping[str, Tensor]) -> Supports:
    """Measure which processed pixels every image token of one picture is made of.

    Args:
        model: the model.
        anatomy: its anatomy; what lies in its decoder is left alone.
        inputs: what the model gets for the picture.

    Raises:
        AnatomyError: the model has no way that is known to make image tokens, or takes no pixels.
    """
    name = next((name for name in PIXELS if name in inputs), None)
    if name is None or not inputs[name].is_floating_point():
        raise AnatomyError(f"{type(model).__name__} takes no {' or '.join(PIXELS)}.")
    pixels = inputs[name]
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0)).to(pixels).requires_grad_(True)
    with torch.enable_grad(), _fast(noise), _without_layers(model, anatomy):
        tokens = torch.cat(features_of(model, {**inputs, name: noise}))
    count = len(tokens)
    direction = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(1)).to(tokens)
    numbers = torch.arange(count, device=tokens.device)

    def answers(chosen: Tensor) -> np.ndarray:
        (found,) = torch.autograd.grad(
            tokens, noise, direction * chosen[:, None].to(direction), retain_graph=True, allow_unused=True
        )
        return _flat(torch.zeros_like(pixels) if found is None else found)

    owned = answers(torch.ones(count, device=tokens.device))
    if not owned.any():
        # without its layers nothing of the picture gets through: queries that attend to it
        with torch.enable_grad(), _fast(noise):
            tokens = torch.cat(features_of(model, {**inputs, name: noise}))
        if not answers(torch.ones(count, device=tokens.device)).any():
            raise AnatomyError(f"What the image tokens of {type(model).__name__} are made of has no derivative.")
        return Supports(np.full(owned.shape, SHARED), count)
    owners = np.where(owned, 0, NOBODY)
    shared = np.zeros_like(owned)
    for place in range(max(1, (count - 1).bit_length())):
        digit = (numbers >> place) & 1
        one, zero = answers(digit), answers(1 - digit)
        owners[one] += np.int64(1) << place
        shared |= one & zero
    owners[~owned] = NOBODY
    owners[shared] = SHARED
    return Supports(owners, count)


def _flat(values: Tensor) -> np.ndarray:
    """Where pixels are not zero in any channel."""
    seen = values.detach().float().cpu().numpy() != 0
    # (…, 3, height, width), or patches one after the other, each with all its numbers
    return seen.any(axis=-3) if _is_picture(values) else seen.any(axis=-1)


def _is_picture(values: Tensor) -> bool:
    return values.dim() >= 4 and values.shape[-3] == 3


def _fast(like: Tensor) -> AbstractContextManager[object]:
    """In half precision: what matters is which numbers are zero."""
    return torch.autocast(like.device.type, torch.bfloat16) if like.dtype == torch.float32 else nullcontext()


@contextmanager
def _without_layers(model: PreTrainedModel, anatomy: Anatomy) -> Iterator[None]:
    """Let every layer of the vision tower give on what it was given.

    The first of a stack runs, to show in which form it gives; the others of its kind are passed over.
    """
    decoder = f"{anatomy.decoder}."
    stacks = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and not f"{name}.".startswith(decoder) and _is_stack(module)
    ]
    hooks: dict[str, Callable[..., object]] = {}
    with ExitStack() as stack:
        for name in stacks:
            if any(name.startswith(f"{other}.") for other in stacks):
                continue
            form: list[object] = []
            first, *others = model.get_submodule(name).named_children()
            hooks[f"{name}.{first[0]}"] = _give_on(form)
            for index, layer in others:
                hooks[f"{name}.{index}"] = _give_on([])
                if type(layer) is type(first[1]):
                    stack.enter_context(_passed_over(layer, form))
        for module in model.modules():
            if isinstance(module, nn.Conv3d):
                stack.enter_context(_as_product(module))
        # transformers picks hidden states up by hooks of its own, which have to see what is given on
        with hooked(model, {}, hooks, first=True):
            yield


def _is_stack(layers: nn.ModuleList) -> bool:
    """Whether a list is of layers that mix positions."""
    return len(layers) > 0 and all(
        any(_MIXES.search(name) for name, _ in layer.named_modules()) for layer in layers.children()
    )


def _give_on(form: list[object]) -> Callable[..., object]:
    """A hook that puts what a layer was given in the place of what it gives, and notes what else it gives."""

    def hook(_module: nn.Module, args: tuple, kwargs: dict, output: object) -> object:
        given = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        first = output[0] if isinstance(output, tuple) else output
        # a layer that does not give as many positions as it was given does not give them on
        if not isinstance(first, Tensor) or first.shape != given.shape:
            return None
        form[:] = [output[1:] if isinstance(output, tuple) else None]
        return (given, *output[1:]) if isinstance(output, tuple) else given

    return hook


@contextmanager
def _passed_over(layer: nn.Module, form: list[object]) -> Iterator[None]:
    """Have a layer give on what it is given without running, once the first of its stack has shown in which form."""
    usual = layer.forward

    def forward(*args: object, **kwargs: object) -> object:
        if not form:
            return usual(*args, **kwargs)
        given = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        rest = form[0]
        return (given, *rest) if isinstance(rest, tuple) else given

    with _instead(layer, forward):
        yield


@contextmanager
def _as_product(conv: nn.Conv3d) -> Iterator[None]:
    """Have a convolution over patches that are as large as its kernel be the matrix product that it is.

    The derivative of such a convolution by its input takes a second on a CPU where that of the product takes a tenth.
    """
    usual = conv.forward

    def forward(x: Tensor) -> Tensor:
        if x.shape[2:] != conv.weight.shape[2:] or any(conv.padding) or conv.groups != 1:
            return usual(x)
        made = nn.functional.linear(x.flatten(1), conv.weight.flatten(1), conv.bias)
        return made[..., None, None, None]

    with _instead(conv, forward):
        yield


@contextmanager
def _instead(module: nn.Module, forward: Callable[..., object]) -> Iterator[None]:
    """Have a module run something else; afterwards it is as it was."""
    own = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if own is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = own
