"""Edits by gradient descent on what is added to columns.

The loss stands in ``mmneurons.edits.loss``. Adam, until every wanted token has p ≥ 0.9 with the weights rounded to the
model's dtype, and every token that must stay is still the most likely.

Only what lies above the lowest edited write site is run, see ``mmneurons.vlm.upper``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from mmneurons.edits.edit import Delta
from mmneurons.edits.least_squares import LeastSquares
from mmneurons.edits.loss import Terms, Weights, losses, with_next
from mmneurons.edits.neurons import as_blocks, best_neurons, by_block, check_blocks, check_choice
from mmneurons.edits.solution import Solution, live, reached, settings
from mmneurons.edits.task import Task, ids_of
from mmneurons.errors import OptionError
from mmneurons.options import check_seed, check_whole
from mmneurons.recordings import batches
from mmneurons.vlm.model import VLM
from mmneurons.vlm.sites import columns as columns_of
from mmneurons.vlm.upper import Added, Said, upper

__all__ = ["FiNE", "FineTune", "Learned", "LoRA", "Refined"]


@dataclass(frozen=True)
class Learned:
    """A change of a few columns, learned from nothing.

    Attributes:
        k: how many neurons are edited.
        finder: what chooses them, by its score for the word, summed over the requests.
        skip_last: how many blocks at the end are left out.
        steps: of Adam, at most.
        rate: its step, as a share of the mean length of a column.
        earlier: α, of the captions that say the word, before it and behind what takes its place.
        keep: κ, of the keep set.
        repeat: β.
        size: γ.
        kept_at_once: how many captions of the keep set each step looks at, drawn anew.
        seed: of these draws.
    """

    k: int = 10
    finder: str = "contribution"
    skip_last: int = 0
    steps: int = 50
    rate: float = 0.01
    earlier: float = 1.0
    keep: float = 20.0
    repeat: float = 0.1
    size: float = 0.001
    kept_at_once: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole("k", self.k)
        weights = {"earlier": self.earlier, "keep": self.keep, "repeat": self.repeat, "size": self.size}
        _check(self.steps, self.rate, self.kept_at_once, self.seed, **weights)

    def check(self, vlm: VLM) -> None:
        """Refuse neurons that the model does not have."""
        check_choice(vlm, self.finder, self.k, self.skip_last)

    def __call__(self, task: Task) -> Solution:
        """Learn.

        Raises:
            OptionError: there are not so many neurons.
        """
        start = _nothing_at(task, best_neurons(task, self.finder, self.k, self.skip_last))
        weights = Weights(self.earlier, self.keep, self.repeat, self.size)
        deltas = descend(task, start, False, weights, self.steps, self.rate, self.kept_at_once, self.seed)
        return Solution(deltas, settings(self))


@dataclass(frozen=True)
class FiNE:
    """``Learned`` with the settings of FiNE (Pan et al., ICLR 2025, its released code): no keep set, no last blocks.

    What differs from there: neurons are chosen by a finder's score of the word summed over the requests, not for each
    token anew, and a request is a picture with its caption, not a text.

    Attributes:
        k: how many neurons are edited.
        finder: what chooses them.
        skip_last: how many blocks at the end are left out.
        steps: of Adam, at most.
        rate: its step, in units of the weights; 5e-3 is what FiNE took for LLaMA-2.
        earlier: α.
        repeat: β.
        size: γ.
    """

    k: int = 5
    finder: str = "contribution"
    skip_last: int = 3
    steps: int = 50
    rate: float = 1e-3
    earlier: float = 1.0
    repeat: float = 10.0
    size: float = 0.1

    def __post_init__(self) -> None:
        check_whole("k", self.k)
        _check(self.steps, self.rate, earlier=self.earlier, repeat=self.repeat, size=self.size)

    def check(self, vlm: VLM) -> None:
        """Refuse neurons that the model does not have."""
        check_choice(vlm, self.finder, self.k, self.skip_last)

    def __call__(self, task: Task) -> Solution:
        """Learn.

        Raises:
            OptionError: there are not so many neurons.
        """
        start = _nothing_at(task, best_neurons(task, self.finder, self.k, self.skip_last))
        weights = Weights(self.earlier, 0.0, self.repeat, self.size)
        return Solution(descend(task, start, False, weights, self.steps, self.rate, 8, 0, shares=False), settings(self))


@dataclass(frozen=True)
class Refined:
    """An edit by least squares, then some steps of learning from there: how much each column writes, and what.

    Attributes:
        margin: of the least squares.
        steps: of Adam, at most.
        rate: its step, as a share of the mean length of a column.
        keep: κ, and α.
        repeat: β.
        kept_at_once: how many captions of the keep set each step looks at.
        seed: of these draws.
    """

    margin: float = 12.0
    steps: int = 20
    rate: float = 0.003
    keep: float = 5.0
    repeat: float = 0.1
    kept_at_once: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.steps, self.rate, self.kept_at_once, self.seed, keep=self.keep, repeat=self.repeat)

    def __call__(self, task: Task) -> Solution:
        """Solve, then learn.

        Raises:
            OptionError: as in ``LeastSquares``.
        """
        first = LeastSquares(margin=self.margin)(task)
        weights = Weights(self.keep, self.keep, self.repeat, 0.0)
        deltas = descend(
            task, first.deltas, True, weights, self.steps, self.rate, self.kept_at_once, self.seed, stop=False
        )
        return Solution(deltas, settings(self))


@dataclass(frozen=True)
class FineTune:
    """A rival: the same columns as ``Learned``, or all of some blocks, with nothing that holds them back.

    Attributes:
        k: how many neurons; None for all of ``blocks``.
        finder: what chooses them.
        blocks: where all columns are tuned, with ``k=None``; None for the last one.
        steps: of Adam, at most.
        rate: its step, as a share of the mean length of a column.
    """

    k: int | None = 10
    finder: str = "contribution"
    blocks: tuple[int, ...] | None = None
    steps: int = 50
    rate: float = 0.001

    def __post_init__(self) -> None:
        if self.k is not None:
            check_whole("k", self.k)
            if self.blocks is not None:
                raise OptionError(f"blocks={self.blocks!r} is for k=None: else a finder chooses k={self.k} neurons.")
        elif self.blocks is not None:
            check_blocks(self.blocks)
        _check(self.steps, self.rate)

    def check(self, vlm: VLM) -> None:
        """Refuse neurons or blocks that the model does not have."""
        if self.k is None:
            as_blocks(vlm, self._blocks)
        else:
            check_choice(vlm, self.finder, self.k)

    @property
    def _blocks(self) -> tuple[int, ...]:
        return (-1,) if self.blocks is None else self.blocks

    def __call__(self, task: Task) -> Solution:
        """Learn.

        Raises:
            OptionError: there are not so many neurons, or no such block.
        """
        anatomy = task.vlm.anatomy
        if self.k is None:
            chosen = as_blocks(task.vlm, self._blocks)
            places = [(block, column) for block in chosen for column in range(anatomy.blocks[block].width)]
        else:
            places = best_neurons(task, self.finder, self.k)
        start = _nothing_at(task, places)
        deltas = descend(task, start, False, Weights(0.0, 0.0, 0.0, 0.0), self.steps, self.rate, 1, 0)
        return Solution(deltas, settings(self))


@dataclass(frozen=True)
class LoRA:
    """A rival: a low-rank change of the write sites of some blocks, with nothing that holds it back but ``keep``.

    Attributes:
        rank: of the change.
        blocks: where; negative ones from the end; None for the last four.
        steps: of Adam, at most.
        rate: its step, as a share of the mean length of a column.
        keep: κ, and α; 0 as it is usually done.
        seed: of the first factors.
    """

    rank: int = 4
    blocks: tuple[int, ...] | None = None
    steps: int = 50
    rate: float = 0.003
    keep: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole("rank", self.rank)
        if self.blocks is not None:
            check_blocks(self.blocks)
        _check(self.steps, self.rate, seed=self.seed, keep=self.keep)

    def check(self, vlm: VLM) -> None:
        """Refuse blocks that the model does not have, and a rank above that of its weights."""
        check_whole("rank", self.rank, 1, vlm.anatomy.hidden)
        self._chosen(vlm)

    def _chosen(self, vlm: VLM) -> list[int]:
        count = len(vlm.anatomy.blocks)
        return as_blocks(vlm, range(max(0, count - 4), count) if self.blocks is None else self.blocks)

    def __call__(self, task: Task) -> Solution:
        """Learn.

        Raises:
            OptionError: there is no such block, or the rank is above that of the weights.
        """
        self.check(task.vlm)
        anatomy = task.vlm.anatomy
        draw = torch.Generator().manual_seed(self.seed)
        start = []
        for block in self._chosen(task.vlm):
            width = anatomy.blocks[block].width
            factors = torch.randn(width, self.rank, generator=draw) / width**0.5
            start.append(Delta(block, torch.arange(width), factors, torch.zeros(self.rank, anatomy.hidden)))
        weights = Weights(self.keep, self.keep, 0.0, 0.0)
        deltas = descend(task, start, True, weights, self.steps, self.rate, 8, self.seed)
        return Solution(deltas, settings(self))


def _nothing_at(task: Task, places: Sequence[tuple[int, int]]) -> list[Delta]:
    """Edits of columns that add nothing yet."""
    hidden = task.vlm.anatomy.hidden
    return [Delta.of_vectors(block, columns, torch.zeros(len(columns), hidden)) for block, columns in by_block(places)]


_FASTEST = 1e6
"""Above it steps are no numbers of the weights' dtype any more."""


def _check(steps: int, rate: float, kept_at_once: int = 1, seed: int = 0, **weights: float) -> None:
    check_seed(seed)
    check_whole("steps", steps)
    check_whole("kept_at_once", kept_at_once)
    if not 0 < rate <= _FASTEST:
        raise OptionError(f"rate={rate!r} is not possible: it is a number above 0, up to {_FASTEST:g}.")
    for name, weight in weights.items():
        if not weight >= 0:
            raise OptionError(f"{name}={weight!r} is not possible: it weighs a part of the loss, and is 0 or more.")


def descend(
    task: Task,
    start: Sequence[Delta],
    both: bool,
    weights: Weights,
    steps: int,
    rate: float,
    kept_at_once: int,
    seed: int,
    stop: bool = True,
    shares: bool = True,
) -> tuple[Delta, ...]:
    """Adam on the directions of deltas, and with ``both`` on how much of them every column writes.

    Args:
        task: what is asked.
        start: where it begins.
        both: whether the weights of the directions are learned, too.
        weights: of the loss.
        steps: at most.
        rate: the step.
        kept_at_once: how many captions of the keep set a step looks at.
        seed: of these draws.
        stop: whether to stop as soon as every wanted token has p ≥ 0.9, and every token of the keep set, where it has
            a weight, is the most likely one still.
        shares: whether the step is a share of the mean length of a column; else it is one of the weights themselves.
    """
    vlm = task.vlm
    lowest = min(delta.block for delta in start)
    wanted = upper(vlm, [with_next(want) for want in task.wants], lowest)
    plain = upper(vlm, task.said(), lowest)
    own = [kept for kept in task.kept if kept.own and kept.steps] if weights.earlier else []
    others = [kept for kept in task.kept if not kept.own and kept.steps] if weights.keep else []
    terms = []
    for weight, kept in ((weights.earlier, own), (weights.keep, others)):
        choices = []
        for part in batches(kept, kept_at_once):
            said = [Said(one.recording.request, ids_of(one.recording), one.steps) for one in part]
            choices.append((part, upper(vlm, said, lowest)))
        if choices:
            terms.append((weight, choices))
    draw = random.Random(seed)
    length = {delta.block: _mean_length(task, delta) if shares else 1.0 for delta in start}
    parameters = []
    shown = []
    for delta in start:
        directions = delta.directions.clone().to(vlm.device).requires_grad_()
        factors = delta.weights.clone().to(vlm.device).requires_grad_(both)
        shown.append((delta, factors, directions))
        parameters.append({"params": [directions], "lr": rate * length[delta.block] / max(1.0, _per_unit(delta))})
        if both:
            parameters.append({"params": [factors], "lr": rate * float(factors.detach().abs().mean().clamp_min(1e-6))})
    adam = torch.optim.Adam(parameters)
    for _ in range(steps):
        deltas = tuple(replace(d, weights=f.detach().cpu(), directions=v.detach().cpu()) for d, f, v in shown)
        if stop and all(reached(task, plain, live(vlm, deltas))) and _stays(terms, live(vlm, deltas)):
            break
        adam.zero_grad()
        for loss in losses(task, wanted, terms, shown, weights, draw):
            loss.backward()
        adam.step()
    return tuple(replace(d, weights=f.detach().cpu(), directions=v.detach().cpu()) for d, f, v in shown)


def _stays(kept_terms: Terms, added: Sequence[Added]) -> bool:
    """Whether the most likely token of every step that must stay is what it was."""
    for _, choices in kept_terms:
        for kept, above in choices:
            before = torch.cat([one.recording.logits[list(one.steps)].argmax(-1) for one in kept])
            if not torch.equal(above.logits(added).argmax(-1).cpu(), before):
                return False
    return True


def _mean_length(task: Task, delta: Delta) -> float:
    """The mean length of the columns that are edited, a few of them."""
    lengths = []
    for column in delta.columns[:: max(1, len(delta.columns) // 32)].tolist():
        site = task.vlm.anatomy.site(delta.block, column)
        lengths.append(float(columns_of(task.vlm.model, site, [column - site.start]).norm()))
    return sum(lengths) / len(lengths)


def _per_unit(delta: Delta) -> float:
    """How much of a direction the columns write together."""
    return float(delta.weights.square().sum(0).sqrt().mean())
