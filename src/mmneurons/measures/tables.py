"""Tables of what was measured: a line for each finder, an interval in every cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars

from mmneurons.measures.intervals import Estimate, Resampled, mean_resampled, resample

__all__ = ["Cell", "Table", "means", "median", "pivot"]


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Attributes:
        row: of the finder, usually.
        column: what it is.
        estimate: with its 95 % interval.
        words: over how many words.
    """

    row: str
    column: str
    estimate: Estimate
    words: int


@dataclass(frozen=True)
class Table:
    """Cells under a heading.

    Attributes:
        name: of its files.
        title: of the section.
        note: what is measured, in a sentence or two.
        cells: in order; rows and columns are those that come first.
    """

    name: str
    title: str
    note: str
    cells: tuple[Cell, ...]

    @property
    def rows(self) -> list[str]:
        """In order."""
        return list(dict.fromkeys(cell.row for cell in self.cells))

    @property
    def columns(self) -> list[str]:
        """In order."""
        return list(dict.fromkeys(cell.column for cell in self.cells))

    def markdown(self) -> str:
        """As a section of a Markdown page."""
        known = {(cell.row, cell.column): cell for cell in self.cells}
        lines = [f"| | {' | '.join(self.columns)} |", "|---" * (len(self.columns) + 1) + "|"]
        for row in self.rows:
            shown = [self._shown(known.get((row, column))) for column in self.columns]
            lines.append(f"| {row} | {' | '.join(shown)} |")
        return f"### {self.title}\n\n{self.note}\n\n" + "\n".join(lines) + "\n"

    def frame(self) -> polars.DataFrame:
        """A row for each cell."""
        return polars.DataFrame(
            {
                "row": [cell.row for cell in self.cells],
                "column": [cell.column for cell in self.cells],
                "value": [cell.estimate.value for cell in self.cells],
                "low": [cell.estimate.low for cell in self.cells],
                "high": [cell.estimate.high for cell in self.cells],
                "words": [cell.words for cell in self.cells],
            }
        )

    def _shown(self, cell: Cell | None) -> str:
        if cell is None or np.isnan(cell.estimate.value):
            return "–"
        one = cell.estimate
        counted = one.low == one.value == one.high and one.value == round(one.value)
        return f"{one.value:.0f}" if counted else format(one, ".3g")


def pivot(observed: polars.DataFrame, quantity: str, k: int, finders: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The picture of every word, and its value by finder, NaN where it has none.

    Args:
        observed: columns word_id, image_id, finder, quantity, k, value.
        quantity: which.
        k: of how many neurons.
        finders: the columns.
    """
    own = observed.filter((polars.col("quantity") == quantity) & (polars.col("k") == k))
    words = own.select("word_id", "image_id").unique(maintain_order=True).sort("word_id")
    place = {word: index for index, word in enumerate(words["word_id"])}
    values = np.full((len(words), len(finders)), np.nan)
    for finder, word, value in own.select("finder", "word_id", "value").iter_rows():
        if finder in finders:
            values[place[word], list(finders).index(finder)] = value
    return words["image_id"].to_list(), values


def means(
    observed: polars.DataFrame, quantity: str, k: int, finders: Sequence[str], draws: int, seed: int
) -> tuple[Resampled, np.ndarray]:
    """The mean over words by finder, and over how many words."""
    pictures, values = pivot(observed, quantity, k, finders)
    return mean_resampled(pictures, values, draws, seed), (~np.isnan(values)).sum(0)


def median(
    observed: polars.DataFrame, quantity: str, k: int, finders: Sequence[str], draws: int, seed: int
) -> tuple[list[Estimate], list[Estimate], np.ndarray]:
    """The median over words by finder, its paired difference to the first finder's, and over how many words.

    Each over the words that have the finder's value; the difference over those that have both.
    """
    pictures, values = pivot(observed, quantity, k, finders)
    own, differences = [], []
    nothing = Estimate(np.nan, np.nan, np.nan)
    for way in range(len(finders)):
        there = ~np.isnan(values[:, [0, way]]).any(1)
        if not there.any():
            own.append(nothing)
            differences.append(nothing)
            continue
        known = np.flatnonzero(~np.isnan(values[:, way]))
        alone = resample([pictures[i] for i in known], values[known][:, [way]], _median, draws, seed)
        own.append(alone.estimate(0))
        both = np.flatnonzero(there)
        pair = resample([pictures[i] for i in both], values[both][:, [0, way]], _median, draws, seed)
        differences.append(pair.difference(1, 0))
    return own, differences, (~np.isnan(values)).sum(0)


def _median(values: np.ndarray) -> np.ndarray:
    return np.median(values, axis=0)
