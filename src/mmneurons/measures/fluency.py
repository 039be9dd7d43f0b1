"""Fluency: how surprised the unedited model is of what is said with edits in force.

Mean negative log-probability of a caption's tokens under the unedited model, with the picture, in nats a token;
perplexity is its exponential. A caption that is the same is as surprising as before. One that says the target where the
picture does not show it surprises by that word alone; what a broken model stammers, by every word.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmneurons.edits.stack import active
from mmneurons.edits.task import ids_of
from mmneurons.errors import EditError
from mmneurons.measures.edit_outcome import After, Pool, Surprise
from mmneurons.vlm.recording import LEAN, Recording, record_forced

__all__ = ["surprises"]


def surprises(pool: Pool, afterwards: Sequence[After]) -> list[Surprise]:
    """How surprising each caption is before, and after.

    Args:
        pool: the captions before.
        afterwards: what ``pool.afterwards`` gave for some edits.

    Raises:
        EditError: an edit is in force: the unedited model is asked.
    """
    if active(pool.vlm):
        raise EditError(
            "An edit is in force in this model. Revert it first: the unedited model says what surprises it."
        )
    found = []
    for recording, after in zip(pool.recordings, afterwards, strict=True):
        before = _nats(recording)
        same = after.token_ids == ids_of(recording) or not after.token_ids
        said = recording if same else record_forced(pool.vlm, recording.request, after.token_ids, LEAN)
        found.append(Surprise(before, before if same else _nats(said)))
    return found


def _nats(recording: Recording) -> float:
    return -float(recording.log_probabilities.double().mean())
