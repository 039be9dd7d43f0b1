"""``mmn.edit``: from a word and what is to be said instead to an edit."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image

from mmneurons.edits.edit import KEPT, SEEN, TEXTS, Edit
from mmneurons.edits.kept import changed_captions
from mmneurons.edits.methods import Method, check_method, make_method, name_of
from mmneurons.edits.origin import about, versions
from mmneurons.edits.solution import Solution, converged
from mmneurons.edits.stack import active
from mmneurons.edits.still import said_still
from mmneurons.edits.task import Swap, Task, check_kept, check_words, described, make_task, says
from mmneurons.errors import EditError, OptionError, PictureError
from mmneurons.finding import WordFinding
from mmneurons.recordings import record_pictures, record_texts
from mmneurons.sources import gather
from mmneurons.sources.bundled import BUNDLED, NAME
from mmneurons.vlm.inputs import PREFIX, PROMPT, write_prompt
from mmneurons.vlm.model import VLM
from mmneurons.vlm.pictures import PictureLike, decode_picture, open_picture, pixel_digest
from mmneurons.vlm.recording import Recording, picture_of
from mmneurons.words import Word, stands_in

__all__ = ["edit"]

AGAIN = 2
"""How often captions that say a word still are learned from, too, where it is not to be said at all."""


def edit(
    vlm: VLM,
    source: str | WordFinding | Sequence[WordFinding],
    to: str | None,
    *,
    pictures: PictureLike | Recording | Sequence[PictureLike | Recording] = (),
    texts: Sequence[str] = (),
    keep: PictureLike | Recording | Sequence[PictureLike | Recording] = (),
    bundled: bool = True,
    method: str | Method = "least_squares",
    inflections: bool = True,
    prompt: str = PROMPT,
    prefix: str = PREFIX,
    max_new_tokens: int = 50,
    **options: object,
) -> Edit:
    """Learn an edit that makes the model say something else instead of a word.

    Args:
        vlm: the model, without edits in force.
        source: a word's finding, several findings of one word over many pictures, or a word, with ``pictures``.
        to: a word or a phrase; None so that the word is not said where it was learned from, and the model says what it
            would say without it. Of pictures like those it mostly goes, too; safer is ``method="ban"``.
        pictures: one or several, or recordings; ``"demo:pictures"`` stands for those of the package. Those whose
            captions say the word are examples of it, the others must stay as they are.
        texts: prompts without a picture, each in the checkpoint's chat template. Those whose answers say the word are
            examples of it, the others must stay as they are.
        keep: further pictures that must stay as they are. Their captions may not say the word.
        bundled: whether the pictures that come with the package must stay as they are, too, less those whose captions
            say the word.
        method: the name of a solver, see ``mmneurons.edits.methods.METHODS``, or a solver.
        inflections: whether plurals are meant, too: "dogs" → "cats" where "dog" → "cat" is asked for.
        prompt: what the model is asked of ``pictures`` and ``keep``.
        prefix: how their captions are begun.
        max_new_tokens: where they are cut.
        **options: of the solver.

    Returns:
        The edit; it is not in force. ``converged`` says whether every token that is wanted has p ≥ 0.9 at the steps
        that were learned from, ``kept_changed`` how many of the captions that must stay would change; both with the
        weights rounded to the model's dtype. A picture that is named twice is captioned, and counts, once.

    Raises:
        EditError: the word and its target are the same, one of them is empty or cannot be said, no caption says the
            word, what must stay says it, an edit is in force, or what was learned is no finite number.
        OptionError: a method or an option that there is not, or a value that an option cannot have.
        PictureError: a picture cannot be read.
        RecordingError: the model cannot be run with something added, or not be asked without a picture.
    """
    if active(vlm):
        raise EditError("An edit is in force in this model. Revert it first: edits are learned on unedited weights.")
    solver = make_method(method, options)
    findings = _findings(source)
    word = source if isinstance(source, str) else findings[0].word
    swap = Swap(word.strip(), None if to is None else to.strip(), inflections)
    check_words(vlm, swap)
    check_method(vlm, solver)
    staying = _several(keep)
    check_kept([one for one in staying if isinstance(one, Recording)], swap)
    asked = list(dict.fromkeys(_prompts(texts)))
    model = about(vlm)
    how = {"prompt": prompt, "prefix": prefix, "max_new_tokens": max_new_tokens}

    known: dict[str, Recording] = {}

    def recorded(given: Sequence[PictureLike | Recording]) -> list[Recording]:
        pictures = [one for one in given if not isinstance(one, Recording)]
        opened = {pixel_digest(image): image for one in pictures for image in _opened(one)}
        fresh = {key: image for key, image in opened.items() if key not in known}
        if fresh:
            said = record_pictures(vlm, list(fresh.values()), image_budget=0, **how)
            known.update(zip(fresh, said, strict=True))
        return [*(one for one in given if isinstance(one, Recording)), *(known[key] for key in opened)]

    answers = record_texts(vlm, asked, max_new_tokens)
    named = [*recorded(_several(pictures)), *answers]
    examples: list[tuple[Recording, Word | None]] = [(one.found.recording, _as_word(one)) for one in findings]
    examples += [(recording, None) for recording in named if says(recording, swap)]
    if not examples:
        raise EditError(_nothing_says(swap, prefix, named))
    others = [recording for recording in named if not says(recording, swap)]
    others += recorded(staying)
    check_kept(others, swap)
    if bundled:
        others += [one for one in recorded([NAME]) if not says(one, swap)]
    kept = list({_told(one): one for one in others}.values())
    task = make_task(vlm, swap, examples, kept)
    solution = _solved(solver, task)
    first = [recording for recording, _ in examples]
    for _ in range(AGAIN if to is None and solution.deltas else 0):
        more = said_still(vlm, Edit(solution.deltas, {}, model), swap, first, max_new_tokens)
        if not more:
            break
        examples += [(recording, None) for recording in more]
        task = make_task(vlm, swap, examples, kept)
        solution = _solved(solver, task)
    own = {id(one) for one in (*known.values(), *answers)}
    given = [one for one in (*first, *others) if id(one) not in own]
    recipe = {
        **described(task),
        "method": name_of(solver),
        "options": dict(solution.options),
        **(how if all(one.request.text == write_prompt(vlm, prompt, prefix) for one in given) else {}),
        "captions": [recording.caption for recording in first],
        TEXTS: asked,
        SEEN: sorted({*known, *map(picture_of, given)}),
        "versions": versions(),
    }
    measured = {KEPT: asdict(changed_captions(task, solution))}
    return Edit(solution.deltas, recipe, model, measured, converged(task, solution), solution.banned)


def _solved(solver: Method, task: Task) -> Solution:
    solution = solver(task)
    if not all(bool(delta.vectors.isfinite().all()) for delta in solution.deltas):
        raise EditError("What was learned holds NaN or infinity. Choose smaller options: factor, margin, or rate.")
    return solution


def _findings(source: str | WordFinding | Sequence[WordFinding]) -> list[WordFinding]:
    if isinstance(source, str):
        return []
    findings = [source] if isinstance(source, WordFinding) else list(source)
    if not findings or not all(isinstance(one, WordFinding) for one in findings):
        raise EditError("The source of an edit is a word, the finding of a word (found['dog']), or a list of findings.")
    words = {one.word for one in findings}
    if len(words) > 1:
        raise EditError(f"These are findings of several words: {', '.join(sorted(words))}. An edit changes one.")
    return findings


def _as_word(one: WordFinding) -> Word:
    return Word(one.word, one.found.caption[slice(*one.span)], *one.span, one.steps)


_Pictures: TypeAlias = "PictureLike | Recording | Sequence[PictureLike | Recording]"


def _several(given: _Pictures) -> list[PictureLike | Recording]:
    """One picture or recording, or several."""
    if isinstance(given, str | os.PathLike | Image.Image | np.ndarray | Recording):
        return [given]
    if not isinstance(given, Iterable):
        raise PictureError(
            f"Pictures are a path, a PIL image, an array, or a list of them, not a {type(given).__name__}."
        )
    return list(given)


def _prompts(given: Sequence[str]) -> Sequence[str]:
    if isinstance(given, str) or not all(isinstance(one, str) for one in given):
        raise OptionError("texts is a list of prompts, each a text.")
    return given


def _opened(picture: PictureLike) -> list[Image.Image]:
    """A picture, or what a name of bundled ones stands for."""
    if isinstance(picture, str) and BUNDLED.claims(picture):
        return [decode_picture(item.read(), item.source) for item in gather([picture])]
    return [open_picture(picture)]


def _told(recording: Recording) -> str:
    """The same for recordings of one picture that was asked the same and said to be the same."""
    digest = hashlib.sha256(f"{recording.token_ids.tolist()}".encode())
    for name, value in sorted(recording.inputs.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _nothing_says(swap: Swap, prefix: str, named: Sequence[Recording]) -> str:
    word = swap.source
    said = f" They say: {named[0].caption!r}, …" if named else ""
    if any(says(one, Swap(word, None)) for one in named):
        own = "inside what is to be said instead" if swap.inflections else "in another form, which is not meant"
        return f"No picture's caption says {word!r} but {own}.{said} There is nothing to change."
    if stands_in(prefix, 0, word):
        return (
            f"No picture's caption says {word!r} but in the prefix {prefix!r}, with which captions are begun: the "
            f"model does not say that itself.{said} Choose a word that it says, or another prefix."
        )
    return (
        f"No picture's caption says {word!r}.{said} Pass pictures=[…] whose captions say it, or the finding of the "
        f"word: mmn.find(vlm, picture)[{word!r}]."
    )
