"""``mmn demo``: the bundled model on bundled pictures: find, show, report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmneurons.cli.common import AsJson, Quiet, load_model
from mmneurons.cli.output import Output

if TYPE_CHECKING:
    from mmneurons.demo import Picture

__all__ = ["EXAMPLES", "command"]

EXAMPLES = """Examples:

    mmn demo

    mmn demo --limit 0 --out everything"""


def command(
    out: Annotated[Path, typer.Option("--out", help="The folder for the run, the report and a picture.")] = Path(
        "demo-output"
    ),
    limit: Annotated[int, typer.Option("--limit", help="How many of the bundled pictures; 0 for all.")] = 12,
    neurons: Annotated[int, typer.Option("--neurons", help="How many neurons of a word are printed.")] = 3,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Find the neurons behind the words of bundled pictures with a small model, print them, and write a report."""
    from mmneurons.demo import pictures
    from mmneurons.engines.local import run
    from mmneurons.options import check_whole
    from mmneurons.reports.html import write_report
    from mmneurons.reports.sheet import write_sheet
    from mmneurons.runs.printing import pages

    check_whole("--neurons", neurons)
    check_whole("--limit", limit, 0)
    output = Output(as_json, quiet)
    started = time.perf_counter()
    vlm = load_model("demo", None, None, None, False, False)
    output.note(f"{vlm!r}\nloaded in {time.perf_counter() - started:.1f} s")
    chosen = spread(pictures(), limit)
    truth = {f"demo:pictures/{picture.path.name}": picture.objects for picture in chosen}
    with output.progress() as tell:
        found = run(vlm, list(truth), out / "run", progress=tell)
    for page in pages(found, neurons=neurons):
        shows = ", ".join(truth.get(page.source, ()))
        output.result(f"{page}\n  (the picture shows: {shows})\n", **page.to_dict(), shows=shows)
    sheet = write_sheet(found, out / "where-they-look.png")
    report = write_report(found, out / "report.html")
    seconds = time.perf_counter() - started
    output.result(
        f"{len(chosen)} pictures in {seconds:.0f} s.\nWhere they look: {sheet}\nReport: {report}",
        event="done",
        seconds=seconds,
        sheet=str(sheet),
        report=str(report),
    )


def spread(every: list[Picture], limit: int) -> list[Picture]:
    """The first picture and others evenly over the rest, so that every kind is there."""
    if limit <= 0 or limit >= len(every):
        return every
    return [every[index * len(every) // limit] for index in range(limit)]
