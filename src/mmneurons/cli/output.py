"""What a command prints: for people, or one JSON object a line for machines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from rich.console import Console

from mmneurons.cli.hints import for_shell

if TYPE_CHECKING:
    from collections.abc import Callable

    from mmneurons.engines.local import Progress

__all__ = ["Output"]


@dataclass(frozen=True)
class Output:
    """Where a command's words go. Results go to standard output, everything else to standard error.

    Attributes:
        as_json: one JSON object a line, for machines.
        quiet: nothing but results and errors.
    """

    as_json: bool = False
    quiet: bool = False

    def result(self, text: str, **data: object) -> None:
        """What was asked for: the text for people, or the data."""
        if self.as_json:
            print(json.dumps(data, ensure_ascii=False), flush=True)
        else:
            print(text, flush=True)

    def note(self, text: str) -> None:
        """What is good to know, for people only."""
        if not self.quiet and not self.as_json:
            _console().print(text, markup=False, highlight=False, soft_wrap=True)

    def skipped(self, picture: str, error: Exception) -> None:
        """That a picture was left out, and why."""
        text = for_shell(str(error))
        if self.as_json:
            about = {"picture": picture, "error": type(error).__name__, "message": text}
            print(json.dumps({"event": "skipped", **about}, ensure_ascii=False), flush=True)
        else:
            self.note(f"left out: {text.splitlines()[0]}")

    def stopped(self, left: str = "What was written stays.") -> None:
        """That somebody stopped it, and what is left."""
        if self.as_json:
            print(json.dumps({"event": "stopped"}), flush=True)
        else:
            _console().print(f"Stopped. {left}")

    def error(self, error: Exception) -> None:
        """What went wrong and what to do."""
        if self.as_json:
            fields = {"event": "error", "error": type(error).__name__, "message": for_shell(str(error))}
            print(json.dumps(fields, ensure_ascii=False), flush=True)
        else:
            _console().print(
                f"error: {for_shell(str(error))}", style="red", markup=False, highlight=False, soft_wrap=True
            )

    @contextmanager
    def progress(self) -> Iterator[Callable[[Progress], None]]:
        """A bar with rate and time left, or a line of JSON a batch; yields what a run is to tell its progress to."""
        if self.as_json:
            yield _print_progress
        elif self.quiet:
            yield lambda _: None
        else:
            yield from self._bar()

    def _bar(self) -> Iterator[Callable[[Progress], None]]:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("pictures"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[bad]}"),
        )
        with Bar(*columns, console=_console(), transient=not _console().is_terminal) as bar:
            task = bar.add_task("", total=None, rate="", bad="")

            def tell(now: Progress) -> None:
                fresh = now.done - now.before
                rate = f"{fresh / now.seconds:.1f}/s" if fresh and now.seconds > 0 else ""
                bad = f"{now.failed} failed" if now.failed else ""
                bar.update(task, total=now.total, completed=now.done, rate=rate, bad=bad)

            yield tell


def _print_progress(now: Progress) -> None:
    print(json.dumps({"event": "progress", **asdict(now)}), flush=True)


def _console() -> Console:
    return Console(stderr=True)
