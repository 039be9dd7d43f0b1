"""Neurons of a domain: active on one kind of pictures and not on others (MMNeuron, Huo et al., EMNLP 2024).

With p(d) the share of a domain's positions at which a neuron's activation is above 0, and p'(d) = p(d) / Σ p,

    DAPE = − Σ_d p'(d) log p'(d)        (natural logarithm),

the domain activation probability entropy: 0 for a neuron of one domain, log of their number for one of all. Neurons
whose p is over the bar in no domain are discarded; the bar is the 95th percentile of p over all neurons and domains. Of
the others the lowest entropies are selected, as many as 1 % of all neurons, and each belongs to every domain where its
p is over the bar.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from mmneurons.errors import OptionError
from mmneurons.vlm.model import VLM
from mmneurons.vlm.recording import Recording
from mmneurons.vlm.statistics import HeardAs, PositionSet, Statistics, activation_statistics

__all__ = ["Dape", "DomainNeurons", "find_domain_neurons"]


@dataclass(frozen=True, eq=False)
class DomainNeurons:
    """The neurons of each domain.

    Attributes:
        domains: their names.
        probabilities: p of each; 0 for units that a narrower block does not have.
        entropies: DAPE in nats; NaN for units that were never active, or that a narrower block does not have.
        kept: which units are over the bar in some domain.
        bar: the percentile of p.
        selected: block and column of the selected neurons, lowest entropy first.
        neurons: those of each domain, in the same order; one may be in several.
        note: what was counted, and what the selection cannot tell.
    """

    domains: tuple[str, ...]
    probabilities: Float64[Tensor, "domains blocks width"]
    entropies: Float64[Tensor, "blocks width"]
    kept: Bool[Tensor, "blocks width"]
    bar: float
    selected: tuple[tuple[int, int], ...]
    neurons: Mapping[str, tuple[tuple[int, int], ...]]
    note: str


@dataclass(frozen=True)
class Dape:
    """Domain activation probability entropy, with the published rule of selection.

    Attributes:
        share: how many neurons are selected, as a share of all there are, the discarded included.
        percentile: of p over all neurons and domains, 0 to 100: the bar.
    """

    share: float = 0.01
    percentile: float = 95.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise OptionError(f"share={self.share!r} is not possible: it has to be above 0 and at most 1.")
        if not 0 < self.percentile < 100:
            raise OptionError(f"percentile={self.percentile!r} is not possible: it has to lie between 0 and 100.")

    def __call__(self, domains: Mapping[str, Statistics]) -> DomainNeurons:
        """Select the neurons of each domain.

        Percentile and share are ranks rounded to whole numbers, as published: the k-th smallest of n with k the nearest
        to percentile · n. Equal entropies are taken in the order of blocks and columns.

        Args:
            domains: what neurons did on each domain's inputs, all of the same model, positions and activation.

        Raises:
            OptionError: there are fewer than two domains, they cannot be compared, or the share selects none.
        """
        first = _check(domains)
        there = first.there
        p = torch.stack([own.probability for own in domains.values()])
        whole = p.sum(0)
        shares = p / whole
        entropies = -torch.special.xlogy(shares, shares).sum(0)
        entropies[whole == 0] = torch.nan
        ranked = p[:, there].flatten().sort().values
        bar = float(ranked[max(1, round(self.percentile / 100 * len(ranked))) - 1])
        over = (p > bar) & there
        kept = over.any(0)
        units = int(there.sum())
        wanted = round(self.share * units)
        if not wanted:
            raise OptionError(f"share={self.share} of {units} neurons selects none. Choose a larger share.")
        # a stable sort, so that equal entropies keep the order of blocks and columns
        places = kept.nonzero()
        order = entropies[kept].sort(stable=True).indices[:wanted]
        selected = [(int(block), int(column)) for block, column in places[order]]
        neurons = {
            name: tuple(place for place in selected if over[index, place[0], place[1]])
            for index, name in enumerate(domains)
        }
        return DomainNeurons(
            domains=tuple(domains),
            probabilities=p,
            entropies=entropies,
            kept=kept,
            bar=bar,
            selected=tuple(selected),
            neurons=neurons,
            note=self._note(domains, bar, wanted, len(selected)),
        )

    def _note(self, domains: Mapping[str, Statistics], bar: float, wanted: int, found: int) -> str:
        counts = "; ".join(f"{name}: {own.note}" for name, own in domains.items())
        notes = [
            f"DAPE in nats, bar p > {bar:.4g} (percentile {self.percentile:g})",
            "an expert that was not chosen counts as not active",
            counts,
        ]
        if found < wanted:
            notes.append(f"only {found} of the {wanted} neurons asked for are over the bar anywhere")
        return "; ".join(notes)


def find_domain_neurons(
    vlm: VLM,
    recordings: Mapping[str, Sequence[Recording]],
    dape: Dape | None = None,
    positions: PositionSet = "all",
    activation: HeardAs = "product",
) -> DomainNeurons:
    """The neurons of each domain, from recordings of its pictures; one forward for each.

    Args:
        vlm: the model that was recorded.
        recordings: those of each domain.
        dape: how they are selected; ``Dape()`` by default.
        positions: which are counted.
        activation: what an activation is; the paper's code takes the gate alone. The sign of the product is the gate's
            times that of the ungated half, so p is another.

    Raises:
        OptionError, RecordingError: as in ``Dape`` and ``mmneurons.vlm.statistics.statistics_at``.
    """
    own = {name: activation_statistics(vlm, part, positions, activation) for name, part in recordings.items()}
    return (dape or Dape())(own)


def _check(domains: Mapping[str, Statistics]) -> Statistics:
    if len(domains) < 2:
        raise OptionError("DAPE compares domains: pass the statistics of at least two.")
    first, *others = domains.values()
    for other in others:
        if (other.positions, other.activation, other.widths) != (first.positions, first.activation, first.widths):
            raise OptionError("The domains' statistics are of different positions, activations or models.")
    for name, own in domains.items():
        if not own.count:
            raise OptionError(f"The domain {name!r} has no positions. Give it recordings.")
    return first
