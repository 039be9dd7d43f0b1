"""From single numbers to tables: means over words, intervals over pictures, a control in every table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import polars

from mmneurons.measures.across_pictures import QUANTITIES as ACROSS
from mmneurons.measures.across_pictures import Told, cross_image, specificity
from mmneurons.measures.hallucination import KINDS, Chair, Mentions, Question, chair, pope
from mmneurons.measures.intervals import Estimate, mean_resampled, resample
from mmneurons.measures.objects import Vocabulary
from mmneurons.measures.overlap import overlap
from mmneurons.measures.suites import BASELINE, RANDOM
from mmneurons.measures.tables import Cell, Table, means, median

__all__ = ["AT", "CLAIMED", "Claim", "Observed", "across", "claims", "hallucination_table", "pope_table", "tables"]

AT = 20
"""At how many neurons finders are ranked."""

ACROSS_KS = (10, 20, 50)
TIMES = "seconds"
FEW_WORDS, FEW_CONCEPTS = 30, 5
"""Over fewer than these no verdict stands without a caution."""

CLAIMED = (BASELINE, "paper (gate, no norm)")
"""Whose neurons the paper's claims are asked of."""

CONCEPTS = ("exclusive", "own share", "other share")
"""Quantities of which there is one for a concept, not for a word."""


@dataclass(frozen=True, eq=False)
class Observed:
    """What was observed.

    Attributes:
        values: columns word_id, image_id, finder, quantity, k, value.
        tops: columns word_id, image_id, finder, neurons.
        words: columns word_id, image_id, word.
        finders: in the order in which tables show them.
        meanings: of quantities.
        neurons: how many the model has.
        blocks: how many blocks they are in; neurons count on from one to the next.
        draws: of the bootstrap.
        seed: of the draws.
    """

    values: polars.DataFrame
    tops: polars.DataFrame
    words: polars.DataFrame
    finders: tuple[str, ...]
    meanings: Mapping[str, str]
    neurons: int
    blocks: int
    draws: int = 2000
    seed: int = 0

    def ks(self, quantity: str) -> list[int]:
        """At which numbers of neurons a quantity was observed."""
        return self.values.filter(polars.col("quantity") == quantity)["k"].unique().sort().to_list()

    def asked(self, quantity: str) -> list[str]:
        """The finders that it was observed of."""
        there = set(self.values.filter(polars.col("quantity") == quantity)["finder"].unique())
        return [finder for finder in self.finders if finder in there]


@dataclass(frozen=True)
class Claim:
    """One thing that may hold, and whether it does.

    Attributes:
        text: what is claimed.
        difference: with its interval; it holds where this lies above 0.
        count: over how many words, or concepts.
        over: which of the two.
    """

    text: str
    difference: Estimate
    count: int
    over: Literal["words", "concepts"] = "words"

    @property
    def verdict(self) -> str:
        """In words, with a caution where there were few."""
        said = {1: "holds", 0: "cannot be told", -1: "does not hold"}[self.difference.sign]
        few = self.count < (FEW_WORDS if self.over == "words" else FEW_CONCEPTS)
        # an interval from a bootstrap over few things is too narrow
        return f"{said} (few {self.over}: read the intervals)" if few and self.difference.sign else said


def across(observed: Observed) -> polars.DataFrame:
    """The observations that compare words with one another, as further rows of ``values``."""
    names = dict(observed.words.select("word_id", "word").iter_rows())
    rows = []
    for finder in observed.finders:
        own = observed.tops.filter(polars.col("finder") == finder)
        ids = own["word_id"].to_list()
        told = [
            Told(picture, names[word], tuple(neurons))
            for word, picture, neurons in own.select("word_id", "image_id", "neurons").iter_rows()
        ]
        known = dict(zip(map(id, told), ids, strict=True))
        for k in ACROSS_KS:
            for word, observations in cross_image(told, finder, k):
                rows += [(known[id(word)], word.picture, finder, one.quantity, k, one.value) for one in observations]
            # a concept is a word and a group of its own: there is one number for it
            for concept, one in specificity(told, finder, k, least=3):
                rows.append((f"concept {concept.word}", f"concept {concept.word}", finder, one.quantity, k, one.value))
    return polars.DataFrame(rows, schema=observed.values.schema, orient="row")


def tables(observed: Observed) -> Iterator[Table]:
    """All tables for which something was observed."""
    make = partial(_means, observed)
    there = set(observed.values["quantity"].unique())
    if "fall" in there:
        yield _ranking(observed)
        yield make("fall", "fall", "Causal effect: log p of the word, top k at zero")
        yield make("relative-fall", "relative fall", "Causal effect, relative to the runners-up")
        yield _controls(observed)
    for quantity, title in (
        ("BERTScore", "Semantic sensitivity: BERTScore"),
        ("MoverScore", "Semantic sensitivity: MoverScore"),
        ("CLIPScore", "Semantic sensitivity: CLIPScore"),
        ("region overlap", "Region invariance"),
        ("own overlap", "Cross-image invariance: the same word in other pictures"),
        ("other overlap", "Cross-image invariance, the control: other words in other pictures"),
        ("exclusive", "Specificity: neurons that are no other concept's"),
        ("own share", "Specificity: the concept's neurons in its own words"),
        ("other share", "Specificity: the concept's neurons in other concepts' words"),
        ("pointing", "Where they look: the pointing game"),
        ("mask IoU", "Where they look: overlap with the object's mask"),
    ):
        if quantity in there:
            yield make(quantity.replace(" ", "-").lower(), quantity, title)
    yield _agreement(observed)


def claims(observed: Observed) -> Iterator[Claim]:
    """What the paper claims of its neurons, asked of the baseline and of the paper's own score."""
    there = set(observed.values["quantity"].unique())
    for finder in CLAIMED:
        against = partial(_paired, observed, finder)
        for quantity, k, text in (
            ("BERTScore", 10, "sensitivity: their words are more like the reference than random neurons' (BERTScore)"),
            ("MoverScore", 10, "sensitivity: the same by MoverScore"),
            ("region overlap", 100, "region invariance: found again more often than by chance"),
            ("fall", AT, "causal effect: log p(word) falls further than without random neurons"),
            ("relative fall", AT, "causal effect: so it does relative to the runners-up"),
            ("pointing", 10, "they look at the thing more often than random neurons do"),
        ):
            if quantity in there and finder in observed.asked(quantity) and RANDOM in observed.asked(quantity):
                yield against(f"{finder}: {text}", (quantity, finder), (quantity, RANDOM), k)
        if "matched fall" in there and finder in observed.finders:
            text = f"{finder}: causal effect: further than without neurons of the same blocks that write as much"
            yield against(text, ("fall", finder), ("matched fall", finder), AT)
            text = f"{finder}: causal effect relative to the runners-up: further than without such neurons"
            yield against(text, ("relative fall", finder), ("matched relative fall", finder), AT)
        if "own overlap" in there and finder in observed.asked("own overlap"):
            text = f"{finder}: cross-image invariance: more in common with the same word than with others"
            yield against(text, ("own overlap", finder), ("other overlap", finder), AT)
        if "own share" in there and finder in observed.asked("own share"):
            text = f"{finder}: specificity: a concept's neurons are more its own words' than others'"
            yield against(text, ("own share", finder), ("other share", finder), AT)


def hallucination_table(
    captions: Mapping[str, Mentions], known: Vocabulary, captioned: int, draws: int, seed: int
) -> Table:
    """CHAIR of captions, with intervals over pictures.

    Args:
        captions: by picture, those of pictures that the truth is of.
        known: what was looked for in them.
        captioned: how many pictures have a caption, whether or not the truth is of them.
        draws: of the bootstrap.
        seed: of the draws.
    """
    pictures = list(captions)
    kinds = ("sentences", "instances", "recall")

    def values(places: np.ndarray) -> np.ndarray:
        whole: Chair = chair([captions[pictures[int(place)]] for place in places[:, 0]])
        return np.array([getattr(whole, kind) for kind in kinds])

    places = np.arange(len(pictures), dtype=float)[:, None]
    drawn = resample(pictures, places, values, min(draws, 500), seed)
    names = ("CHAIRs", "CHAIRi", "recall")
    cells = tuple(Cell("captions", name, drawn.estimate(k), len(pictures)) for k, name in enumerate(names))
    note = (
        "Share of captions with an object that is not there; share of mentions of objects that are not there; share of "
        f"the objects that are there and said (Rohrbach et al. 2018). Over {len(pictures)} of {captioned} captioned "
        f"pictures, those that the truth is of. {known.told} Others that a caption makes up are not counted."
    )
    if not any(own.said for own in captions.values()):
        some = ", ".join(sorted(known.names)[:5]) + (" …" if len(known.names) > 5 else "")
        note += (
            f" **No caption names any of them ({some}), so nothing can be told of hallucinations.** Where captions "
            "call them otherwise, pass their other names with `--aliases`, or `--wordnet`."
        )
    return Table("hallucination", "Hallucination: CHAIR of the model's captions", note, cells)


def pope_table(answers: polars.DataFrame, draws: int, seed: int) -> Table:
    """POPE by kind of question, with intervals over pictures.

    Args:
        answers: columns image_id, kind, name, there, yes.
        draws: of the bootstrap.
        seed: of the draws.
    """
    names = {name: name for name in ("accuracy", "precision", "recall")} | {"f1": "F1", "yes_ratio": "yes-ratio"}
    cells = []
    for kind in KINDS:
        own = answers.filter(polars.col("kind") == kind)
        if own.is_empty():
            continue
        pairs = list(own.select("name", "there", "yes").iter_rows())

        def values(places: np.ndarray, pairs: list[tuple[str, bool, bool]] = pairs) -> np.ndarray:
            chosen = [pairs[int(place)] for place in places[:, 0]]
            whole = pope([Question("", name, there) for name, there, _ in chosen], [yes for _, _, yes in chosen])
            return np.array([getattr(whole, name) for name in names])

        places = np.arange(len(pairs), dtype=float)[:, None]
        drawn = resample(own["image_id"].to_list(), places, values, min(draws, 500), seed)
        cells += [Cell(kind, shown, drawn.estimate(k), len(pairs)) for k, shown in enumerate(names.values())]
    note = (
        "Is there a … in the image? As many questions after what is there as after what is not: drawn at random, the "
        "most frequent (popular), or those most often seen together with what is there (adversarial) (Li et al. 2023)."
    )
    return Table("pope", "Hallucination: POPE", note, tuple(cells))


def _means(observed: Observed, name: str, quantity: str, title: str) -> Table:
    """Finders by numbers of neurons."""
    finders, cells = observed.asked(quantity), []
    for k in observed.ks(quantity):
        drawn, counts = means(observed.values, quantity, k, finders, observed.draws, observed.seed)
        cells += [Cell(finder, f"k = {k}", drawn.estimate(way), int(counts[way])) for way, finder in enumerate(finders)]
    over = "concepts" if quantity in CONCEPTS else "words"
    note = f"{_sentence(observed.meanings.get(quantity, ACROSS.get(quantity, quantity)))} Mean over {over}."
    if quantity in ("region overlap", "own overlap"):
        shares = ", ".join(f"{k / observed.neurons:.2g}" for k in observed.ks(quantity))
        note += f" By chance {shares}: k over {observed.neurons:,} neurons."
    return Table(name, title, note, tuple(cells))


def _ranking(observed: Observed) -> Table:
    """Finders by the effect of their first neurons, with the difference to the baseline in pairs."""
    finders = observed.asked("fall")
    order = [BASELINE, *(one for one in finders if one != BASELINE)] if BASELINE in finders else finders
    fall, _, counts = median(observed.values, "fall", AT, order, observed.draws, observed.seed)
    relative, differences, _ = median(observed.values, "relative fall", AT, order, observed.draws, observed.seed)
    mean, _ = means(observed.values, "fall", AT, order, observed.draws, observed.seed)
    seconds, _, _ = median(observed.values, TIMES, 0, order, 200, observed.seed)
    times = observed.values.filter(polars.col("quantity") == TIMES).with_columns(word_id=polars.col("image_id"))
    keys = ["word_id", "image_id", "finder", "quantity", "k"]
    summed = times.group_by(keys, maintain_order=True).agg(polars.col("value").sum())
    pictures, _, _ = median(summed, TIMES, 0, order, 200, observed.seed)
    cells = []
    for way in sorted(range(len(order)), key=lambda way: -relative[way].value):
        per = mean.estimate(way)
        columns = {
            "relative fall, median": relative[way],
            f"less {order[0]}'s, paired": differences[way],
            "fall, median": fall[way],
            "mean fall a neuron": Estimate(per.value / AT, per.low / AT, per.high / AT),
            "seconds a word": seconds[way],
            "seconds a picture": pictures[way],
            "words": Estimate(float(counts[way]), float(counts[way]), float(counts[way])),
        }
        cells += [Cell(order[way], name, own, int(counts[way])) for name, own in columns.items()]
    note = (
        f"The {AT} first neurons of each finder at zero where the word was emitted, later blocks reacting: the fall of "
        "log p(word), in nats, and the same less the mean fall of the ten runners-up. Best relative fall first. "
        "Paired: over the words that both have, with the same resampled pictures. What lies before a word is run once "
        "for a caption, in the time of the first finder that runs the model again."
    )
    return Table("finders", "Finders compared by what their neurons do", note, tuple(cells))


def _controls(observed: Observed) -> Table:
    finders, cells = observed.asked("fall"), []
    for quantity in (
        "fall",
        "matched fall",
        "noise fall",
        "relative fall",
        "matched relative fall",
        "noise relative fall",
        "rank",
        "KL elsewhere",
        "still said",
        "rest kept",
    ):
        if AT in observed.ks(quantity):
            drawn, counts = means(observed.values, quantity, AT, finders, observed.draws, observed.seed)
            cells += [Cell(one, quantity, drawn.estimate(way), int(counts[way])) for way, one in enumerate(finders)]
    meant = [f"*{name}*: {text}" for name, text in observed.meanings.items() if name in {cell.column for cell in cells}]
    return Table(
        "controls",
        f"Causal effect at k = {AT}, with its controls",
        "; ".join(meant) + ". Mean over words.",
        tuple(cells),
    )


def _agreement(observed: Observed) -> Table:
    """How much of the first neurons two finders share, word by word."""
    tops: dict[str, dict[str, list[int]]] = {finder: {} for finder in observed.finders}
    pictures: dict[str, str] = {}
    for word, picture, finder, neurons in observed.tops.select("word_id", "image_id", "finder", "neurons").iter_rows():
        if finder in tops:
            tops[finder][word] = neurons[:AT]
            pictures[word] = picture
    cells = []
    for first in observed.finders:
        for second in observed.finders:
            both = [word for word in tops[first] if word in tops[second]]
            if both:
                values = np.array([[overlap(tops[first][word], tops[second][word])] for word in both])
                drawn = mean_resampled(
                    [pictures[word] for word in both], values, min(observed.draws, 500), observed.seed
                )
                cells.append(Cell(first, second, drawn.estimate(0), len(both)))
    note = f"Share of the {AT} first neurons that two finders have in common, mean over words."
    return Table("agreement", "Agreement between finders", note, tuple(cells))


def _paired(
    observed: Observed, finder: str, text: str, first: tuple[str, str], second: tuple[str, str], k: int
) -> Claim:
    """The mean of a quantity less that of another, word by word or concept by concept."""
    over = "concepts" if first[0] in CONCEPTS else "words"
    sides = []
    for quantity, own in (first, second):
        chosen = observed.values.filter(
            (polars.col("quantity") == quantity) & (polars.col("k") == k) & (polars.col("finder") == own)
        )
        sides.append(
            {
                word: (picture, value)
                for word, picture, value in chosen.select("word_id", "image_id", "value").iter_rows()
            }
        )
    both = [word for word in sides[0] if word in sides[1]]
    if not both:
        nothing = Estimate(np.nan, np.nan, np.nan)
        return Claim(text, nothing, 0, over)
    values = np.array([[sides[0][word][1] - sides[1][word][1]] for word in both])
    drawn = mean_resampled([sides[0][word][0] for word in both], values, observed.draws, observed.seed)
    return Claim(text, drawn.estimate(0), len(both), over)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def finders_of(values: polars.DataFrame, order: Sequence[str]) -> tuple[str, ...]:
    """The finders that were observed, in an order."""
    there = set(values["finder"].unique())
    return tuple(finder for finder in order if finder in there)
