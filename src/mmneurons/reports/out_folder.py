"""The folder that somebody names for what is written."""

from __future__ import annotations

from pathlib import Path

from mmneurons.errors import RunError
from mmneurons.whole_files import why_unwritable

__all__ = ["check_out_folder"]


def check_out_folder(folder: Path) -> None:
    """See that files can be written into a folder, which may not be there yet. Nothing is made.

    Raises:
        RunError: it is a file, or cannot be written to.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{str(folder)!r} is a file. Choose another folder with --out.")
    if why := why_unwritable(folder):
        raise RunError(f"Nothing could be written to {str(folder)!r}: {why}. Choose another folder with --out.")
