"""Running one step of a recording again, with some neurons at zero.

The emitting position is the last one: nothing that happens there is seen by another position. So what lies before it is
run once, its keys and values are shared by as many rows as there are variants of that one position, and every row costs
what one step of generation costs. Where a family does not let its cache be shared so, which is seen by its logits, the
whole sequence is run in every row.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from inspect import signature

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import Cache

from mmneurons.errors import RecordingError
from mmneurons.vlm.anatomy import Norm, WriteSite
from mmneurons.vlm.decoding import forced_inputs
from mmneurons.vlm.hooks import Listener, evaluating, hooked, listening
from mmneurons.vlm.model import VLM
from mmneurons.vlm.paths import gain_of, statistic_of
from mmneurons.vlm.recording import Recording
from mmneurons.vlm.sites import columns as columns_of
from mmneurons.vlm.sites import expert_activations

__all__ = ["Prefix", "drop", "logits_without", "prefix", "streams_without"]

Places = Sequence[tuple[int, int, int]]
"""Row, and block and column of a neuron."""

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
    """

    cache: Cache | None

    @property
    def rows(self) -> int:
        """How many rows can share it, each with a copy of its own, in ``ROOM``."""
        layers = [] if self.cache is None else getattr(self.cache, "layers", [])
        held = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
        size = sum(one.numel() * one.element_size() for one in held if isinstance(one, Tensor))
        return int(min(MOST, max(FEWEST, ROOM // max(size, 1))))


def prefix(vlm: VLM, recording: Recording, step: int) -> Prefix:
    """Run everything before a step."""
    with evaluating(vlm.model):
        return Prefix(_prefilled(vlm, forced_inputs(vlm, recording.inputs, recording.token_ids[: step + 1].tolist())))


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
    places = [(row, block, column) for row, (block, column) in enumerate(neurons, 1)]
    frozen = {norm.module: _freeze(vlm.model, norm, rows) for norm in anatomy.norms}
    _replay(vlm, recording, step, rows, places, {anatomy.end: keep}, outputs, frozen, before)
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

    Raises:
        RecordingError: row 0 is not what was recorded.
    """
    places = [(row, block, column) for row, group in enumerate(sets, 1) for block, column in group]
    return _replay(vlm, recording, step, len(sets) + 1, places, {}, {}, {})


def drop(
    vlm: VLM, places: Places, rows: Callable[[], int], where: slice
) -> tuple[dict[str, Callable], dict[str, Callable]]:
    """Hooks that hold units at zero, each in its row, at the positions of ``where``: before modules, and after them.

    A unit of a dense FFN is put to zero where its write site is given it; of what experts gave its share is taken away.

    Args:
        vlm: the model.
        places: row, block and column of every unit; row -1 stands for all rows.
        rows: says how many rows the batch has that is under way; some modules are given rows and positions as one.
        where: at which positions.
    """
    before: dict[str, Callable] = {}
    after: dict[str, Callable] = {}
    grouped: dict[str, tuple[WriteSite, list[tuple[int, int]]]] = {}
    for row, block, column in places:
        site = vlm.anatomy.site(block, column)
        grouped.setdefault(site.module, (site, []))[1].append((row, column - site.start))
    for name, (site, units) in grouped.items():
        if site.experts is None:
            before[name] = _zero(units, rows, where)
        else:
            after[name] = _take_away(vlm.model, site, units, rows, where)
    return before, after


def _zero(units: Sequence[tuple[int, int]], rows: Callable[[], int], where: slice) -> Callable:
    def hook(_module: nn.Module, args: tuple, kwargs: dict) -> tuple:
        z = args[0].clone()
        batched = z.view(rows(), -1, z.shape[-1])
        for row in {row for row, _ in units}:
            own = torch.tensor([unit for other, unit in units if other == row], device=z.device)
            batched[slice(None) if row < 0 else slice(row, row + 1), where, own] = 0
        return (z, *args[1:]), kwargs

    return hook


def _take_away(
    model: nn.Module, site: WriteSite, units: Sequence[tuple[int, int]], rows: Callable[[], int], where: slice
) -> Callable:
    vectors = columns_of(model, site, [unit for _, unit in units])

    def hook(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor:
        given = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]
        assert site.experts is not None
        sorted_ = site.experts.layout == "sorted"
        # one row of several for every token is enough to take the share from
        tokens = output.view(site.experts.count, -1, output.shape[-1])[0] if sorted_ else output
        tokens = tokens.view(rows(), -1, output.shape[-1])
        places = torch.arange(tokens.shape[0] * tokens.shape[1]).view(tokens.shape[:2])
        changed = output.clone()
        for (row, unit), vector in zip(units, vectors, strict=True):
            at = places[slice(None) if row < 0 else slice(row, row + 1), where].flatten()
            z = expert_activations(module, site, given, at)[:, unit]
            changed[at.to(changed.device)] -= (z[:, None] * vector.to(z)).to(changed)
        return changed

    return hook


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


def _replay(
    vlm: VLM,
    recording: Recording,
    step: int,
    rows: int,
    places: Places,
    inputs: Mapping[str, Listener],
    outputs: Mapping[str, Listener],
    frozen: Mapping[str, Callable],
    prefix: Prefix | None = None,
) -> Float[Tensor, "rows vocabulary"]:
    """Run the emitting position of a step in several rows that share what came before; return its logits."""
    before, after = drop(vlm, places, lambda: rows, slice(-1, None))
    said = forced_inputs(vlm, recording.inputs, recording.token_ids[: step + 1].tolist())
    expected = recording.logits[step]

    def listened() -> ExitStack:
        stack = ExitStack()
        stack.enter_context(hooked(vlm.model, before, after))
        stack.enter_context(hooked(vlm.model, {}, frozen))
        stack.enter_context(listening(vlm.model, inputs, outputs))
        return stack

    with evaluating(vlm.model):
        for run in (_cached, _whole):
            logits = run(vlm, said, rows, listened, prefix)
            if logits is not None and _agrees(vlm, logits[0], expected):
                return logits
    raise RecordingError(
        "Running a step again did not give the logits that were recorded. Were weights or modules changed since? Find "
        "again."
    )


def _cached(
    vlm: VLM, said: dict[str, Tensor], rows: int, listened: Callable[[], ExitStack], prefix: Prefix | None
) -> Tensor | None:
    """Only the last position in several rows; None where the family does not go on from a cache like that."""
    cache = _prefilled(vlm, said) if prefix is None else copy.deepcopy(prefix.cache)
    if cache is None:
        return None
    tokens = said["input_ids"]
    mask = torch.ones(rows, tokens.shape[1], dtype=torch.long, device=tokens.device)
    try:
        cache.batch_repeat_interleave(rows)
        with listened():
            output = vlm.model(
                input_ids=tokens[:, -1:].expand(rows, -1), attention_mask=mask, past_key_values=cache, use_cache=True
            )
    except _UNSHARED:
        return None
    return output.logits[:, -1].float().cpu()


_UNSHARED = (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""How a family says that it does not go on from a cache; an error of the whole sequence, run then, is told."""


def _prefilled(vlm: VLM, said: dict[str, Tensor]) -> Cache | None:
    """The keys and values of all but the last position."""
    if vlm.is_encoder_decoder or "input_ids" not in said or said["input_ids"].shape[1] < 2:
        return None
    length = said["input_ids"].shape[1]
    first = {name: value[:, :-1] if _per_token(value, length) else value for name, value in said.items()}
    # the head over a whole prompt is a fifth of the work, where a model lets one leave it out
    few = {"logits_to_keep": 1} if "logits_to_keep" in signature(vlm.model.forward).parameters else {}
    try:
        return vlm.model(**first, use_cache=True, **few).past_key_values
    except _UNSHARED:
        return None


def _whole(
    vlm: VLM, said: dict[str, Tensor], rows: int, listened: Callable[[], ExitStack], _prefix: Prefix | None
) -> Tensor:
    repeated = {name: torch.cat([value] * rows) for name, value in said.items()}
    with listened():
        return vlm.model(**repeated, use_cache=False).logits[:, -1].float().cpu()


def _per_token(value: Tensor, length: int) -> bool:
    return value.dim() == 2 and value.shape[1] == length and not value.is_floating_point()


def _agrees(vlm: VLM, seen: Tensor, expected: Tensor) -> bool:
    said = expected > torch.finfo(torch.float16).min
    bound = max(_CLOSE, 8 * torch.finfo(vlm.dtype).eps) * float(expected[said].abs().max().clamp_min(1))
    return bool((seen[said] - expected[said]).abs().max() <= bound)
