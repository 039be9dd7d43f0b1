"""How many of the captions that must stay an edit would change.

Teacher-forced: a caption stays where the most likely token of every one of its steps is the same with the edit in
place. Up to the first step that is not, that is what would be generated.

Behind the last block there is nothing but the final norm and the head, so of an edit there the recordings tell it, and
nothing is run. For all others the whole model is run once over these captions, some at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from mmneurons.edits.solution import Solution, holds, live
from mmneurons.edits.task import Kept, Task, ids_of
from mmneurons.recordings import batches
from mmneurons.vlm.distributions import likeliest
from mmneurons.vlm.model import VLM
from mmneurons.vlm.readout import readout
from mmneurons.vlm.upper import Added, Said, upper

__all__ = ["Changed", "changed_captions"]

_AT_ONCE = 16
"""How many captions are in hand at once: their logits are large."""


@dataclass(frozen=True)
class Changed:
    """How many captions change.

    Attributes:
        changed: so many.
        of: of so many.
    """

    changed: int
    of: int


def changed_captions(task: Task, solution: Solution) -> Changed:
    """Count the captions of other pictures that a solution changes, with the weights rounded to the model's dtype.

    A ban changes those that hold what is banned, as part of another word.

    Raises:
        RecordingError: the model cannot be run with something added.
    """
    kept = [one for one in task.kept if not one.own]
    if not solution.deltas:
        return Changed(sum(holds(ids_of(one.recording), solution.banned) for one in kept), len(kept))
    added = live(task.vlm, solution.deltas)
    told = _tells(task.vlm, added)
    count = 0
    for part in batches(kept, _AT_ONCE):
        before, after = _recorded(task.vlm, part, added) if told else _run(task.vlm, part, added)
        sizes = [len(one.steps) for one in part]
        moved = (before != after).split(sizes)
        count += sum(bool(own.any()) for own in moved)
    return Changed(count, len(kept))


def _tells(vlm: VLM, added: Sequence[Added]) -> bool:
    """Whether recordings tell what an edit does: it is in the last block alone, and nothing norms what that writes.

    A block of several write sites may hand on what one of them wrote to the next.
    """
    anatomy = vlm.anatomy
    last = anatomy.blocks[-1]
    path = last.sites[0].path
    return (
        {own.block for own in added} == {len(anatomy.blocks) - 1}
        and len(last.sites) == 1
        and path.plain
        and path.carriers == len(anatomy.carriers)
    )


def _recorded(
    vlm: VLM, kept: Sequence[Kept], added: Sequence[Added]
) -> tuple[Int[Tensor, "steps"], Int[Tensor, "steps"]]:
    """The most likely tokens without and with what is added, from the streams and activations that were recorded."""
    (own,) = added
    head, gain = readout(vlm), vlm.anatomy.blocks[-1].sites[0].path.gain
    stream, moved = [], []
    for one in kept:
        steps = list(one.steps)
        activations = one.recording.activations[steps][:, own.block, own.columns]
        stream.append(one.recording.stream[steps])
        moved.append(stream[-1] + gain * (activations @ own.vectors.cpu()))
    before, after = (likeliest(vlm, head.logits(torch.cat(part))) for part in (stream, moved))
    return before, after


def _run(vlm: VLM, kept: Sequence[Kept], added: Sequence[Added]) -> tuple[Int[Tensor, "steps"], Int[Tensor, "steps"]]:
    """The same with the whole model run.

    What was recorded came about in other batches, whose rounding may decide between two tokens. So a difference counts
    where the same batch shows it.
    """
    said = [Said(one.recording.request, ids_of(one.recording), one.steps) for one in kept]
    above = upper(vlm, said, min(own.block for own in added), remember=False)
    before = torch.cat([likeliest(vlm, one.recording.logits[list(one.steps)]) for one in kept])
    after = likeliest(vlm, above.logits(added).cpu())
    if bool((before != after).any()):
        before = likeliest(vlm, above.logits().cpu())
    return before, after
