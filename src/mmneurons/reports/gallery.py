"""The pictures that a report shows, with everything of their words. Nothing of the rest of the run is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import polars as pl

from mmneurons.reports.maps import Raster, raster, stored_heatmap
from mmneurons.runs.reader import Run
from mmneurons.table import neuron_name

__all__ = ["NEURONS", "WORDS", "ShownMap", "ShownNeuron", "ShownPicture", "ShownWord", "shown_pictures"]

NEURONS = 10
"""How many neurons of a word are shown, and have their map shown."""

WORDS = 40
"""How many words of a caption are shown."""

SIDES = (16, 64)
"""The smallest and the largest side that a map's raster may have."""

POINTS = 60_000
"""How many points the maps of a picture may have together, as long as that leaves them the smallest side."""


@dataclass(frozen=True)
class ShownNeuron:
    """One neuron of a word, as in the neurons table."""

    rank: int
    name: str
    score: float
    share: float | None
    activation: float
    promotes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class ShownMap:
    """Where a neuron looks.

    Attributes:
        rank: of the neuron; None for a mean.
        first: of how many neurons it is the mean; None for one neuron.
        raster: the map.
    """

    rank: int | None
    first: int | None
    raster: Raster


@dataclass(frozen=True)
class ShownWord:
    """One word of a caption, as in the words table, with its best neurons and their maps."""

    word: str
    lemma: str
    start: int
    end: int
    probability: float | None
    logit: float | None
    total: float | None
    note: str
    neurons: tuple[ShownNeuron, ...]
    maps: tuple[ShownMap, ...]


@dataclass(frozen=True)
class ShownPicture:
    """One picture, as in the images table, with its words in caption order.

    Attributes:
        image_id: of its bytes.
        source: where it comes from.
        size: width and height in pixels.
        caption: what the model said.
        words: those that are explained, at most ``WORDS``.
        left_out: how many more there are.
    """

    image_id: str
    source: str
    size: tuple[int, int]
    caption: str
    words: tuple[ShownWord, ...]
    left_out: int


def shown_pictures(run: Run, count: int) -> list[ShownPicture]:
    """The first pictures of a run of which words are explained.

    Args:
        run: the run.
        count: how many at most.
    """
    words = run.words
    images = (
        run.images.filter(pl.col("status") == "ok")
        .with_row_index("order")
        .join(words.select("image_id").unique(), on="image_id", how="semi")
        .sort("order")
        .head(count)
        .collect(engine="streaming")
    )
    own = (
        words.filter(pl.col("image_id").is_in(images["image_id"].to_list()))
        .collect(engine="streaming")
        .sort("image_id", "start", "step", maintain_order=True)
        .with_columns(place=pl.int_range(pl.len()).over("image_id"), said=pl.len().over("image_id"))
        .filter(pl.col("place") < WORDS)
    )
    ids = own["word_id"].to_list()
    neurons = run.neurons.filter(pl.col("word_id").is_in(ids), pl.col("rank") < NEURONS).collect(engine="streaming")
    wanted = pl.col("rank").is_null() | (pl.col("rank") < NEURONS)
    heatmaps = run.heatmaps.filter(pl.col("word_id").is_in(ids), wanted).collect(engine="streaming")
    side = _side(heatmaps.filter(pl.col("grid") == 0).height, images.height)
    neurons_of, maps_of = _by_word(neurons.sort("rank")), _by_word(heatmaps)
    words_of = {str(image): frame for (image,), frame in own.partition_by("image_id", as_dict=True).items()}

    def picture(row: dict) -> ShownPicture:
        size, frame = (int(row["width"]), int(row["height"])), words_of[row["image_id"]]
        explained = tuple(
            _word(word, neurons_of.get(word["word_id"]), maps_of.get(word["word_id"]), size, side)
            for word in frame.iter_rows(named=True)
        )
        left_out = int(frame["said"][0]) - len(explained)
        return ShownPicture(row["image_id"], row["source"], size, row["caption"] or "", explained, left_out)

    return [picture(row) for row in images.iter_rows(named=True)]


def _side(maps: int, pictures: int) -> int:
    """The side of the rasters, so that so many maps find room."""
    smallest, largest = SIDES
    return max(smallest, min(largest, int((POINTS * pictures / max(maps, 1)) ** 0.5)))


def _by_word(frame: pl.DataFrame) -> dict[str, pl.DataFrame]:
    return {str(word): own for (word,), own in frame.partition_by("word_id", as_dict=True).items()}


def _word(
    row: dict, neurons: pl.DataFrame | None, maps: pl.DataFrame | None, size: tuple[int, int], side: int
) -> ShownWord:
    return ShownWord(
        word=row["word"],
        lemma=row["lemma"],
        start=row["start"],
        end=row["end"],
        probability=row["probability"],
        logit=row["logit"],
        total=row["total"],
        note=row["note"] or "",
        neurons=() if neurons is None else tuple(_neuron(neuron) for neuron in neurons.iter_rows(named=True)),
        maps=() if maps is None else tuple(_maps(maps, size, side)),
    )


def _neuron(row: dict) -> ShownNeuron:
    return ShownNeuron(
        rank=row["rank"],
        name=neuron_name(row["layer"], row["expert"], row["unit"]),
        score=row["score"],
        share=row["share"],
        activation=row["activation"],
        promotes=tuple(dict.fromkeys(row["promotes"] or ())),
    )


def _maps(rows: pl.DataFrame, size: tuple[int, int], side: int) -> Iterator[ShownMap]:
    """A map for every neuron that has one, best first, then the means."""
    ordered = rows.sort("rank", "first", "grid", nulls_last=True)
    keys = list(zip(ordered["rank"].to_list(), ordered["first"].to_list(), strict=True))
    start = 0
    for (rank, first), group in groupby(keys):
        count = len(list(group))
        yield ShownMap(rank, first, raster(stored_heatmap(ordered[start : start + count], size), side))
        start += count
