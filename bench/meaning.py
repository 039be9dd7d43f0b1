"""Do the neurons that a finder ranks first mean the word, and does it matter to the word when they are gone?

Over generated scenes, for every object that the model names truly, at the position that emitted the word's first token:

(a) how often one of the ten top neurons promotes the word, an inflection of it or a direct hypernym among its first ten
    promoted tokens; and how often it promotes those of a word from another scene;
(b) how far log p of the token falls when the twenty top neurons are put to zero there, by itself, and less the mean
    fall of the ten tokens that were next likeliest.

The reference that scores are read against is chosen on scenes of their own (``choose``); the scenes that are reported
chose nothing.
"""

import argparse
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import platformdirs
from zoo.evaluate import STRENGTH
from zoo.scenes import Scene, Vocabulary, make_scene
from zoo.score import Lexicon, read_aliases
from zoo.sprites import TRAINED, load, read_concepts

import mmneurons as mmn
from bench.measured import Measured, find_true_words, measure
from bench.promises import READINGS, hits, promises, read_by, terms
from mmneurons.finders import Activation, Contribution, Finder, Random
from mmneurons.measures.intervals import Estimate, Resampled, resample
from mmneurons.measures.wordnet import WordNet, installed_folder

__all__ = ["Report", "choose", "main", "report"]

RESULTS = Path(__file__).parent / "results" / "meaning.md"

REFERENCES: dict[str, Finder] = {
    "against nothing": Contribution(against=None),
    "against the vocabulary": Contribution(against="vocabulary"),
    "against the distribution": Contribution(against="distribution"),
}
"""What is chosen from, the simplest first."""
WAYS: dict[str, Finder] = {
    **REFERENCES,
    "no norm": Contribution(against=None, norm=None),
    "the paper's (no norm, gate)": Contribution(against=None, norm=None, activation="gate"),
    "most active": Activation(),
    "random": Random(),
}
DEFAULT = next(name for name, finder in REFERENCES.items() if finder == Contribution())


@dataclass(frozen=True, eq=False)
class Report:
    """What was measured of several ways, resampled over the same scenes.

    Attributes:
        ways: their names, in the order of the columns of what follows.
        hit: how often a word is promoted.
        shuffled: how often another scene's is.
        excess: their difference.
        fall: median fall of log p.
        relative: median fall of log p less that of the runners-up.
    """

    ways: tuple[str, ...]
    hit: Resampled
    shuffled: Resampled
    excess: Resampled
    fall: Resampled
    relative: Resampled

    def row(self, way: str) -> list[Estimate]:
        """The figures of one way."""
        k = self.ways.index(way)
        return [part.estimate(k) for part in (self.hit, self.shuffled, self.excess, self.fall, self.relative)]

    def differences(self, way: str, other: str) -> list[Estimate]:
        """Of what decides, one way less another: excess and relative fall; and the fall by itself."""
        k, j = self.ways.index(way), self.ways.index(other)
        return [part.difference(k, j) for part in (self.excess, self.fall, self.relative)]


def report(vlm: mmn.VLM, words: Sequence[Measured], wordnet: WordNet) -> Report:
    """Put the figures of all words together."""
    ways = tuple(words[0].units)
    promised = promises(vlm, {unit for word in words for own in word.units.values() for unit in own}, read_by("cosine"))
    meant = {word.word: terms(word.word, wordnet) for word in words}
    pairs = [hits(words, way, promised, meant) for way in ways]
    own, shuffled = (np.stack(columns, 1) for columns in zip(*pairs, strict=True))
    where = [word.scene for word in words]
    return Report(
        ways=ways,
        hit=resample(where, own, mean),
        shuffled=resample(where, shuffled, mean),
        excess=resample(where, own - shuffled, mean),
        fall=resample(where, np.array([[word.fall[way] for way in ways] for word in words]), median),
        relative=resample(where, np.array([[word.relative[way] for way in ways] for word in words]), median),
    )


def mean(values: np.ndarray) -> np.ndarray:
    """Over words; nan where there was no other scene's word."""
    return np.nanmean(values, 0)


def median(values: np.ndarray) -> np.ndarray:
    """Over words."""
    return np.median(values, 0)


def choose(measured: Report, references: Sequence[str]) -> str:
    """The reference that scores are read against by default.

    Beginning with the simplest, a reference takes the place of the one chosen so far if it is better by one of two
    measures (how much oftener the word is promoted than a shuffled one, and the relative fall) and worse by none: the
    paired 95 % interval of the difference lies on one side of zero. Everything else is a tie, and the simpler stays.

    Args:
        measured: on scenes that are not reported.
        references: names of ways, the simplest first.
    """
    chosen = references[0]
    for name in references[1:]:
        excess, _, relative = measured.differences(name, chosen)
        signs = {excess.sign, relative.sign}
        if 1 in signs and -1 not in signs:
            chosen = name
    return chosen


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def way_table(measured: Report) -> str:
    """The figures of every way."""
    head = ("neurons by", "promotes the word", "a shuffled word", "difference", "fall of log p", "relative fall")
    specs = (".2f", ".2f", ".2f", ".2f", ".2f")
    return table(head, [[way, *map(format, measured.row(way), specs)] for way in measured.ways])


def difference_table(measured: Report, to: str) -> str:
    """Every way less one of them."""
    head = (f"less {to!r}", "promotes the word, less a shuffled one", "fall of log p", "relative fall")
    rows = [
        [way, *(format(part, "+.2f") for part in measured.differences(way, to))] for way in measured.ways if way != to
    ]
    return table(head, rows)


def reading_table(vlm: mmn.VLM, words: Sequence[Measured], wordnet: WordNet, way: str) -> str:
    """How promoted tokens are best read, on the ten top neurons of one way."""
    meant = {word.word: terms(word.word, wordnet) for word in words}
    units = {unit for word in words for unit in word.units[way]}
    pairs = [hits(words, way, promises(vlm, units, reading), meant) for reading in READINGS.values()]
    own, shuffled = (np.stack(columns, 1) for columns in zip(*pairs, strict=True))
    where = [word.scene for word in words]
    parts = [resample(where, values, mean) for values in (own, shuffled, own - shuffled)]
    head = ("promoted tokens by", "promotes the word", "a shuffled word", "difference", "difference, less the first")
    rows = [
        [name, *(format(part.estimate(k), ".2f") for part in parts), format(parts[2].difference(k, 0), "+.2f")]
        for k, name in enumerate(READINGS)
    ]
    return table(head, rows)


def scenes(vocabulary: Vocabulary, purpose: str, count: int) -> list[Scene]:
    """Scenes that belong to one purpose alone."""
    return [make_scene(vocabulary, random.Random(f"meaning/{purpose}/{k}"), strength=STRENGTH) for k in range(count)]


def gather(
    vlm: mmn.VLM, drawn: Sequence[Scene], lexicon: Lexicon, ways: Mapping[str, Finder], note: str
) -> tuple[list[Measured], str]:
    """Measure every true word of some scenes; a line of what there was goes with it."""
    words: list[Measured] = []
    nouns = 0
    for scene, parts, said in find_true_words(vlm, drawn, lexicon):
        words += measure(vlm, scene, parts, ways)
        nouns += said
        print(f"\r{note}: {scene + 1} of {len(drawn)} scenes, {len(words)} words", end="", flush=True)
    print()
    if not words:
        raise RuntimeError("no object was named truly, so there is nothing to measure")
    single = sum(word.tokens == 1 for word in words)
    p = np.median([word.probability for word in words])
    facts = (
        f"{len(drawn)} scenes, {nouns} nouns said, {len(words)} of them name an object truly "
        f"({len({word.word for word in words})} different words; {single} spelt by one token; median probability of "
        f"the first token {p:.3f})"
    )
    return words, facts


def write(
    vlm: mmn.VLM, selection: tuple[list[Measured], str], reported: tuple[list[Measured], str], wordnet: WordNet
) -> str:
    """The whole report as Markdown."""
    (selected, selected_facts), (words, facts) = selection, reported
    on_selection, on_reported = report(vlm, selected, wordnet), report(vlm, words, wordnet)
    single = [word for word in words if word.tokens == 1]
    chosen = choose(on_selection, list(REFERENCES))
    kept = "the default of the code" if chosen == DEFAULT else f"NOT the default of the code, {DEFAULT!r}"
    parts = [
        f"Model: {vlm.name}, {len(vlm.anatomy.blocks)} blocks of {vlm.anatomy.width} neurons. In brackets 95 % "
        "intervals (bootstrap over scenes, paired for differences). Falls are medians over words, in nats.",
        "## Scenes that chose the reference",
        f"{selected_facts}.",
        way_table(on_selection),
        *(difference_table(on_selection, name) for name in list(REFERENCES)[:-1]),
        f"Chosen: **{chosen}** ({kept}).",
        "## Scenes that chose nothing",
        f"{facts}.",
        way_table(on_reported),
        difference_table(on_reported, DEFAULT),
        *(
            ["Words that one token spells:", way_table(report(vlm, single, wordnet))]
            if len({word.scene for word in single}) > 1
            else []
        ),
        "## How promoted tokens are read",
        f"The ten top neurons {DEFAULT}, on the scenes that chose nothing; γ is the final norm's gain, v a neuron's "
        "output vector times the sign of its activation, u a token's unembedding and ū the mean of ordinary tokens'.",
        reading_table(vlm, words, wordnet, DEFAULT),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Measure, print and write ``bench/results/meaning.md``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="as for mmn.load")
    parser.add_argument("--work", type=Path, default=platformdirs.user_cache_path("mmneurons") / "zoo")
    parser.add_argument("--scenes", type=int, default=200, help="scenes that are reported")
    parser.add_argument("--selection", type=int, default=100, help="scenes that choose the reference")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    wordnet = WordNet.read(installed_folder())
    concepts = read_concepts()
    vocabulary, lexicon = Vocabulary(concepts, load(options.work), TRAINED), Lexicon(concepts, read_aliases())
    vlm = mmn.load(options.model)
    selection = gather(vlm, scenes(vocabulary, "selection", options.selection), lexicon, WAYS, "selection")
    reported = gather(vlm, scenes(vocabulary, "report", options.scenes), lexicon, WAYS, "report")
    text = f"# Meaning and effect of the neurons found\n\n{write(vlm, selection, reported, wordnet)}"
    print(text)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text)


if __name__ == "__main__":
    main()
