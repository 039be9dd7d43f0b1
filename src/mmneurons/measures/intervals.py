"""Bootstrap intervals for what is measured on words that come in groups, picture by picture."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Estimate", "Resampled", "mean_resampled", "resample", "wilson"]

Statistic = Callable[[np.ndarray], np.ndarray]
"""(words, ways) → (ways,)."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % percentile interval."""

    value: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 or −1 where the whole interval lies on one side of zero, otherwise 0."""
        return int(self.low > 0) - int(self.high < 0)

    def __format__(self, spec: str) -> str:
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


@dataclass(frozen=True, eq=False)
class Resampled:
    """A statistic of every way, on the words themselves and on resampled pictures that are the same for all ways.

    Attributes:
        value: (ways,).
        draws: (draws, ways).
    """

    value: np.ndarray
    draws: np.ndarray

    def estimate(self, way: int) -> Estimate:
        """One way."""
        return _interval(self.value[way], self.draws[:, way])

    def difference(self, way: int, other: int) -> Estimate:
        """One way less another, paired: both see the same resampled pictures."""
        return _interval(self.value[way] - self.value[other], self.draws[:, way] - self.draws[:, other])


def resample(
    pictures: Sequence[object], values: np.ndarray, statistic: Statistic, draws: int = 2000, seed: int = 0
) -> Resampled:
    """Draw pictures with replacement, and with a picture all of its words: 95 % percentile intervals (Efron, 1979).

    Args:
        pictures: the picture of each word.
        values: (words, ways).
        statistic: a mean or median over words.
        draws: how many times.
        seed: of the draws; the same seed draws the same pictures.
    """
    members: dict[object, list[int]] = {}
    for index, picture in enumerate(pictures):
        members.setdefault(picture, []).append(index)
    groups = [np.array(own) for own in members.values()]
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(draws):
        picked = generator.integers(len(groups), size=len(groups))
        drawn.append(statistic(values[np.concatenate([groups[k] for k in picked])]))
    return Resampled(statistic(values), np.stack(drawn))


def _interval(value: float, draws: np.ndarray) -> Estimate:
    known = draws[~np.isnan(draws)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
    return Estimate(float(value), float(low), float(high))


def mean_resampled(pictures: Sequence[object], values: np.ndarray, draws: int = 2000, seed: int = 0) -> Resampled:
    """As ``resample`` with the mean over words, in which a word may lack a way's value; much faster.

    Args:
        pictures: the picture of each word.
        values: (words, ways); NaN where a word has none.
        draws: how many times.
        seed: of the draws.

    Returns:
        NaN for a way that has no values; a draw without any of its words is NaN, too, and left out of its interval.
    """
    order = {picture: index for index, picture in enumerate(dict.fromkeys(pictures))}
    place = np.array([order[picture] for picture in pictures], dtype=int)
    there = ~np.isnan(values)
    sums = np.zeros((len(order), values.shape[1]))
    counts = np.zeros_like(sums)
    np.add.at(sums, place, np.where(there, values, 0.0))
    np.add.at(counts, place, there)
    generator = np.random.default_rng(seed)
    picked = generator.integers(len(order), size=(draws, len(order))) if order else np.zeros((draws, 0), dtype=int)
    times = np.zeros((draws, len(order)))
    np.add.at(times, (np.arange(draws)[:, None], picked), 1.0)
    with np.errstate(invalid="ignore"):
        return Resampled(sums.sum(0) / counts.sum(0), (times @ sums) / (times @ counts))


def wilson(hits: int | float, count: int) -> Estimate:
    """A share with its 95 % score interval (Wilson, 1927); NaN where there is nothing to count."""
    if not count:
        return Estimate(float("nan"), float("nan"), float("nan"))
    z = 1.959963984540054
    share = hits / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * float(np.sqrt(share * (1 - share) / count + z * z / (4 * count * count)))
    # at the ends one bound is exact, and rounding would show as 1e-17
    return Estimate(share, middle - half if hits > 0 else 0.0, middle + half if hits < count else 1.0)
