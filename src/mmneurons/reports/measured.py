"""The page of what was measured: what holds, tables with controls and intervals, figures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import polars

from mmneurons.engines.measured_folder import Measured
from mmneurons.errors import RunError
from mmneurons.measures.hallucination import Mentions, mentions
from mmneurons.measures.objects import Vocabulary
from mmneurons.measures.suites import RANDOM, Suite
from mmneurons.measures.summary import (
    Observed,
    across,
    claims,
    finders_of,
    hallucination_table,
    pope_table,
    tables,
)
from mmneurons.measures.tables import Table
from mmneurons.measures.truth import Truth
from mmneurons.reports.measured_figures import draw_figures
from mmneurons.reports.measured_notes import claims_asked, never_said, notes
from mmneurons.reports.texts import count_of, file_name, visible
from mmneurons.vlm.inputs import PREFIX, PROMPT

__all__ = ["write_page"]


def write_page(
    measured: Measured,
    plan: Suite,
    truths: Mapping[str, Truth] | None,
    known: Vocabulary | None,
    draws: int = 2000,
    *,
    command: str | None = None,
    truth_files: Sequence[str] = (),
) -> Path:
    """Write tables (Markdown and Parquet), figures (SVG and PNG), and ``README.md`` that shows all of them.

    Args:
        measured: the folder.
        plan: what was measured.
        truths: what the pictures show, for hallucinations.
        known: the objects that captions may name.
        draws: of the bootstrap.
        command: what made it, as somebody typed it.
        truth_files: the names of the truth's files, likewise.

    Returns:
        The page.

    Raises:
        RunError: no word was measured, or a part of the folder cannot be read.
    """
    observed = _observed(measured, plan, draws)
    shown = list(tables(observed))
    pictures = measured.table("pictures")
    # folders of before hold copies of a picture as often as it was named
    captioned = pictures.drop_nulls("caption").unique("image_id", keep="first", maintain_order=True)
    if "hallucination" in plan.names and truths and known is not None:
        said = _mentions(captioned, truths, known)
        if said:
            shown.append(hallucination_table(said, known, captioned.height, draws, observed.seed))
    if "pope" in plan.names and not (answers := measured.table("answers")).is_empty():
        shown.append(pope_table(answers, draws, observed.seed))
    more = list(notes(measured, observed, plan, pictures, truths, known))
    made = _made(measured, command, truth_files)
    for table in shown:
        _write_table(measured.path / "tables", table)
    drawn = draw_figures(observed, shown, measured.path / "figures")
    text = _page(measured, observed, [*made, *_summary(measured, observed, captioned.height), *more], shown, drawn)
    page = measured.path / "README.md"
    page.write_text(text, encoding="utf-8")
    return page


def _observed(measured: Measured, plan: Suite, draws: int) -> Observed:
    once = {"observed": ["word_id", "finder", "quantity", "k"], "words": ["word_id"], "tops": ["word_id", "finder"]}
    # folders of before hold the words of a picture's copies, too
    values, words, tops = (
        measured.table(name).unique(keys, keep="first", maintain_order=True) for name, keys in once.items()
    )
    if words.is_empty():
        errors = measured.table("pictures")["error"].drop_nulls().to_list()
        why = "No caption has a noun."
        if missing := never_said(measured):
            why = f"No caption says {', '.join(map(repr, missing))}. Ask for other words; this folder can be used."
        elif errors:
            why = f"The first error: {errors[0]}"
        count = count_of(measured.table("pictures").height, "picture")
        raise RunError(f"No word of {count} could be measured. {why}")
    meanings = {name: text for one in plan.measures for name, text in one.quantities.items()}
    about = measured.about["model"]
    assert isinstance(about, Mapping)
    observed = Observed(
        values=values,
        tops=tops,
        words=words,
        finders=finders_of(values, list(plan.finders)),
        meanings=meanings,
        neurons=int(about["blocks"]) * int(about["width"]),
        blocks=int(about["blocks"]),
        draws=draws,
    )
    if "across" in plan.names:
        more = across(observed)
        observed = replace(observed, values=polars.concat([values, more]))
    return observed


def _mentions(pictures: polars.DataFrame, truths: Mapping[str, Truth], known: Vocabulary) -> dict[str, Mentions]:
    said = {}
    for source, caption in pictures.select("source", "caption").iter_rows():
        truth = truths.get(Path(source).name)
        if caption is not None and truth is not None:
            said[source] = mentions(caption, truth, known)
    return said


def _write_table(folder: Path, table: Table) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / f"{table.name}.md", table.markdown().encode())
    waiting = folder / f".{table.name}.parquet"
    table.frame().write_parquet(waiting)
    waiting.rename(folder / f"{table.name}.parquet")


def _replace(file: Path, content: bytes) -> None:
    waiting = file.with_name(f".{file.name}")
    waiting.write_bytes(content)
    os.replace(waiting, file)


def _made(measured: Measured, command: str | None, truth_files: Sequence[str]) -> list[str]:
    """How this came about."""
    options = measured.about["options"]
    assert isinstance(options, Mapping)
    asked, begun = options.get("prompt", PROMPT), options.get("prefix", PREFIX)
    how = f'The model was asked "{visible(asked)}", and its answers begin with "{visible(begun)}".'
    if truth_files:
        how += f" What the pictures show is said by {', '.join(truth_files)}."
    return [*([] if command is None else [f"Made by `{command}`."]), how]


def _summary(measured: Measured, observed: Observed, captioned: int) -> list[str]:
    model, options = measured.about["model"], measured.about["options"]
    assert isinstance(model, Mapping)
    assert isinstance(options, Mapping)
    concepts = observed.words.group_by("word").agg(polars.col("image_id").n_unique().alias("pictures"))
    shared = concepts.filter(polars.col("pictures") >= 3).height
    counted = f"{count_of(observed.words.height, 'word')} of {count_of(captioned, 'picture')}"
    return [
        f"{counted}; {count_of(shared, 'different word')} said of three pictures or more. {model['class']}, "
        f"{model['blocks']} blocks of {model['width']} neurons, {model['dtype']}. In brackets 95 % intervals, "
        f"bootstrap over pictures, {observed.draws} draws; seed {options['seed']}. "
        f"`{RANDOM}` is as many neurons drawn by chance."
    ]


def _page(
    measured: Measured,
    observed: Observed,
    told: Sequence[str],
    shown: Sequence[Table],
    drawn: Sequence[tuple[str, str]],
) -> str:
    model = measured.about["model"]
    assert isinstance(model, Mapping)
    name = str(model["name"])
    lines = [f"# What the neurons of {file_name(name) if Path(name).is_absolute() else name} do", ""]
    for one in told:
        lines += [one, ""]
    lines += ["## What holds", ""]
    if held := list(claims(observed)):
        lines += ["| claim | difference | words | verdict |", "|---|---|---|---|"]
        for one in held:
            count = one.count if one.over == "words" else f"{one.count} {one.over}"
            lines += [f"| {one.text} | {one.difference:.3g} | {count} | {one.verdict} |"]
        lines += [""]
    lines += [claims_asked(observed), ""]
    for name, title in drawn:
        lines += [f"![{title}](figures/{name}.svg)", ""]
    lines += ["## Tables", ""]
    for table in shown:
        lines += [table.markdown()]
    return "\n".join(lines)
