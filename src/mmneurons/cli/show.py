"""``mmn show``: what a run found, in the terminal."""

from __future__ import annotations

from typing import Annotated

import typer

from mmneurons.cli.common import AsJson, RunFolder
from mmneurons.cli.output import Output

__all__ = ["EXAMPLES", "command"]

EXAMPLES = """Examples:

    mmn show run

    mmn show run dog.jpg --neurons 10

    mmn show run --words dog --json"""


def command(
    run: RunFolder,
    picture: Annotated[
        str | None, typer.Argument(metavar="[PICTURE]", help="Only pictures whose source ends like this.")
    ] = None,
    words: Annotated[list[str] | None, typer.Option("--words", help="Only this word, again for more.")] = None,
    neurons: Annotated[int, typer.Option("--neurons", help="How many neurons of a word.")] = 3,
    limit: Annotated[int | None, typer.Option("--limit", help="Only the first so many pictures.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print what a run found: captions, words, and their neurons."""
    from mmneurons.options import check_whole
    from mmneurons.runs.printing import counted, pages
    from mmneurons.runs.reader import open_run

    for name, value in (("--neurons", neurons), ("--limit", limit)):
        if value is not None:
            check_whole(name, value)
    output = Output(as_json)
    opened = open_run(run)
    shown = 0
    for page in pages(opened, picture, words or None, neurons, limit):
        output.result(f"{page}\n", **page.to_dict())
        shown += 1
    output.note(counted(opened))
    if not shown and (picture or words):
        asked = [f"a source that ends in {picture!r}"] if picture else []
        asked += [f"the words {', '.join(words)}"] if words else []
        output.note(f"No picture of this run has {' and '.join(asked)}.")
