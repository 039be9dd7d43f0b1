"""From findings to the rows of a shard."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
import torch
from PIL import Image

from mmneurons.errors import AnatomyError
from mmneurons.finding import Finding, WordFinding
from mmneurons.neurons import output_vectors
from mmneurons.promotion import Promoter
from mmneurons.runs.schema import TABLES
from mmneurons.vlm.geometry import Geometry, placed
from mmneurons.vlm.recording import image_activations

__all__ = ["Depth", "Meanings", "ShardRows", "joined"]

Place = tuple[int, int, int]
"""Block, column, and the sign of the activation."""


@dataclass(frozen=True)
class Depth:
    """How much of every word is written down.

    Attributes:
        neurons: how many of its best neurons.
        promotes: how many tokens that each of them promotes.
        maps: of how many of its best neurons a map; beside them one of the mean of them all.
    """

    neurons: int = 10
    promotes: int = 10
    maps: int = 10


@dataclass(frozen=True)
class Meanings:
    """What neurons promote, looked up for many at once and kept while the weights stay as they are.

    Attributes:
        promoter: one reading of the head.
        k: how many tokens.
        kept: the last ones that were looked up, at most ``most``.
        most: see ``kept``.
    """

    promoter: Promoter
    k: int
    kept: OrderedDict[Place, tuple[str, ...]] = field(default_factory=OrderedDict)
    most: int = 8192

    def look_up(self, places: Sequence[Place]) -> dict[Place, tuple[str, ...]]:
        """What each neuron promotes with the sign that is given."""
        unknown = [place for place in dict.fromkeys(places) if place not in self.kept]
        if unknown and self.k:
            vlm = self.promoter.vlm
            signs = torch.tensor([[float(sign)] for *_, sign in unknown])
            vectors = output_vectors(vlm, [(block, column) for block, column, _ in unknown]) * signs
            self.kept.update(zip(unknown, self.promoter.tokens(vectors, self.k), strict=True))
        found = {place: self.kept.get(place, ()) for place in places}
        while len(self.kept) > self.most:
            self.kept.popitem(last=False)
        return found


@dataclass(frozen=True)
class ShardRows:
    """The rows of one shard while it is in hand: for every table its columns."""

    depth: Depth
    tables: dict[str, dict[str, list]] = field(
        default_factory=lambda: {table: {name: [] for name in columns} for table, columns in TABLES.items()}
    )
    places: list[Place] = field(default_factory=list)

    def add_image(
        self,
        source: str,
        image_id: str | None,
        status: str,
        *,
        size: tuple[int, int] | None = None,
        caption: str | None = None,
        error: str | None = None,
        seconds: float | None = None,
    ) -> None:
        """A row of the images table."""
        width, height = size or (None, None)
        row = (image_id, source, width, height, caption, status, error, seconds)
        self._add("images", dict(zip(TABLES["images"], row, strict=True)))

    def add_finding(self, image_id: str, found: Finding, picture: Image.Image) -> None:
        """The rows of the other tables for one picture."""
        places = _geometry(found, picture) if self.depth.maps else None
        for index, word in enumerate(found):
            word_id = f"{image_id}.{index}"
            self._add("words", _word_row(word_id, image_id, word, self.depth.neurons))
            self._add_neurons(word_id, word)
            if places is not None:
                self._add_maps(word_id, word, places)

    def finish(self, meanings: Meanings) -> dict[str, dict[str, list | pl.Series]]:
        """The tables with what the neurons promote filled in."""
        found = meanings.look_up(self.places)
        tables: dict[str, dict[str, list | pl.Series]] = {name: {**columns} for name, columns in self.tables.items()}
        tables["neurons"]["promotes"] = [list(found[place]) for place in self.places]
        tables["heatmaps"]["values"] = _lists(self.tables["heatmaps"]["values"])
        tables["heatmaps"]["rectangles"] = _lists(self.tables["heatmaps"]["rectangles"])
        return tables

    def _add(self, table: str, row: dict[str, object]) -> None:
        for name, column in self.tables[table].items():
            if name in row:
                column.append(row[name])

    def _add_neurons(self, word_id: str, word: WordFinding) -> None:
        for rank, (block, column) in enumerate(word.neurons(self.depth.neurons)):
            score, activation = float(word.scores[block, column]), float(word.activations[block, column])
            layer, expert, unit = word.found.vlm.anatomy.place(block, column)
            row = {
                "word_id": word_id,
                "rank": rank,
                "layer": layer,
                "expert": expert,
                "unit": unit,
                "score": score,
                "share": word.share(score),
                "activation": activation,
            }
            self._add("neurons", row)
            self.places.append((block, column, -1 if activation < 0 else 1))

    def _add_maps(self, word_id: str, word: WordFinding, places: Geometry) -> None:
        count = min(self.depth.maps, self.depth.neurons)
        best = word.neurons(count)
        signs = torch.tensor([-1.0 if word.activations[place] < 0 else 1.0 for place in best])
        values = (image_activations(word.found.vlm, word.found.recording, best) * signs[:, None]).numpy()
        named = [(rank, None, row) for rank, row in enumerate(values)] + [(None, count, values.mean(0))]
        for number, grid in enumerate(places.grids):
            rectangles = _rectangles(*grid.spans())
            for rank, first, row in named:
                cells = row[grid.positions].astype(np.float32).ravel()
                written = (word_id, rank, first, number, grid.rows, grid.columns, cells, rectangles)
                self._add("heatmaps", dict(zip(TABLES["heatmaps"], written, strict=True)))


def joined(parts: Sequence[ShardRows]) -> ShardRows:
    """The rows of several batches, in their order, as those of one shard."""
    whole = ShardRows(parts[0].depth)
    for part in parts:
        for table, columns in part.tables.items():
            for name, column in columns.items():
                whole.tables[table][name].extend(column)
        whole.places.extend(part.places)
    return whole


def _word_row(word_id: str, image_id: str, word: WordFinding, neurons: int) -> dict[str, object]:
    target = word.targets[0]
    return {
        "word_id": word_id,
        "image_id": image_id,
        "word": word.found.caption[slice(*word.span)],
        "lemma": word.word,
        "token_ids": list(word.token_ids),
        "step": target.step,
        "start": word.span[0],
        "end": word.span[1],
        "probability": float(np.exp(word.log_probability)),
        "logit": float(word.found.recording.logits[target.step, target.token]),
        "total": word.total,
        "note": word.note_of(neurons),
    }


def _geometry(found: Finding, picture: Image.Image) -> Geometry | None:
    """Where the picture's tokens lie; None where that is not known, or there are none."""
    tokens = len(found.recording.image_positions)
    if not tokens or found.vlm.processor is None:
        return None
    try:
        return placed(found.vlm, picture.size, tokens)
    except AnatomyError:
        return None


def _rectangles(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Every cell's x0, y0, x1, y1, row by row, from the columns' and the rows' edges."""
    rows, columns = len(y), len(x)
    left, right = (np.tile(x[:, side], rows) for side in (0, 1))
    upper, lower = (np.repeat(y[:, side], columns) for side in (0, 1))
    return np.stack([left, upper, right, lower], axis=1).astype(np.float32)


def _lists(arrays: Sequence[np.ndarray]) -> pl.Series:
    """A column of lists, without a Python object for every number."""
    import pyarrow as pa

    offsets = np.cumsum([0, *(len(array) for array in arrays)]).astype(np.int32)
    if not arrays:
        return pl.Series([], dtype=pl.Null)
    values = np.concatenate(arrays)
    flat = pa.array(values.ravel())
    inner = flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    column = pl.from_arrow(pa.ListArray.from_arrays(pa.array(offsets), inner))
    assert isinstance(column, pl.Series)
    return column
