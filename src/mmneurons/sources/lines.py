"""Lists that people write: text files, an entry a line."""

from __future__ import annotations

from pathlib import Path

from mmneurons.errors import SourceError

__all__ = ["read_lines"]


def read_lines(path: Path, entry: str) -> list[str]:
    """The lines of a text file, in UTF-8, a mark of that in front or not.

    Args:
        path: of the file.
        entry: what a line holds, for the message.

    Raises:
        SourceError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(
            f"The list {str(path)!r} cannot be read: {error}. It is a text file, a {entry} a line."
        ) from error
