"""What came of having less said of what is not there, for a person to sign off and for machines to read."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from mmneurons.edits.edit import Edit
from mmneurons.mitigation.hallucination import Grounded, Lesson
from mmneurons.reports.mitigation import (
    ADAPTER,
    EDIT,
    FIGURES,
    SIGNATURE,
    SUMMARY,
    Written,
    changes_table,
    check_folder,
    how_to_use,
)
from mmneurons.reports.texts import cell, plain
from mmneurons.vlm.model import VLM
from mmneurons.whole_files import write_whole

__all__ = ["lesson_lines", "write_grounding"]

SHOWN = 30
"""How many words and captions are shown."""


def lesson_lines(lesson: Lesson, held: int) -> list[str]:
    """What was found before anything is learned, for a terminal."""
    wrong = [word for word in lesson.words if word.false]
    count = sum(word.false + word.true for word in lesson.words)
    lines = [
        f"{lesson.captions} pictures to learn from, {held} to measure on.",
        f"{lesson.false} of {count} mentions are of things that are not there. Most often",
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
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = adapter = None
    if not proof.refusal:
        path = folder / EDIT
        edit.save(path)
        if peft:
            adapter = edit.to_peft(folder / ADAPTER, vlm)
    kept = {
        "made by": made_by,
        "model": dict(edit.model),
        "recipe": dict(edit.recipe),
        "words": [asdict(word) for word in lesson.words],
        "figures": {one.name: one.as_json() for one in proof.figures},
        "changed": [asdict(change) for change in proof.changes],
        "refusal": proof.refusal,
    }
    write_whole(folder / FIGURES, (json.dumps(kept, indent=1, ensure_ascii=False) + "\n").encode())
    write_whole(folder / SUMMARY, _page(vlm, edit, lesson, proof, made_by, adapter is not None).encode())
    return Written(folder / SUMMARY, path, adapter)


def _page(vlm: VLM, edit: Edit, lesson: Lesson, proof: Grounded, made_by: str, peft: bool) -> str:
    general = edit.recipe.get("general")
    unsure = f"Where the model is unsure it says {general!r} now." if general else "No general word is said."
    wrong = [word for word in lesson.words if word.false]
    lines = [
        "# Less said of what is not there",
        "",
        f"Made by `{plain(made_by)}`.",
        "",
        f"**Refused.** {proof.refusal} No edit was written." if proof.refusal else "**Can be used.**",
        "",
        f"Model {plain(vlm.name)}. Learned from {lesson.captions} pictures, measured on {proof.captions} others. "
        f"{unsure} In brackets 95 % intervals.",
        "",
        "| | | captions |",
        "|---|---|---|",
        *(f"| {cell(one.name)} | {one.estimate:.3f} | {one.captions} |" for one in proof.figures),
        "",
        f"## What was said of things that are not there, in the {lesson.captions} captions that were learned from",
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
