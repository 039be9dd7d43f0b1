"""An anatomy is believed only after a forward has shown it.

One short forward on text does it. Row 0 of the batch runs as it is. In every other row one write is pushed by a random
vector at the last position, and *all* writes are held at what row 0 wrote, so that the push can reach the final norm by
nothing but the skip path. What arrives there divided by what was pushed is the gain of that path, followed all the way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from mmneurons.errors import AnatomyError
from mmneurons.vlm.anatomy import Anatomy, Block, Head, with_gains
from mmneurons.vlm.hooks import Listener, evaluating, listening
from mmneurons.vlm.model import VLM
from mmneurons.vlm.readout import Readout, readout

__all__ = ["measure"]

_TOKENS = 4
_PUSH_SEED = 0
# Rounding errors of a sum are a few units in the last place of its largest partial sum; a wrong path is off by orders
# of magnitude more, so the bound need not be sharp.
_ROUNDINGS = 16.0


@dataclass(frozen=True)
class _Forward:
    """What the measuring forward left at the last position.

    Attributes:
        stream: the residual stream before the final norm, a row for each push (row 0: none).
        pushes: what was added at each write, in order: the stream's entry, then every block's other writes and FFN.
        entry: what entered block 0 in row 0.
        written: what each write module gave in row 0.
        ffn_inputs: the activations of each block in row 0.
        normed: what the final norm gave in row 0.
        logits: what the head gave in row 0, behind scale and soft-cap.
        largest: the largest partial sum of the stream, by dimension.
    """

    stream: Float[Tensor, "rows hidden"]
    pushes: Float[Tensor, "writes hidden"]
    entry: Float[Tensor, "hidden"]
    written: Float[Tensor, "modules hidden"]
    ffn_inputs: tuple[Tensor, ...]
    normed: Float[Tensor, "hidden"]
    logits: Float[Tensor, "vocabulary"]
    largest: Float[Tensor, "hidden"]


def measure(vlm: VLM) -> Anatomy:
    """Measure the anatomy of a model on a short forward on text and return it with the gains that were seen.

    Shown on the way: every hook fires once; a write site is the linear map it is taken for; what a write site or
    another write adds arrives at the final norm times a constant, whatever lies between; the stream before the final
    norm is what entered block 0 and these writes, and nothing else; the frozen norm and the head give the logits.

    Raises:
        AnatomyError: something else was seen.
    """
    anatomy = vlm.anatomy
    forward = _run(vlm)
    _check_write_sites(vlm, forward)
    gains = _gains(vlm, forward)
    _check_sum(vlm, forward, gains)
    return replace(anatomy, entry_gain=gains[0], blocks=_split_gains(anatomy, gains), head=_measure_head(vlm, forward))


def _modules(anatomy: Anatomy) -> list[str]:
    """Every module that writes into the stream, in the order in which the gains are kept."""
    return [name for block in anatomy.blocks for name in (*(write.module for write in block.writes), block.ffn.module)]


def _split_gains(anatomy: Anatomy, gains: list[float]) -> tuple[Block, ...]:
    rest = iter(gains[1:])
    blocks = []
    for block in anatomy.blocks:
        writes = tuple(next(rest) for _ in block.writes)
        blocks.append(with_gains(block, ffn=next(rest), writes=writes))
    return tuple(blocks)


def _run(vlm: VLM) -> _Forward:
    anatomy, model = vlm.anatomy, vlm.model
    modules = _modules(anatomy)
    ordinary = readout(vlm).ordinary.nonzero().flatten()
    tokens = ordinary[torch.linspace(0, len(ordinary) - 1, _TOKENS + 2).long()[1:-1]]
    rows = 2 + len(modules)
    pushes = torch.randn(rows - 1, anatomy.hidden, generator=torch.Generator().manual_seed(_PUSH_SEED))
    calls: Counter[str] = Counter()
    seen: dict[str, Tensor] = {}
    largest = torch.zeros(anatomy.hidden)

    def note(name: str) -> Listener:
        def listener(x: Tensor) -> None:
            calls[name] += 1
            seen[name] = x[0, -1].detach()

        return listener

    def watch(x: Tensor) -> None:
        nonlocal largest
        largest = torch.maximum(largest, x[:, -1].detach().abs().amax(0).float().cpu())
        seen["stream"] = x[:, -1].detach()

    def push(x: Tensor, row: int) -> Tensor:
        # about as large as the stream is there, so that rounding does not drown it
        pushes[row - 1] *= seen["stream"][0].float().abs().median().cpu()
        x = x.clone()
        x[row, -1] += pushes[row - 1].to(x)
        return x

    def enter(x: Tensor) -> Tensor:
        watch(x)
        seen["entry"] = x[0, -1].detach()
        return push(x, 1)

    def hold(name: str, row: int) -> Listener:
        def listener(x: Tensor) -> Tensor:
            note(name)(x)
            return push(x[:1].expand_as(x), row)

        return listener

    inputs: dict[str, Listener] = {block.ffn.module: note(f"into {block.ffn.module}") for block in anatomy.blocks}
    inputs |= {block.module: watch for block in anatomy.blocks[1:]}
    inputs |= {anatomy.blocks[0].module: enter, anatomy.norm.module: watch}
    outputs: dict[str, Listener] = {name: hold(name, row) for row, name in enumerate(modules, 2)}
    outputs[anatomy.norm.module] = note(anatomy.norm.module)
    batch = tokens.expand(rows, -1).to(vlm.device)
    with evaluating(model), listening(model, inputs, outputs):
        logits = _forward(model, batch)
    expected = ["entry", anatomy.norm.module, *modules, *(f"into {block.ffn.module}" for block in anatomy.blocks)]
    if missing := [name for name in expected if name not in seen]:
        raise AnatomyError(f"A short forward of {type(model).__name__} never ran {', '.join(missing[:3])}.")
    if repeated := [name for name, times in calls.items() if times > 1]:
        raise AnatomyError(f"A short forward of {type(model).__name__} ran more than once: {', '.join(repeated[:3])}.")
    return _Forward(
        stream=seen["stream"].double().cpu(),
        pushes=pushes.double().cpu(),
        entry=seen["entry"].double().cpu(),
        written=torch.stack([seen[name].double().cpu() for name in modules]),
        ffn_inputs=tuple(seen[f"into {block.ffn.module}"] for block in anatomy.blocks),
        normed=seen[anatomy.norm.module].double().cpu(),
        logits=logits[0, -1].double().cpu(),
        largest=largest.double(),
    )


def _forward(model: Callable[..., object], tokens: Tensor) -> Tensor:
    output = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise AnatomyError(f"A forward of {type(model).__name__} on text gives no logits.")
    return logits


def _check_write_sites(vlm: VLM, forward: _Forward) -> None:
    outputs = dict(zip(_modules(vlm.anatomy), forward.written, strict=True))
    for block, given in zip(vlm.anatomy.blocks, forward.ffn_inputs, strict=True):
        weight, bias = block.ffn.weight(vlm.model), block.ffn.bias(vlm.model)
        if not weight.is_floating_point() or weight.shape != (vlm.anatomy.hidden, block.ffn.width):
            raise AnatomyError(
                f"The weight of {block.ffn.module} is {weight.dtype} of shape {tuple(weight.shape)}, not a plain "
                f"{vlm.anatomy.hidden} × {block.ffn.width} matrix. Load the model without quantisation or offloading."
            )
        expected = torch.nn.functional.linear(given, weight, bias).double().cpu()
        size = torch.nn.functional.linear(given.abs(), weight.abs()).double().cpu()
        if not _close(outputs[block.ffn.module], expected, size, vlm.dtype):
            raise AnatomyError(f"{block.ffn.module} is not the linear map that its weight and bias state.")


def _gains(vlm: VLM, forward: _Forward) -> list[float]:
    gains = []
    for name, row, push in zip(
        ["what enters block 0", *_modules(vlm.anatomy)], forward.stream[1:], forward.pushes, strict=True
    ):
        arrived = row - forward.stream[0]
        weight = 1 / (forward.largest + push.abs()).square()
        gain = float((weight * arrived * push).sum() / (weight * push.square()).sum())
        if abs(gain - 1) < 4 * torch.finfo(vlm.dtype).eps:
            gain = 1.0
        if not _close(arrived, gain * push, forward.largest + push.abs(), vlm.dtype) or abs(gain) < 1e-3:
            off = float((arrived - gain * push).norm() / push.norm())
            raise AnatomyError(
                f"What {name} writes does not arrive at the final norm times a constant (best constant {gain:.3g}, "
                f"{off:.1%} of the push is off): something on the way changes it. Such models are not supported yet."
            )
        gains.append(gain)
    return gains


def _check_sum(vlm: VLM, forward: _Forward, gains: list[float]) -> None:
    parts = torch.stack([forward.entry, *forward.written])
    total = (torch.tensor(gains, dtype=torch.double)[:, None] * parts).sum(0)
    size = forward.largest + parts.abs().amax(0)
    if not _close(total, forward.stream[0], size, vlm.dtype):
        off = float((total - forward.stream[0]).norm() / forward.stream[0].norm())
        raise AnatomyError(
            f"The stream before the final norm is not the sum of what was recorded ({off:.1%} is missing): the model "
            "writes into its stream by a way that is not supported yet."
        )


def _measure_head(vlm: VLM, forward: _Forward) -> Head:
    head = vlm.anatomy.head
    plain: Readout = replace(readout(vlm), scale=1.0, softcap=None)
    stream = forward.stream[:1]
    normed = plain.normalize(stream)[0].double()
    if not _close(forward.normed, normed, normed.abs() + normed.abs().mean(), vlm.dtype):
        raise AnatomyError(f"{vlm.anatomy.norm.module} does not norm as its weight and epsilon say.")
    raw = plain.logits(stream)[0].double()
    finite = forward.logits.isfinite()
    raw, logits = raw[finite], forward.logits[finite]
    size = raw.abs() + raw.abs().mean()
    for softcap in dict.fromkeys([None, head.softcap]):
        uncapped = logits if softcap is None else softcap * torch.atanh((logits / softcap).clamp(-1 + 1e-12, 1 - 1e-12))
        scale = float((uncapped * raw).sum() / raw.square().sum())
        scale = 1.0 if abs(scale - 1) < 4 * torch.finfo(vlm.dtype).eps else scale
        expected = scale * raw if softcap is None else softcap * torch.tanh(scale * raw / softcap)
        if _close(logits, expected, scale * size, vlm.dtype):
            return replace(head, scale=scale, softcap=softcap)
    raise AnatomyError(f"{head.module} after {vlm.anatomy.norm.module} does not give the model's logits.")


def _close(seen: Tensor, expected: Tensor, size: Tensor, dtype: torch.dtype) -> bool:
    """Whether two sums agree to rounding, where ``size`` is how large their partial sums were."""
    unit = torch.finfo(dtype).eps * size.clamp_min(torch.finfo(torch.float32).tiny)
    error = (seen - expected).abs() / unit
    return bool(error.square().mean().sqrt() <= _ROUNDINGS)
