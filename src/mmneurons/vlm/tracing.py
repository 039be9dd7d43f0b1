"""One forward with its decoder cut into pieces, so that derivatives show the way that the stream itself takes.

Every module of the decoder that has a matrix of its own is cut off: what it gives goes on as a constant, whose
derivative can be asked for. So no derivative takes a way through attention, an FFN or a router. Norms are held at their
statistics. From block 0 to the final norm a graph is kept, and nowhere else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mmneurons.errors import AnatomyError
from mmneurons.vlm.anatomy import Norm
from mmneurons.vlm.discovery import norm_of, norms_in
from mmneurons.vlm.hooks import evaluating, hooked
from mmneurons.vlm.model import VLM
from mmneurons.vlm.paths import gain_of, shift_of, statistic_of
from mmneurons.vlm.readout import readout

__all__ = ["ENTRY", "TOKENS", "Trace", "close", "known_norm", "run_cut", "sample_text"]

TOKENS = 4
"""How many tokens of text are run, and at most how many of the last positions are looked at."""

ENTRY = "what enters block 0"
"""What stands for a module's name where the stream itself is meant."""

# Rounding errors of a sum are a few units in the last place of its largest partial sum; a wrong path is off by orders
# of magnitude more, so the bounds need not be sharp.
_ROUNDINGS = 16.0


@dataclass
class Trace:
    """What one forward left behind; all in the order in which it ran.

    Attributes:
        sources: what was cut off, and the stream where it enters block 0, as leaves of the graph.
        normed: what norms were given and gave.
        given: what write sites were given.
        stream: the stream before the final norm.
        ended: what the final norm gave.
        logits: what the model gave.
        calls: how often every module ran.
    """

    sources: dict[str, Tensor] = field(default_factory=dict)
    normed: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    given: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)
    stream: Tensor | None = None
    ended: Tensor | None = None
    logits: Tensor | None = None
    calls: Counter[str] = field(default_factory=Counter)
    order: list[str] = field(default_factory=list)


def sample_text(vlm: VLM) -> dict[str, Tensor]:
    """A few ordinary tokens of text, as a model gets them."""
    ordinary = readout(vlm).ordinary.nonzero().flatten()
    tokens = ordinary[torch.linspace(0, len(ordinary) - 1, TOKENS + 2).long()[1:-1]][None].to(vlm.device)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def run_cut(vlm: VLM, inputs: dict[str, Tensor]) -> Trace:
    """Run a model on inputs, with its decoder cut into pieces.

    Raises:
        AnatomyError: a write site, or what ends the stream, did not run once; or there are no logits.
    """
    anatomy, model = vlm.anatomy, vlm.model
    if vlm.is_encoder_decoder and "decoder_input_ids" not in inputs:
        inputs["decoder_input_ids"] = sample_text(vlm)["input_ids"]
    trace = Trace()
    decoder = model.get_submodule(anatomy.decoder)
    prefix = f"{anatomy.decoder}." if anatomy.decoder else ""
    cut = {prefix + name for name, module in decoder.named_modules() if name and _has_matrix(module)}
    sites = {site.module for block in anatomy.blocks for site in block.sites}
    norms = {}
    for name, module in norms_in(decoder):
        if anatomy.norm is None or prefix + name != anatomy.norm.module:
            norms[prefix + name] = known_norm(module, prefix + name)
    begun = False

    def enter(_module: nn.Module, args: tuple, kwargs: dict) -> tuple:
        nonlocal begun
        begun = True
        # only from here to the final norm is a graph wanted
        torch.set_grad_enabled(True)
        name = None if args and isinstance(args[0], Tensor) else _first(kwargs)
        leaf = _leaf(trace, ENTRY, args[0] if name is None else kwargs[name])
        return ((leaf, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: leaf})

    def cut_off(name: str) -> Callable[..., object]:
        def hook(_module: nn.Module, args: tuple, kwargs: dict, output: object) -> object:
            if not begun:
                return None
            if name in sites:
                trace.given[name] = tuple(one.detach() for one in (*args, *kwargs.values()) if isinstance(one, Tensor))
            if isinstance(output, Tensor) and output.is_floating_point():
                return _leaf(trace, name, output)
            if isinstance(output, tuple):
                return tuple(one.detach() if isinstance(one, Tensor) else one for one in output)
            return None

        return hook

    def freeze(name: str, norm: Norm) -> Callable[..., object]:
        def hook(_module: nn.Module, args: tuple, kwargs: dict, output: object) -> object:
            x = args[0] if args else next(iter(kwargs.values()))
            if not begun or not isinstance(output, Tensor) or not isinstance(x, Tensor) or not x.requires_grad:
                return None
            trace.calls[name] += 1
            trace.order.append(name)
            frozen = _frozen(model, norm, x)
            if frozen is None or not close(
                output, frozen, output.abs() + output.abs().mean(), float(torch.finfo(output.dtype).eps)
            ):
                # not a norm as we know them; it does no harm unless the stream goes through it, which is seen below
                return None
            given = output.detach() + (frozen - frozen.detach()).to(output.dtype)
            trace.normed[name] = (x.detach(), given)
            return given

        return hook

    def end(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        trace.stream = args[0] if args else kwargs[_first(kwargs)]
        torch.set_grad_enabled(False)

    def ended(_module: nn.Module, _args: tuple, _kwargs: dict, output: object) -> None:
        trace.ended = output if isinstance(output, Tensor) else None

    before = {anatomy.blocks[0].module: enter, anatomy.end: end}
    after = {name: cut_off(name) for name in cut} | {
        name: freeze(name, norm) for name, norm in norms.items() if norm is not None
    }
    if anatomy.norm is not None:
        after[anatomy.norm.module] = ended
    with evaluating(model), hooked(model, before, after):
        trace.logits = _forward(model, inputs)
    if trace.stream is None or not begun:
        raise AnatomyError(f"A short forward of {type(model).__name__} never ran {anatomy.end}.")
    if missing := sorted(sites - trace.given.keys()):
        raise AnatomyError(f"A short forward of {type(model).__name__} never ran {', '.join(missing[:3])}.")
    if repeated := [name for name in sites if trace.calls[name] > 1]:
        raise AnatomyError(f"A short forward of {type(model).__name__} ran more than once: {', '.join(repeated[:3])}.")
    return trace


def _leaf(trace: Trace, name: str, value: Tensor) -> Tensor:
    trace.calls[name] += 1
    trace.order.append(name)
    leaf = value.detach().requires_grad_(True)
    trace.sources[name] = leaf
    # not the leaf itself: a model may write into what it got
    return leaf.clone()


def _first(kwargs: Mapping[str, object]) -> str:
    return next(name for name, value in kwargs.items() if isinstance(value, Tensor))


def _has_matrix(module: nn.Module) -> bool:
    return any(weight.dim() > 1 for weight in module.parameters(recurse=False))


def known_norm(module: nn.Module, name: str) -> Norm | None:
    """What kind of norm a module is; None where it is of none that is known."""
    try:
        return norm_of(module, name)
    except (AnatomyError, RuntimeError, TypeError, AttributeError):
        # a norm of another kind, or one that is given more than the stream
        return None


def _frozen(model: nn.Module, norm: Norm, x: Tensor) -> Tensor | None:
    """The norm with its statistic held, in float32."""
    gain, shift = gain_of(model, norm).to(x.device), shift_of(model, norm)
    if x.shape[-1] != len(gain):
        return None
    y = x.float()
    if norm.kind == "layer":
        y = y - y.mean(-1, keepdim=True)
    y = y * statistic_of(norm, x.detach())[..., None].to(y) * gain
    return y if shift is None else y + shift.to(x.device)


def _forward(model: Callable[..., object], inputs: Mapping[str, Tensor]) -> Tensor:
    output = model(**inputs, use_cache=False)
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise AnatomyError(f"A forward of {type(model).__name__} gives no logits.")
    return logits


def close(seen: Tensor, expected: Tensor, size: Tensor, rounding: float) -> bool:
    """Whether two sums agree to rounding, where ``size`` is how large their partial sums were."""
    unit = rounding * size.double().clamp_min(torch.finfo(torch.float32).tiny)
    error = (seen.detach().double() - expected.detach().double()).abs() / unit
    return bool(error.square().mean().sqrt() <= _ROUNDINGS)
