"""Writing a run folder so that it can be stopped at any moment.

A shard's tables are written to a folder of a temporary name, flushed to the disk, and the folder is renamed: one
rename, so that all tables of a shard are there, or none is. ``run.json`` is written likewise. One process at a time.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from mmneurons.errors import RunError
from mmneurons.runs.reader import read_about, read_images
from mmneurons.runs.schema import PARTS, RUN_FILE, SCHEMA_VERSION, TABLES, part_folders, part_name, schema
from mmneurons.sources.bundled import BUNDLED
from mmneurons.sources.item import as_text

if TYPE_CHECKING:
    import polars

__all__ = [
    "begin",
    "check_folder",
    "differences",
    "finished_sources",
    "forget_failed",
    "locked",
    "next_shard",
    "write_shard",
]

LOCK_FILE = ".lock"
COMPARED = ("model", "options", "pictures")
MAY_GROW = "limit"
_UNFINISHED = re.compile(r"\.\d{6,}")


def check_folder(run: Path) -> None:
    """See that a run can be written there. Nothing is made.

    Raises:
        RunError: it is a file or a folder of something else, or its name is not UTF-8.
    """
    try:
        os.fsencode(run).decode()
    except UnicodeDecodeError as error:
        raise RunError(f"The name {as_text(str(run))!r} is not UTF-8. Choose another folder with --out.") from error
    if run.exists() and not run.is_dir():
        raise RunError(f"{str(run)!r} is a file. Choose another folder with --out.")
    if run.is_dir() and not (run / RUN_FILE).exists() and any(not _is_ours(path) for path in run.iterdir()):
        raise RunError(f"{str(run)!r} holds other files. Choose an empty folder, or a new one, with --out.")


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold a run folder for one process; the folder is made if it is not there.

    Raises:
        RunError: another process holds it, or it is not for a run, see ``check_folder``.
    """
    check_folder(run)
    run.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunError(
            f"Another process is writing to {str(run)!r}. Wait until it has ended, or choose another folder with --out."
        ) from error
    try:
        yield
    finally:
        lock.release()


def begin(run: Path, about: Mapping[str, object]) -> None:
    """Write ``run.json``, or, where there is one, see that the same is asked; then clear away what was cut off.

    Args:
        run: the folder, held by ``locked``.
        about: what is asked; compared in ``model``, ``options`` and ``pictures``, and in ``folder`` where pictures are
            named relative to it. The limit on pictures may grow.

    Raises:
        RunError: the folder is of another model or other options; the message says what differs.
    """
    parts = run / PARTS
    wanted: dict[str, object] = json.loads(json.dumps({"schema": SCHEMA_VERSION, **about}))
    if (run / RUN_FILE).exists():
        there = read_about(run)
        if missing := [name for name in COMPARED if not isinstance(there.get(name), dict)]:
            raise RunError(
                f"{str(run / RUN_FILE)!r} is damaged: it says nothing of {', '.join(missing)}, so nobody can tell "
                "whether the same is asked. Put it back from a copy, or choose another folder with --out."
            )
        if found := differences(there, wanted):
            raise RunError(
                f"{str(run)!r} holds a run that differs from what is asked: {'; '.join(found)}. Ask the same to go on "
                "with it, or choose another folder with --out."
            )
        wanted["created"] = there.get("created")
        wanted["folder"] = there.get("folder", wanted.get("folder"))
    parts.mkdir(exist_ok=True)
    for rest in parts.iterdir():
        # nothing but what ``write_shard`` makes, and only once the folder is known to be a run
        if _UNFINISHED.fullmatch(rest.name) and rest.is_dir():
            shutil.rmtree(rest)
    _write(run / RUN_FILE, json.dumps(wanted, indent=2, ensure_ascii=False).encode())


def differences(there: Mapping[str, object], wanted: Mapping[str, object]) -> list[str]:
    """What of model, options and pictures differs between two ``run.json``, as phrases."""
    found = []
    folders = there.get("folder"), wanted.get("folder")
    if folders[0] != folders[1] and (named := _relative(wanted.get("pictures"))):
        found.append(f"{named!r} was named in the folder {folders[0]!r} there and in {folders[1]!r} here")
    for group in COMPARED:
        one, other = there.get(group), wanted.get(group)
        if not isinstance(one, dict) or not isinstance(other, dict):
            continue
        for key in dict.fromkeys([*one, *other]):
            if one.get(key) != other.get(key) and not _grown(key, one.get(key), other.get(key)):
                found.append(f"{group} {key} is {_short(one.get(key))} there and {_short(other.get(key))} here")
    return found


def finished_sources(run: Path) -> polars.DataFrame:
    """Which pictures are done: the columns ``source``, ``image_id`` and ``status`` of the images table.

    Raises:
        RunError: a part cannot be read.
    """
    import polars as pl

    columns = ["source", "image_id", "status"]
    frames = [read_images(part).select(columns) for part in part_folders(run)]
    return pl.concat(frames) if frames else pl.DataFrame(schema={name: pl.String for name in columns})


def forget_failed(run: Path) -> int:
    """Take the rows of pictures that failed out of the images tables, so that these pictures are done anew.

    Args:
        run: the folder, held by ``locked``.

    Returns:
        How many there were.

    Raises:
        RunError: a part cannot be read.
    """
    count = 0
    for part in part_folders(run):
        images = read_images(part)
        rest = images.filter(images["status"] != "error")
        if rest.height < images.height:
            count += images.height - rest.height
            _write_table(rest, part / ".images.parquet")
            (part / ".images.parquet").replace(part / "images.parquet")
            _sync_folder(part)
    return count


def next_shard(run: Path) -> int:
    """The number of the first shard that is not there yet."""
    return max((int(part.name) for part in part_folders(run)), default=-1) + 1


def write_shard(run: Path, tables: Mapping[str, Mapping[str, Sequence[object] | polars.Series]]) -> Path:
    """Write the tables of one shard behind the last.

    Args:
        run: the folder, held by ``locked``.
        tables: for every table its columns, of equal lengths.

    Returns:
        The shard's folder.

    Raises:
        RunError: it cannot be written, for example because the disk is full. What was written before stays.
    """
    import polars as pl

    parts = run / PARTS
    name = part_name(next_shard(run))
    temporary = parts / f".{name}"
    temporary.mkdir()
    try:
        for table in TABLES:
            frame = pl.DataFrame(dict(tables[table]), schema=schema(table))
            _write_table(frame, temporary / f"{table}.parquet")
        _sync_folder(temporary)
        temporary.rename(parts / name)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError | pl.exceptions.PolarsError):
            raise RunError(
                f"{str(parts / name)!r} cannot be written: {str(error).splitlines()[0]}. What was written before "
                "stays. Make room, and the same again goes on."
            ) from error
        raise
    _sync_folder(parts)
    return parts / name


def _grown(key: str, there: object, wanted: object) -> bool:
    if key != MAY_GROW:
        return False
    return wanted is None or (isinstance(there, int) and isinstance(wanted, int) and wanted >= there)


def _short(value: object) -> str:
    text = "none" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _is_ours(path: Path) -> bool:
    """Whether a file in a folder without ``run.json`` is what a run leaves that was killed before it had one."""
    if path.name == PARTS:
        return path.is_dir() and not any(path.iterdir())
    return path.name in (LOCK_FILE, f".{RUN_FILE}")


def _write_table(frame: polars.DataFrame, path: Path) -> None:
    with path.open("wb") as file:
        frame.write_parquet(file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())


def _relative(pictures: object) -> str | None:
    """The first name in ``pictures`` of a ``run.json`` that means something else in another folder."""
    if not isinstance(pictures, dict):
        return None
    names = [*(pictures.get("inputs") or ()), *([pictures["images"]] if pictures.get("images") else ())]
    return next((name for name in names if not (os.path.isabs(name) or BUNDLED.claims(name))), None)


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """So that a rename survives a loss of power; not every system lets a folder be opened."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
