"""Running one step of a recording again, with some neurons changed.

The emitting position is the last one: nothing that happens there is seen by another position. So what lies before it is
run once, its keys and values are shared by as many rows as there are variants of that one position, and every row costs
what one step of generation costs. Where a family does not let its cache be shared so, which is seen by its logits, the
whole sequence is run in every row.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import Cache

from mmneurons.errors import RecordingError
from mmneurons.vlm.anatomy import Norm, WriteSite
from mmneurons.vlm.changes import EMITTING, Change, changed, emitting, zeros
from mmneurons.vlm.decoding import forced_inputs
from mmneurons.vlm.hooks import Listener, evaluating, hooked, listening
from mmneurons.vlm.model import VLM
from mmneurons.vlm.paths import gain_of, statistic_of
from mmneurons.vlm.recording import Keep, Recording, Tape, shuffled

__all__ = [
    "Listening",
    "Prefix",
    "caption_logits_with",
    "logits_with",
    "logits_without",
    "prefix",
    "prefixes_kept",
    "record_again",
    "replay",
    "streams_without",
]

Listening = Callable[[], AbstractContextManager[object]]
"""Opens what listens to a forward; it may be opened twice."""

ROOM = 4 * 2**30
"""How many bytes of keys and values a replay of several rows may take."""

FEWEST, MOST = 5, 64
"""How many rows at least, and at most, whatever the room."""

_CLOSE = 1e-3
"""How far logits of a replay may be from those of the recording, over the largest of them."""


@dataclass(frozen=True, eq=False)
class Prefix:
    """What lies before a step, run once for several replays of it.

    Attributes:
        cache: its keys and values; None where the family does not let them be shared.
        length: how many positions they are of.
    """

    cache: Cache | None
    length: int = 0

    @property
    def rows(self) -> int:
        """How many rows can share it, each with a copy of its own, in ``ROOM``."""
        layers = [] if self.cache is None else getattr(self.cache, "layers", [])
        held = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
        size = sum(one.numel() * one.element_size() for one in held if isinstance(one, Tensor))
        return int(min(MOST, max(FEWEST, ROOM // max(size, 1))))


_KEPT: ContextVar[dict[int, tuple[Recording, Prefix]] | None] = ContextVar("kept", default=None)


@contextmanager
def prefixes_kept() -> Iterator[None]:
    """Run what lies before a step once for each recording while the block lasts, however many ask for it.

    What is kept is of the model as it is: inside, neither weights nor modules may change.
    """
    token = _KEPT.set({})
    try:
        yield
    finally:
        _KEPT.reset(token)


def prefix(vlm: VLM, recording: Recording, step: int) -> Prefix:
    """Run everything before a step; what it gives serves earlier steps, too."""
    if (kept := _KEPT.get()) is not None:
        if id(recording) not in kept:
            # the recording is held so that its number stays its own
            kept[id(recording)] = (recording, _prefix(vlm, recording, len(recording) - 1))
        return kept[id(recording)][1]
    return _prefix(vlm, recording, step)


def _prefix(vlm: VLM, recording: Recording, step: int) -> Prefix:
    said = forced_inputs(vlm, recording.inputs, recording.token_ids[: step + 1].tolist())
    with evaluating(vlm.model):
        cache = _prefilled(vlm, said, recording.shuffle)
    return Prefix(cache, 0 if cache is None else said["input_ids"].shape[1] - 1)


def streams_without(
    vlm: VLM, recording: Recording, step: int, neurons: Sequence[tuple[int, int]], before: Prefix | None = None
) -> Float[Tensor, "rows hidden"]:
    """The stream before the final norm: row 0 as it is, then a row for each neuron with its activation at zero.

    In each row later writes, gates and the statistics of norms on the way are held at those of row 0, so that the
    stream changes by what the neuron wrote and by nothing else.
    """
    anatomy = vlm.anatomy
    found: dict[str, Tensor] = {}
    rows = len(neurons) + 1
    # row 0 is held at itself, so that it makes no difference to it
    own = torch.tensor([-1, *(block for block, _ in neurons)])

    def hold(held: Tensor, site: WriteSite | None = None) -> Listener:
        # experts of some families give a row for every expert and token
        groups = site.experts.count if site and site.experts and site.experts.layout == "sorted" else 1

        def listener(x: Tensor) -> Tensor:
            whole = x.view(groups, rows, -1, x.shape[-1])
            return torch.where(held.to(x.device)[None, :, None, None], whole[:, :1], whole).reshape(x.shape)

        return listener

    def keep(x: Tensor) -> None:
        found["stream"] = x[:, -1].detach().double().cpu()

    outputs = {gate.module: hold(own >= -1) for gate in anatomy.gates}
    for index, block in enumerate(anatomy.blocks):
        # what the block writes behind its FFN reads the stream that has changed (Gemma 4's per-layer inputs)
        outputs |= {write.module: hold(own <= index) for write in block.writes}
        outputs |= {site.module: hold(own < index, site) for site in block.sites}
    changes = [change for row, neuron in enumerate(neurons, 1) for change in zeros([neuron], row)]
    frozen = {norm.module: _freeze(vlm.model, norm, rows) for norm in anatomy.norms}

    def listened() -> ExitStack:
        stack = ExitStack()
        stack.enter_context(changed(vlm, changes, EMITTING, lambda: rows))
        stack.enter_context(hooked(vlm.model, {}, frozen))
        stack.enter_context(listening(vlm.model, {anatomy.end: keep}, outputs))
        return stack

    replay(vlm, recording, step, rows, listened, before)
    return found["stream"]


def logits_without(
    vlm: VLM,
    recording: Recording,
    step: int,
    sets: Sequence[Sequence[tuple[int, int]]],
    before: Prefix | None = None,
) -> Float[Tensor, "rows vocabulary"]:
    """``logits_with`` for sets of neurons with their activations at zero."""
    return logits_with(vlm, recording, step, [zeros(group) for group in sets], before)


def logits_with(
    vlm: VLM,
    recording: Recording,
    step: int,
    variants: Sequence[Sequence[Change]],
    before: Prefix | None = None,
) -> Float[Tensor, "rows vocabulary"]:
    """The logits of a step: row 0 as they are, then a row for every variant of some neurons.

    They are changed at the emitting position alone, and later blocks react. Float32 on the CPU, as the model gives
    them: behind the head's scale and soft-cap, before any logits processor.

    Args:
        vlm: the model, with the weights that it was recorded with.
        recording: of any caption.
        step: whose logits.
        variants: the changes of each; as many as there is room for are run at once, each with its own copy of the keys
            and values.
        before: what lies before the step, where it was run already.

    Raises:
        RecordingError: row 0 is not what was recorded.
    """
    before = before or prefix(vlm, recording, step)
    size = before.rows - 1
    parts = [variants[start : start + size] for start in range(0, max(len(variants), 1), size)]
    logits = []
    for part in parts:
        rows = len(part) + 1
        changes = [replace(change, row=row) for row, own in enumerate(part, 1) for change in own]
        listened = partial(changed, vlm, changes, EMITTING, partial(int, rows))
        own, before = replay(vlm, recording, step, rows, listened, before)
        logits.append(own[1:] if logits else own)
    return torch.cat(logits)


def _freeze(model: nn.Module, norm: Norm, rows: int) -> Callable:
    """Hold a norm's statistic at that of row 0."""

    def hook(_module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor:
        x = (args[0] if args else next(iter(kwargs.values()))).reshape(rows, -1, output.shape[-1])
        off = (x - x[:1]).float()
        if norm.kind == "layer":
            off = off - off.mean(-1, keepdim=True)
        off = off * statistic_of(norm, x[:1])[..., None].to(off) * gain_of(model, norm).to(off)
        first = output.reshape(rows, -1, output.shape[-1])[:1]
        return (first + off.to(first)).reshape(output.shape)

    return hook


def caption_logits_with(
    vlm: VLM, recording: Recording, variants: Sequence[Sequence[Change]]
) -> Iterator[Float[Tensor, "steps vocabulary"]]:
    """The logits of all steps, teacher-forced: first as they are, then for every variant of some neurons.

    They are changed at every position that emits a token of the caption, and not where the prompt is read.

    Args:
        vlm: the model, with the weights that it was recorded with.
        recording: of any caption.
        variants: the changes of each.

    Raises:
        RecordingError: the first are not what was recorded.
    """
    last, steps = len(recording) - 1, len(recording)
    before = prefix(vlm, recording, 0)
    size = max(1, before.rows // steps)
    for start in range(0, max(len(variants), 1), size):
        part = variants[start : start + size]
        rows = len(part) + 1
        changes = [replace(change, row=row) for row, own in enumerate(part, 1) for change in own]
        listened = partial(_changed_captions, vlm, changes, rows, steps)
        logits, before = _replay(vlm, recording, last, rows, listened, before, steps)
        yield from logits[1:] if start else logits


@contextmanager
def _changed_captions(vlm: VLM, changes: Sequence[Change], rows: int, steps: int) -> Iterator[None]:
    with emitting(steps), changed(vlm, changes, EMITTING, partial(int, rows)):
        yield


def record_again(
    vlm: VLM,
    recording: Recording,
    step: int,
    changes: Sequence[Change],
    before: Prefix | None = None,
    check: bool = True,
) -> tuple[Recording, Prefix]:
    """A recording of one step, with neurons changed at its emitting position; and what to pass as ``before`` next.

    Its only step is number 0. Nothing is kept of image positions.

    Args:
        vlm: the model, with the weights that it was recorded with.
        recording: of any caption.
        step: of it.
        changes: of neurons.
        before: what lies before the step or a later one, where it was run already.
        check: whether nothing is changed, so that the logits have to be those of the recording.

    Raises:
        RecordingError: they are not.
    """
    tapes: list[Tape] = []

    def listened() -> AbstractContextManager[object]:
        # a way that fails leaves half a tape behind
        tapes.append(Tape(vlm, [recording.request], recording.inputs, Keep(image_budget=0, shuffle=recording.shuffle)))
        stack = ExitStack()
        stack.enter_context(changed(vlm, changes, EMITTING, lambda: 1))
        stack.enter_context(tapes[-1].listening())
        return stack

    logits, before = replay(vlm, recording, step, 1, listened, before, check)
    try:
        (again,) = tapes[-1].recordings([recording.request], [recording.token_ids[step : step + 1]], [logits], 1, True)
    finally:
        for tape in tapes:
            tape.clear()
    return again, before


def replay(
    vlm: VLM,
    recording: Recording,
    step: int,
    rows: int,
    listened: Listening,
    before: Prefix | None = None,
    check: bool = True,
    gradient: bool = False,
) -> tuple[Float[Tensor, "rows vocabulary"], Prefix]:
    """Run the emitting position of a step in several rows that share what came before.

    Args:
        vlm: the model, with the weights that it was recorded with.
        recording: of any caption.
        step: of it.
        rows: how many.
        listened: what listens to the forward, and changes it.
        before: what lies before the step or a later one, where it was run already.
        check: whether row 0 has nothing changed, so that its logits have to be those of the recording.
        gradient: whether to keep a graph from wherever something that listens asks for a derivative.

    Returns:
        The logits, and what to pass as ``before`` next time: without keys and values where they cannot be shared.

    Raises:
        RecordingError: row 0 is not what was recorded.
    """
    logits, before = _replay(vlm, recording, step, rows, listened, before, 1, check, gradient)
    return logits[:, -1], before


def _replay(
    vlm: VLM,
    recording: Recording,
    step: int,
    rows: int,
    listened: Listening,
    before: Prefix | None,
    count: int,
    check: bool = True,
    gradient: bool = False,
) -> tuple[Float[Tensor, "rows count vocabulary"], Prefix]:
    """As ``replay``, for so many positions up to that of a step."""
    said = forced_inputs(vlm, recording.inputs, recording.token_ids[: step + 1].tolist())
    expected = recording.logits[step - count + 1 : step + 1]
    with evaluating(vlm.model):
        for shared in _ways(vlm, recording, step, before, count):
            with torch.set_grad_enabled(gradient):
                if shared.cache is None:
                    logits = _whole(vlm, said, rows, listened, count, recording.shuffle)
                else:
                    logits = _cached(vlm, said, rows, listened, count, shared)
            if logits is not None and (not check or _agrees(vlm, logits[0].detach(), expected)):
                return logits, shared
    raise RecordingError(
        "Running a step again did not give the logits that were recorded. Were weights or modules changed since? Find "
        "again."
    )


def _ways(vlm: VLM, recording: Recording, step: int, before: Prefix | None, count: int) -> Iterator[Prefix]:
    """What a replay may go on from, the cheapest first; at last nothing, so that the whole sequence is run."""
    needed = _length(vlm, recording, step) - count
    later = before is not None and before.cache is not None and before.length > needed
    # the last position of a prompt may be seen by those before it (PaliGemma's prefix): what was run with it in place
    # is not what lies before it
    if before is not None and not (later and step + 1 == count):
        yield before
    if before is None or later:
        own = _prefix(vlm, recording, step - count + 1)
        if own.cache is not None:
            yield own
    if before is None or before.cache is not None:
        yield Prefix(None)


def _length(vlm: VLM, recording: Recording, step: int) -> int:
    """How many positions there are up to the one that emits a step."""
    said = forced_inputs(vlm, recording.inputs, recording.token_ids[: step + 1].tolist())
    return said["input_ids"].shape[1] if "input_ids" in said else 0


def _cached(
    vlm: VLM, said: dict[str, Tensor], rows: int, listened: Listening, count: int, before: Prefix
) -> Tensor | None:
    """Only the last positions in several rows; None where the family does not go on from a cache like that."""
    assert before.cache is not None
    tokens = said["input_ids"]
    mask = torch.ones(rows, tokens.shape[1], dtype=torch.long, device=tokens.device)
    try:
        cache = copy.deepcopy(before.cache)
        if before.length > tokens.shape[1] - count:
            cache.crop(tokens.shape[1] - count - before.length)
        cache.batch_repeat_interleave(rows)
        with listened():
            last = tokens[:, -count:].expand(rows, -1)
            output = vlm.model(input_ids=last, attention_mask=mask, past_key_values=cache, use_cache=True)
    except _UNSHARED:
        return None
    return output.logits[:, -count:].float().cpu()


_UNSHARED = (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""How a family says that it does not go on from a cache; an error of the whole sequence, run then, is told."""


def _prefilled(vlm: VLM, said: dict[str, Tensor], shuffle: int | None) -> Cache | None:
    """The keys and values of all but the last position."""
    if vlm.is_encoder_decoder or "input_ids" not in said or said["input_ids"].shape[1] < 2:
        return None
    length = said["input_ids"].shape[1]
    first = {name: value[:, :-1] if _per_token(value, length) else value for name, value in said.items()}
    # the head over a whole prompt is a fifth of the work, where a model lets one leave it out
    few = {"logits_to_keep": 1} if "logits_to_keep" in signature(vlm.model.forward).parameters else {}
    try:
        with shuffled(vlm, first, shuffle):
            return vlm.model(**first, use_cache=True, **few).past_key_values
    except _UNSHARED:
        return None


def _whole(
    vlm: VLM, said: dict[str, Tensor], rows: int, listened: Listening, count: int, shuffle: int | None
) -> Tensor:
    repeated = {name: torch.cat([value] * rows) for name, value in said.items()}
    with shuffled(vlm, repeated, shuffle), listened():
        return vlm.model(**repeated, use_cache=False).logits[:, -count:].float().cpu()


def _per_token(value: Tensor, length: int) -> bool:
    return value.dim() == 2 and value.shape[1] == length and not value.is_floating_point()


def _agrees(vlm: VLM, seen: Tensor, expected: Tensor) -> bool:
    said = expected > torch.finfo(torch.float16).min
    bound = max(_CLOSE, 8 * torch.finfo(vlm.dtype).eps) * float(expected[said].abs().max().clamp_min(1))
    return bool((seen[said] - expected[said]).abs().max() <= bound)
