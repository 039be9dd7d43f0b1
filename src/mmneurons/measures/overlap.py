"""How far two sets are the same."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

__all__ = ["overlap"]


def overlap(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """The common members over the larger number of members: 1 for equal sets, 0 for disjoint, NaN for empty ones."""
    size = max(len(set(first)), len(set(second)))
    return len(set(first) & set(second)) / size if size else float("nan")
