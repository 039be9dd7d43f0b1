"""How alike two texts are: BERTScore and MoverScore, with any encoder.

Values depend on encoder and layer: compare only what was measured with the same.

BERTScore (Zhang et al., ICLR 2020): every token of the one text is matched with the one that is most alike in the
other, by the cosine of their states; precision, recall and their F1; special tokens can be matched and weigh nothing.

MoverScore (Zhao et al., EMNLP 2019), for single tokens: 1 less the least cost of moving the one text's weight to the
other's, where moving costs the distance of normed states, the mean over the last layers. Weights are equal, or inverse
document frequencies. The transport problem is solved exactly.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mmneurons.errors import ExtraMissingError, OptionError
from mmneurons.vlm.text_encoder import Encoded, TextEncoder

__all__ = ["BertScore", "bert_scores", "earth_mover", "frequencies", "mover_scores"]

MOVER_LAYERS = 5


@dataclass(frozen=True)
class BertScore:
    """NaN where a text holds no token."""

    precision: float
    recall: float
    f1: float


def bert_scores(
    encoder: TextEncoder, texts: Sequence[str], references: Sequence[str], layer: int | None = None
) -> list[BertScore]:
    """BERTScore of each text with its reference.

    Args:
        encoder: whose states.
        texts: what is judged.
        references: what it is compared with.
        layer: which states, 1 to the number of layers; the last by default. Not rescaled.

    Raises:
        OptionError: there is no such layer.
    """
    layer = encoder.layers if layer is None else layer
    if not 1 <= layer <= encoder.layers:
        raise OptionError(f"There is no layer {layer}: {encoder.name} has 1 to {encoder.layers}.")
    known = _encoded(encoder, [*texts, *references])
    return [_bert_score(known[text], known[other], layer) for text, other in zip(texts, references, strict=True)]


def mover_scores(
    encoder: TextEncoder,
    texts: Sequence[str],
    references: Sequence[str],
    weights: Mapping[int, float] | None = None,
) -> list[float]:
    """MoverScore of each text with its reference; NaN where a text holds no token.

    Args:
        encoder: whose states.
        texts: what is judged.
        references: what it is compared with.
        weights: of tokens, see ``frequencies``; those that are not listed weigh as the rarest. None: all weigh the
        same.

    Raises:
        ExtraMissingError: scipy is not installed.
    """
    known = {text: _normed(own) for text, own in _encoded(encoder, [*texts, *references]).items()}
    return [_mover_score(known[text], known[other], weights) for text, other in zip(texts, references, strict=True)]


def frequencies(encoder: TextEncoder, references: Sequence[str]) -> dict[int, float]:
    """Inverse document frequencies of the tokens of some texts: log((n + 1) / (texts with the token + 1))."""
    encoded = _encoded(encoder, list(dict.fromkeys(references)))
    count = Counter(token for own in encoded.values() for token in set(own.token_ids.tolist()))
    return {token: math.log((len(encoded) + 1) / (seen + 1)) for token, seen in count.items()}


def earth_mover(
    first: Float[np.ndarray, "some"], second: Float[np.ndarray, "others"], cost: Float[np.ndarray, "some others"]
) -> float:
    """The least cost of moving one distribution to another.

    Raises:
        ExtraMissingError: scipy is not installed.
    """
    try:
        from scipy.optimize import linprog
        from scipy.sparse import coo_array
    except ImportError as error:
        raise ExtraMissingError("MoverScore needs scipy: pip install 'mmneurons[measure]'.") from error
    rows, columns = cost.shape
    place = np.arange(rows * columns)
    # what leaves each source, and what reaches each sink but the last, which follows from the others
    leaves, reaches = place // columns, rows + place % columns
    kept = reaches < rows + columns - 1
    ones = np.ones(len(place) + int(kept.sum()))
    at = (np.concatenate([leaves, reaches[kept]]), np.concatenate([place, place[kept]]))
    moved = coo_array((ones, at), shape=(rows + columns - 1, rows * columns))
    solved = linprog(cost.ravel(), A_eq=moved, b_eq=np.concatenate([first, second[:-1]]), method="highs")
    return float(solved.fun)


def _encoded(encoder: TextEncoder, texts: Sequence[str]) -> dict[str, Encoded]:
    distinct = list(dict.fromkeys(texts))
    return dict(zip(distinct, encoder.encode(distinct), strict=True))


def _bert_score(text: Encoded, reference: Encoded, layer: int) -> BertScore:
    rows, columns = (own.states[layer] / own.states[layer].norm(dim=-1, keepdim=True) for own in (text, reference))
    cosines = (rows @ columns.T).numpy()
    ordinary = [np.array([not special for special in own.special]) for own in (text, reference)]
    if not ordinary[0].any() or not ordinary[1].any():
        return BertScore(math.nan, math.nan, math.nan)
    precision = float(cosines.max(1)[ordinary[0]].mean())
    recall = float(cosines.max(0)[ordinary[1]].mean())
    whole = precision + recall
    return BertScore(precision, recall, 2 * precision * recall / whole if whole else 0.0)


def _normed(text: Encoded) -> tuple[list[int], Float[np.ndarray, "tokens hidden"]]:
    """The ordinary tokens of a text, and their normed mean states of the last layers."""
    ordinary = [index for index, special in enumerate(text.special) if not special]
    mean = text.states[-MOVER_LAYERS:].mean(0)[ordinary]
    return text.token_ids[ordinary].tolist(), (mean / mean.norm(dim=-1, keepdim=True)).numpy()


def _mover_score(
    text: tuple[list[int], np.ndarray], reference: tuple[list[int], np.ndarray], weights: Mapping[int, float] | None
) -> float:
    if not text[0] or not reference[0]:
        return math.nan
    shares = []
    for tokens, _ in (text, reference):
        rarest = max(weights.values(), default=1.0) if weights else 1.0
        own = np.array([1.0 if weights is None else weights.get(token, rarest) for token in tokens]).clip(1e-6)
        shares.append(own / own.sum())
    cost = np.sqrt((2 - 2 * text[1] @ reference[1].T).clip(0)).astype(np.float64)
    return 1 - earth_mover(shares[0], shares[1], cost)
