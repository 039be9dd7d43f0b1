"""Words that are not to be said: an edit of each, learned and proved on one folder of pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Unpack

from mmneurons.edits.edit import Edit
from mmneurons.edits.make import edit
from mmneurons.edits.methods import make_method
from mmneurons.edits.task import check_words
from mmneurons.errors import EditError, RecordingError
from mmneurons.mitigation.proof import Proof, prove
from mmneurons.mitigation.survey import Survey
from mmneurons.recordings import MAX_NEW_TOKENS, CaptionOptions
from mmneurons.vlm.model import VLM

__all__ = ["AT_LEAST", "Mitigation", "mitigate_words"]

AT_LEAST = 0.9
"""The share of captions without the words that has to stay word for word, by default."""


@dataclass(frozen=True)
class Mitigation:
    """What came of it.

    Attributes:
        edits: one for each word that one could be made of.
        proof: what was measured of them.
    """

    edits: tuple[Edit, ...]
    proof: Proof


def mitigate_words(
    vlm: VLM,
    survey: Survey,
    at_least: float = AT_LEAST,
    method: str = "least_squares",
    options: Mapping[str, object] | None = None,
    progress: Callable[[str], None] | None = None,
    **how: Unpack[CaptionOptions],
) -> Mitigation:
    """Learn an edit for every word that is said, and measure all of them in force together.

    Args:
        vlm: the model, unedited.
        survey: what it says of the pictures.
        at_least: the share of captions without the words that has to stay word for word.
        method: of the edits.
        options: of the method.
        progress: told of each edit that was made.
        **how: the captions of the survey came about, for the recipes.

    Raises:
        EditError: the model says none of the words of these pictures, cannot say one, or no edit could be made.
    """
    for found in survey.found:
        check_words(vlm, found.wish.swap)
    if not survey.saying:
        words = ", ".join(repr(found.wish.word) for found in survey.found)
        raise EditError(
            f"No caption of these {survey.pictures} pictures says {words}: there is nothing to learn from, and nothing "
            "to stop here. Give pictures of which the model says these words."
        )
    edits: list[Edit] = []
    notes: dict[str, str] = {}
    kept = [one.recording for one in survey.kept]
    for found in survey.saying:
        wish = found.wish
        if not found.learned:
            notes[wish.word] = "all captions that say it are held out, beside another word: give more pictures"
            continue
        learned = [one.recording for one in found.learned]
        try:
            made = edit(
                vlm,
                wish.word,
                wish.to,
                pictures=learned,
                keep=kept,
                bundled=False,
                method=make_method(method, options or {}),
                **how,
            )
        except (EditError, RecordingError) as error:
            notes[wish.word] = str(error.args[0])
            continue
        edits.append(made)
        if progress is not None:
            progress(str(made))
    if not edits:
        raise EditError(f"No edit could be made. {next(iter(notes.values()))}")
    return Mitigation(
        tuple(edits), prove(vlm, survey, edits, notes, at_least, how.get("max_new_tokens", MAX_NEW_TOKENS))
    )
