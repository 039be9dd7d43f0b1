"""The run folder: what it holds (``schema``), how it is written, shard by shard, and how it is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    from mmneurons.runs.reader import Run as Run

__all__ = ["Run", "open"]


def open(path: str | os.PathLike[str]) -> Run:
    """Open a run folder for reading, also while it is being written. Nothing is read before it is asked for.

    Args:
        path: the folder.

    Raises:
        RunError: it is no run folder, or of another version.
    """
    from mmneurons.runs.reader import open_run

    return open_run(path)


def __getattr__(name: str) -> object:
    if name == "Run":
        from mmneurons.runs.reader import Run

        return Run
    raise AttributeError(f"module 'mmneurons.runs' has no attribute {name!r}")
