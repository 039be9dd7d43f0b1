"""What a model says with an edit in force, and whether that is what was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mmneurons.edits.edit import Edit
from mmneurons.edits.solution import live
from mmneurons.edits.stack import applied
from mmneurons.edits.task import Swap, ids_of, says
from mmneurons.measures.effects import divergence
from mmneurons.recordings import BATCH_SIZE, read
from mmneurons.vlm.model import VLM
from mmneurons.vlm.recording import Keep, Recording, record_generation
from mmneurons.vlm.upper import Said, Upper, upper
from mmneurons.words import stands_in

__all__ = ["Agreement", "Outcome", "Pool", "caption_outcome", "swap_of"]

TOP = 10


@dataclass(frozen=True)
class Agreement:
    """How far the distributions of a caption's steps are those of the unedited model, teacher-forced.

    Attributes:
        top: share of steps with the same most likely token.
        top_ten: share of steps with the same ten most likely tokens in the same order (MMEdit's measure).
        divergence: mean KL(before ‖ after), nats.
    """

    top: float
    top_ten: float
    divergence: float


@dataclass(frozen=True)
class Outcome:
    """What became of one caption.

    Attributes:
        before: the caption of the unedited model.
        after: with the edit in force.
        said: whether the caption said the source.
        said_target: whether it said the target.
        gone: whether no form of the source is said any more.
        there: whether the target is said now; where there is none, whether the source is gone.
        intruded: whether the target is said now and was not before, where the source was not said either.
        agreement: of the caption's steps; None where they cannot be compared.
    """

    before: str
    after: str
    said: bool
    said_target: bool
    gone: bool
    there: bool
    intruded: bool
    agreement: Agreement | None = None

    @property
    def unchanged(self) -> bool:
        """Word for word."""
        return self.before == self.after

    @property
    def swapped(self) -> bool:
        """Whether the request was met."""
        return self.gone and self.there


class Pool:
    """Captions of the unedited model that edits are tried on, again and again.

    Attributes:
        vlm: the model, unedited.
        recordings: of captions that were generated greedily.
    """

    def __init__(self, vlm: VLM, recordings: Sequence[Recording], max_new_tokens: int = 50) -> None:
        self.vlm, self.recordings, self._longest = vlm, list(recordings), max_new_tokens
        self._above: dict[int, Upper] = {}

    def __len__(self) -> int:
        return len(self.recordings)

    def outcomes(self, edit: Edit) -> list[Outcome]:
        """What is said with an edit in force, greedily.

        A caption whose every token is the most likely one still, read with the edit in force, is what would be
        generated again: only the others are.
        """
        agreements: list[Agreement | None] = [None] * len(self.recordings)
        changed = list(range(len(self.recordings)))
        if edit.deltas and self.recordings:
            logits = self._logits(edit).cpu()
            changed = []
            for index, (recording, own) in enumerate(zip(self.recordings, self._split(logits), strict=True)):
                agreements[index] = _agreement(recording.logits, own)
                if not torch.equal(_best(self.vlm, own), recording.token_ids):
                    changed.append(index)
        again = self._generated(edit, changed)
        swap = swap_of(edit)
        return [
            caption_outcome(self.vlm, recording, again.get(index, recording.caption), swap, agreements[index])
            for index, recording in enumerate(self.recordings)
        ]

    def _logits(self, edit: Edit) -> Float[Tensor, "steps vocabulary"]:
        lowest = edit.deltas[0].block
        if lowest not in self._above:
            said = [Said(one.request, ids_of(one), tuple(range(len(one)))) for one in self.recordings]
            self._above[lowest] = upper(self.vlm, said, lowest)
        return self._above[lowest].logits(live(self.vlm, edit.deltas))

    def _split(self, logits: Float[Tensor, "steps vocabulary"]) -> Sequence[Float[Tensor, "own vocabulary"]]:
        return logits.split([len(one) for one in self.recordings])

    def _generated(self, edit: Edit, places: Sequence[int]) -> dict[int, str]:
        captions: dict[int, str] = {}
        with applied(self.vlm, edit):
            for start in range(0, len(places), BATCH_SIZE):
                part = places[start : start + BATCH_SIZE]
                asked = [self.recordings[place].request for place in part]
                made = record_generation(self.vlm, asked, self._longest, keep=Keep(image_budget=0))
                captions |= {place: read(self.vlm, one).caption for place, one in zip(part, made, strict=True)}
        return captions


def swap_of(edit: Edit) -> Swap:
    """What an edit was asked for."""
    source, to = edit.recipe.get("source"), edit.recipe.get("to")
    return Swap(str(source), None if to is None else str(to), bool(edit.recipe.get("inflections", True)))


def caption_outcome(
    vlm: VLM, recording: Recording, after: str, swap: Swap, agreement: Agreement | None = None
) -> Outcome:
    """What became of a caption: words are compared as words, whatever stands around them; articles do not count."""
    begun = len(recording.request.prefix)

    def said(word: str) -> bool:
        return stands_in(after, begun, word)

    before = says(recording, swap.source)
    gone = not said(swap.source)
    new = swap.to is not None and said(swap.to)
    old = swap.to is not None and says(recording, swap.to)
    return Outcome(
        before=recording.caption,
        after=after,
        said=before,
        said_target=old,
        gone=gone,
        there=gone if swap.to is None else new,
        intruded=new and not old and not before,
        agreement=agreement,
    )


def _agreement(before: Float[Tensor, "steps vocabulary"], after: Float[Tensor, "steps vocabulary"]) -> Agreement:
    first, second = before.topk(TOP, -1).indices, after.topk(TOP, -1).indices
    return Agreement(
        top=float((first[:, 0] == second[:, 0]).float().mean()),
        top_ten=float((first == second).all(-1).float().mean()),
        divergence=float(divergence(before, after).mean()),
    )


def _best(vlm: VLM, logits: Float[Tensor, "steps vocabulary"]) -> Tensor:
    """The most likely token of every step; a placeholder for a picture is never said."""
    if vlm.image_token_id is not None and vlm.image_token_id < logits.shape[1]:
        logits = logits.clone()
        logits[:, vlm.image_token_id] = -torch.inf
    return logits.argmax(-1)
