"""What a mitigation came to, for a person to sign off and for machines to read."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mmneurons.edits.edit import QUALITY, Edit
from mmneurons.edits.joined import joined
from mmneurons.errors import RunError
from mmneurons.measures.figures import Figure
from mmneurons.mitigation.proof import ENOUGH, Change, Line
from mmneurons.mitigation.survey import Survey
from mmneurons.mitigation.words import Mitigation
from mmneurons.reports.out_folder import check_out_folder
from mmneurons.reports.texts import cell, count_of, plain
from mmneurons.vlm.model import VLM
from mmneurons.whole_files import write_whole

__all__ = [
    "SIGNATURE",
    "Written",
    "changes_table",
    "check_folder",
    "how_to_use",
    "survey_lines",
    "write_folder",
    "write_mitigation",
]

SUMMARY, FIGURES, EDIT, ADAPTER = "README.md", "summary.json", "edit.safetensors", "adapter"

SIGNATURE = "Signed off by: ____________________  Date: ____________"

SHOWN = 5
"""How many captions of a word are shown."""


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        summary: the page.
        edit: all edits as one file; None where they were refused.
        adapter: the same for peft, where it was asked for.
    """

    summary: Path
    edit: Path | None
    adapter: Path | None


def check_folder(folder: Path) -> None:
    """See that a mitigation can be written there. Nothing is made.

    Raises:
        RunError: it is a file, holds something, or cannot be written to.
    """
    check_out_folder(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise RunError(f"{str(folder)!r} holds files already. Choose an empty folder, or a new one, with --out.")


def survey_lines(survey: Survey) -> list[str]:
    """What was found before anything is learned, for a terminal."""
    lines = [f"{survey.pictures} pictures. Captions that say"]
    width = max(len(str(found.wish)) for found in survey.found)
    for found in survey.found:
        use = f": {len(found.learned)} to learn from, {len(found.held)} to measure" if found.count else ""
        lines.append(f"  {found.wish!s:<{width}}  {found.count:>5}{use}")
    rest = f"{len(survey.kept)} to learn from, {len(survey.others)} to measure"
    lines.append(f"Captions that say none and must stay: {rest}")
    return lines


def write_mitigation(
    folder: Path, vlm: VLM, survey: Survey, mitigation: Mitigation, made_by: str, at_least: float, peft: bool
) -> Written:
    """Write the summary, and, unless they were refused, the edits: one file, and an adapter if asked for.

    Args:
        folder: empty, or not there.
        vlm: the model, unedited.
        survey: what it said.
        mitigation: what came of it.
        made_by: the command.
        at_least: the threshold.
        peft: whether an adapter is wanted.

    Raises:
        RunError: see ``check_folder``.
    """
    proof = mitigation.proof
    told = {
        "made by": made_by,
        "model": dict(mitigation.edits[0].model),
        "pictures": survey.pictures,
        "words": [_as_json(line) for line in proof.lines],
        "elsewhere": proof.quality.as_json(),
        "changed elsewhere": [asdict(change) for change in proof.changes],
        "at least unchanged": at_least,
        "refusal": proof.refusal,
    }
    page = _page(vlm, survey, mitigation, made_by, at_least, peft)
    measured = {QUALITY: {"words": told["words"], "elsewhere": told["elsewhere"]}}
    edit = None if proof.refusal else replace(joined(mitigation.edits), measured=measured)
    return write_folder(folder, vlm, edit, told, page, peft)


def write_folder(
    folder: Path, vlm: VLM, edit: Edit | None, told: Mapping[str, object], page: str, peft: bool
) -> Written:
    """Write the figures and the page, and, unless it was refused, the edit, and an adapter if asked for.

    Args:
        folder: empty, or not there.
        vlm: the model, unedited.
        edit: None where it was refused.
        told: the figures.
        page: for people.
        peft: whether an adapter is wanted.

    Raises:
        RunError: see ``check_folder``.
    """
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # the page says that an edit can be used, so the edit is there first
    if edit is not None:
        edit.save(folder / EDIT)
    write_whole(folder / FIGURES, (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode())
    write_whole(folder / SUMMARY, page.encode())
    # last, since peft cannot hold an edit of every model: what was measured is there then
    adapter = edit.to_peft(folder / ADAPTER, vlm) if edit is not None and peft else None
    return Written(folder / SUMMARY, None if edit is None else folder / EDIT, adapter)


def _as_json(line: Line) -> Mapping[str, object]:
    figures = {one.name: one.as_json() for one in (line.reliability, line.generality) if one is not None}
    return {
        "word": line.wish.word,
        "to": line.wish.to,
        "captions": line.count,
        "learned from": line.learned,
        **figures,
        "changes": [asdict(change) for change in line.changes],
        "changes learned from": [asdict(change) for change in line.changes_learned],
        "note": line.note,
    }


def _page(vlm: VLM, survey: Survey, mitigation: Mitigation, made_by: str, at_least: float, peft: bool) -> str:
    proof = mitigation.proof
    lines = ["# Words that are not to be said", "", f"Made by `{plain(made_by)}`.", ""]
    verdict = f"**Refused.** {proof.refusal} No edit was written." if proof.refusal else "**Can be used.**"
    if not proof.refusal and len(survey.others) < ENOUGH:
        verdict = f"**Can be used, as far as {len(survey.others)} captions can tell.** More pictures tell more."
    edits = count_of(len(mitigation.edits), "edit")
    lines += [
        verdict,
        "",
        f"Model {plain(vlm.name)}, {survey.pictures} pictures, {edits} in force together. All was "
        "measured on captions that nothing was learned from, but for the column that says so. In brackets 95 % "
        "intervals.",
        "",
        "| word | instead | captions that said it | learned from | met there | held out | met there | |",
        "|---|---|---|---|---|---|---|---|",
        *(_row(line) for line in proof.lines),
        "",
        "Met: no form of the word is said any more, and what is to be said instead is said.",
        "",
        f"## What stays, over {len(survey.others)} captions that say none of the words",
        "",
        "| | | captions |",
        "|---|---|---|",
        *(f"| {one.name} | {one.estimate:.3f} | {one.captions} |" for one in proof.quality.figures if one.captions),
        "",
        f"At least {at_least:.0%} have to be unchanged word for word. A caption that says what is to be said instead "
        "is no test of what stays, and not counted.",
        "",
    ]
    lines += changes_table("Changed captions that should have stayed", proof.changes)
    for line in proof.lines:
        lines += changes_table(f"{line.wish}", line.changes[:SHOWN])
        if not line.changes:
            lines += changes_table(f"{line.wish}, captions that were learned from", line.changes_learned[:SHOWN])
    if not proof.refusal:
        lines += how_to_use(vlm.name, peft, not any(edit.deltas for edit in mitigation.edits))
    return "\n".join([*lines, SIGNATURE, ""])


def how_to_use(model: str, peft: bool, banned: bool = False) -> list[str]:
    """What to do with what was written.

    Args:
        model: its name.
        peft: whether there is an adapter.
        banned: whether nothing but a ban was written, of which no checkpoint can be made.
    """
    own = "" if model == "demo" else f" --model {shlex.quote(plain(model))}"
    whole = "" if banned else f", and `mmn export {EDIT} --checkpoint FOLDER{own}` writes the whole model"
    return [
        "## To use it",
        "",
        f"`mmn apply {EDIT} PICTURES{own}` tries it, `mmn.Edit.load({EDIT!r}).apply(vlm)` puts it into a model{whole}."
        + (f" `{ADAPTER}/` is the same for peft." if peft else ""),
        "",
    ]


def _row(line: Line) -> str:
    instead = "what it would say otherwise" if line.wish.to is None else cell(line.wish.to)
    held = line.generality.captions if line.generality else 0
    cells = [cell(line.wish.word), instead, str(line.count), str(line.learned), _share(line.reliability)]
    return "| " + " | ".join([*cells, str(held), _share(line.generality), cell(line.note)]) + " |"


def _share(one: Figure | None) -> str:
    return "" if one is None else f"{one.estimate:.2f}"


def changes_table(title: str, changes: Sequence[Change]) -> list[str]:
    """Captions before and after, under a title; nothing where none changed."""
    if not changes:
        return []
    rows = [f"| {cell(one.name)} | {cell(one.before)} | {cell(one.after)} |" for one in changes]
    return [f"## {plain(title)}", "", "| picture | before | after |", "|---|---|---|", *rows, ""]
