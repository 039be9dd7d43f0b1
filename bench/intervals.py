"""Bootstrap intervals for what is measured on words that come in groups, scene by scene."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Estimate", "Resampled", "resample"]

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
    """A statistic of every way, on the words themselves and on resampled scenes that are the same for all ways.

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
        """One way less another, paired: both see the same resampled scenes."""
        return _interval(self.value[way] - self.value[other], self.draws[:, way] - self.draws[:, other])


def resample(
    scenes: Sequence[int], values: np.ndarray, statistic: Statistic, draws: int = 2000, seed: int = 0
) -> Resampled:
    """Draw scenes with replacement, and with a scene all of its words.

    Args:
        scenes: the scene of each word.
        values: (words, ways).
        statistic: a mean or median over words.
        draws: how many times.
        seed: of the draws; the same seed draws the same scenes.
    """
    groups = [np.flatnonzero(np.asarray(scenes) == scene) for scene in dict.fromkeys(scenes)]
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(draws):
        picked = generator.integers(len(groups), size=len(groups))
        drawn.append(statistic(values[np.concatenate([groups[k] for k in picked])]))
    return Resampled(statistic(values), np.stack(drawn))


def _interval(value: float, draws: np.ndarray) -> Estimate:
    low, high = np.percentile(draws, [2.5, 97.5])
    return Estimate(float(value), float(low), float(high))
