"""Neurons of a modality: active at image tokens, at text tokens, at both, or at neither.

``Modality`` scores every neuron at each kind of token after MINER (Huang et al., arXiv 2410.04819): the weighted sum
of P(z > 0), mean z and max z, each brought to 0…1 within its block. MINER's two attention-weighted terms are left out.
``Contrast`` is MANU's importance (Liu et al., ACL 2025, arXiv 2502.15910): how differently a neuron behaves on two sets
of inputs, such as the same questions with and without the picture.

Reviewers of MINER missed a test of overlap: ``overlap_table`` sets what two selections share against chance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import exp, floor, inf, lgamma
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from mmneurons.errors import OptionError
from mmneurons.vlm.model import VLM
from mmneurons.vlm.recording import Recording
from mmneurons.vlm.statistics import HeardAs, PositionSet, Statistics, activation_statistics, statistics_at

__all__ = [
    "Contrast",
    "ContrastNeurons",
    "Modality",
    "ModalityNeurons",
    "OverlapRow",
    "Rule",
    "find_contrast_neurons",
    "find_modality_neurons",
    "importance_between",
    "overlap_table",
]

Rule = Literal["global", "per_modality", "per_block", "uniform"]
"""Out of which neurons the best are taken; K is the share of all neurons.

``"per_modality"``: K/2 for each modality, out of all blocks (MINER's "LA_MU"). ``"per_block"``: of each block its share
of the scores of both modalities together ("LU_MA"). ``"uniform"``: of each block half its share for each modality.
``"global"``: the K largest sums of both scores, each given to the modality with the larger one ("adaptive"); nothing is
multi-modal then, by construction."""

Place = tuple[int, int]
"""Block and column of a neuron."""


@dataclass(frozen=True)
class OverlapRow:
    """What two selections share, in one block or in all.

    Attributes:
        block: None for all.
        units: how many neurons there are.
        first: how many of them are in the first selection.
        second: how many in the second.
        both: how many in both.
        jaccard: both, over those in either; NaN where there are none.
        chance: how many two random selections of these sizes share at the mean.
        chance_jaccard: their mean Jaccard index.
    """

    block: int | None
    units: int
    first: int
    second: int
    both: int
    jaccard: float
    chance: float
    chance_jaccard: float


@dataclass(frozen=True, eq=False)
class ModalityNeurons:
    """The neurons of text and of pictures.

    Attributes:
        text_scores: of every neuron at text tokens; units that a narrower block does not have are 0.
        image_scores: the same at image tokens.
        text: block and column of those selected for text, largest score first.
        image: those selected for pictures.
        overlap: what both share: a row for each block, and the last one for all. The chance of the last row lets
            random neurons fall into any block; the sum over the others' holds the numbers in each block.
        units: how many neurons there are.
        note: what was counted, and what is approximate.
    """

    text_scores: Float64[Tensor, "blocks width"]
    image_scores: Float64[Tensor, "blocks width"]
    text: tuple[Place, ...]
    image: tuple[Place, ...]
    overlap: tuple[OverlapRow, ...]
    units: int
    note: str

    @property
    def text_only(self) -> tuple[Place, ...]:
        """Selected for text and not for pictures."""
        other = set(self.image)
        return tuple(place for place in self.text if place not in other)

    @property
    def image_only(self) -> tuple[Place, ...]:
        """Selected for pictures and not for text."""
        other = set(self.text)
        return tuple(place for place in self.image if place not in other)

    @property
    def multimodal(self) -> tuple[Place, ...]:
        """Selected for both, in the order of text."""
        other = set(self.image)
        return tuple(place for place in self.text if place in other)

    @property
    def counts(self) -> dict[str, int]:
        """How many neurons are text only, image only, multi-modal and neither."""
        counts = {
            "text only": len(self.text_only),
            "image only": len(self.image_only),
            "multi-modal": len(self.multimodal),
        }
        return {**counts, "neither": self.units - sum(counts.values())}


@dataclass(frozen=True)
class Modality:
    """Neurons by the kind of token that they are active at.

    Departures from MINER, all named in the result's note: its two attention-weighted terms are left out; activations of
    all recordings are pooled before they are brought to 0…1, where MINER does so for each sample and adds up; text
    tokens are the prompt's and the caption's.

    Attributes:
        share: of all neurons, how many are selected for both modalities together.
        rule: out of which, see ``Rule``.
        weights: of P(z > 0), of the mean and of the maximum.
    """

    share: float = 0.02
    rule: Rule = "per_modality"
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        _check_share(self.share)
        if self.rule not in get_args(Rule):
            raise OptionError(f"rule={self.rule!r} is not possible. Choose {', '.join(get_args(Rule))}.")
        if min(self.weights) < 0 or not 0 < sum(self.weights) < inf:
            raise OptionError(
                f"weights={self.weights!r} is not possible: pass three numbers, none negative, not all 0."
            )

    def __call__(self, text: Statistics, image: Statistics) -> ModalityNeurons:
        """Select the neurons of each modality. Equal scores are taken in the order of blocks and columns.

        Args:
            text: what neurons did at text tokens.
            image: the same at image tokens.

        Raises:
            OptionError: the two cannot be compared, are not of text and of image tokens, or the share selects none.
        """
        if (text.positions, image.positions) != ("text", "image"):
            raise OptionError(
                f"Pass the statistics of 'text' and then of 'image' positions, not {text.positions!r} and "
                f"{image.positions!r}."
            )
        _check_pair(text, image)
        there = text.there
        scores = torch.stack([self._scores(text), self._scores(image)])
        chosen = _chosen(scores, there, self.share, self.rule)
        if not bool(chosen.any()):
            raise OptionError(
                f"share={self.share} of {int(there.sum())} neurons selects none with rule={self.rule!r}. Choose a "
                "larger share."
            )
        return ModalityNeurons(
            text_scores=scores[0],
            image_scores=scores[1],
            text=_places(chosen[0], scores[0]),
            image=_places(chosen[1], scores[1]),
            overlap=overlap_table(chosen[0], chosen[1], there),
            units=int(there.sum()),
            note="; ".join(
                (
                    "after MINER without its two attention-weighted terms, pooled over recordings before scaling",
                    f"weights of P(z > 0), mean, max {', '.join(f'{weight:g}' for weight in self.weights)}",
                    f"share {self.share:g} {self.rule}",
                    "text behind a picture has seen it",
                    "an expert that was not chosen counts as z = 0",
                    f"text: {text.note}",
                    f"image: {image.note}",
                )
            ),
        )

    def _scores(self, own: Statistics) -> Float64[Tensor, "blocks width"]:
        parts = (own.probability, own.mean, own.maximum)
        scaled = (weight * _in_block(part, own.there) for weight, part in zip(self.weights, parts, strict=True))
        return torch.stack(list(scaled)).sum(0)


@dataclass(frozen=True, eq=False)
class ContrastNeurons:
    """The neurons that behave most differently on two sets of inputs.

    Attributes:
        scores: I of every neuron, or the quotient of two of them; units that a narrower block does not have are 0.
        selected: block and column, largest score first.
        note: what was counted, and what is approximate.
    """

    scores: Float64[Tensor, "blocks width"]
    selected: tuple[Place, ...]
    note: str


@dataclass(frozen=True)
class Contrast:
    """MANU's importance of neurons between two sets of inputs, and the largest of all blocks.

    Attributes:
        share: of all neurons, how many are selected; MANU prunes a tenth.
        mean: see ``importance_between``.
    """

    share: float = 0.1
    mean: Literal["absolute", "signed"] = "absolute"

    def __post_init__(self) -> None:
        _check_share(self.share)
        _check_mean(self.mean)

    def __call__(
        self, first: Statistics, second: Statistics, retain: tuple[Statistics, Statistics] | None = None
    ) -> ContrastNeurons:
        """Score and select. Equal scores are taken in the order of blocks and columns.

        Args:
            first: what neurons did on one set of inputs, such as pictures with questions.
            second: the same on the other, such as the questions alone.
            retain: another such pair, of what is to be kept: the score is I ÷ I of this pair, as MANU ranks what is to
                be forgotten. Where the latter is 0 and the former is not, the quotient is infinite.

        Raises:
            OptionError: the statistics cannot be compared, or the share selects none.
        """
        scores = importance_between(first, second, self.mean)
        pairs = [(first, second)]
        if retain is not None:
            _check_pair(first, retain[0])
            scores = _quotient(scores, importance_between(*retain, self.mean))
            pairs.append(retain)
        there = first.there
        wanted = _floor(self.share * int(there.sum()))
        if not wanted:
            raise OptionError(f"share={self.share} of {int(there.sum())} neurons selects none. Choose a larger share.")
        chosen = _best(torch.where(there, scores, -inf), wanted)
        return ContrastNeurons(
            scores=scores,
            selected=_places(chosen, scores),
            note="; ".join(
                (
                    f"MANU's importance{'' if retain is None else ', over that of what is to be kept'}",
                    f"means of {'|z|' if self.mean == 'absolute' else 'z'}, counts and squares per position",
                    "an expert that was not chosen counts as z = 0",
                    *(f"{one.note} against {other.note}" for one, other in pairs),
                )
            ),
        )


def importance_between(
    first: Statistics, second: Statistics, mean: Literal["absolute", "signed"] = "absolute"
) -> Float64[Tensor, "blocks width"]:
    """How differently neurons behave on two sets of inputs, after MANU (Liu et al., ACL 2025).

    With a, n, v, S the mean, the rate of z > 0.1, the variance (over all positions) and the mean square on each set:

        I = |a₁ − a₂| / (a₁ + a₂) + |n₁ − n₂| / (n₁ + n₂) + √(v₁ + v₂) + √(|S₁ − S₂| / (S₁ + S₂))

    A quotient of 0 and 0 is 0. n and S are per position, which is as published where both sets have as many positions,
    and does not reward a set's size where they have not. The third term has the unit of z, the others have none.

    Args:
        first: on one set.
        second: on the other; the formula is symmetric.
        mean: a is the mean of |z|, so that the first term lies between 0 and 1; or ``"signed"``, of z, where the term
            may have any sign and size.

    Raises:
        OptionError: the statistics cannot be compared, or ``mean`` is something else.
    """
    _check_pair(first, second)
    _check_mean(mean)

    def apart(one: Tensor, other: Tensor) -> Tensor:
        return _quotient((one - other).abs(), one + other)

    sets = (first, second)
    means = [own.absolute / own.count if mean == "absolute" else own.mean for own in sets]
    rates = [own.above.double() / own.count for own in sets]
    squares = [own.squares / own.count for own in sets]
    return (
        apart(means[0], means[1])
        + apart(rates[0], rates[1])
        + (first.variance + second.variance).sqrt()
        + apart(squares[0], squares[1]).sqrt()
    )


def overlap_table(
    first: Bool[Tensor, "blocks width"], second: Bool[Tensor, "blocks width"], there: Bool[Tensor, "blocks width"]
) -> tuple[OverlapRow, ...]:
    """What two selections share, block by block and, in the last row, in all; against chance.

    Chance is two random selections of the same sizes: they share first · second / units at the mean (hypergeometric).

    Args:
        first: which neurons are in the first.
        second: which are in the second.
        there: which neurons there are.
    """
    first, second = first & there, second & there
    rows = [
        _row(index, int(own.sum()), int(one.sum()), int(other.sum()), int((one & other).sum()))
        for index, (own, one, other) in enumerate(zip(there, first, second, strict=True))
    ]
    whole = _row(None, int(there.sum()), int(first.sum()), int(second.sum()), int((first & second).sum()))
    return (*rows, whole)


def find_modality_neurons(
    vlm: VLM,
    recordings: Mapping[str, Sequence[Recording]],
    modality: Modality | None = None,
    activation: HeardAs = "product",
) -> dict[str, ModalityNeurons]:
    """The neurons of text and of pictures in each domain, from recordings of its pictures; one forward for each.

    Args:
        vlm: the model that was recorded.
        recordings: those of each domain; all under one name where there are no domains.
        modality: how they are scored and selected; ``Modality()`` by default.
        activation: what an activation is; MINER takes the gate alone.

    Raises:
        OptionError, RecordingError: as in ``Modality`` and ``mmneurons.vlm.statistics.statistics_at``.
    """
    found = {}
    for name, own in recordings.items():
        statistics = statistics_at(vlm, own, ("text", "image"), activation)
        found[name] = (modality or Modality())(statistics["text"], statistics["image"])
    return found


def find_contrast_neurons(
    vlm: VLM,
    first: Sequence[Recording],
    second: Sequence[Recording],
    contrast: Contrast | None = None,
    positions: PositionSet = "last",
    activation: HeardAs = "product",
) -> ContrastNeurons:
    """The neurons that behave most differently in two groups of recordings, such as with and without the picture.

    Args:
        vlm: the model that was recorded.
        first: one group.
        second: the other.
        contrast: how neurons are scored and selected; ``Contrast()`` by default.
        positions: which are counted; MANU takes the last.
        activation: what an activation is.

    Raises:
        OptionError, RecordingError: as in ``Contrast`` and ``mmneurons.vlm.statistics.statistics_at``.
    """
    one, other = (activation_statistics(vlm, own, positions, activation) for own in (first, second))
    return (contrast or Contrast())(one, other)


def _in_block(values: Float64[Tensor, "blocks width"], there: Bool[Tensor, "blocks width"]) -> Tensor:
    """Bring the values of each block to 0…1; those of a block where all are equal to 0."""
    low = torch.where(there, values, inf).amin(1, keepdim=True)
    high = torch.where(there, values, -inf).amax(1, keepdim=True)
    return torch.where(there, _quotient(values - low, (high - low).expand_as(values)), 0)


def _quotient(one: Tensor, other: Tensor) -> Tensor:
    """A quotient where 0 by 0 is 0."""
    return torch.where((one == 0) & (other == 0), 0, one / other)


def _chosen(
    scores: Float64[Tensor, "modalities blocks width"], there: Bool[Tensor, "blocks width"], share: float, rule: Rule
) -> Bool[Tensor, "modalities blocks width"]:
    """Which neurons a rule selects for each modality."""
    known = torch.where(there, scores, -inf)
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    units = int(there.sum())
    if rule == "global":
        best = _best(known.sum(0), _floor(share * units))
        # the first of two equal scores, as argmax does
        chosen[0], chosen[1] = best & (scores[0] >= scores[1]), best & (scores[0] < scores[1])
    elif rule == "per_modality":
        for index in range(len(scores)):
            chosen[index] = _best(known[index], _floor(share * units) // len(scores))
    else:
        for block, width in enumerate(there.sum(1).tolist()):
            wanted = _floor(share * width)
            if rule == "per_block":
                chosen[:, block] = _best(known[:, block], wanted)
            else:
                for index in range(len(scores)):
                    chosen[index, block] = _best(known[index, block], wanted // len(scores))
    return chosen


def _floor(quota: float) -> int:
    # 0.29 · 100 is 28.999…
    return floor(quota + 1e-9)


def _best(values: Float64[Tensor, "*shape"], k: int) -> Bool[Tensor, "*shape"]:
    """Where the k largest are; of equal ones the first."""
    chosen = torch.zeros(values.numel(), dtype=torch.bool)
    chosen[values.flatten().sort(descending=True, stable=True).indices[:k]] = True
    return chosen.view(values.shape)


def _places(chosen: Bool[Tensor, "blocks width"], scores: Float64[Tensor, "blocks width"]) -> tuple[Place, ...]:
    """Block and column of what was chosen, largest score first."""
    order = scores[chosen].sort(descending=True, stable=True).indices
    return tuple((int(block), int(column)) for block, column in chosen.nonzero()[order])


def _row(block: int | None, units: int, first: int, second: int, both: int) -> OverlapRow:
    either = first + second - both
    mean = sum(chance * common / (first + second - common) for common, chance in _hypergeometric(units, first, second))
    return OverlapRow(
        block=block,
        units=units,
        first=first,
        second=second,
        both=both,
        jaccard=both / either if either else float("nan"),
        chance=first * second / units if units else 0.0,
        chance_jaccard=float(mean) if either else float("nan"),
    )


def _hypergeometric(units: int, first: int, second: int) -> Iterator[tuple[int, float]]:
    """How likely it is that two random selections have so many in common, for every number from 1 on."""

    def ways(of: int, some: int) -> float:
        return lgamma(of + 1) - lgamma(some + 1) - lgamma(of - some + 1)

    for common in range(max(1, first + second - units), min(first, second) + 1):
        log = ways(first, common) + ways(units - first, second - common) - ways(units, second)
        yield common, exp(log)


def _check_share(share: float) -> None:
    if not 0 < share <= 1:
        raise OptionError(f"share={share!r} is not possible: it has to be above 0 and at most 1.")


def _check_mean(mean: str) -> None:
    if mean not in ("absolute", "signed"):
        raise OptionError(f"mean={mean!r} is not possible. Choose 'absolute' or 'signed'.")


def _check_pair(first: Statistics, second: Statistics) -> None:
    """Refuse what cannot be compared."""
    if (first.activation, first.widths) != (second.activation, second.widths):
        raise OptionError("The two statistics are of different activations or models. Take both in the same way.")
    if not first.count or not second.count:
        raise OptionError("One of the two statistics has no positions. Give it recordings.")
