"""What a solver gives, and how it is tried out before any weight is touched."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmneurons.edits.edit import Delta
from mmneurons.edits.task import Task
from mmneurons.edits.writable import writable
from mmneurons.vlm.model import VLM
from mmneurons.vlm.sites import dtype, split, weight
from mmneurons.vlm.upper import Added, Upper, upper

__all__ = ["Solution", "converged", "holds", "live", "margins", "reached", "settings"]

SURE = 0.9
"""The probability that a wanted token has to have."""


@dataclass(frozen=True, eq=False)
class Solution:
    """What a solver found.

    Attributes:
        deltas: one for a block, in the order of the blocks.
        options: the solver's settings, as JSON has them.
        banned: token sequences that generation must not say.
        above: the upper part over what is wanted, where the solver has run it.
    """

    deltas: tuple[Delta, ...]
    options: Mapping[str, object]
    banned: tuple[tuple[int, ...], ...] = ()
    above: Upper | None = None


def live(vlm: VLM, deltas: Sequence[Delta]) -> list[Added]:
    """What deltas add once the weights are rounded to the model's dtype; those of one block, of several edits, sum up.

    To weights that cannot be written to (quantised, offloaded) a hook adds it, so nothing is rounded.

    Returns:
        One for a block, in the order of the blocks.
    """
    added = []
    for block in sorted({delta.block for delta in deltas}):
        chosen, vectors = _sum([delta for delta in deltas if delta.block == block])
        for site, inside, columns in split(vlm.anatomy.blocks[block], chosen):
            kind = dtype(vlm.model, site)
            if kind.itemsize < 4 and writable(vlm, site) is not None:
                base = weight(vlm.model, site)[:, columns].float().cpu().T
                vectors[inside] = (base + vectors[inside]).to(kind).float() - base
        added.append(Added(block, chosen, vectors.to(vlm.device)))
    return added


def _sum(deltas: Sequence[Delta]) -> tuple[Int[Tensor, "neurons"], Float[Tensor, "neurons hidden"]]:
    """The columns that deltas of one block change, and what each gets altogether."""
    first, *rest = deltas
    if not rest:
        return first.columns, first.vectors.clone()
    columns = torch.cat([delta.columns for delta in deltas]).unique()
    vectors = torch.zeros(len(columns), first.directions.shape[1])
    for delta in deltas:
        vectors[torch.searchsorted(columns, delta.columns)] += delta.vectors
    return columns, vectors


def margins(task: Task, above: Upper, added: Sequence[Added]) -> list[float]:
    """By how much every wanted token is ahead of the others, with something added."""
    logits = above.logits(added).cpu()
    return [want.margin(own) for want, own in zip(task.wants, logits, strict=True)]


def reached(task: Task, above: Upper, added: Sequence[Added]) -> list[bool]:
    """Whether every wanted token has a probability of 0.9 or more; a word not to be said one of 0.1 or less."""
    found = []
    for want, own in zip(task.wants, above.logits(added).cpu(), strict=True):
        p = own.softmax(-1)
        if want.target is None:
            found.append(float(p[list(want.sources)].sum()) <= 1 - SURE)
        else:
            found.append(float(p[want.target]) >= SURE)
    return found


def converged(task: Task, solution: Solution) -> bool:
    """Whether every wanted token is reached once the weights are rounded.

    Banned words are not said in any case, and nothing is said in their place on purpose.

    Raises:
        RecordingError: the model cannot be run with something added, so nobody knows.
    """
    if solution.banned or not solution.deltas:
        return bool(solution.banned) and task.swap.to is None
    above = solution.above
    above = upper(task.vlm, task.said(), solution.deltas[0].block) if above is None else above
    return all(reached(task, above, live(task.vlm, solution.deltas)))


def holds(ids: Sequence[int], banned: Collection[tuple[int, ...]]) -> bool:
    """Whether banned tokens stand one after another among these."""
    known = frozenset(banned)
    return any(
        tuple(ids[place : place + length]) in known
        for length in {len(one) for one in known}
        for place in range(len(ids) - length + 1)
    )


def settings(solver: object) -> Mapping[str, object]:
    """A solver's options, as JSON has them."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(solver).items()}
