"""Several edits as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mmneurons.edits.edit import ASKED, Delta, Edit
from mmneurons.errors import EditError

__all__ = ["joined"]


def joined(edits: Sequence[Edit]) -> Edit:
    """One edit that adds what several add: their directions beside each other. Its rank is at most the sum of theirs.

    In force it is what they are together, up to the rounding of a sum in another order.

    Raises:
        EditError: there is none, or they are of different models.
    """
    if not edits:
        raise EditError("There is no edit to join. Pass at least one.")
    if len({edit.model.get("fingerprint") for edit in edits}) > 1:
        raise EditError("These edits are of different models, so they cannot be one. Join those of one model.")
    deltas = tuple(
        _side_by_side([delta for edit in edits for delta in edit.deltas if delta.block == block])
        for block in sorted({delta.block for edit in edits for delta in edit.deltas})
    )
    return Edit(
        deltas,
        {"method": "joined", **_asked_alike(edits), "edits": [dict(edit.recipe) for edit in edits]},
        dict(edits[0].model),
        {},
        all(edit.converged for edit in edits),
        tuple(dict.fromkeys(banned for edit in edits for banned in edit.banned)),
    )


def _asked_alike(edits: Sequence[Edit]) -> dict[str, object]:
    """How captions were asked for, as far as that is the same for all."""
    first = edits[0].recipe
    return {
        name: first[name] for name in ASKED if name in first and all(e.recipe.get(name) == first[name] for e in edits)
    }


def _side_by_side(deltas: Sequence[Delta]) -> Delta:
    columns = torch.cat([delta.columns for delta in deltas]).unique()
    weights = torch.zeros(len(columns), sum(delta.weights.shape[1] for delta in deltas))
    start = 0
    for delta in deltas:
        stop = start + delta.weights.shape[1]
        weights[torch.searchsorted(columns, delta.columns), start:stop] = delta.weights
        start = stop
    return Delta(deltas[0].block, columns, weights, torch.cat([delta.directions for delta in deltas]))
