"""Captions that say a word still, with the edit in force that was to keep them from it."""

from __future__ import annotations

from collections.abc import Sequence

from mmneurons.edits.edit import Edit
from mmneurons.edits.stack import applied
from mmneurons.edits.task import Swap, ids_of, says
from mmneurons.recordings import read, say_again
from mmneurons.vlm.model import VLM
from mmneurons.vlm.recording import LEAN, Recording, record_forced

__all__ = ["said_still"]


def said_still(vlm: VLM, edit: Edit, swap: Swap, asked: Sequence[Recording], max_new_tokens: int) -> list[Recording]:
    """Ask again with an edit in force; what says the word still is recorded as the unedited model reads it.

    A word that is not said where it was learned from may be said a little later instead: "a lion and a zebra" for "a
    zebra". That is a caption that the unedited model did not say, so nothing could be learned from it before.

    Args:
        vlm: the model, without edits in force.
        edit: of it.
        swap: the word that is not to be said.
        asked: captions that said it, of the unedited model.
        max_new_tokens: where captions are cut.
    """
    with applied(vlm, edit):
        made = say_again(vlm, [one.request for one in asked], max_new_tokens)
    still = [one for one in made if says(one, swap)]
    return [read(vlm, record_forced(vlm, one.request, ids_of(one), LEAN)) for one in still]
