"""Writing a file so that nobody ever finds half of it."""

import os
import tempfile
from pathlib import Path

__all__ = ["is_half", "why_unwritable", "write_whole"]

_HALF = ".mmneurons."


def write_whole(path: Path, content: bytes) -> None:
    """Write under another name first: a stop at any moment leaves the old file or the new one.

    Raises:
        OSError: it cannot be written; what was there is there still.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=_HALF)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp's file is its owner's alone; this one is as readable as any other that is written here
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def is_half(path: Path) -> bool:
    """Whether a file is what ``write_whole`` was writing when something killed it."""
    return path.name.startswith(_HALF)


def why_unwritable(path: Path) -> str:
    """Why a file or folder could not be made at a path that is not there yet, or none in a folder that is; else empty.

    Asked before work that takes hours. Nothing is left there.
    """
    there = next((place for place in (path, *path.absolute().parents) if place.exists()), Path())
    if not there.is_dir():
        return f"{str(there)!r} is no folder"
    try:
        with tempfile.TemporaryFile(dir=there, prefix=_HALF):
            return ""
    except OSError as error:
        return f"nothing can be written into {str(there)!r}: {error.strerror or error}"
