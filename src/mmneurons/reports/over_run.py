"""What a whole run says of its neurons. Computed lazily over the tables, which are never in memory as a whole."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from mmneurons.runs.reader import Run
from mmneurons.table import neuron_name

__all__ = [
    "BEST",
    "ERRORS",
    "LEMMAS",
    "NOTES",
    "PAIRS",
    "SERVING",
    "Counts",
    "Pair",
    "Serving",
    "Shared",
    "block_counts",
    "common_lemmas",
    "count",
    "errors",
    "notes",
    "serving",
    "shared",
]

BEST = 10
"""How many of a word's neurons count as its best."""

LEMMAS = 30
"""How many words are compared: those of the most pictures."""

SERVING = 5
"""How many neurons are listed for a word."""

PAIRS = 12
"""How many pairs of words are listed."""

ERRORS = 50
"""How many errors are listed."""

NOTES = 3
"""How many kinds of notes are shown."""

NEURON = ("layer", "expert", "unit")


@dataclass(frozen=True)
class Counts:
    """How much is in a run.

    Attributes:
        ok: pictures with a caption.
        duplicates: copies of an earlier picture.
        errors: pictures that could not be read or captioned.
        words: words that are explained.
        lemmas: different ones.
    """

    ok: int
    duplicates: int
    errors: int
    words: int
    lemmas: int

    @property
    def pictures(self) -> int:
        """All pictures that are done."""
        return self.ok + self.duplicates + self.errors


@dataclass(frozen=True)
class Serving:
    """One word, and the neurons that are among its best in most of its pictures.

    Attributes:
        lemma: the word.
        pictures: of which it is said.
        neurons: names, each with the number of pictures it serves and what it promotes, most pictures first.
    """

    lemma: str
    pictures: int
    neurons: tuple[tuple[str, int, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Pair:
    """Two words that share neurons.

    Attributes:
        lemma: the one.
        other: the other.
        jaccard: neurons of both over neurons of either.
        neurons: the names of those of both.
    """

    lemma: str
    other: str
    jaccard: float
    neurons: tuple[str, ...]


@dataclass(frozen=True)
class Shared:
    """Which words share neurons.

    Attributes:
        lemmas: the words, such that those that share neurons stand near one another.
        matrix: ``lemma``, ``other``, ``shared``, ``jaccard`` for every two of them.
        pairs: those that share most.
    """

    lemmas: tuple[str, ...]
    matrix: pl.DataFrame
    pairs: tuple[Pair, ...]


def count(run: Run) -> Counts:
    """How many pictures and words there are."""
    by_status = dict(run.images.group_by("status").len().collect(engine="streaming").iter_rows())
    words, lemmas = (
        run.words.select(pl.len(), pl.col("lemma").n_unique().alias("lemmas")).collect(engine="streaming").row(0)
    )
    return Counts(by_status.get("ok", 0), by_status.get("duplicate", 0), by_status.get("error", 0), words, lemmas)


def notes(run: Run) -> tuple[str, ...]:
    """What the scores are read against: the notes of the words, the commonest first, at most ``NOTES``."""
    found = run.words.filter(pl.col("note").is_not_null(), pl.col("note") != "").group_by("note").len()
    return tuple(found.sort("len", "note", descending=[True, False]).head(NOTES).collect(engine="streaming")["note"])


def errors(run: Run) -> tuple[tuple[str, str], ...]:
    """Source and error of the first pictures that failed, at most ``ERRORS``."""
    failed = run.images.filter(pl.col("status") == "error").select("source", "error").head(ERRORS)
    return tuple((source or "", error or "") for source, error in failed.collect(engine="streaming").iter_rows())


def block_counts(run: Run) -> pl.DataFrame:
    """Where the best neurons of all words lie.

    Returns:
        ``layer``, ``times`` (how often a neuron of it is among a word's best), and ``different`` (how many different
        ones are).
    """
    best = run.neurons.filter(pl.col("rank") < BEST)
    counted = best.group_by("layer").agg(times=pl.len(), different=pl.struct("expert", "unit").n_unique())
    return counted.sort("layer").collect(engine="streaming")


def common_lemmas(run: Run) -> pl.DataFrame:
    """The words that are said of the most pictures, at most ``LEMMAS``: ``lemma``, ``pictures``."""
    counted = run.words.group_by("lemma").agg(pictures=pl.col("image_id").n_unique())
    return counted.sort("pictures", "lemma", descending=[True, False]).head(LEMMAS).collect(engine="streaming")


def serving(run: Run, lemmas: pl.DataFrame) -> tuple[Serving, ...]:
    """For every word of at least two pictures the neurons that are among its best in most of them.

    Args:
        run: the run.
        lemmas: as ``common_lemmas`` has them.
    """
    several = lemmas.filter(pl.col("pictures") >= 2)
    found = (
        _served(run, several)
        .filter(pl.col("served") >= 2)
        .sort("served", "best", *NEURON, descending=[True, False, False, False, False])
        .group_by("lemma", maintain_order=True)
        .head(SERVING)
        .collect(engine="streaming")
    )
    promoted = _promoted(run, found)
    groups = {str(lemma): own for (lemma,), own in found.partition_by("lemma", as_dict=True).items()}
    return tuple(
        Serving(
            lemma,
            pictures,
            tuple(
                (neuron_name(*place), served, promoted.get((witness, *place), ()))
                for served, witness, *place in groups[lemma].select("served", "witness", *NEURON).iter_rows()
            ),
        )
        for lemma, pictures in several.select("lemma", "pictures").iter_rows()
        if lemma in groups
    )


def shared(run: Run, lemmas: pl.DataFrame) -> Shared:
    """Which words share neurons, by the overlap of their sets.

    A word's set are the neurons that are among its best in at least half of its pictures, so that a word of many
    pictures has no larger set than one of few.

    Args:
        run: the run.
        lemmas: as ``common_lemmas`` has them.
    """
    sets = (
        _served(run, lemmas)
        .filter(pl.col("served") * 2 >= pl.col("pictures"))
        .select("lemma", *NEURON)
        .collect(engine="streaming")
    )
    sizes = sets.group_by("lemma").agg(size=pl.len()).sort("lemma")
    both = sets.join(sets.rename({"lemma": "other"}), on=list(NEURON), nulls_equal=True)
    matrix = (
        sizes.join(sizes.rename({"lemma": "other", "size": "other_size"}), how="cross")
        .join(both.group_by("lemma", "other").agg(shared=pl.len()), on=["lemma", "other"], how="left")
        .with_columns(pl.col("shared").fill_null(0))
        .with_columns(jaccard=pl.col("shared") / (pl.col("size") + pl.col("other_size") - pl.col("shared")))
        .select("lemma", "other", "shared", "jaccard")
        .sort("lemma", "other")
    )
    pairs = (
        matrix.filter(pl.col("lemma") < pl.col("other"), pl.col("shared") > 0)
        .sort("jaccard", "lemma", "other", descending=[True, False, False])
        .head(PAIRS)
    )
    return Shared(_side_by_side(matrix), matrix, tuple(_pair(both, *row) for row in pairs.iter_rows()))


def _served(run: Run, lemmas: pl.DataFrame) -> pl.LazyFrame:
    """In how many pictures of each word each neuron is among its best.

    Returns:
        ``lemma``, its ``pictures``, the neuron, ``served``, ``best`` (its mean rank), and ``witness``: the first
        id of a word that it is among the best of.
    """
    words = run.words.select("word_id", "image_id", "lemma").join(lemmas.lazy(), on="lemma")
    best = run.neurons.filter(pl.col("rank") < BEST).select("word_id", "rank", *NEURON)
    return (
        best.join(words, on="word_id")
        .group_by("lemma", "pictures", *NEURON)
        .agg(served=pl.col("image_id").n_unique(), best=pl.col("rank").mean(), witness=pl.col("word_id").min())
    )


def _promoted(run: Run, neurons: pl.DataFrame) -> dict[tuple, tuple[str, ...]]:
    """What some neurons promote, by their ``witness``, layer, expert and unit."""
    key = ["witness", *NEURON]
    found = (
        run.neurons.select(pl.col("word_id").alias("witness"), *NEURON, "promotes")
        .filter(pl.col("witness").is_in(neurons["witness"].to_list()))
        .join(neurons.select(key).lazy(), on=key, how="semi", nulls_equal=True)
        .collect(engine="streaming")
    )
    return {tuple(place): tuple(dict.fromkeys(tokens or ())) for *place, tokens in found.iter_rows()}


def _pair(both: pl.DataFrame, lemma: str, other: str, _shared: int, jaccard: float) -> Pair:
    own = both.filter(pl.col("lemma") == lemma, pl.col("other") == other).sort(NEURON, descending=True)
    return Pair(lemma, other, jaccard, tuple(neuron_name(*place) for place in own.select(NEURON).iter_rows()))


def _side_by_side(matrix: pl.DataFrame) -> tuple[str, ...]:
    """The words in an order in which each is followed by the one that shares most with it, of those that are left."""
    overlap = {(lemma, other): jaccard for lemma, other, _, jaccard in matrix.iter_rows()}
    left = sorted({lemma for lemma, _ in overlap})
    if not left:
        return ()
    total = {lemma: sum(overlap[lemma, other] for other in left) for lemma in left}
    ordered = [max(left, key=lambda lemma: total[lemma])]
    left.remove(ordered[0])
    while left:
        ordered.append(max(left, key=lambda lemma: (overlap[ordered[-1], lemma], total[lemma])))
        left.remove(ordered[-1])
    return tuple(ordered)
