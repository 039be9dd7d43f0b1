"""Figures with intervals: shares, means, and what was so before and is so after, in pairs.

Captions of one picture are no independent draws: a share's score interval (Wilson) is that of as many captions as there
are pictures, and the bootstrap draws pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mmneurons.measures.intervals import Estimate, Resampled, mean_resampled, resample, wilson

__all__ = ["Figure", "before_after", "changed", "mean", "share"]

DRAWS = 500
"""Of the bootstrap, where every draw counts anew."""


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        name: what it is.
        estimate: with its 95 % interval.
        captions: over how many captions, answers, or whatever it is a share or mean of.
    """

    name: str
    estimate: Estimate
    captions: int

    def as_json(self) -> dict[str, object]:
        """The figure, as JSON has it: what is not a number is null."""
        own = self.estimate
        return {
            "value": _plain(own.value),
            "interval": [_plain(own.low), _plain(own.high)],
            "captions": self.captions,
        }


def share(name: str, hits: Sequence[bool], pictures: Sequence[object] | None = None) -> Figure:
    """A share with its score interval.

    Args:
        name: what it is.
        hits: one for each caption.
        pictures: of each caption; None where no picture has two.
    """
    if not hits or pictures is None:
        return Figure(name, wilson(sum(hits), len(hits)), len(hits))
    value = sum(hits) / len(hits)
    count = len(set(pictures))
    own = wilson(value * count, count)
    return Figure(name, Estimate(value, own.low, own.high), len(hits))


def mean(name: str, values: Sequence[float], pictures: Sequence[object] | None = None) -> Figure:
    """A mean with its bootstrap interval."""
    array = np.array(values, dtype=float)[:, None]
    return Figure(name, mean_resampled(pictures or range(len(values)), array).estimate(0), len(values))


def before_after(
    name: str, before: Sequence[float], after: Sequence[float], pictures: Sequence[object] | None = None
) -> list[Figure]:
    """The mean before, the mean after, and after less before, in pairs."""
    pairs = np.array([before, after], dtype=float).T.reshape(-1, 2)
    return _three(name, mean_resampled(pictures or range(len(pairs)), pairs), 0, 1, len(pairs))


def changed(
    names: Sequence[str],
    pictures: Sequence[object],
    statistic: Callable[[Sequence[int], bool], Sequence[float]],
    seed: int = 0,
) -> list[Figure]:
    """What is counted over many captions at once: before, after, and after less before, in pairs.

    Args:
        names: of what is counted.
        pictures: of each caption.
        statistic: from places of captions, and whether it is after, to one number for each name.
        seed: of the draws.
    """

    def both(places: np.ndarray) -> np.ndarray:
        chosen = [int(place) for place in places[:, 0]]
        return np.array([*statistic(chosen, False), *statistic(chosen, True)], dtype=float)

    places = np.arange(len(pictures), dtype=float)[:, None]
    drawn = resample(pictures, places, both, DRAWS, seed)
    own = [_three(name, drawn, k, len(names) + k, len(pictures)) for k, name in enumerate(names)]
    return [figure for three in own for figure in three]


def _three(name: str, drawn: Resampled, before: int, after: int, count: int) -> list[Figure]:
    return [
        Figure(f"{name} before", drawn.estimate(before), count),
        Figure(f"{name} after", drawn.estimate(after), count),
        Figure(f"{name} added", drawn.difference(after, before), count),
    ]


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)
