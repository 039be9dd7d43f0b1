"""Writing a file so that nobody ever finds half of it."""

import os
import tempfile
from pathlib import Path

__all__ = ["write_whole"]


def write_whole(path: Path, content: bytes) -> None:
    """Write under another name first: a stop at any moment leaves the old file or the new one.

    Raises:
        OSError: it cannot be written; what was there is there still.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".mmneurons.")
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
