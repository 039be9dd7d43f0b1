"""The page of what was measured: what holds, tables with controls and intervals, figures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import polars

from mmneurons.engines.measuring import Measured
from mmneurons.errors import ExtraMissingError, RunError
from mmneurons.measures.hallucination import Mentions, mentions
from mmneurons.measures.objects import Vocabulary
from mmneurons.measures.suites import BASELINE, RANDOM, Suite
from mmneurons.measures.summary import (
    Claim,
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

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

__all__ = ["write_page"]

SHOWN = (
    BASELINE,
    "contribution, raw",
    "paper (gate, no norm)",
    "total",
    "greedy",
    "integrated gradients, 4 steps",
    "activation",
    RANDOM,
)
"""The lines of figures; a line for every finder could not be read."""


def write_page(
    measured: Measured, plan: Suite, truths: Mapping[str, Truth] | None, known: Vocabulary | None, draws: int = 2000
) -> Path:
    """Write tables (Markdown and Parquet), figures (SVG and PNG), and ``README.md`` that shows all of them.

    Args:
        measured: the folder.
        plan: what was measured.
        truths: what the pictures show, for hallucinations.
        known: the objects that captions may name.
        draws: of the bootstrap.

    Returns:
        The page.

    Raises:
        RunError: no word was measured.
    """
    observed = _observed(measured, plan, draws)
    shown = list(tables(observed))
    pictures = measured.table("pictures")
    if "hallucination" in plan.names and truths and known is not None:
        said = _mentions(pictures, truths, known)
        if said:
            shown.append(hallucination_table(said, draws, observed.seed))
    if "pope" in plan.names and not (answers := measured.table("answers")).is_empty():
        shown.append(pope_table(answers, draws, observed.seed))
    for table in shown:
        _write_table(measured.path / "tables", table)
    drawn = _figures(observed, shown, measured.path / "figures")
    text = _page(measured, observed, pictures, list(claims(observed)), shown, drawn)
    page = measured.path / "README.md"
    page.write_text(text, encoding="utf-8")
    return page


def _observed(measured: Measured, plan: Suite, draws: int) -> Observed:
    values, words = measured.table("observed"), measured.table("words")
    if words.is_empty():
        errors = measured.table("pictures")["error"].drop_nulls().to_list()
        why = f" The first error: {errors[0]}" if errors else " No caption has a word that was asked for."
        raise RunError(f"No word of {measured.table('pictures').height} pictures could be measured.{why}")
    meanings = {name: text for one in plan.measures for name, text in one.quantities.items()}
    about = measured.about["model"]
    assert isinstance(about, Mapping)
    observed = Observed(
        values=values,
        tops=measured.table("tops"),
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


def _page(
    measured: Measured,
    observed: Observed,
    pictures: polars.DataFrame,
    held: Sequence[Claim],
    shown: Sequence[Table],
    drawn: Sequence[tuple[str, str]],
) -> str:
    about = measured.about
    model, options = about["model"], about["options"]
    assert isinstance(model, Mapping)
    assert isinstance(options, Mapping)
    failed = pictures["error"].drop_nulls()
    concepts = observed.words.group_by("word").agg(polars.col("image_id").n_unique().alias("pictures"))
    shared = concepts.filter(polars.col("pictures") >= 3).height
    lines = [
        f"# What the neurons of {model['name']} do",
        "",
        f"{observed.words.height} words of {pictures.height - len(failed)} pictures, {shared} of them said of three "
        f"pictures or more. {model['class']}, {model['blocks']} blocks of {model['width']} neurons, {model['dtype']}. "
        f"In brackets 95 % intervals, bootstrap over pictures, {observed.draws} draws; seed {options['seed']}. "
        f"`{RANDOM}` is as many neurons drawn by chance.",
        "",
    ]
    if len(failed):
        lines += [f"{len(failed)} pictures failed; the first: {failed[0]}", ""]
    if held:
        lines += ["## What holds", "", "| claim | difference | words | verdict |", "|---|---|---|---|"]
        lines += [f"| {one.text} | {one.difference:.3g} | {one.words} | {one.verdict} |" for one in held]
        lines += [""]
    for name, title in drawn:
        lines += [f"![{title}](figures/{name}.svg)", ""]
    lines += ["## Tables", ""]
    for table in shown:
        lines += [table.markdown()]
    return "\n".join(lines)


def _figures(observed: Observed, shown: Sequence[Table], folder: Path) -> list[tuple[str, str]]:
    """Draw what there is to draw; the names and titles of the figures."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ExtraMissingError("Figures need matplotlib: pip install 'mmneurons[report]'.") from error
    known = {table.name: table for table in shown}
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, title, across_axis in (
        ("fall", "Fall of log p(word), top k at zero (nats)", "neurons at zero"),
        ("relative-fall", "The same, relative to the runners-up (nats)", "neurons at zero"),
        ("region-overlap", "Top k found again with shuffled image tokens", "k"),
    ):
        if name in known:
            figure = Figure(figsize=(7, 4.2), layout="constrained")
            _curve(figure.subplots(), known[name], title, across_axis)
            _save(figure, folder / name)
            drawn.append((name, title))
    if "finders" in known:
        figure = Figure(figsize=(7, 4.6), layout="constrained")
        _cost(figure.subplots(), known["finders"])
        _save(figure, folder / "cost")
        drawn.append(("cost", "Effect against time"))
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    _layers(figure.subplots(), observed)
    _save(figure, folder / "layers")
    drawn.append(("layers", "Where the first neurons lie"))
    return drawn


def _save(figure: matplotlib.figure.Figure, path: Path) -> None:
    import matplotlib

    # the same numbers give the same file
    with matplotlib.rc_context({"svg.hashsalt": "mmneurons"}):
        for kind in ("svg", "png"):
            waiting = path.with_name(f".{path.name}.{kind}")
            # a date would make every file another one
            figure.savefig(waiting, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else {})
            waiting.rename(path.with_suffix(f".{kind}"))


def _curve(axes: matplotlib.axes.Axes, table: Table, title: str, label: str) -> None:
    for finder in [one for one in SHOWN if one in table.rows] or table.rows[:8]:
        own = [cell for cell in table.cells if cell.row == finder]
        ks = [int(cell.column.removeprefix("k = ")) for cell in own]
        axes.plot(ks, [cell.estimate.value for cell in own], marker="o", markersize=3, label=finder)
        axes.fill_between(ks, [cell.estimate.low for cell in own], [cell.estimate.high for cell in own], alpha=0.12)
    axes.set_xscale("log")
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(label)
    axes.legend(fontsize=7, frameon=False)


def _cost(axes: matplotlib.axes.Axes, table: Table) -> None:
    for finder in table.rows:
        own = {cell.column: cell.estimate for cell in table.cells if cell.row == finder}
        seconds, effect = own["seconds a word"].value, own["relative fall, median"]
        axes.errorbar(
            [max(seconds, 1e-4)],
            [effect.value],
            yerr=[[effect.value - effect.low], [effect.high - effect.value]],
            marker="o",
            markersize=4,
        )
        axes.annotate(finder, (max(seconds, 1e-4), effect.value), fontsize=6, xytext=(4, 3), textcoords="offset points")
    axes.set_xscale("log")
    axes.set_xlabel("seconds a word")
    axes.set_title("Relative fall without the 20 first neurons (median, nats) against time", fontsize=10)


def _layers(axes: matplotlib.axes.Axes, observed: Observed) -> None:
    blocks = observed.blocks
    width = observed.neurons // blocks
    for finder in [one for one in SHOWN if one in observed.finders]:
        tops = observed.tops.filter(polars.col("finder") == finder)["neurons"].to_list()
        places = [neuron // width for own in tops for neuron in own[:20]]
        shares = [places.count(block) / max(len(places), 1) for block in range(blocks)]
        axes.plot(range(blocks), shares, marker="o", markersize=2, label=finder)
    axes.set_xlabel("block")
    axes.set_title("Share of the 20 first neurons in each block", fontsize=10)
    axes.legend(fontsize=7, frameon=False)
