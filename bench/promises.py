"""What neurons promote, and whether that means a word."""

import random
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from lemminflect import getAllInflections, getAllLemmas, getAllLemmasOOV

import mmneurons as mmn
from bench.measured import Measured, Unit
from mmneurons.measures.wordnet import WordNet
from mmneurons.neurons import output_vectors
from mmneurons.promotion import PromotedBy, promoted_tokens
from mmneurons.vlm.readout import readout

__all__ = ["READINGS", "hits", "promises", "read_by", "terms"]

PROMOTED = 10
SENSES = 2
"""How many senses lend their hypernyms: a chicken is food before it is a bird."""
SHUFFLES = 20
"""With how many words of other scenes each word is compared; the mean over them is one number for the word."""


def terms(word: str, wordnet: WordNet) -> frozenset[str]:
    """What a promoted token may be to count for a word, in lower case: the word, its inflections, direct hypernyms.

    A compound is explained by its first token, so its first word stands for it ("fire" for "fire truck"), beside the
    hypernyms of the whole. Hypernyms of a plural that WordNet does not list ("jeans") are those of its singular.
    """
    first = word.split()[0]
    forms = {form for forms in getAllInflections(first, "NOUN").values() for form in forms}
    singulars = [*getAllLemmas(word, "NOUN").get("NOUN", ()), *getAllLemmasOOV(word, "NOUN")["NOUN"]]
    above = wordnet.hypernyms(word, SENSES) or {kind for one in singulars for kind in wordnet.hypernyms(one, SENSES)}
    return frozenset({first, *forms, *above})


Reading = Callable[[mmn.VLM, torch.Tensor], list[tuple[str, ...]]]


def read_by(by: PromotedBy) -> Reading:
    """What a vector promotes, as tables of neurons show it."""
    return lambda vlm, vectors: promoted_tokens(vlm, vectors, PROMOTED, by)


def read_without_gain(vlm: mmn.VLM, vectors: torch.Tensor) -> list[tuple[str, ...]]:
    """What a vector promotes by its own cosine with centred unembeddings, the final norm's gain left out."""
    head = readout(vlm)
    if head.norm is None or head.norm.kind == "layer":
        raise ValueError("the gain of a LayerNorm cannot be divided out before the mean is taken away")
    return promoted_tokens(vlm, vectors / head.gain, PROMOTED)


READINGS: dict[str, Reading] = {
    "cos(γ⊙v, u − ū)": read_by("cosine"),
    "cos(v, u − ū)": read_without_gain,
    "(γ⊙v)·u": read_by("product"),
}


def promises(vlm: mmn.VLM, units: set[Unit], reading: Reading, chunk: int = 256) -> dict[Unit, frozenset[str]]:
    """The first ten promoted tokens of every neuron, in lower case."""
    ordered, found = sorted(units), {}
    for start in range(0, len(ordered), chunk):
        some = ordered[start : start + chunk]
        signs = torch.tensor([float(sign) for *_, sign in some])
        vectors = output_vectors(vlm, [(block, column) for block, column, _ in some]) * signs[:, None]
        for unit, tokens in zip(some, reading(vlm, vectors), strict=True):
            found[unit] = frozenset(token.strip().lower() for token in tokens)
    return found


def hits(
    words: Sequence[Measured],
    way: str,
    promised: Mapping[Unit, frozenset[str]],
    meant: Mapping[str, frozenset[str]],
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Whether a word's neurons promote it, and the share of words of other scenes that they promote; both (words,)."""
    own, shuffled = [], []
    drawn = random.Random(seed)
    for word in words:
        said = frozenset[str]().union(*(promised[unit] for unit in word.units[way]))
        own.append(bool(said & meant[word.word]))
        others = [other.word for other in words if other.scene != word.scene and other.word != word.word]
        picked = drawn.choices(others, k=SHUFFLES) if others else []
        shuffled.append(np.mean([bool(said & meant[other]) for other in picked]) if picked else np.nan)
    return np.array(own, dtype=float), np.array(shuffled)
