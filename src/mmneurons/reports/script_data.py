"""What a report gives its script: the words of the pictures, their neurons and maps, and the charts."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence

import cmap
import numpy as np

from mmneurons.heatmaps import COLORS
from mmneurons.reports.gallery import ShownMap, ShownNeuron, ShownPicture, ShownWord
from mmneurons.reports.texts import file_name, number, percent, plain

__all__ = ["PROMOTED", "script_data"]

PROMOTED = 8
"""How many tokens are shown of those that a neuron promotes."""


def script_data(shown: Sequence[ShownPicture], charts: Mapping[str, object]) -> dict[str, object]:
    """Everything as JSON takes it; all text in it is ready to be shown.

    Args:
        shown: the pictures, in the order in which they stand on the page.
        charts: Vega-Lite by the name of the place where it is drawn.
    """
    table = (cmap.Colormap(COLORS).lut(256)[:, :3] * 255).round().astype(np.uint8)
    return {
        "colors": base64.b64encode(table.tobytes()).decode(),
        "charts": charts,
        "pictures": [
            {"name": plain(file_name(picture.source)), "words": [_word(word) for word in picture.words]}
            for picture in shown
        ],
    }


def _word(word: ShownWord) -> dict[str, object]:
    best = max((abs(neuron.score) for neuron in word.neurons), default=0.0)
    return {
        "word": plain(word.word),
        "lemma": plain(word.lemma),
        "probability": percent(word.probability),
        "logit": number(word.logit),
        "total": number(word.total),
        "note": plain(word.note),
        "neurons": [_neuron(neuron, best) for neuron in word.neurons],
        "maps": [_map(shown) for shown in word.maps],
    }


def _neuron(neuron: ShownNeuron, best: float) -> dict[str, object]:
    return {
        "rank": neuron.rank,
        "name": neuron.name,
        "score": number(neuron.score, zeros=True),
        "bar": _bar(neuron.score, best),
        "share": percent(neuron.share, zeros=True),
        "activation": number(neuron.activation, zeros=True),
        "promotes": [plain(token.strip()) or "␠" for token in neuron.promotes[:PROMOTED]],
    }


def _bar(score: float, best: float) -> float:
    """How long a score's bar is, of the longest."""
    length = score / best if best else 0.0
    return round(min(max(length, 0.0), 1.0), 3) if math.isfinite(length) else 0.0


def _map(shown: ShownMap) -> dict[str, object]:
    codes = shown.raster.codes
    return {
        "rank": shown.rank,
        "first": shown.first,
        "low": number(shown.raster.low),
        "high": number(shown.raster.high),
        "rows": codes.shape[0],
        "columns": codes.shape[1],
        "codes": base64.b64encode(codes.tobytes()).decode(),
    }
