"""``mmn``: the subcommands, and what becomes of their errors."""

from __future__ import annotations

import functools
import io
import os
import sys
import warnings
from collections.abc import Callable
from importlib import metadata

import typer

from mmneurons.cli import apply, convert, demo, doctor, edit, export, find, measure, mitigate, models, report, show
from mmneurons.cli.common import INTERRUPTED
from mmneurons.cli.output import Output
from mmneurons.errors import MMNeuronsError

__all__ = ["app", "main"]

app = typer.Typer(
    name="mmn",
    help="Find the neurons of a vision-language model that turn what it sees into the words it says.",
    epilog="Exit codes: 0 done, 1 not done (the message says why), 2 wrong usage, 3 no picture could be explained, "
    "130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


WRITES_NOTHING = {edit: "No edit was written.", apply: "Nothing was changed."}
"""What is left by commands that write a file when they are done, or none."""


def _stoppable(command: Callable[..., None], left: str) -> Callable[..., None]:
    """Say that a command was stopped by hand, and what is left; what calls it would end without a word."""

    @functools.wraps(command)
    def run(**options: object) -> None:
        try:
            command(**options)
        except KeyboardInterrupt:
            Output(bool(options.get("as_json"))).stopped(left)
            raise typer.Exit(INTERRUPTED) from None

    return run


for module in (demo, find, show, report, measure, edit, apply, export, doctor, models, convert):
    stoppable = _stoppable(module.command, WRITES_NOTHING.get(module, "What was written stays."))
    app.command(module.__name__.rpartition(".")[2], epilog=module.EXAMPLES)(stoppable)


workflows = typer.Typer(
    help="Have a model not say something any more, with the proof.", no_args_is_help=True, rich_markup_mode="markdown"
)
for workflow, examples in (
    (mitigate.words, mitigate.WORDS_EXAMPLES),
    (mitigate.hallucination, mitigate.HALLUCINATION_EXAMPLES),
):
    workflows.command(workflow.__name__, epilog=examples)(_stoppable(workflow, "Nothing was written."))
app.add_typer(workflows, name="mitigate")


@app.callback(invoke_without_command=True)
def options(
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),
) -> None:
    """What belongs to no subcommand."""
    if version:
        typer.echo(f"mmn {metadata.version('mmneurons')}")
        raise typer.Exit()


def main() -> None:
    """Run the command; a user's mistake is a message and an exit code, not a traceback."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # a name or a caption may hold what a terminal of another encoding has not
            stream.reconfigure(errors="backslashreplace")
    output = Output("--json" in sys.argv, quiet=False)
    try:
        app()
    except MMNeuronsError as error:
        output.error(error)
        sys.exit(1)
    except BrokenPipeError:
        # whoever read our output has had enough; Python would complain once more when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        output.error(error)
        sys.exit(1)


if __name__ == "__main__":
    main()
