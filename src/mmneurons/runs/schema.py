"""What stands in a run folder: its tables, column by column, and where their parts lie.

::

    RUN/run.json                    what was asked, of which model, with which versions
    RUN/parts/000000/*.parquet      the tables of the first shard of pictures; one folder a shard, renamed into place
                                    when it is whole, so that nobody sees one table of a shard without the others
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars

__all__ = ["PARTS", "RUN_FILE", "SCHEMA_VERSION", "TABLES", "part_folders", "part_name", "schema"]

SCHEMA_VERSION = 1
"""Raised whenever a column changes its name, type or meaning."""

RUN_FILE = "run.json"
PARTS = "parts"

TABLES: Mapping[str, Mapping[str, str]] = {
    "images": {
        "image_id": "String",  # ``sources.image_id`` of the file's bytes; null where it could not be read
        "source": "String",  # where the picture comes from: a path, or a file and the row in it
        "width": "Int32",  # in pixels, as its camera says which side is up; null where it could not be opened
        "height": "Int32",
        "caption": "String",
        "status": "String",  # "ok", "duplicate" (of an earlier picture, whose words stand for it) or "error"
        "error": "String",  # what was wrong with it; null unless status is "error"
        "seconds": "Float64",  # of wall time, its even share of its batch
    },
    "words": {
        "word_id": "String",  # the image_id, a dot, and the number of the word in its caption
        "image_id": "String",
        "word": "String",  # as it stands in the caption
        "lemma": "String",  # what it is called
        "token_ids": "List(Int32)",  # that spell it
        "step": "Int32",  # of the (first) token that is explained
        "start": "Int32",  # of the word in the caption, in characters
        "end": "Int32",
        "probability": "Float64",  # of its tokens together
        "logit": "Float32",  # raw, of the (first) token that is explained
        "total": "Float64",  # what scores are shares of; null where they are no shares
        "note": "String",  # what the scores are read against, and what is approximate in them
    },
    "neurons": {
        "word_id": "String",
        "rank": "Int32",  # by score, from 0
        "layer": "Int32",
        "expert": "Int32",  # null where the block is no mixture of experts
        "unit": "Int32",
        "score": "Float32",
        "share": "Float64",  # score over total; null where there is none to speak of
        "activation": "Float32",
        "promotes": "List(String)",  # with the sign that its activation had
    },
    "heatmaps": {
        "word_id": "String",
        "rank": "Int32",  # of the neuron; null for a mean
        "first": "Int32",  # of how many neurons, the best, this is the mean; null for one neuron
        "grid": "Int32",  # 0, or which of several grids over the picture (LLaVA-NeXT's tiles)
        "rows": "Int32",
        "columns": "Int32",
        "values": "List(Float32)",  # activation times its sign at the word, row by row
        "rectangles": "List(Array(Float32, 4))",  # x0, y0, x1, y1 in pixels of the picture, for every value
    },
}
"""Every table's columns, in order, with their polars types."""


def schema(table: str) -> polars.Schema:
    """The columns of a table as polars has them."""
    import polars as pl

    types: dict[str, pl.DataType] = {
        "List(Array(Float32, 4))": pl.List(pl.Array(pl.Float32, 4)),
        "List(Float32)": pl.List(pl.Float32),
        "List(Int32)": pl.List(pl.Int32),
        "List(String)": pl.List(pl.String),
        "Float32": pl.Float32(),
        "Float64": pl.Float64(),
        "Int32": pl.Int32(),
        "String": pl.String(),
    }
    return pl.Schema({name: types[kind] for name, kind in TABLES[table].items()})


def part_name(shard: int) -> str:
    """The folder of a shard, counted from 0."""
    return f"{shard:06d}"


def part_folders(run: Path) -> list[Path]:
    """The folders of the shards that are whole, in order."""
    parts = run / PARTS
    return sorted(path for path in parts.iterdir() if path.name.isdigit()) if parts.is_dir() else []
