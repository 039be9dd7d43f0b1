"""``mmn report``: a run as one HTML file, and as figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmneurons.cli.common import AsJson, Quiet, RunFolder
from mmneurons.cli.output import Output

__all__ = ["EXAMPLES", "command"]

EXAMPLES = """Examples:

    mmn report run

    mmn report run --out report.html --limit 100

    mmn report run --figures figures/"""


def command(
    run: RunFolder,
    out: Annotated[Path | None, typer.Option("--out", help="The file. [default: RUN/report.html]")] = None,
    limit: Annotated[int, typer.Option("--limit", help="How many pictures the report shows.")] = 40,
    figures: Annotated[
        Path | None, typer.Option("--figures", help="Write a figure of every word into this folder, SVG and PNG.")
    ] = None,
    neurons: Annotated[int, typer.Option("--neurons", help="How many neurons a figure shows.")] = 5,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write a run as one HTML file that needs no network; or as figures for a paper."""
    from mmneurons.options import check_whole
    from mmneurons.runs.reader import open_run

    for name, value in (("--limit", limit), ("--neurons", neurons)):
        check_whole(name, value)
    output = Output(as_json, quiet)
    opened = open_run(run)
    if figures is not None:
        from mmneurons.reports.panels import write_figures

        written = write_figures(opened, figures, pictures=limit, neurons=neurons)
        output.result(f"{len(written)} figures in {figures}", event="figures", folder=str(figures), count=len(written))
        if out is None:
            return
    from mmneurons.reports.html import write_report

    path = write_report(opened, run / "report.html" if out is None else out, pictures=limit)
    output.result(str(path), event="report", report=str(path))
