"""Figures of a run folder's words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path

import polars as pl
from PIL import Image

from mmneurons.heatmaps import Heatmap
from mmneurons.reports.figures import WordPanel, figure, save_figure
from mmneurons.reports.maps import stored_heatmap
from mmneurons.reports.thumbnails import read_again
from mmneurons.runs.printing import neuron_rows
from mmneurons.runs.reader import Run
from mmneurons.table import NeuronRow

__all__ = ["panels", "write_figures"]


def write_figures(run: Run, folder: Path, pictures: int = 40, neurons: int = 5) -> list[Path]:
    """A figure of every word of the first pictures, as SVG and as PNG.

    Args:
        run: the run.
        folder: where to; made if it is not there.
        pictures: of how many pictures that have words.
        neurons: how many neurons of each word.

    Returns:
        The SVG files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, word, panel in panels(run, pictures, neurons):
        svg, _ = save_figure(figure(panel), folder / f"{number:04d}-{word:02d}-{_plain(panel.word)}")
        written.append(svg)
    return written


def panels(run: Run, pictures: int, neurons: int, words: int | None = None) -> Iterator[tuple[int, int, WordPanel]]:
    """What to show of the words of a run, one shard in memory at a time; with the numbers of picture and word.

    A picture that cannot be read any more, or is another one now, is left out.

    Args:
        run: the run.
        pictures: of how many pictures that have words.
        neurons: how many neurons of each word.
        words: of how many words of each picture; None for all.
    """
    number = 0
    for images, own_words, own_neurons, own_maps in run.each_shard("images", "words", "neurons", "heatmaps"):
        by_image = own_words.partition_by("image_id", as_dict=True)
        for image in images.filter(pl.col("status") == "ok").iter_rows(named=True):
            found = by_image.get((image["image_id"],))
            if found is None:
                continue
            if number >= pictures:
                return
            picture = read_again(image["source"], run.folder, run.column, image["image_id"])
            if isinstance(picture, str):
                continue
            for index, word in enumerate(found.head(words or found.height).iter_rows(named=True)):
                rows = neuron_rows(own_neurons.filter(pl.col("rank") < neurons, word_id=word["word_id"]))
                maps = own_maps.filter(pl.col("word_id") == word["word_id"], pl.col("first").is_null())
                yield number, index, _panel(picture, image, word, rows, maps)
            number += 1


def _panel(
    picture: Image.Image,
    image: Mapping[str, object],
    word: Mapping[str, object],
    rows: tuple[NeuronRow, ...],
    maps: pl.DataFrame,
) -> WordPanel:
    by_rank = maps.partition_by("rank", as_dict=True)

    def heatmap(row: NeuronRow) -> Heatmap | None:
        stored = by_rank.get((row.rank,))
        return None if stored is None else stored_heatmap(stored, picture.size, f"{word['lemma']}: {row.neuron}")

    return WordPanel(
        picture=picture,
        caption=str(image["caption"]),
        span=(int(str(word["start"])), int(str(word["end"]))),
        word=str(word["lemma"]),
        rows=rows,
        maps=tuple(heatmap(row) for row in rows),
        note=str(word["note"]),
    )


def _plain(word: str) -> str:
    """A word as a part of a file's name."""
    plain = unicodedata.normalize("NFKD", word).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")[:40] or "word"
