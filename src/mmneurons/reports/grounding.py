"""What came of having less said of what is not there, for a person to sign off and for machines to read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from mmneurons.edits.edit import QUALITY, Edit
from mmneurons.mitigation.grounded import Grounded
from mmneurons.mitigation.lesson import Lesson
from mmneurons.reports.mitigation import SIGNATURE, Written, changes_table, how_to_use, write_folder
from mmneurons.reports.texts import cell, count_of, plain
from mmneurons.vlm.model import VLM

__all__ = ["lesson_lines", "write_grounding"]

SHOWN = 30
"""How many words and captions are shown."""


def lesson_lines(lesson: Lesson, held: int) -> list[str]:
    """What was found before anything is learned, for a terminal."""
    wrong = [word for word in lesson.words if word.false]
    count = sum(word.false + word.true for word in lesson.words)
    lines = [
        f"{count_of(lesson.captions, 'picture')} to learn from, {held} to measure on.",
        f"{lesson.false} of {count} mentions are of things that are not there." + (" Most often" if wrong else ""),
    ]
    width = max((len(word.name) for word in wrong[:10]), default=0)
    return lines + [f"  {word.name:<{width}}  {word.false} wrong, {word.true} right" for word in wrong[:10]]


def write_grounding(
    folder: Path, vlm: VLM, edit: Edit, lesson: Lesson, proof: Grounded, made_by: str, peft: bool
) -> Written:
    """Write the summary, and, unless it was refused, the edit, and an adapter if asked for.

    Raises:
        RunError: the folder is a file, or holds something.
    """
    told = {
        "made by": made_by,
        "model": dict(edit.model),
        "recipe": dict(edit.recipe),
        "words": [asdict(word) for word in lesson.words],
        "figures": {one.name: one.as_json() for one in proof.figures},
        "changed": [asdict(change) for change in proof.changes],
        "refusal": proof.refusal,
    }
    page = _page(vlm, edit, lesson, proof, made_by, peft)
    proved = replace(edit, measured={**edit.measured, QUALITY: told["figures"]})
    return write_folder(folder, vlm, None if proof.refusal else proved, told, page, peft)


def _none_said(recipe: Mapping[str, object]) -> str:
    options = recipe.get("options")
    if isinstance(options, Mapping) and options.get("recall") is not None:
        return "No general word is said: in cross-validation none was said without more being lost than may be."
    return "No general word is said: none was asked for."


def _page(vlm: VLM, edit: Edit, lesson: Lesson, proof: Grounded, made_by: str, peft: bool) -> str:
    general = edit.recipe.get("general")
    unsure = f"Where the model is unsure it says {general!r} now." if general else _none_said(edit.recipe)
    wrong = [word for word in lesson.words if word.false]
    lines = [
        "# Less said of what is not there",
        "",
        f"Made by `{plain(made_by)}`.",
        "",
        f"**Refused.** {proof.refusal} No edit was written." if proof.refusal else "**Can be used.**",
        "",
        f"Model {plain(vlm.name)}. Learned from {count_of(lesson.captions, 'picture')}, measured on {proof.captions} "
        f"that it was not learned from. {unsure} In brackets 95 % intervals.",
        "",
        "| | | captions |",
        "|---|---|---|",
        *(f"| {cell(one.name)} | {one.estimate:.3f} | {one.captions} |" for one in proof.figures),
        "",
        f"## Things that are not there, named in {count_of(lesson.captions, 'caption')} that were learned from",
        "",
        "| object | wrong | right |",
        "|---|---|---|",
        *(f"| {cell(word.name)} | {word.false} | {word.true} |" for word in wrong[:SHOWN]),
        "",
        *changes_table(f"Captions that changed, {min(SHOWN, len(proof.changes))} of them", proof.changes[:SHOWN]),
    ]
    if not proof.refusal:
        lines += how_to_use(vlm.name, peft)
    return "\n".join([*lines, SIGNATURE, ""])
