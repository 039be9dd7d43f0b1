"""Which neurons are edited: the best of a finder, over all requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from mmneurons.edits.task import Task
from mmneurons.errors import OptionError
from mmneurons.finders import Scores, Target, make_finder

__all__ = ["best_neurons", "by_block"]


def best_neurons(task: Task, finder: str, k: int, skip_last: int = 0) -> list[tuple[int, int]]:
    """The k neurons with the highest scores for what is said now, summed over the steps that are to change.

    Args:
        task: whose steps.
        finder: the name of a finder.
        k: how many.
        skip_last: how many blocks at the end are left out.

    Raises:
        OptionError: there are not so many neurons, or no such finder.
    """
    blocks = task.vlm.anatomy.blocks
    left = len(blocks) - skip_last
    if not 0 <= skip_last < len(blocks):
        raise OptionError(f"skip_last={skip_last} leaves none of {len(blocks)} blocks.")
    widths = [block.width for block in blocks[:left]]
    if k > sum(widths):
        raise OptionError(f"k={k} is not possible: there are {sum(widths)} neurons to choose from.")
    score = make_finder(finder, {})
    total = torch.zeros(len(blocks), task.vlm.anatomy.width)
    for want in task.wants:
        (own,) = score(task.vlm, want.recording, [Target(want.step, want.now)])
        total += own.values
    return Scores(total[:left], total[:left], None).best(k, widths)


def by_block(places: Sequence[tuple[int, int]]) -> Iterator[tuple[int, Int[Tensor, "columns"]]]:
    """The columns of every block that has some, in order."""
    for block in sorted({block for block, _ in places}):
        yield block, torch.tensor(sorted(column for own, column in places if own == block))
