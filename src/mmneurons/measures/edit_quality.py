"""How good an edit is: does it do what was asked for, elsewhere too, and nothing else?

- *reliability*: share of the captions that it was learned from whose request is met: no form of the source is said, and
  the target is.
- *generality*: the same over other pictures whose captions said the source.
- *unchanged*: share of the captions that said neither that are the same word for word.
- *intrusion*: share of these that say the target now, where the picture does not show it either, if that is known.
- *same top 1*, *same top 10*: share of their steps with the same most likely token, and with the same ten in the same
  order (MMEdit); *KL*: before ‖ after, nats a step; teacher-forced on the unedited captions.
- *rest kept*: of swapped captions, F1 of all other words.

Shares have 95 % score intervals (Wilson); means have bootstrap intervals over captions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmneurons.edits.edit import Edit
from mmneurons.errors import OptionError
from mmneurons.measures.causal_effect import rest_likeness
from mmneurons.measures.edit_outcome import Outcome, Pool, swap_of
from mmneurons.measures.intervals import Estimate, mean_resampled, wilson

__all__ = ["Figure", "Quality", "edit_quality", "figures"]


@dataclass(frozen=True)
class Figure:
    """One figure of an edit.

    Attributes:
        name: what it is.
        estimate: with its 95 % interval.
        captions: over how many captions.
    """

    name: str
    estimate: Estimate
    captions: int


@dataclass(frozen=True, eq=False)
class Quality:
    """What was measured of an edit.

    Attributes:
        figures: see this module.
        outcomes: caption by caption, by the name of their pool.
    """

    figures: tuple[Figure, ...]
    outcomes: Mapping[str, Sequence[Outcome]]

    def __getitem__(self, name: str) -> Estimate:
        """A figure by its name."""
        return next(one.estimate for one in self.figures if one.name == name)

    def as_json(self) -> dict[str, object]:
        """The figures, to be kept with the edit."""
        return {
            one.name: {
                "value": _plain(one.estimate.value),
                "interval": [_plain(one.estimate.low), _plain(one.estimate.high)],
                "captions": one.captions,
            }
            for one in self.figures
        }


def edit_quality(
    edit: Edit, others: Pool, learned: Pool | None = None, shown: Sequence[frozenset[str]] | None = None
) -> Quality:
    """Measure an edit.

    Args:
        edit: which one; it is not in force.
        others: captions of other pictures: those that say the source, and those that do not.
        learned: captions that it was learned from; None where that is not to be measured.
        shown: what each of the other pictures shows, where that is known: a target that is there does not intrude.

    Raises:
        OptionError: these are no pools of captions.
        EditError: an edit is in force, or this one does not fit the model.
    """
    for name, pool in (("others", others), ("learned", learned)):
        if not isinstance(pool, Pool) and (pool is not None or name == "others"):
            raise OptionError(f"{name} takes a pool of captions: Pool(vlm, mmn.record(vlm, pictures)).")
    outcomes: dict[str, Sequence[Outcome]] = {"others": others.outcomes(edit)}
    if learned is not None:
        outcomes["learned"] = learned.outcomes(edit)
    return Quality(tuple(figures(edit, outcomes, shown)), outcomes)


def figures(
    edit: Edit, outcomes: Mapping[str, Sequence[Outcome]], shown: Sequence[frozenset[str]] | None = None
) -> list[Figure]:
    """The figures of captions' outcomes; those of several edits may be put together first."""
    swap = swap_of(edit)
    found = []
    learned = [one for one in outcomes.get("learned", ()) if one.said]
    if learned:
        found.append(share("reliability", [one.swapped for one in learned]))
    others = list(outcomes["others"])
    there = list(shown) if shown is not None else [frozenset()] * len(others)
    said = [one for one in others if one.said]
    rest = [(one, own) for one, own in zip(others, there, strict=True) if not one.said]
    if swap.to is not None:
        # a caption that says the target, and a picture that shows either, are no test of what must stay
        rest = [(one, own) for one, own in rest if not one.said_target and not {swap.source, swap.to} & own]
    found.append(share("generality", [one.swapped for one in said]))
    found.append(share("unchanged", [one.unchanged for one, _ in rest]))
    if swap.to is not None:
        found.append(share("intrusion", [one.intruded for one, _ in rest]))
    agreements = [one.agreement for one, _ in rest if one.agreement is not None]
    if agreements:
        found.append(mean("same top 1", [one.top for one in agreements]))
        found.append(mean("same top 10", [one.top_ten for one in agreements]))
        found.append(mean("KL", [one.divergence for one in agreements]))
    swapped = [one for one in said if one.swapped]
    if swapped:
        found.append(mean("rest kept", [_rest(one, swap.source, swap.to) for one in swapped]))
    return found


def _rest(one: Outcome, source: str, to: str | None) -> float:
    after = one.after if to is None else " ".join(_without(one.after, to))
    return rest_likeness(one.before, after, source)


def _without(text: str, word: str) -> list[str]:
    own = set(word.lower().split())
    return [
        token
        for token in text.split()
        if (plain := token.strip(".,!?").lower()) not in own and plain.removesuffix("s") not in own
    ]


def share(name: str, hits: Sequence[bool]) -> Figure:
    """A share with its score interval."""
    return Figure(name, wilson(sum(hits), len(hits)), len(hits))


def mean(name: str, values: Sequence[float]) -> Figure:
    """A mean with its bootstrap interval."""
    array = np.array(values, dtype=float)[:, None]
    return Figure(name, mean_resampled(range(len(values)), array).estimate(0), len(values))


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)
