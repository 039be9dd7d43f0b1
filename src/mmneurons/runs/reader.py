"""Reading a run folder, lazily, also while it is being written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmneurons.errors import RunError
from mmneurons.runs.schema import RUN_FILE, SCHEMA_VERSION, TABLES, part_folders, schema

if TYPE_CHECKING:
    import polars

__all__ = ["Run", "open_run", "read_about", "read_images", "readable"]

_KINDS = {"total": int, "folder": str}


@dataclass(frozen=True)
class Run:
    """A run folder. Each table is what is whole at the moment when it is asked for.

    Attributes:
        path: the folder.
        about: what stands in ``run.json``: ``model``, ``options``, ``pictures`` (what was named as pictures),
            ``total`` (how many there are), ``folder`` (the working folder, to which relative sources belong),
            ``versions`` and ``created``.
    """

    path: Path
    about: Mapping[str, object]

    @property
    def images(self) -> polars.LazyFrame:
        """A row for each picture; columns as in ``mmneurons.runs.schema.TABLES``."""
        return self.table("images")

    @property
    def words(self) -> polars.LazyFrame:
        """A row for each word of a caption that is explained."""
        return self.table("words")

    @property
    def neurons(self) -> polars.LazyFrame:
        """A row for each of the best neurons of a word."""
        return self.table("neurons")

    @property
    def heatmaps(self) -> polars.LazyFrame:
        """A row for each map, and for each grid that it consists of."""
        return self.table("heatmaps")

    @property
    def folder(self) -> Path:
        """The folder that relative sources belong to."""
        return Path(str(self.about.get("folder", ".")))

    @property
    def column(self) -> str | None:
        """The column that held the pictures, where the run was told."""
        named = self.about.get("pictures")
        column = named.get("column") if isinstance(named, dict) else None
        return column if isinstance(column, str) else None

    @property
    def shards(self) -> int:
        """How many shards are whole."""
        return len(part_folders(self.path))

    def table(self, name: str) -> polars.LazyFrame:
        """One of the tables, by name.

        Raises:
            RunError: there is no such table.
        """
        import polars as pl

        if name not in TABLES:
            raise RunError(f"A run has no table {name!r}. Its tables are: {', '.join(TABLES)}.")
        parts = [part / f"{name}.parquet" for part in part_folders(self.path)]
        if not parts:
            return pl.LazyFrame(schema=schema(name))
        # a path is taken as it is: a folder's name may hold what would otherwise be a pattern
        return pl.scan_parquet(parts, glob=False, schema=schema(name))

    def each_shard(self, *tables: str) -> Iterator[tuple[polars.DataFrame, ...]]:
        """Some tables, shard by shard, in order. All rows that belong to a picture are in its shard."""
        import polars as pl

        for part in part_folders(self.path):
            with readable(self.path):
                shard = tuple(pl.read_parquet(part / f"{name}.parquet", glob=False) for name in tables)
            yield shard

    def __repr__(self) -> str:
        total = self.about.get("total")
        return f"Run({str(self.path)!r}, {self.shards} shards, {total} pictures in all)"


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open a run folder.

    Raises:
        RunError: it is no run folder, or of another version.
    """
    folder = Path(path)
    return Run(folder, read_about(folder))


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Read tables of a run; where one is damaged or gone, say which and what to do.

    Raises:
        RunError: a table cannot be read.
    """
    import polars as pl

    try:
        yield
    except (OSError, pl.exceptions.PolarsError) as error:
        damaged = next((part for part in part_folders(folder) if not _is_whole(part)), None)
        if damaged is not None:
            raise _damaged(damaged, error) from error
        raise RunError(
            f"The tables of {str(folder)!r} cannot be read: {_first_line(error)}. Look whether its folder is still "
            "there and can be read."
        ) from error


def read_images(part: Path) -> polars.DataFrame:
    """The images table of a shard, whose other tables are seen to be there.

    Raises:
        RunError: one of them cannot be read.
    """
    import polars as pl

    try:
        for name in TABLES:
            if pl.read_parquet(part / f"{name}.parquet", glob=False, n_rows=0).schema != schema(name):
                raise _damaged(part, ValueError(f"{name}.parquet has other columns"))
        return pl.read_parquet(part / "images.parquet", glob=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise _damaged(part, error) from error


def _is_whole(part: Path) -> bool:
    import polars as pl

    try:
        # to the last row: a page in the middle may be damaged where the footer is not
        return all(pl.read_parquet(part / f"{name}.parquet", glob=False).schema == schema(name) for name in TABLES)
    except (OSError, pl.exceptions.PolarsError):
        return False


def _damaged(part: Path, error: Exception) -> RunError:
    return RunError(
        f"{str(part)!r} cannot be read: {_first_line(error)}. Delete this folder; the same 'mmn find' again does its "
        "pictures anew."
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def read_about(folder: Path) -> Mapping[str, object]:
    """What stands in a run folder's ``run.json``.

    Raises:
        RunError: there is none, it is damaged, or it is of another version.
    """
    file = folder / RUN_FILE
    if not folder.is_dir():
        raise RunError(f"There is no folder {str(folder)!r}. Check the path; 'mmn find PICTURES --out RUN' makes one.")
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(about, dict):
            raise ValueError("it holds no object")
    except FileNotFoundError as error:
        raise RunError(f"{str(folder)!r} is no run folder: it holds no {RUN_FILE}.") from error
    except (ValueError, RecursionError) as error:
        raise _damaged_file(file, str(error)) from error
    version = about.get("schema")
    if version != SCHEMA_VERSION:
        raise RunError(
            f"{str(folder)!r} is a run folder of version {version}; this is mmneurons for version {SCHEMA_VERSION}. "
            "Read it with the mmneurons that wrote it, or find again into another folder."
        )
    for name, kind in _KINDS.items():
        if name in about and not isinstance(about[name], kind):
            raise _damaged_file(file, f"{name!r} is {json.dumps(about[name])[:80]}")
    return about


def _damaged_file(file: Path, what: str) -> RunError:
    return RunError(f"{str(file)!r} is damaged: {what}. Put it back from a copy, or find again elsewhere.")
