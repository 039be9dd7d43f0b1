"""``mmn measure --edit``: whether an edit does what was asked for, elsewhere too, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmneurons.cli.common import INTERRUPTED, asked_as_learned, model_of
from mmneurons.cli.output import Output

if TYPE_CHECKING:
    from mmneurons.engines.proving import Column
    from mmneurons.measures.hallucination import Question
    from mmneurons.measures.objects import Vocabulary
    from mmneurons.measures.truth import Truth
    from mmneurons.recordings import CaptionOptions
    from mmneurons.vlm.model import VLM

__all__ = ["EditRequest", "Edits", "HopFile", "Kept", "Learned", "Rivals", "check_edit_options", "measure_edits"]

EDITS = "Edits"

Edits = Annotated[
    list[Path] | None,
    typer.Option(
        "--edit",
        help="A file of mmn edit, whose proof is to be measured; again for more, which are in force together.",
        rich_help_panel=EDITS,
    ),
]
Learned = Annotated[
    list[str] | None,
    typer.Option("--learned", help="Pictures that it was learned from, again for more.", rich_help_panel=EDITS),
]
Kept = Annotated[
    list[str] | None,
    typer.Option(
        "--keep",
        help="Pictures that it was to leave as they are, for --rivals; again for more. Default: the bundled ones.",
        rich_help_panel=EDITS,
    ),
]
HopFile = Annotated[
    Path | None,
    typer.Option(
        "--hops", help="Questions whose answers follow from it, JSON: file, prompt, answer.", rich_help_panel=EDITS
    ),
]
Rivals = Annotated[
    bool,
    typer.Option(
        "--rivals", help="Every other method learns the same from --learned, and is measured.", rich_help_panel=EDITS
    ),
]


@dataclass(frozen=True)
class EditRequest:
    """What was said of edits.

    Attributes:
        edits: their files.
        learned: pictures that they were learned from.
        kept: pictures that they were to leave as they are.
        hops: the file of questions.
        rivals: whether other methods are measured, too.
    """

    edits: Sequence[Path]
    learned: Sequence[str]
    kept: Sequence[str]
    hops: Path | None
    rivals: bool


def check_edit_options(
    asked: EditRequest, pictures: object, measures: Sequence[str], elsewhere: Mapping[str, object]
) -> bool:
    """Whether edits are to be measured.

    Args:
        asked: what was said of edits.
        pictures: what was named to try them on.
        measures: the measures that were named.
        elsewhere: options that mean nothing to edits, as they were said.

    Raises:
        OptionError: options do not go together.
    """
    from mmneurons.errors import OptionError

    if not asked.edits:
        if asked.learned or asked.kept or asked.hops is not None or asked.rivals:
            raise OptionError("--learned, --keep, --hops and --rivals are for edits. Pass --edit FILE, too.")
        return False
    if wrong := [name for name, value in elsewhere.items() if value]:
        raise OptionError(f"{wrong[0]} is for finders, and means nothing beside --edit. Leave it out.")
    if wrong := [one for one in measures if one not in ("pope", "hallucination")]:
        raise OptionError(f"--measures {wrong[0]} is for finders. Beside --edit there is: pope; the rest is measured.")
    if not pictures:
        raise OptionError("Name pictures to try the edit on, that it has not seen: files, a folder, or annotations.")
    if asked.rivals and (len(asked.edits) > 1 or not asked.learned):
        raise OptionError("--rivals is for one --edit, and needs --learned IMAGES for the rivals to learn from.")
    if asked.kept and not asked.rivals:
        raise OptionError("--keep is what rivals are to leave as it is. Pass --rivals, too, or leave it out.")
    return True


def measure_edits(
    output: Output,
    asked: EditRequest,
    inputs: Sequence[str],
    out: Path,
    load: Callable[[str], VLM],
    *,
    model: str,
    truths: Mapping[str, Truth] | None,
    known: Vocabulary | None,
    questions: Sequence[Question],
    images: str | Path | None,
    column: str | None,
    limit: int | None,
    sample: int | None,
    seed: int,
    how: CaptionOptions,
) -> None:
    """Measure edits, and write the folder."""
    from mmneurons.edits.edit import Edit
    from mmneurons.engines.proving import Tried, prove, read_pictures
    from mmneurons.errors import EditError
    from mmneurons.measures.hops import read_hops
    from mmneurons.nouns import nouns
    from mmneurons.reports.proof import check_finished, check_proof_folder, write_proof
    from mmneurons.reports.texts import count_of
    from mmneurons.reports.unfinished_proof import UNFINISHED, key_of, read_unfinished, write_unfinished
    from mmneurons.sources import gather

    if known is not None:
        nouns("a dog")  # where there is no pipeline, that shows now
    edits = [Edit.load(path) for path in asked.edits]
    for path, edit in zip(asked.edits, edits, strict=True):
        if not isinstance(edit.recipe.get("source"), str):
            raise EditError(
                f"{str(path)!r} changes no single word, and mmn measure --edit judges by one. What it does stands in "
                "the README.md beside it; mmn apply shows it on other pictures."
            )
    check_proof_folder(out, edits)
    tried = Tried(
        pictures=read_pictures(
            gather(list(inputs), images=images, column=column, limit=limit, sample=sample, seed=seed), output.skipped
        ),
        learned=read_pictures(gather(list(asked.learned)), output.skipped) if asked.learned else (),
        kept=read_pictures(gather(list(asked.kept)), output.skipped) if asked.kept else (),
        truths=truths or {},
        known=known,
        hops=read_hops(asked.hops) if asked.hops is not None else (),
        questions=questions,
        **asked_as_learned(edits[0], how),
    )
    vlm = load(model_of(edits[0], None if model == "demo" else model))
    output.note(repr(vlm))
    key = key_of(vlm, edits, tried)
    check_finished(out, key)
    done = read_unfinished(out, key)
    if not done and (out / UNFINISHED).exists():
        output.note(f"What {str(out / UNFINISHED)!r} holds was measured otherwise, and is measured anew.")
    columns = dict(done)

    def keep(found: Mapping[str, Column]) -> None:
        write_unfinished(out, key, edits, found)
        columns.update(found)

    try:
        proof = prove(vlm, edits, tried, asked.rivals, output.note, done, keep)
    except KeyboardInterrupt:
        kept = f"{count_of(len(columns), 'column')} of the table {'is' if len(columns) == 1 else 'are'} measured"
        output.result(
            f"Stopped. {kept}; the same command goes on." if columns else "Stopped. Nothing was written.",
            event="stopped",
            folder=str(out),
            columns=[*columns],
        )
        raise typer.Exit(INTERRUPTED) from None
    page = write_proof(out, proof, key)
    for note in proof.notes:
        output.note(note)
    for name, quality in proof.columns.items():
        output.result(f"{name}\n{quality!r}\n", event="quality", column=name, figures=quality.as_json())
    output.result(str(page), event="done", page=str(page))
