"""Tables of neurons, for the terminal, the notebook and data frames. Needs no torch."""

from __future__ import annotations

import html
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas
    import polars

__all__ = ["NeuronRow", "NeuronTable", "full_note", "neuron_name", "visible"]


@dataclass(frozen=True)
class NeuronRow:
    """One neuron of a word.

    Attributes:
        rank: from 0, by score.
        neuron: its name.
        layer: its block.
        unit: its column in the block, or in the expert.
        score: in logits.
        share: of the logit (or what stands for it); None where there is none to speak of.
        activation: at the position that emitted the explained token.
        promotes: the tokens that it makes likelier with the sign that its activation had.
        expert: its expert in a mixture of experts, otherwise None.
        outside: whether it stands behind a set that was chosen, and is not of it.
    """

    rank: int
    neuron: str
    layer: int
    unit: int
    score: float
    share: float | None
    activation: float
    promotes: tuple[str, ...]
    expert: int | None = None
    outside: bool = False

    @property
    def shown(self) -> str:
        """Its name, in brackets where it is not of the set."""
        return f"({self.neuron})" if self.outside else self.neuron


@dataclass(frozen=True)
class NeuronTable:
    """The best neurons of a word. Prints as a table; turns into polars, pandas and Parquet."""

    title: str
    rows: tuple[NeuronRow, ...]
    note: str = field(default="")

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[NeuronRow]:
        return iter(self.rows)

    def __getitem__(self, rank: int) -> NeuronRow:
        return self.rows[rank]

    def to_polars(self) -> polars.DataFrame:
        """One row per neuron, columns as in ``NeuronRow``."""
        import polars

        kinds = {
            "rank": polars.Int64,
            "neuron": polars.String,
            "layer": polars.Int64,
            "expert": polars.Int64,
            "unit": polars.Int64,
            "score": polars.Float64,
            "share": polars.Float64,
            "activation": polars.Float64,
            "promotes": polars.List(polars.String),
        }
        columns = {name: [getattr(row, name) for row in self.rows] for name in kinds if name != "promotes"}
        columns["promotes"] = [list(row.promotes) for row in self.rows]
        return polars.DataFrame(columns, schema=kinds)

    def to_pandas(self) -> pandas.DataFrame:
        """As ``to_polars``; needs pandas and pyarrow (``pip install 'mmneurons[pandas]'``)."""
        return self.to_polars().to_pandas()

    def to_parquet(self, path: str | Path) -> None:
        """Write the rows to a Parquet file."""
        self.to_polars().write_parquet(path)

    def __str__(self) -> str:
        lines = [_HEADINGS, *(_cells(row) for row in self.rows)]
        widths = [max(len(line[index]) for line in lines) for index in range(len(_HEADINGS) - 1)]
        page = [self.title]
        for neuron, *numbers, promotes in lines:
            cells = [neuron.ljust(widths[0]), *(number.rjust(w) for number, w in zip(numbers, widths[1:], strict=True))]
            page.append("  " + "  ".join([*cells, promotes]))
        if self.note:
            page.append(f"  ({self.note})")
        width = max(60, shutil.get_terminal_size((110, 24)).columns)
        return "\n".join(_cut(visible(line), width) for line in page)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in _HEADINGS)
        lines = ("".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(row)) for row in self.rows)
        body = "".join(f"<tr>{line}</tr>" for line in lines)
        note = f"<p><small>{html.escape(self.note)}</small></p>" if self.note else ""
        return f"<table><caption>{html.escape(self.title)}</caption><tr>{head}</tr>{body}</table>{note}"


_HEADINGS = ("neuron", "score", "share", "activation", "promotes")


def _cells(row: NeuronRow) -> tuple[str, ...]:
    share = "" if row.share is None else f"{row.share:.1%}"
    promotes = " ".join(dict.fromkeys(visible(token) for token in row.promotes))
    # significant digits: against the distribution all scores of a word that was certain are small
    return row.shown, f"{row.score:.3g}", share, f"{row.activation:.3g}", promotes


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else line[: width - 1] + "…"


def neuron_name(layer: int, expert: int | None, unit: int) -> str:
    """What a neuron is called: ``L27.u1234``, in a mixture of experts ``L27.e3.u1234``."""
    return f"L{layer}.u{unit}" if expert is None else f"L{layer}.e{expert}.u{unit}"


def full_note(note: str, total: float | None) -> str:
    """What stands below a table: its note, and a warning where shares are of a negative sum, which turns them round."""
    return note if total is None or total >= 0 else f"{note}; shares are of a negative sum, {total:.3g}"


def visible(token: str) -> str:
    """Text as it can be printed: control characters would end the line or worse."""
    return "".join(c if c.isprintable() else "·" for c in token) or "·"
