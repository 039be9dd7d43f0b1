"""What a model says with edits in force, and whether that is what was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from mmneurons.edits.edit import Delta, Edit
from mmneurons.edits.solution import holds, live
from mmneurons.edits.stack import active, applied, check_fits
from mmneurons.edits.task import Swap, ids_of, says
from mmneurons.errors import EditError, OptionError
from mmneurons.measures.effects import divergence
from mmneurons.recordings import say_again
from mmneurons.vlm.decoding import changes_logits
from mmneurons.vlm.distributions import likeliest
from mmneurons.vlm.model import VLM
from mmneurons.vlm.recording import Recording, picture_of
from mmneurons.vlm.upper import Said, Upper, upper

__all__ = [
    "After",
    "Agreement",
    "Outcome",
    "Pool",
    "Surprise",
    "as_edits",
    "caption_outcome",
    "in_force",
    "lean",
    "swap_of",
]

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
class Surprise:
    """How surprised the unedited model is of a caption, in nats a token: see ``mmneurons.measures.fluency``.

    Attributes:
        before: of the unedited caption.
        after: of what is said with edits in force.
    """

    before: float
    after: float


@dataclass(frozen=True)
class Outcome:
    """What became of one caption.

    Attributes:
        before: the caption of the unedited model.
        after: with the edit in force.
        said: whether the caption said the source.
        said_target: whether it said the target.
        gone: whether no form of the source is said any more, other than inside the target.
        there: whether the target is said now; where there is none, whether the source is gone.
        intruded: whether the target is said now and was not before, where the source was not said either.
        agreement: of the caption's steps; None where they cannot be compared.
        surprise: of the unedited model; None where that was not measured.
        picture: what the captions of one picture have in common; empty where there is none.
        begun: where in both captions what the model said begins: the prefix is not its own.
    """

    before: str
    after: str
    said: bool
    said_target: bool
    gone: bool
    there: bool
    intruded: bool
    agreement: Agreement | None = None
    surprise: Surprise | None = None
    picture: str = ""
    begun: int = 0

    @property
    def unchanged(self) -> bool:
        """Word for word."""
        return self.before == self.after

    @property
    def swapped(self) -> bool:
        """Whether the request was met."""
        return self.gone and self.there


@dataclass(frozen=True)
class After:
    """What is said with edits in force.

    Attributes:
        caption: with the prefix.
        token_ids: what was generated, the end token included.
        agreement: of the unedited caption's steps; None where they cannot be compared.
    """

    caption: str
    token_ids: tuple[int, ...]
    agreement: Agreement | None


class Pool:
    """Captions of the unedited model that edits are tried on, again and again.

    Attributes:
        vlm: the model, unedited.
        recordings: of captions that were generated greedily, with a picture or without one.
        pictures: of each caption: ``picture_of``.
    """

    def __init__(self, vlm: VLM, recordings: Sequence[Recording], max_new_tokens: int = 50) -> None:
        """Nothing is run yet.

        Raises:
            OptionError: these are no recordings.
        """
        if not isinstance(recordings, list | tuple) or not all(isinstance(one, Recording) for one in recordings):
            raise OptionError("Pool takes recordings: Pool(vlm, mmn.record(vlm, pictures)), with a list of pictures.")
        self.vlm, self.recordings, self._longest = vlm, list(recordings), max_new_tokens
        self._above: tuple[int, Upper, Float[Tensor, "steps vocabulary"]] | None = None

    def __len__(self) -> int:
        return len(self.recordings)

    def __repr__(self) -> str:
        return f"Pool({len(self)} captions)"

    def outcomes(self, edits: Edit | Sequence[Edit], swap: Swap | None = None) -> list[Outcome]:
        """What is said with one edit, or several together, in force, greedily, and whether it was asked for.

        Args:
            edits: which; none of them is in force.
            swap: the request that is judged; that of the edit, where there is only one.

        Raises:
            OptionError: there is no edit, or one of several is to be judged and it is not said which.
            EditError: an edit is in force, or one of these does not fit the model.
        """
        chosen = as_edits(edits)
        if swap is None:
            if len(chosen) > 1:
                raise OptionError("Several edits are in force: say whose request is judged, swap=swap_of(edit).")
            swap = swap_of(chosen[0])
        return self.judged(self.afterwards(chosen), swap)

    def afterwards(self, edits: Edit | Sequence[Edit]) -> list[After]:
        """What is said with one edit, or several together, in force, greedily, whatever was asked for.

        A caption of which every step has the most likely token that it has without edits, read in the same batch with
        them in force, and that nowhere ends what is banned, is what would be generated again: only the others are. All
        are where the checkpoint's own settings change logits before a token is chosen, such as ``repetition_penalty``.

        Raises:
            OptionError: there is no edit.
            EditError: an edit is in force, or one of these does not fit the model.
        """
        chosen = as_edits(edits)
        if active(self.vlm):
            raise EditError("An edit is in force in this model. Revert it first: edits are compared with none at all.")
        for edit in chosen:
            check_fits(self.vlm, edit)
        deltas = [delta for edit in chosen for delta in edit.deltas]
        agreements: list[Agreement | None] = [None] * len(self.recordings)
        banned = frozenset(sequence for edit in chosen for sequence in edit.banned)
        changed = {place for place, one in enumerate(self.recordings) if _ends_banned(one, banned)}
        if deltas and self.recordings:
            pairs = self._logits(deltas)
            agreements = [_agreement(before, after) for before, after in pairs]
            changed |= {
                place
                for place, pair in enumerate(pairs)
                if not torch.equal(*(likeliest(self.vlm, logits) for logits in pair))
            }
        # what comes between logits and tokens shows in no logits; ``likeliest`` knows what is suppressed
        if any(name != "suppress_tokens" for name in changes_logits(self.vlm)):
            changed = {*range(len(self.recordings))}
        again = self._generated(chosen, sorted(changed))
        found = []
        for index, (one, agreement) in enumerate(zip(self.recordings, agreements, strict=True)):
            own = again.get(index, one)
            found.append(After(own.caption, ids_of(own), agreement))
        return found

    def judged(self, afterwards: Sequence[After], swap: Swap) -> list[Outcome]:
        """What became of the captions, by one request; several may be judged by what was said once."""
        found = zip(self.recordings, afterwards, self.pictures, strict=True)
        return [
            replace(caption_outcome(self.vlm, one, own.caption, swap, own.agreement), picture=picture)
            for one, own, picture in found
        ]

    @cached_property
    def pictures(self) -> list[str]:
        """Of each caption, by what the model gets of it; empty without one."""
        return [picture_of(one) for one in self.recordings]

    def _logits(
        self, deltas: Sequence[Delta]
    ) -> list[tuple[Float[Tensor, "steps vocabulary"], Float[Tensor, "steps vocabulary"]]]:
        """Of every caption the logits without and with something added, of the same batch: others round otherwise."""
        lowest = min(delta.block for delta in deltas)
        if self._above is None or self._above[0] != lowest:
            # of a large model each takes gigabytes
            self._above = None
            said = [Said(one.request, ids_of(one), tuple(range(len(one)))) for one in self.recordings]
            above = upper(self.vlm, said, lowest)
            self._above = lowest, above, above.logits().cpu()
        _, above, before = self._above
        sizes = [len(one) for one in self.recordings]
        return list(zip(before.split(sizes), above.logits(live(self.vlm, deltas)).cpu().split(sizes), strict=True))

    def _generated(self, edits: Sequence[Edit], places: Sequence[int]) -> dict[int, Recording]:
        with in_force(self.vlm, edits):
            made = say_again(self.vlm, [self.recordings[place].request for place in places], self._longest)
        return dict(zip(places, made, strict=True))


def _ends_banned(recording: Recording, banned: frozenset[tuple[int, ...]]) -> bool:
    """Whether what was generated, behind the prompt's last tokens, holds what is banned."""
    longest = max(map(len, banned), default=1)
    prompt = recording.request.inputs.get("input_ids")
    before = [] if prompt is None else prompt[0].tolist()
    return holds([*before[max(0, len(before) - longest + 1) :], *ids_of(recording)], banned)


def lean(recording: Recording) -> Recording:
    """Without what a pool does not look at: of a large model it takes gigabytes."""
    steps = len(recording)
    return replace(
        recording,
        logits=recording.logits.new_zeros(steps, 0),
        activations=recording.activations.new_zeros(steps, 0, 0),
        gates=None,
        image_activations=None,
        writes=recording.writes.new_zeros(steps, 0, recording.writes.shape[-1]),
    )


def as_edits(edits: Edit | Sequence[Edit]) -> list[Edit]:
    """One edit, or several, as a list.

    Raises:
        OptionError: there is none, or one stands there twice.
    """
    chosen = [edits] if isinstance(edits, Edit) else list(edits)
    if not chosen or not all(isinstance(one, Edit) for one in chosen):
        raise OptionError("Pass an edit, or a list of them: mmn.edit(…), or mmn.Edit.load(path).")
    if len({one.edit_id for one in chosen}) < len(chosen):
        raise OptionError("An edit stands there twice, and can be in force only once. Pass each once.")
    return chosen


@contextmanager
def in_force(vlm: VLM, edits: Sequence[Edit]) -> Iterator[None]:
    """Have several edits in force while the block runs."""
    with ExitStack() as stack:
        for edit in edits:
            stack.enter_context(applied(vlm, edit))
        yield


def swap_of(edit: Edit) -> Swap:
    """What an edit was asked for.

    Raises:
        OptionError: it is several in one, or changes no single word.
    """
    if not isinstance(edit.recipe.get("source"), str):
        raise OptionError(
            f"{edit} changes no single word, so there is no request to judge. Pass swap=Swap(source, to)."
        )
    source, to = edit.recipe.get("source"), edit.recipe.get("to")
    return Swap(str(source), None if to is None else str(to), bool(edit.recipe.get("inflections", True)))


def caption_outcome(
    vlm: VLM, recording: Recording, after: str, swap: Swap, agreement: Agreement | None = None
) -> Outcome:
    """What became of a caption: words are compared as words, whatever stands around them; articles do not count."""
    begun = len(recording.request.prefix)
    before = says(recording, swap)
    gone = not swap.places_in(after, begun)
    new, old = swap.target_in(after, begun), swap.target_in(recording.caption, begun)
    return Outcome(
        before=recording.caption,
        after=after,
        said=before,
        said_target=old,
        gone=gone,
        there=gone if swap.to is None else new,
        intruded=new and not old and not before,
        agreement=agreement,
        begun=begun,
    )


def _agreement(before: Float[Tensor, "steps vocabulary"], after: Float[Tensor, "steps vocabulary"]) -> Agreement:
    first, second = before.topk(TOP, -1).indices, after.topk(TOP, -1).indices
    return Agreement(
        top=float((first[:, 0] == second[:, 0]).float().mean()),
        top_ten=float((first == second).all(-1).float().mean()),
        divergence=float(divergence(before, after).mean()),
    )
