"""The folder of what was measured: what was asked, and one part a picture, renamed into place when it is whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from mmneurons.errors import RunError

if TYPE_CHECKING:
    import polars

__all__ = [
    "MEASURED_FILE",
    "Measured",
    "begin",
    "differences",
    "held",
    "open_measured",
    "part_folders",
    "part_of",
    "read_part",
    "write_part",
]

MEASURED_FILE = "measured.json"
PARTS = "parts"
LOCK_FILE = ".lock"
COMPARED = {"model": "another model", "options": "other options", "suite": "other finders or measures"}
"""What has to be the same in a folder that is gone on with, and what it is called where it is not."""

DIGESTS = {
    "truth": "truth (a digest of what it says)",
    "fingerprint": "weights (their fingerprint)",
    "objects": "names of objects (their digest)",
}
TOLD = 6
"""How many differences a message names."""

LONGEST = 60
"""Of a value in a message, in characters."""


@dataclass(frozen=True)
class Measured:
    """A folder of what was measured.

    Attributes:
        path: the folder.
        about: what was asked, of which model.
    """

    path: Path
    about: Mapping[str, object]

    def table(self, name: str) -> polars.DataFrame:
        """All rows of a table: ``"pictures"``, ``"words"``, ``"observed"``, ``"tops"`` or ``"answers"``.

        A row of ``pictures`` with neither a caption nor an error is of a copy: its bytes are those of a picture that
        was measured already, whose words stand for it.

        Raises:
            RunError: nothing has been measured, or a part cannot be read.
        """
        import polars

        parts = part_folders(self.path)
        if not parts:
            raise RunError(f"Nothing has been measured in {str(self.path)!r} yet: no picture is whole.")
        return polars.concat([read_part(part, name) for part in parts])


def open_measured(path: str | os.PathLike[str]) -> Measured:
    """Open a folder that ``measure`` made.

    Raises:
        RunError: it is none.
    """
    try:
        about = json.loads(Path(path, MEASURED_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{os.fspath(path)!r} is no folder of 'mmn measure': it has no whole {MEASURED_FILE}."
        ) from error
    if not isinstance(about, dict) or not all(isinstance(about.get(name), dict) for name in COMPARED):
        raise RunError(
            f"{os.fspath(Path(path, MEASURED_FILE))!r} is damaged: it does not say what was asked. Put it back from a "
            "copy, or choose another folder with --out."
        )
    return Measured(Path(path), about)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a folder for one process.

    Raises:
        RunError: it is a file, holds something else, or another process holds it.
    """
    if path.exists() and not path.is_dir():
        raise RunError(f"{str(path)!r} is a file. Choose another folder with --out.")
    if path.is_dir() and not (path / MEASURED_FILE).exists() and any(one.name != LOCK_FILE for one in path.iterdir()):
        raise RunError(f"{str(path)!r} holds other files. Choose an empty folder, or a new one, with --out.")
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunError(f"Another process is writing to {str(path)!r}. Wait until it has ended.") from error
    try:
        yield
    finally:
        lock.release()


def begin(path: Path, about: Mapping[str, object], same_truths: Collection[str | None] = ()) -> None:
    """Write what is asked, or see that it is the same; then clear away what was cut off.

    A folder of something else in which no word has been measured is begun anew: nothing would be lost, and a word that
    was misspelt should not keep the right one out.

    Args:
        path: the folder, held.
        about: what is asked.
        same_truths: other digests that the same truth has in folders of older versions.

    Raises:
        RunError: something else was asked.
    """
    file = path / MEASURED_FILE
    if file.exists():
        before = open_measured(path).about
        if found := differences(before, about, same_truths):
            if any(not read_part(part, "words").is_empty() for part in part_folders(path)):
                raise RunError(
                    f"{str(path)!r} was begun with {found}. Ask for the same to go on, or choose another folder with "
                    "--out."
                )
            shutil.rmtree(path / PARTS, ignore_errors=True)
            file.unlink()
    if not file.exists():
        _written(file, json.dumps(about, indent=2, ensure_ascii=False))
    for cut_off in (path / PARTS).glob(".*"):
        shutil.rmtree(cut_off)


def differences(before: Mapping[str, object], now: Mapping[str, object], same_truths: Collection[str | None]) -> str:
    """What differs of what is compared, for people: each as it is there → as it is asked; empty where nothing does."""
    kinds, told = [], []
    for kind, other in COMPARED.items():
        there, asked = dict(_flat(before[kind])), dict(_flat(now[kind]))
        if kind == "options" and there.get("truth") in same_truths:
            there["truth"] = asked.get("truth")
        names = [name for name in {**there, **asked} if there.get(name) != asked.get(name)]
        kinds += [other] if names else []
        told += [f"{DIGESTS.get(name, name)}: {_change(there.get(name), asked.get(name))}" for name in names]
    if not told:
        return ""
    more = f"; and {len(told) - TOLD} more" if len(told) > TOLD else ""
    return f"{' and '.join(kinds)} (there → asked): {'; '.join(told[:TOLD])}{more}"


def _flat(group: object, of: str = "") -> Iterator[tuple[str, object]]:
    """The values in a group, and in groups in it, by name."""
    assert isinstance(group, Mapping)
    for name, value in group.items():
        if isinstance(value, Mapping):
            yield from _flat(value, str(name))
        else:
            yield f"{of} {name!r}" if of else str(name), value


def _change(there: object, asked: object) -> str:
    one, other = ("nothing" if value is None else repr(value) for value in (there, asked))
    if max(len(one), len(other)) > LONGEST:
        # what long values have in common at the front says nothing of how they differ
        same = next((place for place, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
        start = max(same - 20, 0)
        one, other = _short(one, start), _short(other, start)
    return f"{one} → {other}"


def _short(text: str, start: int) -> str:
    end = start + LONGEST
    return ("…" if start else "") + text[start:end] + ("…" if len(text) > end else "")


def part_folders(path: Path) -> list[Path]:
    """The parts that are whole, in order."""
    return sorted(part for part in (path / PARTS).glob("*") if part.is_dir() and not part.name.startswith("."))


def part_of(path: Path, source: str) -> Path:
    """The part of a picture, by what names it."""
    return path / PARTS / hashlib.sha256(source.encode()).hexdigest()[:24]


def read_part(part: Path, name: str) -> polars.DataFrame:
    """A table of one picture, all of whose tables are seen to be there.

    Raises:
        RunError: it cannot be read, or another one is missing.
    """
    import polars

    schemas = _schemas()
    if name not in schemas:
        raise RunError(f"There is no table {name!r}. There are: {', '.join(schemas)}.")
    for other in schemas:
        if not (part / f"{other}.parquet").is_file():
            raise _damaged(part / f"{other}.parquet", "is gone")
    file = part / f"{name}.parquet"
    try:
        table = polars.read_parquet(file, glob=False)
    except (OSError, polars.exceptions.PolarsError) as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise _damaged(file, f"cannot be read ({why})") from error
    if table.schema != schemas[name]:
        raise _damaged(file, "has other columns")
    return table


def _damaged(file: Path, what: str) -> RunError:
    return RunError(
        f"{str(file)!r} {what}. Delete the folder {str(file.parent)!r}; the same 'mmn measure' again measures its "
        "picture anew."
    )


def write_part(part: Path, tables: Mapping[str, Sequence[Mapping[str, object]]]) -> None:
    """Write all tables of a picture, into a folder that is renamed when it is whole."""
    import polars

    waiting = part.with_name(f".{part.name}")
    shutil.rmtree(waiting, ignore_errors=True)
    waiting.mkdir(parents=True)
    for name, schema in _schemas().items():
        polars.DataFrame(tables[name], schema=schema).write_parquet(waiting / f"{name}.parquet")
    waiting.rename(part)


def _schemas() -> Mapping[str, polars.Schema]:
    import polars

    return {
        "pictures": polars.Schema({name: polars.String for name in ("image_id", "source", "caption", "error")}),
        "words": polars.Schema(
            {
                "word_id": polars.String,
                "image_id": polars.String,
                "word": polars.String,
                "step": polars.Int64,
                "token": polars.Int64,
                "probability": polars.Float64,
            }
        ),
        "observed": polars.Schema(
            {
                "word_id": polars.String,
                "image_id": polars.String,
                "finder": polars.String,
                "quantity": polars.String,
                "k": polars.Int64,
                "value": polars.Float64,
            }
        ),
        "tops": polars.Schema(
            {
                "word_id": polars.String,
                "image_id": polars.String,
                "finder": polars.String,
                "neurons": polars.List(polars.Int32),
                "scores": polars.List(polars.Float32),
            }
        ),
        "answers": polars.Schema(
            {
                "image_id": polars.String,
                "kind": polars.String,
                "name": polars.String,
                "there": polars.Boolean,
                "yes": polars.Boolean,
            }
        ),
    }


def _written(file: Path, text: str) -> None:
    waiting = file.with_name(f".{file.name}")
    waiting.write_text(text, encoding="utf-8")
    waiting.rename(file)
