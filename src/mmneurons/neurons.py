"""Neurons by name, tables of them, and the words that they promote."""

from __future__ import annotations

import html
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mmneurons.errors import OptionError
from mmneurons.vlm.model import VLM
from mmneurons.vlm.pictures import PictureLike
from mmneurons.vlm.readout import readout
from mmneurons.vlm.recording import Recording, image_activations

if TYPE_CHECKING:
    import pandas
    import polars

__all__ = ["Neuron", "NeuronActivations", "NeuronRow", "NeuronTable", "output_vectors", "promoted_tokens"]

PromotedBy = Literal["cosine", "product"]


@dataclass(frozen=True)
class NeuronActivations:
    """How active one neuron is on one picture.

    Attributes:
        caption: what was said.
        steps: its activation at every emitting position.
        image: its activation at every image token.
    """

    caption: str
    steps: Float[Tensor, "steps"]
    image: Float[Tensor, "image"]


@dataclass(frozen=True, eq=False)
class Neuron:
    """One unit of an FFN."""

    vlm: VLM
    block: int
    column: int

    def __post_init__(self) -> None:
        self.vlm.anatomy.name(self.block, self.column)

    @property
    def name(self) -> str:
        """Its name, such as ``L27.u1234``."""
        return self.vlm.anatomy.name(self.block, self.column)

    @property
    def output_vector(self) -> Float[Tensor, "hidden"]:
        """What one unit of its activation adds to the residual stream, as the weights are now."""
        return output_vectors(self.vlm, [(self.block, self.column)])[0]

    def promotes(self, k: int = 10, sign: int = 1, by: PromotedBy = "cosine") -> tuple[str, ...]:
        """The tokens that it makes likelier while it is positive (``sign=1``) or negative (``sign=-1``)."""
        return promoted_tokens(self.vlm, self.output_vector[None] * sign, k, by)[0]

    def activations(
        self, pictures: PictureLike | list[PictureLike] | tuple[PictureLike, ...]
    ) -> NeuronActivations | list[NeuronActivations]:
        """How active it is while the model captions a picture; for a list of pictures a list."""
        from mmneurons.finding import record

        def of(recording: Recording) -> NeuronActivations:
            return NeuronActivations(
                caption=recording.caption,
                steps=recording.activations[:, self.block, self.column],
                image=image_activations(self.vlm, recording, [(self.block, self.column)])[0],
            )

        recordings = record(self.vlm, pictures)
        return of(recordings) if isinstance(recordings, Recording) else [of(recording) for recording in recordings]

    def __repr__(self) -> str:
        return f"Neuron({self.name} of {self.vlm.name})"


def output_vectors(vlm: VLM, neurons: Sequence[tuple[int, int]]) -> Float[Tensor, "neurons hidden"]:
    """What one unit of activation of each neuron adds to the residual stream, as it arrives at the final norm."""
    vectors = []
    for block, column in neurons:
        site = vlm.anatomy.blocks[block].ffn
        vectors.append(site.weight(vlm.model)[:, column].detach().float().cpu() * site.gain)
    return torch.stack(vectors) if vectors else torch.zeros(0, vlm.anatomy.hidden)


def promoted_ids(
    vlm: VLM, vectors: Float[Tensor, "vectors hidden"], k: int = 10, by: PromotedBy = "cosine"
) -> list[list[int]]:
    """The ids of the ordinary tokens that each vector makes likelier, most first.

    A vector v in the residual stream moves the logit of token j by u_j · (γ⊙v) up to the norm's statistic. What moves
    all tokens alike is no meaning, so unembeddings are centred on the mean of ordinary tokens: ``by="cosine"`` ranks by
    the cosine of γ⊙v and u_j − ū; ``by="product"`` by u_j · (γ⊙v). An approximation: what later blocks do is left out.

    Raises:
        OptionError: ``by`` is something else.
    """
    if by not in ("cosine", "product"):
        raise OptionError(f"by={by!r} is not possible. Choose 'cosine' or 'product'.")
    head = readout(vlm)
    read = head.center(vectors) * head.gain
    mean = head.mixture((head.ordinary.float() / head.ordinary.sum())[None])[0][0] / head.scale
    best_values = torch.full((len(vectors), 0), 0.0)
    best_ids = torch.zeros(len(vectors), 0, dtype=torch.long)
    # in chunks, so that nothing of the size neurons × vocabulary is built
    for ids in head.ordinary.nonzero().flatten().split(16384):
        rows = head.unembedding[ids.to(head.unembedding.device)].float().cpu()
        if by == "cosine":
            rows = torch.nn.functional.normalize(rows - mean, dim=-1)
        best_values = torch.cat([best_values, read @ rows.T], 1)
        best_ids = torch.cat([best_ids, ids.expand(len(vectors), -1)], 1)
        best_values, places = best_values.topk(min(k, best_values.shape[1]))
        best_ids = best_ids.gather(1, places)
    return best_ids.tolist()


def promoted_tokens(
    vlm: VLM, vectors: Float[Tensor, "vectors hidden"], k: int = 10, by: PromotedBy = "cosine"
) -> list[tuple[str, ...]]:
    """As ``promoted_ids``, spelt out; ids as ``#123`` where the model was wrapped without a processor."""
    tokenizer = getattr(vlm.processor, "tokenizer", None)

    def spell(token: int) -> str:
        if tokenizer is None:
            return f"#{token}"
        return tokenizer.decode([token], clean_up_tokenization_spaces=False).strip()

    return [tuple(spell(token) for token in tokens) for tokens in promoted_ids(vlm, vectors, k, by)]


@dataclass(frozen=True)
class NeuronRow:
    """One neuron of a word.

    Attributes:
        rank: from 0, by score.
        neuron: its name.
        layer: its block.
        unit: its column in the block.
        score: in logits.
        share: of the logit (or what stands for it); None where there is none to speak of.
        activation: at the position that emitted the explained token.
        promotes: the tokens that it makes likelier with the sign that its activation had.
    """

    rank: int
    neuron: str
    layer: int
    unit: int
    score: float
    share: float | None
    activation: float
    promotes: tuple[str, ...]


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
        return "\n".join(_cut(_visible(line), width) for line in page)

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
    promotes = " ".join(dict.fromkeys(_visible(token) for token in row.promotes))
    # significant digits: against the distribution all scores of a word that was certain are small
    return row.neuron, f"{row.score:.3g}", share, f"{row.activation:.3g}", promotes


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else line[: width - 1] + "…"


def _visible(token: str) -> str:
    """A token as it can be printed: control characters would end the line or worse."""
    return "".join(c if c.isprintable() else "·" for c in token) or "·"
