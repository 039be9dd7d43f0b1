"""A run as text, picture by picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import polars as pl

from mmneurons.english import are_forms, fold
from mmneurons.runs.reader import Run, readable
from mmneurons.table import NeuronRow, NeuronTable, full_note, neuron_name, visible

__all__ = ["Page", "WordTable", "counted", "neuron_rows", "pages"]


@dataclass(frozen=True)
class WordTable:
    """A word of a caption with its best neurons.

    Attributes:
        word: as it stands in the caption.
        lemma: what it is called.
        probability: of its tokens together.
        logit: of the token that is explained.
        neurons: its table.
    """

    word: str
    lemma: str
    probability: float
    logit: float
    neurons: NeuronTable


@dataclass(frozen=True)
class Page:
    """What a run says of one picture.

    Attributes:
        source: where the picture comes from.
        status: ``"ok"``, ``"duplicate"`` or ``"error"``.
        caption: what the model said; None where it did not come to that.
        error: what was wrong.
        words: the words that are explained, in caption order.
    """

    source: str
    status: str
    caption: str | None
    error: str | None
    words: tuple[WordTable, ...]

    def to_dict(self) -> dict[str, object]:
        """As JSON has it."""
        words = [
            {
                "word": word.word,
                "lemma": word.lemma,
                "probability": word.probability,
                "logit": word.logit,
                "note": word.neurons.note,
                # which ones stand behind a set is said in the note; a run keeps no mark of them
                "neurons": [
                    {name: value for name, value in asdict(row).items() if name != "outside"} for row in word.neurons
                ],
            }
            for word in self.words
        ]
        return {
            "source": self.source,
            "status": self.status,
            "caption": self.caption,
            "error": self.error,
            "words": words,
        }

    def __str__(self) -> str:
        lines = [visible(self.source)]
        if self.status == "ok":
            lines.append(f"  {visible(self.caption or '')}")
        else:
            lines.append(f"  {self.status}" + (f": {visible(self.error)}" if self.error else ""))
        return "\n".join([*lines, *(str(word.neurons) for word in self.words)])


def pages(
    run: Run,
    picture: str | None = None,
    words: Sequence[str] | None = None,
    neurons: int = 3,
    limit: int | None = None,
) -> Iterator[Page]:
    """The pictures of a run, in its order, one shard in memory at a time.

    Args:
        run: the run.
        picture: only pictures whose source ends like this.
        words: only these words, or forms of them, and only pictures that have one.
        neurons: how many of a word's best neurons.
        limit: only the first so many pictures.
    """
    shown = 0
    for images, own_words, own_neurons in run.each_shard("images", "words", "neurons"):
        if picture is not None:
            images = images.filter(pl.col("source").str.ends_with(picture))
        if words:
            own_words = own_words.filter(
                pl.Series([_is_asked(word, words) for word in own_words["lemma"]], dtype=pl.Boolean)
            )
            images = images.filter(pl.col("image_id").is_in(own_words["image_id"].implode()), status="ok")
        by_image = own_words.partition_by("image_id", as_dict=True)
        by_word = own_neurons.filter(pl.col("rank") < neurons).partition_by("word_id", as_dict=True)
        for image in images.iter_rows(named=True):
            if limit is not None and shown >= limit:
                return
            shown += 1
            found = by_image.get((image["image_id"],)) if image["status"] == "ok" else None
            rows = [] if found is None else found.iter_rows(named=True)
            tables = (_word_table(row, by_word.get((row["word_id"],)), image["caption"]) for row in rows)
            yield Page(image["source"], image["status"], image["caption"], image["error"], tuple(tables))


def counted(run: Run) -> str:
    """How many pictures a run has, by what became of them."""
    with readable(run.path):
        statuses = run.images.group_by("status").len().collect()
        words = run.words.select(pl.len()).collect().item()
    counts = dict(zip(statuses["status"], statuses["len"], strict=True))
    done = sum(counts.values())
    total = run.about.get("total")
    parts = [f"{counts.get('ok', 0)} pictures explained, {words} words"]
    parts += [f"{counts['duplicate']} met twice"] if "duplicate" in counts else []
    parts += [f"{counts['error']} failed"] if "error" in counts else []
    parts += [f"{total - done} still to do"] if isinstance(total, int) and total > done else []
    return ", ".join(parts)


def neuron_rows(neurons: pl.DataFrame) -> tuple[NeuronRow, ...]:
    """The rows of a word's neurons, by rank."""
    return tuple(
        NeuronRow(
            rank=row["rank"],
            neuron=neuron_name(row["layer"], row["expert"], row["unit"]),
            layer=row["layer"],
            expert=row["expert"],
            unit=row["unit"],
            score=row["score"],
            share=row["share"],
            activation=row["activation"],
            promotes=tuple(row["promotes"]),
        )
        for row in neurons.sort("rank").iter_rows(named=True)
    )


def _word_table(row: dict, neurons: pl.DataFrame | None, caption: str) -> WordTable:
    rows = () if neurons is None else neuron_rows(neurons)
    table = NeuronTable(f"{row['lemma']!r} in {caption!r}", rows, full_note(row["note"], row["total"]))
    return WordTable(row["word"], row["lemma"], row["probability"], row["logit"], table)


def _is_asked(lemma: str, words: Sequence[str]) -> bool:
    return any(are_forms(fold(word.strip()), fold(lemma)) for word in words)
