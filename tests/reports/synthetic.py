"""Run folders made by hand: pictures, captions, words, neurons and maps that a test can know all about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from mmneurons import runs
from mmneurons.runs.schema import TABLES
from mmneurons.runs.writer import begin, write_shard
from mmneurons.sources import image_id

__all__ = ["Map", "Sketch", "Unit", "Word", "noise", "units", "write_run"]


@dataclass(frozen=True)
class Unit:
    """A neuron of a word."""

    layer: int
    unit: int
    expert: int | None = None
    score: float = 1.0
    activation: float = 2.0
    promotes: tuple[str, ...] = ("alpha", "beta")


@dataclass(frozen=True, eq=False)
class Map:
    """The map of one neuron, or of a mean: a grid over a rectangle, the whole picture where none is named."""

    values: np.ndarray
    rank: int | None = None
    first: int | None = None
    rectangle: tuple[float, float, float, float] | None = None
    grid: int = 0


@dataclass(frozen=True, eq=False)
class Word:
    """A word of a caption; it stands where it is found first, unless its place is named."""

    word: str
    units: Sequence[Unit] = ()
    maps: Sequence[Map] = ()
    lemma: str | None = None
    start: int | None = None
    probability: float = 0.5
    logit: float = 12.0
    total: float | None = 4.0
    note: str = "against the test"


@dataclass(frozen=True, eq=False)
class Sketch:
    """A picture of a run."""

    source: str
    caption: str = ""
    words: Sequence[Word] = ()
    picture: Image.Image | None = None
    status: str = "ok"
    error: str | None = None
    id: str | None = None
    options: dict[str, object] = field(default_factory=dict)


def units(*names: tuple[int, int]) -> tuple[Unit, ...]:
    """Neurons of no expert, best first."""
    return tuple(Unit(layer, unit, score=len(names) - rank) for rank, (layer, unit) in enumerate(names))


def noise(size: tuple[int, int] = (60, 40), seed: int = 0, grain: int = 4) -> Image.Image:
    """A picture of colored blocks."""
    draw = np.random.default_rng(seed)
    small = draw.integers(0, 256, (-(-size[1] // grain), -(-size[0] // grain), 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.NEAREST)


def write_run(folder: Path, sketches: Sequence[Sketch], shard: int = 3, **about: object) -> runs.Run:
    """Save the pictures beside a new run folder, write its shards, and open it."""
    run = folder / "run"
    run.mkdir(parents=True)
    told = {
        "model": {"name": "test-model", "revision": None, "fingerprint": "ab" * 32},
        "options": {"prompt": "Describe.", "prefix": "An image of"},
        "pictures": {"inputs": ["."], "column": None},
        "total": len(sketches),
        "folder": str(folder),
        "versions": {"mmneurons": "0"},
        "created": "2026-01-02T03:04:05+00:00",
    }
    begin(run, {**told, **about})
    for start in range(0, len(sketches), shard):
        tables: dict[str, dict[str, list]] = {name: {column: [] for column in TABLES[name]} for name in TABLES}
        for sketch in sketches[start : start + shard]:
            _add(tables, sketch, _save(folder, sketch))
        write_shard(run, tables)
    return runs.open(run)


def _save(folder: Path, sketch: Sketch) -> str | None:
    if sketch.picture is None:
        return sketch.id or (f"id of {sketch.source}" if sketch.status != "error" else None)
    path = folder / sketch.source
    path.parent.mkdir(parents=True, exist_ok=True)
    sketch.picture.save(path, **sketch.options)
    return sketch.id or image_id(path.read_bytes())


def _add(tables: dict[str, dict[str, list]], sketch: Sketch, identity: str | None) -> None:
    def add(table: str, **row: object) -> None:
        assert set(row) <= set(TABLES[table])
        for column, values in tables[table].items():
            values.append(row.get(column))

    ok = sketch.status == "ok"
    size = sketch.picture.size if sketch.picture else (60, 40) if ok else (None, None)
    add(
        "images",
        image_id=identity,
        source=sketch.source,
        width=size[0],
        height=size[1],
        caption=sketch.caption if ok else None,
        status=sketch.status,
        error=sketch.error,
    )
    for number, word in enumerate(sketch.words):
        word_id = f"{identity}.{number}"
        start = sketch.caption.index(word.word) if word.start is None else word.start
        add(
            "words",
            word_id=word_id,
            image_id=identity,
            word=word.word,
            lemma=word.lemma or word.word,
            token_ids=[1],
            step=number,
            start=start,
            end=start + len(word.word),
            probability=word.probability,
            logit=word.logit,
            total=word.total,
            note=word.note,
        )
        for rank, unit in enumerate(word.units):
            share = None if word.total is None else unit.score / word.total
            add(
                "neurons",
                word_id=word_id,
                rank=rank,
                layer=unit.layer,
                expert=unit.expert,
                unit=unit.unit,
                score=unit.score,
                share=share,
                activation=unit.activation,
                promotes=list(unit.promotes),
            )
        for shown in word.maps:
            rows, columns = shown.values.shape
            rectangle = shown.rectangle or (0.0, 0.0, *map(float, size))
            add(
                "heatmaps",
                word_id=word_id,
                rank=shown.rank,
                first=shown.first,
                grid=shown.grid,
                rows=rows,
                columns=columns,
                values=shown.values.astype(np.float32).ravel().tolist(),
                rectangles=_cells(rectangle, rows, columns),
            )


def _cells(rectangle: tuple[float, ...], rows: int, columns: int) -> list[list[float]]:
    x0, y0, x1, y1 = rectangle
    width, height = (x1 - x0) / columns, (y1 - y0) / rows
    return [
        [x0 + column * width, y0 + row * height, x0 + (column + 1) * width, y0 + (row + 1) * height]
        for row in range(rows)
        for column in range(columns)
    ]
