"""Which neurons are edited: the best of a finder, over all requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from mmneurons.edits.task import Task
from mmneurons.errors import OptionError
from mmneurons.finders import Scores, Target, make_finder
from mmneurons.options import check_whole
from mmneurons.vlm.model import VLM

__all__ = ["as_blocks", "best_neurons", "by_block", "check_blocks", "check_choice"]


def check_blocks(blocks: Sequence[int]) -> None:
    """Refuse what names no block, before anything is run.

    Raises:
        OptionError: it names none.
    """
    if not blocks:
        raise OptionError(f"blocks={blocks!r} names no block to edit. Name some, such as -1, the last.")


def as_blocks(vlm: VLM, blocks: Sequence[int]) -> list[int]:
    """Blocks as they are counted from the first, in order, each once; negative ones are from the end.

    Raises:
        OptionError: there is no such block.
    """
    count = len(vlm.anatomy.blocks)
    for block in blocks:
        if not isinstance(block, int) or not -count <= block < count:
            raise OptionError(
                f"There is no block {block!r}: this model has blocks 0 to {count - 1}, or -1 for the last."
            )
    return sorted({block % count for block in blocks})


def check_choice(vlm: VLM, finder: str, k: int, skip_last: int = 0) -> None:
    """Refuse what ``best_neurons`` cannot choose, before anything is run.

    Raises:
        OptionError: there are not so many neurons or blocks, or no such finder.
    """
    make_finder(finder, {})
    blocks = vlm.anatomy.blocks
    check_whole("skip_last", skip_last, 0, len(blocks) - 1)
    count = sum(block.width for block in blocks[: len(blocks) - skip_last])
    if k > count:
        raise OptionError(f"k={k} is not possible: there are {count} neurons to choose from.")


def best_neurons(task: Task, finder: str, k: int, skip_last: int = 0) -> list[tuple[int, int]]:
    """The k neurons with the highest scores for what is said now, summed over the steps that are to change.

    Args:
        task: whose steps.
        finder: the name of a finder.
        k: how many.
        skip_last: how many blocks at the end are left out.

    Raises:
        OptionError: see ``check_choice``.
    """
    check_choice(task.vlm, finder, k, skip_last)
    blocks = task.vlm.anatomy.blocks
    left = len(blocks) - skip_last
    widths = [block.width for block in blocks[:left]]
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
