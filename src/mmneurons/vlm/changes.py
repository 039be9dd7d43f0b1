"""Changing what single neurons do while a model runs; the weights are never touched.

A neuron's activation z becomes ``factor · z + shift``, and noise may be added to its output vector. In a dense FFN the
write site is given the changed activations; of what experts gave, the difference is added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmneurons.errors import AnatomyError
from mmneurons.vlm.anatomy import WriteSite
from mmneurons.vlm.hooks import hooked
from mmneurons.vlm.model import VLM
from mmneurons.vlm.sites import columns as columns_of
from mmneurons.vlm.sites import expert_activations, split

__all__ = ["ALL", "EMITTING", "Change", "changed", "emitting", "heard_activations", "zeros"]

ALL = "all"
"""Every position."""

EMITTING = "emitting"
"""The positions that emit tokens: the last one of a forward, or as many as ``emitting`` says."""

_EMITTING: ContextVar[int] = ContextVar("emitting", default=1)


@dataclass(frozen=True, eq=False)
class Change:
    """What becomes of some neurons of a block.

    Attributes:
        block: their block.
        columns: their columns, each once.
        row: of the batch; -1 stands for all rows.
        factor: what their activations are multiplied by, one number for each.
        shift: what is added then.
        noise: what is added to their output vectors, where the write site writes them; None where nothing is.
    """

    block: int
    columns: Int[Tensor, "neurons"]
    factor: Float[Tensor, "neurons"]
    shift: Float[Tensor, "neurons"]
    row: int = -1
    noise: Float[Tensor, "neurons hidden"] | None = None


def zeros(neurons: Sequence[tuple[int, int]], row: int = -1) -> list[Change]:
    """That neurons, block and column of each, are held at zero in a row, or in all."""
    grouped: dict[int, list[int]] = {}
    for block, column in dict.fromkeys(neurons):
        grouped.setdefault(block, []).append(column)
    return [
        Change(block, torch.tensor(own), torch.zeros(len(own)), torch.zeros(len(own)), row)
        for block, own in grouped.items()
    ]


@contextmanager
def emitting(count: int) -> Iterator[None]:
    """Say that the last ``count`` positions of every forward in the block emit tokens."""
    token = _EMITTING.set(count)
    try:
        yield
    finally:
        _EMITTING.reset(token)


@contextmanager
def changed(vlm: VLM, changes: Sequence[Change], positions: str, rows: Callable[[], int]) -> Iterator[None]:
    """Hold neurons changed while the block runs.

    Blocks may be nested: an inner one changes what the outer ones left.

    Args:
        vlm: the model.
        changes: which neurons, and how.
        positions: ``ALL`` or ``EMITTING``.
        rows: says how many rows the batch has that is under way; some modules are given rows and positions as one.

    Raises:
        AnatomyError: there is no such neuron.
    """
    before: dict[str, Callable] = {}
    after: dict[str, Callable] = {}
    with ExitStack() as stack:
        for site, parts in _by_site(vlm, changes):
            own = _SiteChange(vlm.model, site, parts, positions, rows)
            if site.experts is None:
                before[site.module] = own.dense
            else:
                stack.enter_context(_in_force(vlm.model.get_submodule(site.module), own))
                after[site.module] = own.mixture
            if site.experts is None and any(part.noise is not None for part in parts):
                after[site.module] = own.noisy
        stack.enter_context(hooked(vlm.model, before, after))
        yield


def heard_activations(
    module: nn.Module, site: WriteSite, given: Sequence[Tensor], positions: Int[Tensor, "positions"]
) -> Float[Tensor, "positions width"]:
    """The activations of all experts at some positions, changed as they are right now.

    Arguments and errors as in ``mmneurons.vlm.sites.expert_activations``.
    """
    z = expert_activations(module, site, given, positions)
    for own in _FORCE.get(module, ()):
        z = own.apply_at(z, given, positions)
    return z


_FORCE: WeakKeyDictionary[nn.Module, list[_SiteChange]] = WeakKeyDictionary()
"""The changes of experts that are under way, outer ones first: nothing that a hook is given shows them."""


@contextmanager
def _in_force(module: nn.Module, own: _SiteChange) -> Iterator[None]:
    _FORCE.setdefault(module, []).append(own)
    try:
        yield
    finally:
        _FORCE[module].remove(own)
        if not _FORCE[module]:
            del _FORCE[module]


def _by_site(vlm: VLM, changes: Sequence[Change]) -> Iterator[tuple[WriteSite, list[Change]]]:
    """The changes of each write site, with columns counted from its first."""
    grouped: dict[str, tuple[WriteSite, list[Change]]] = {}
    for change in changes:
        if not 0 <= change.block < len(vlm.anatomy.blocks):
            vlm.anatomy.name(change.block, 0)
        block = vlm.anatomy.blocks[change.block]
        if len(change.columns) and not 0 <= int(change.columns.min()) <= int(change.columns.max()) < block.width:
            raise AnatomyError(f"Block {change.block} has units 0 to {block.width - 1}; others were to be changed.")
        for site, own, columns in split(block, change.columns):
            part = Change(
                block=change.block,
                columns=columns,
                factor=change.factor[own],
                shift=change.shift[own],
                row=change.row,
                noise=None if change.noise is None else change.noise[own],
            )
            grouped.setdefault(site.module, (site, []))[1].append(part)
    yield from grouped.values()


class _SiteChange:
    """The hooks of one write site."""

    def __init__(
        self, model: nn.Module, site: WriteSite, parts: Sequence[Change], positions: str, rows: Callable[[], int]
    ) -> None:
        self._site, self._parts, self._positions, self._rows = site, parts, positions, rows
        self._vectors = [
            columns_of(model, site, part.columns.tolist()) if site.experts is not None else None for part in parts
        ]

    def _where(self) -> slice:
        return slice(None) if self._positions == ALL else slice(-_EMITTING.get(), None)

    def _apply(self, z: Float[Tensor, "rows length width"]) -> Float[Tensor, "rows length width"]:
        """The changed activations, in a tensor of their own."""
        z = z.clone()
        where = self._where()
        for part in self._parts:
            row = _row(part)
            own = part.columns.to(z.device)
            now = z[row, where, own]
            z[row, where, own] = (now * part.factor.to(now) + part.shift.to(now)).to(z.dtype)
        return z

    def dense(self, _module: nn.Module, args: tuple, kwargs: dict) -> tuple:
        z = args[0].reshape(self._rows(), -1, args[0].shape[-1])
        return (self._apply(z).view(args[0].shape), *args[1:]), kwargs

    def noisy(self, _module: nn.Module, args: tuple, _kwargs: dict, output: Tensor) -> Tensor:
        # what a forward hook is given are the activations as the hooks before the module left them
        z = args[0].reshape(self._rows(), -1, args[0].shape[-1])
        added = output.reshape(self._rows(), -1, output.shape[-1]).clone()
        where = self._where()
        for part in self._parts:
            if part.noise is not None:
                now = z[_row(part), where, part.columns.to(z.device)]
                added[_row(part), where] += now @ part.noise.to(now)
        return added.view(output.shape)

    def mixture(self, module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor:
        given = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]
        experts = self._site.experts
        assert experts is not None
        sorted_ = experts.layout == "sorted"
        # one row of several for every token is enough to take the difference from
        tokens = output.view(experts.count, -1, output.shape[-1])[0] if sorted_ else output
        tokens = tokens.view(self._rows(), -1, output.shape[-1])
        places = torch.arange(tokens.shape[0] * tokens.shape[1]).view(tokens.shape[:2])
        added = output.clone()
        flat = added.view(experts.count, -1, output.shape[-1])[0] if sorted_ else added.view(-1, output.shape[-1])
        for part, vectors in zip(self._parts, self._vectors, strict=True):
            at = places[_row(part), self._where()].flatten()
            z = expert_activations(module, self._site, given, at)
            for outer in _FORCE[module][: _FORCE[module].index(self)]:
                z = outer.apply_at(z, given, at)
            now = z[:, part.columns.to(z.device)]
            new = now * part.factor.to(now) + part.shift.to(now)
            assert vectors is not None
            difference = (new - now) @ vectors.to(now)
            if part.noise is not None:
                difference = difference + new @ part.noise.to(now)
            flat[at.to(flat.device)] += difference.to(flat.dtype)
        return added

    def apply_at(
        self, z: Float[Tensor, "positions width"], given: Sequence[Tensor], positions: Int[Tensor, "positions"]
    ) -> Float[Tensor, "positions width"]:
        """The changed activations at some positions, batch and positions as one."""
        assert self._site.experts is not None
        count = given[0].shape[:-1].numel()
        count //= self._site.experts.count if self._site.experts.layout == "sorted" else 1
        length = count // self._rows()
        reached = torch.zeros(length, dtype=torch.bool)
        reached[self._where()] = True
        z = z.clone()
        for part in self._parts:
            here = reached[positions.cpu() % length]
            if part.row >= 0:
                here &= positions.cpu() // length == part.row
            at = here.nonzero().to(z.device)
            own = part.columns.to(z.device)
            z[at, own] = (z[at, own] * part.factor.to(z) + part.shift.to(z)).to(z.dtype)
        return z


def _row(part: Change) -> slice:
    return slice(None) if part.row < 0 else slice(part.row, part.row + 1)
