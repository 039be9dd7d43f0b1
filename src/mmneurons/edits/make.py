"""``mmn.edit``: from a word and what is to be said instead to an edit."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

from mmneurons.edits.edit import Edit
from mmneurons.edits.methods import Method, make_method
from mmneurons.edits.solution import converged
from mmneurons.edits.stack import active, base_fingerprint
from mmneurons.edits.task import Swap, check_words, described, make_task, says
from mmneurons.errors import EditError
from mmneurons.finding import WordFinding
from mmneurons.recordings import record_pictures
from mmneurons.vlm.inputs import PREFIX, PROMPT
from mmneurons.vlm.model import VLM
from mmneurons.vlm.pictures import PictureLike, open_picture
from mmneurons.vlm.recording import Recording
from mmneurons.words import Word

__all__ = ["edit"]


def edit(
    vlm: VLM,
    source: str | WordFinding | Sequence[WordFinding],
    to: str | None,
    *,
    pictures: Sequence[PictureLike] = (),
    keep: Sequence[PictureLike | Recording] | None = None,
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
        to: a word or a phrase; None so that the word is not said at all, and the model says what it would say without
            it.
        pictures: pictures; those whose captions say the word are examples of it, the others must stay as they are.
        keep: pictures, or recordings, that must stay as they are. Their captions may not say the word. By default the
            pictures that come with the package, less those whose captions say it.
        method: the name of a solver, see ``mmneurons.edits.methods.METHODS``, or a solver.
        inflections: whether plurals are meant, too: "dogs" → "cats" where "dog" → "cat" is asked for.
        prompt: what the model is asked of ``pictures`` and ``keep``.
        prefix: how their captions are begun.
        max_new_tokens: where they are cut.
        **options: of the solver.

    Returns:
        The edit; it is not in force. ``converged`` says whether every token that is wanted has p ≥ 0.9 at the steps
        that were learned from, with the weights rounded to the model's dtype.

    Raises:
        EditError: the word and its target are the same, one of them is empty or cannot be said, no caption says the
            word, what must stay says it, or an edit is in force.
        OptionError: a method or an option that there is not.
    """
    if active(vlm):
        raise EditError("An edit is in force in this model. Revert it first: edits are learned on unedited weights.")
    solver = make_method(method, options)
    findings = _findings(source)
    word = source if isinstance(source, str) else findings[0].word
    swap = Swap(word.strip(), None if to is None else to.strip(), inflections)
    check_words(vlm, swap)
    how = {"prompt": prompt, "prefix": prefix, "max_new_tokens": max_new_tokens}

    def recorded(images: Sequence[PictureLike]) -> list[Recording]:
        opened = [open_picture(image) for image in images]
        return record_pictures(vlm, opened, image_budget=0, **how) if opened else []

    named = recorded(pictures)
    examples: list[tuple[Recording, Word | None]] = [(one.found.recording, _as_word(one)) for one in findings]
    examples += [(recording, None) for recording in named if says(recording, swap.source)]
    if not examples:
        said = f" They say: {named[0].caption!r}, …" if named else ""
        raise EditError(
            f"No picture's caption says {swap.source!r}.{said} Pass pictures=[…] whose captions say it, or the finding "
            f"of the word: mmn.find(vlm, picture)[{swap.source!r}]."
        )
    others = [recording for recording in named if not says(recording, swap.source)]
    if keep is None:
        others += [one for one in recorded(_bundled()) if not says(one, swap.source)]
    else:
        others += [one for one in keep if isinstance(one, Recording)]
        others += recorded([one for one in keep if not isinstance(one, Recording)])
    task = make_task(vlm, swap, examples, others)
    solution = solver(task)
    recipe = {
        **described(task),
        "method": method if isinstance(method, str) else type(method).__name__,
        "options": dict(solution.options),
        "prompt": prompt,
        "prefix": prefix,
        "captions": [recording.caption for recording, _ in examples],
        "versions": {name: version(name) for name in ("mmneurons", "torch", "transformers")},
    }
    about = {"name": vlm.name, "class": type(vlm.model).__name__, "fingerprint": base_fingerprint(vlm)}
    return Edit(solution.deltas, recipe, about, {}, converged(task, solution), solution.banned)


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


def _bundled() -> list[PictureLike]:
    from mmneurons.demo import pictures

    return [picture.path for picture in pictures()]
