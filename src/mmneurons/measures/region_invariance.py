"""Region invariance (Pan et al. 2024, with our definition): are the neurons the same when the picture is out of order?

The picture's tokens are put into another order behind the projector, and the model is made to say the same caption
(left to itself it may not say the word). Of the first k neurons, the share that is found again; by chance it would be
k over the number of neurons. Mean over several orders.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mmneurons.errors import OptionError, RecordingError
from mmneurons.finders import Finder
from mmneurons.measures.case import Case, Observation
from mmneurons.measures.overlap import overlap
from mmneurons.options import check_increasing, check_seed
from mmneurons.vlm.recording import Keep, record_forced

__all__ = ["RegionInvariance"]


@dataclass(frozen=True)
class RegionInvariance:
    """See the module.

    Attributes:
        finders: by name, those that are asked again; each costs one more time for every order.
        ks: how many neurons are compared.
        seeds: of the orders.

    Raises:
        OptionError: an option has a value that it cannot have.
    """

    finders: Mapping[str, Finder]
    ks: tuple[int, ...] = (10, 50, 100, 500, 1000)
    seeds: Sequence[int] = range(10)

    def __post_init__(self) -> None:
        check_increasing("ks", self.ks)
        if not self.seeds:
            raise OptionError("seeds=() is not possible: name at least one order of the image tokens.")
        for seed in self.seeds:
            check_seed(seed)

    @property
    def quantities(self) -> Mapping[str, str]:
        """What it gives."""
        orders = len(self.seeds)
        return {"region overlap": f"share of the top k found again in {orders} other orders of the image tokens, mean"}

    def __call__(self, cases: Sequence[Case]) -> Iterator[tuple[Case, Observation]]:
        """Measure the words of one picture; none where it has no tokens to put into another order."""
        if not cases:
            return
        vlm, recording = cases[0].vlm, cases[0].recording
        ks = [k for k in self.ks if k <= vlm.anatomy.neurons]
        shares: dict[tuple[int, str, int], list[float]] = {}
        widths = [block.width for block in vlm.anatomy.blocks]
        for seed in self.seeds:
            keep = Keep(image_budget=0, gates=recording.gates is not None, shuffle=seed)
            try:
                again = record_forced(vlm, recording.request, recording.token_ids.tolist(), keep)
            except (OptionError, RecordingError):
                return
            for name, finder in self.finders.items():
                asked = [index for index, case in enumerate(cases) if name in case.rankings]
                scored = finder(vlm, again, [cases[index].target for index in asked])
                for index, scores in zip(asked, scored, strict=True):
                    best = scores.best(max(ks), widths)
                    for k in ks:
                        own = overlap(cases[index].rankings[name].top(k), best[:k])
                        shares.setdefault((index, name, k), []).append(own)
        for (index, name, k), own in shares.items():
            yield cases[index], Observation(name, "region overlap", k, sum(own) / len(own))
