"""Rows of Parquet files and of Arrow streams, one cell at a time and a few in memory."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from threading import Lock
from typing import TYPE_CHECKING

from mmneurons.errors import PictureError
from mmneurons.sources.columns import bytes_of
from mmneurons.sources.item import as_text

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

__all__ = ["RowItem", "describe", "is_parquet"]

ROWS_AT_ONCE = 8
BUFFER = 2**20


@dataclass(frozen=True, slots=True)
class RowItem:
    """A cell of a table.

    Attributes:
        path: the table's file.
        column: the column.
        row: counted over the file from 0.
    """

    path: str
    column: str
    row: int

    @property
    def place(self) -> str:
        """The file and the row, with a sign between them that no path holds."""
        return f"{self.path}\0{self.row}"

    @property
    def source(self) -> str:
        """The file and the row."""
        return f"{as_text(self.path)}#{self.row}"

    def read(self) -> bytes:
        """The bytes in the cell, or those of the file that it names."""
        import pyarrow

        try:
            status = os.stat(self.path)
            # a process that was forked must not share what its parent has opened, nor the locks
            cells = _opened(self.path, self.column, status.st_mtime_ns, status.st_size, os.getpid())
            cell = cells.cell(self.row)
        except FileNotFoundError as error:
            raise PictureError(f"{self.source!r} could not be read: the file is gone.") from error
        except (pyarrow.ArrowException, LookupError, OSError, ValueError) as error:
            raise PictureError(f"{self.source!r} could not be read: {error}") from error
        return bytes_of(cell, self.source, os.path.dirname(self.path))


def is_parquet(path: str) -> bool:
    """Whether a file is called as Parquet files are; a table that is not is an Arrow stream."""
    return path.lower().endswith(".parquet")


def describe(path: str) -> tuple[pyarrow.Schema, int]:
    """The columns of a table, and how many rows it has. No picture is read.

    Raises:
        OSError: it cannot be read.
        pyarrow.ArrowException: it is damaged, or no such table.
    """
    import pyarrow

    if is_parquet(path):
        parquet = _parquet(path)
        return parquet.schema_arrow, _starts(parquet)[-1]
    with pyarrow.memory_map(os.fsencode(path)) as mapped, pyarrow.ipc.open_stream(mapped) as stream:
        return stream.schema, sum(batch.num_rows for batch in stream)


class _ParquetCells:
    """A column of a Parquet file, read forward a few rows at a time; for a row further back its group begins anew."""

    def __init__(self, path: str, column: str) -> None:
        self._file = _parquet(path)
        self._column = column
        self._starts = _starts(self._file)
        self._lock = Lock()
        self._group = -1
        self._batches: Iterator[pyarrow.RecordBatch] = iter(())
        self._batch: pyarrow.RecordBatch | None = None
        self._first = 0

    def cell(self, row: int) -> object:
        """What stands in a row."""
        with self._lock:
            if not 0 <= row < self._starts[-1]:
                raise IndexError(f"it has {self._starts[-1]} rows")
            group = bisect_right(self._starts, row) - 1
            if group != self._group or row < self._first:
                self._open(group)
            while self._batch is None or row >= self._first + self._batch.num_rows:
                self._first += 0 if self._batch is None else self._batch.num_rows
                self._batch = None  # so that never two are held
                self._batch = next(self._batches, None)
                if self._batch is None:
                    self._group = -1
                    raise IndexError("its row groups hold fewer rows than they say")
            return self._batch.column(self._column)[row - self._first].as_py()

    def _open(self, group: int) -> None:
        self._batch, self._first, self._group = None, self._starts[group], group
        self._batches = self._file.iter_batches(
            ROWS_AT_ONCE, row_groups=[group], columns=[self._column], use_threads=False
        )


class _StreamCells:
    """A column of an Arrow stream, mapped into memory: what is not looked at is not read."""

    def __init__(self, path: str, column: str) -> None:
        import pyarrow

        stream = pyarrow.ipc.open_stream(pyarrow.memory_map(os.fsencode(path)))
        self._parts = [batch.column(column) for batch in stream]
        self._starts = list(accumulate((len(part) for part in self._parts), initial=0))
        self._checked: set[int] = set()

    def cell(self, row: int) -> object:
        """What stands in a row."""
        if not 0 <= row < self._starts[-1]:
            raise IndexError(f"it has {self._starts[-1]} rows")
        index = bisect_right(self._starts, row) - 1
        part = self._parts[index]
        if index not in self._checked:
            # wrong offsets in a damaged file would be followed to anywhere in memory
            part.validate(full=True)
            self._checked.add(index)
        return part[row - self._starts[index]].as_py()


@lru_cache(maxsize=8)
def _opened(path: str, column: str, _changed: int, _size: int, _process: int) -> _ParquetCells | _StreamCells:
    return (_ParquetCells if is_parquet(path) else _StreamCells)(path, column)


def _starts(parquet: pyarrow.parquet.ParquetFile) -> list[int]:
    """The first row of every row group, and the number of rows."""
    groups = parquet.metadata
    sizes = [groups.row_group(index).num_rows for index in range(groups.num_row_groups)]
    if sum(sizes) != groups.num_rows or min(sizes, default=0) < 0:
        raise ValueError("it does not have as many rows as it says")
    return list(accumulate(sizes, initial=0))


def _parquet(path: str) -> pyarrow.parquet.ParquetFile:
    import pyarrow
    import pyarrow.parquet

    # with a buffer, a row group is read as it is gone through; without, all of it at once
    source = pyarrow.OSFile(os.fsencode(path))
    return pyarrow.parquet.ParquetFile(source, pre_buffer=False, buffer_size=BUFFER)
