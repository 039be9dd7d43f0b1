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
from mmneurons.runs.reader import read_about
from mmneurons.runs.schema import PARTS, RUN_FILE, SCHEMA_VERSION, TABLES, part_folders, part_name, schema

if TYPE_CHECKING:
    import polars

__all__ = ["begin", "differences", "finished_sources", "locked", "next_shard", "write_shard"]

LOCK_FILE = ".lock"
COMPARED = ("model", "options", "pictures")
MAY_GROW = "limit"
_UNFINISHED = re.compile(r"\.\d{6,}")


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold a run folder for one process; the folder is made if it is not there.

    Raises:
        RunError: another process holds it, or the folder is one of something else.
    """
    if run.exists() and not run.is_dir():
        raise RunError(f"{str(run)!r} is a file. Choose another folder with --out.")
    if run.is_dir() and not (run / RUN_FILE).exists() and any(not _is_ours(path) for path in run.iterdir()):
        raise RunError(f"{str(run)!r} holds other files. Choose an empty folder, or a new one, with --out.")
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
        about: what is asked; compared in ``model``, ``options`` and ``pictures``. The limit on pictures may grow.

    Raises:
        RunError: the folder is of another model or other options; the message says what differs.
    """
    parts = run / PARTS
    wanted: dict[str, object] = json.loads(json.dumps({"schema": SCHEMA_VERSION, **about}))
    if (run / RUN_FILE).exists():
        there = read_about(run)
        if found := differences(there, wanted):
            raise RunError(
                f"{str(run)!r} holds a run that differs from what is asked: {'; '.join(found)}. Ask the same to go on "
                "with it, or choose another folder with --out."
            )
        wanted["created"] = there.get("created")
    parts.mkdir(exist_ok=True)
    for rest in parts.iterdir():
        # nothing but what ``write_shard`` makes, and only once the folder is known to be a run
        if _UNFINISHED.fullmatch(rest.name) and rest.is_dir():
            shutil.rmtree(rest)
    _write(run / RUN_FILE, json.dumps(wanted, indent=2, ensure_ascii=False).encode())


def differences(there: Mapping[str, object], wanted: Mapping[str, object]) -> list[str]:
    """What of model, options and pictures differs between two ``run.json``, as phrases."""
    found = []
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
    frames = []
    for part in part_folders(run):
        try:
            frames.append(pl.read_parquet(part / "images.parquet", columns=columns, glob=False))
        except (OSError, pl.exceptions.PolarsError) as error:
            raise RunError(
                f"{str(part)!r} cannot be read: {error}. Delete this folder, and its pictures are done again."
            ) from error
    return pl.concat(frames) if frames else pl.DataFrame(schema={name: pl.String for name in columns})


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
    """
    import polars as pl

    parts = run / PARTS
    name = part_name(next_shard(run))
    temporary = parts / f".{name}"
    temporary.mkdir()
    try:
        for table in TABLES:
            frame = pl.DataFrame(dict(tables[table]), schema=schema(table))
            with (temporary / f"{table}.parquet").open("wb") as file:
                frame.write_parquet(file, compression="zstd")
                file.flush()
                os.fsync(file.fileno())
        _sync_folder(temporary)
        temporary.rename(parts / name)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
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
