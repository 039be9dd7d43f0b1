"""An edit in closed form: a detector of the word over the columns' activations writes one direction.

For every token that is to be said instead of another, one direction d is written by many columns, δ_i = a_i d, where a
is a ridge regression over their activations:

    min_a  mean_s (a·z_s − need_s)² + λ·mean_k (a·z_k)² + μ‖a‖²

over the steps s that are to change and the steps k that must stay, with activations over their root mean square at
the latter. need_s is how much of d has to be written so that the wanted token is ahead of all others by a margin.

d is whitened: of all directions that raise the target over the source by the same amount it is the one that changes the
logits of other tokens least, d = (Σ + ε·mean diag Σ)⁻¹ (ũ_target − ũ_source), where Σ is the covariance of the
unembeddings. A plain difference of unembeddings raises everything that is like the target, too.

In the last block nothing comes behind but the final norm and the head, so what the direction does is known: that is the
default. Elsewhere, and through norms behind the FFN, later parts react; so the change is measured with the edit in
place, and what is missing is asked for again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmneurons.edits.directions import carried, covariance, state, whitened
from mmneurons.edits.edit import Delta
from mmneurons.edits.neurons import as_blocks, check_blocks
from mmneurons.edits.solution import Solution, live, margins, settings
from mmneurons.edits.task import Kept, Task, Want
from mmneurons.errors import OptionError
from mmneurons.options import check_whole
from mmneurons.vlm.model import VLM
from mmneurons.vlm.readout import Readout, readout
from mmneurons.vlm.upper import upper

__all__ = ["LeastSquares"]


@dataclass(frozen=True)
class LeastSquares:
    """The solver.

    Attributes:
        blocks: in which blocks columns are edited; negative ones from the end.
        columns: how many columns, those that tell the word best; None for all of these blocks.
        margin: by how many logits the target is to be ahead at every step that was given. Captions that were not
            given get less of it, so it is far more than 0.
        keep: λ, the weight of what must stay.
        ridge: μ, the weight of ‖a‖².
        whitening: ε, how far the covariance is drawn towards a multiple of the identity; None for a direction that is
            not whitened.
        rounds: how often the edit is measured and corrected.
    """

    blocks: tuple[int, ...] = (-1,)
    columns: int | None = None
    margin: float = 12.0
    keep: float = 1.0
    ridge: float = 5.0
    whitening: float | None = 0.1
    rounds: int = 4

    def __post_init__(self) -> None:
        check_blocks(self.blocks)
        if self.columns is not None:
            check_whole("columns", self.columns)
        check_whole("rounds", self.rounds)
        for name, value in (("margin", self.margin), ("keep", self.keep), ("ridge", self.ridge)):
            if not value > 0:
                raise OptionError(f"{name}={value!r} is not possible: it is a number above 0.")
        if self.whitening is not None and not self.whitening > 0:
            raise OptionError(f"whitening={self.whitening!r} is not possible: it is a number above 0, or None.")

    def check(self, vlm: VLM) -> None:
        """Refuse blocks that the model does not have."""
        as_blocks(vlm, self.blocks)

    def __call__(self, task: Task) -> Solution:
        """Solve.

        Raises:
            OptionError: there is no such block.
        """
        vlm = task.vlm
        blocks = as_blocks(vlm, self.blocks)
        head = readout(vlm)
        spread = None if self.whitening is None else covariance(head)
        arrows = _arrows(task.wants)
        kept = _features(task.kept, blocks)
        wanted = [_features([Kept(want.recording, (want.step,)) for want in own], blocks) for own in arrows.values()]
        parts = [
            _Arrow(vlm, head, blocks, want, own, _all([kept, *wanted[:k], *wanted[k + 1 :]]), spread, self)
            for k, (want, own) in enumerate(zip(arrows.values(), wanted, strict=True))
        ]
        above = upper(vlm, task.said(), blocks[0])
        deltas: tuple[Delta, ...] = ()
        for _ in range(self.rounds):
            deltas = _joined(vlm, blocks, [part.solve() for part in parts])
            reached = dict(zip(map(id, task.wants), margins(task, above, live(vlm, deltas)), strict=True))
            if all(margin >= _SURE for margin in reached.values()):
                break
            for part in parts:
                part.ask_for_more([reached[id(want)] for want in part.wants])
        return Solution(deltas, settings(self), above=above)


_SURE = 4.0
"""How many logits ahead of every other token is enough: p is mostly above 0.9."""

_STEEPEST = 2.0
"""By how much the need of a step may grow from one round to the next."""


def _arrows(wants: Sequence[Want]) -> dict[tuple[int | None, int], list[Want]]:
    """Steps that are pushed the same way: from the token that is said now to the one that is wanted."""
    arrows: dict[tuple[int | None, int], list[Want]] = {}
    for want in wants:
        arrows.setdefault((want.target, want.now), []).append(want)
    return arrows


def _features(kept: Sequence[Kept], blocks: Sequence[int]) -> Float[Tensor, "steps features"]:
    """The activations of some blocks, block after block."""
    own = [one.recording.activations[list(one.steps)][:, list(blocks)].flatten(1) for one in kept]
    return torch.cat(own) if own else torch.zeros(0, 0)


def _all(parts: Sequence[Tensor]) -> Float[Tensor, "steps features"]:
    there = [part for part in parts if len(part)]
    return torch.cat(there) if there else torch.zeros(0, 0)


class _Arrow:
    """The regression for one pair of tokens."""

    def __init__(
        self,
        vlm: VLM,
        head: Readout,
        blocks: Sequence[int],
        wants: Sequence[Want],
        features: Float[Tensor, "steps features"],
        rest: Float[Tensor, "kept features"],
        spread: Float[Tensor, "hidden hidden"] | None,
        options: LeastSquares,
    ) -> None:
        self.wants = wants
        rest = rest if len(rest) else torch.zeros(1, features.shape[1])
        self._options, width = options, vlm.anatomy.width
        self._directions, gains = _directions(vlm, head, blocks, wants, spread, options.whitening)
        self._first = torch.tensor(
            [want.margin(want.recording.logits[want.step]) for want in wants], dtype=torch.double
        )
        self._need = options.margin - self._first
        active = rest.abs().amax(0).maximum(features.abs().amax(0)) > 0
        self.columns = active.nonzero().flatten()
        if options.columns is not None and options.columns < len(self.columns):
            # of one step that must stay nothing is known of its spread
            spreads = rest.std(0, correction=int(len(rest) > 1)) + features.std(0, correction=0)
            apart = (features.mean(0) - rest.mean(0)).abs() / (spreads + 1e-4)
            self.columns = apart.where(active, -1).topk(options.columns).indices.sort().values
        size = rest[:, self.columns].square().mean(0).sqrt()
        self._scale = (size + 1e-2 * size.mean().clamp_min(1e-6)).double()
        # what one unit of a column's activation moves the gap by differs from block to block and step to step
        gain = gains[:, self.columns // width]
        typical = gain.mean(0, keepdim=True)
        self._moves = features[:, self.columns].double() / self._scale * gain
        # activations count in units of their own size, what is written in logits
        self._ridge = options.ridge * float(gains.square().mean())
        self._stays = rest[:, self.columns].double() / self._scale * typical

    def ask_for_more(self, reached: Sequence[float]) -> None:
        """Raise what is needed at the steps that were moved too little, by what they were moved."""
        moved = (torch.tensor(list(reached), dtype=torch.double) - self._first).clamp_min(1e-3)
        self._need = self._need * ((_SURE - self._first) / moved).clamp(1.0, _STEEPEST)

    def solve(self) -> tuple[Int[Tensor, "columns"], Float[Tensor, "columns"], dict[int, Float[Tensor, "hidden"]]]:
        """The columns, how much each writes, and the direction of every block."""
        own, weight = self._moves / len(self.wants) ** 0.5, (self._options.keep / max(1, len(self._stays))) ** 0.5
        rows = torch.cat([own, self._stays * weight])
        wanted = torch.cat([self._need / len(self.wants) ** 0.5, rows.new_zeros(len(self._stays))])
        if len(rows) < rows.shape[1]:
            kernel = rows @ rows.T + self._ridge * torch.eye(len(rows)).double()
            a = rows.T @ torch.linalg.solve(kernel, wanted)
        else:
            kernel = rows.T @ rows + self._ridge * torch.eye(rows.shape[1]).double()
            a = torch.linalg.solve(kernel, rows.T @ wanted)
        return self.columns, (a / self._scale).float(), self._directions


def _directions(
    vlm: VLM,
    head: Readout,
    blocks: Sequence[int],
    wants: Sequence[Want],
    spread: Float[Tensor, "hidden hidden"] | None,
    whitening: float | None,
) -> tuple[dict[int, Float[Tensor, "hidden"]], Float[Tensor, "wants blocks"]]:
    """What columns of each block write, of length 1; and by how much a unit of it moves the gap, step by step.

    Args:
        vlm: the model.
        head: its readout.
        blocks: the blocks.
        wants: steps that are pushed the same way.
        spread: the covariance of the unembeddings; None for directions that are not whitened.
        whitening: ε.
    """
    first = wants[0]
    rows, _ = head.rows(torch.tensor([first.now] if first.target is None else [first.target, first.now]))
    gap = -rows[0] if first.target is None else rows[0] - rows[1]

    states = [state(want.recording, want.step) for want in wants]
    own = carried(vlm, head, gap.expand(len(wants), -1), states, blocks)
    directions = {block: here.mean(0) for block, here in zip(blocks, own, strict=True)}
    if spread is not None and whitening is not None:
        # the map from the head to where each block writes, at the first step
        maps = carried(vlm, head, torch.eye(len(gap)), states[:1] * len(gap), blocks)
        for block, through in zip(blocks, maps, strict=True):
            directions[block] = whitened(directions[block], through, spread, whitening)
    directions = {block: direction / direction.norm() for block, direction in directions.items()}
    gains = [(here @ directions[block]).double() for block, here in zip(blocks, own, strict=True)]
    return directions, torch.stack(gains, 1)


def _joined(
    vlm: VLM,
    blocks: Sequence[int],
    solved: Sequence[tuple[Int[Tensor, "columns"], Float[Tensor, "columns"], dict[int, Float[Tensor, "hidden"]]]],
) -> tuple[Delta, ...]:
    """One delta for each block, with a direction for each pair of tokens."""
    width = vlm.anatomy.width
    deltas = []
    for index, block in enumerate(blocks):
        own = [(columns[columns // width == index] % width, a[columns // width == index]) for columns, a, _ in solved]
        every = torch.cat([columns for columns, _ in own]).unique()
        if not len(every):
            continue
        weights = torch.zeros(len(every), len(own))
        for k, (columns, a) in enumerate(own):
            weights[torch.searchsorted(every, columns), k] = a
        deltas.append(Delta(block, every, weights, torch.stack([directions[block] for _, _, directions in solved])))
    return tuple(deltas)
