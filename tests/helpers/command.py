"""The command ``mmn``, run in this process."""

import contextlib
import io
import json
import sys
from dataclasses import dataclass
from unittest import mock

from mmneurons.cli.main import main

__all__ = ["Result", "mmn"]


@dataclass(frozen=True)
class Result:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def events(self) -> list[dict]:
        """What it printed with ``--json``."""
        return [json.loads(line) for line in self.out.splitlines()]


def mmn(*arguments: object) -> Result:
    """Run ``mmn`` with arguments; an exception that it does not handle comes through."""
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    argv = ["mmn", *map(str, arguments)]
    with mock.patch.object(sys, "argv", argv), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code
    return Result(code if isinstance(code, int) else 0, out.getvalue(), err.getvalue())
