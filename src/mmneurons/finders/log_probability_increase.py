"""Neuron-level attribution of Yu and Ananiadou (EMNLP 2024): what a neuron adds to log p where it is written.

    I(l, i, t) = log p(t | h_l + z(l, i) v(l, i)) − log p(t | h_l),

h_l is the residual stream before the FFN of block l, read out as if it were the last, with the final norm's statistic
held at what it was for the whole stream. Later blocks do not react.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mmneurons.errors import OptionError
from mmneurons.finders.protocol import Scores, Target
from mmneurons.options import check_whole
from mmneurons.vlm.anatomy import Path
from mmneurons.vlm.model import VLM
from mmneurons.vlm.paths import Carried, carry_back
from mmneurons.vlm.readout import Readout, readout
from mmneurons.vlm.recording import Recording
from mmneurons.vlm.sites import bias, columns, project

__all__ = ["LogProbabilityIncrease"]

_ROWS = 256
"""For how many neurons the whole vocabulary is looked at at once."""


@dataclass(frozen=True)
class LogProbabilityIncrease:
    """The increase of log p by each neuron on its own, at its block.

    h_l is everything that was written before the FFN of block l: the stream entering block 0, earlier blocks, and what
    else block l writes (its attention), each carried to the final norm on its own path. Experts beside one another are
    given the same h_l.

    Attributes:
        candidates: for how many neurons the increase is exact: those with the largest first-order increase of their
            block-wise log p, z v · ∇ log p(t | h_l). The others have that first-order value. None: exact for all, which
            costs the product of all neurons with the whole vocabulary.
    """

    candidates: int | None = 1000

    def __post_init__(self) -> None:
        if self.candidates is not None:
            check_whole("candidates", self.candidates)

    def __call__(self, vlm: VLM, recording: Recording, targets: Sequence[Target]) -> list[Scores]:
        """Score every neuron for each target.

        Raises:
            OptionError: the head is not linear, so that a part of the stream has no reading of its own.
        """
        head = readout(vlm)
        if head.transform is not None:
            raise OptionError(
                "log_probability_increase reads the stream as it grows, and this model's head is not linear: a part of "
                "the stream has no reading of its own. Use finder='contribution' or 'total'."
            )
        return [self._score(vlm, head, recording, target) for target in targets]

    def _score(self, vlm: VLM, head: Readout, recording: Recording, target: Target) -> Scores:
        z = recording.activations[target.step]
        reader = _Reader(vlm, head, recording, target)
        values = torch.zeros_like(z)
        streams = reader.streams()
        logits = reader.logits(streams)
        weights = -logits.softmax(-1)
        weights[:, target.token] += 1
        if head.softcap is not None:
            weights = weights * (1 - (logits / head.softcap).square())
        slopes = reader.slopes(weights)
        for index, block in enumerate(vlm.anatomy.blocks):
            for site in block.sites:
                active = z[index, site.columns][None]
                own = project(vlm.model, site, slopes[index].at(site.path).float(), active)
                values[index, site.columns] = (own * active)[0]
        count = vlm.anatomy.neurons if self.candidates is None else min(self.candidates, vlm.anatomy.neurons)
        widths = [block.width for block in vlm.anatomy.blocks]
        chosen = Scores(values, z, None).best(count, widths)
        own = logits.double().log_softmax(-1)[:, target.token]
        for start in range(0, len(chosen), _ROWS):
            part = chosen[start : start + _ROWS]
            blocks = [block for block, _ in part]
            after = reader.logits(streams[blocks] + reader.written(part, z)).double().log_softmax(-1)
            for place, increase in zip(part, (after[:, target.token] - own[blocks]).tolist(), strict=True):
                values[place] = increase
        exact = f"exact for the {len(chosen):,} largest, the rest to first order"
        exact = "exact" if len(chosen) == vlm.anatomy.neurons else exact
        note = f"increases of log p at the neuron's own block, the norm's statistic held, {exact}; no shares"
        return Scores(values, z, None, note)


class _Reader:
    """The stream of one step as it grows, and what its parts say, with all statistics held at those of the whole."""

    def __init__(self, vlm: VLM, head: Readout, recording: Recording, target: Target) -> None:
        self._vlm, self._head, self._recording, self._step = vlm, head, recording, target.step
        self._whole = recording.stream[target.step][None]
        self._statistics = recording.statistics[target.step][None]
        self._factors = recording.factors[target.step][None]
        self._carried = self._back(torch.zeros(1, vlm.anatomy.hidden, dtype=torch.double))

    def _back(self, direction: Float[Tensor, "1 hidden"]) -> Carried:
        return carry_back(self._vlm.model, self._vlm.anatomy, direction, self._statistics, self._factors)

    def _forward(self, path: Path, written: Float[Tensor, "hidden"]) -> Float[Tensor, "hidden"]:
        return self._carried.forward(path, written[None].double())[0]

    def streams(self) -> Float[Tensor, "blocks hidden"]:
        """What was written before the FFN of every block, as it arrives at the final norm. Float64."""
        recording, anatomy, model = self._recording, self._vlm.anatomy, self._vlm.model
        total = self._forward(anatomy.entry, recording.entry[self._step]) + self._carried.added()[0]
        writes = iter(recording.writes[self._step])
        streams = []
        for index, block in enumerate(anatomy.blocks):
            for write in block.writes:
                total = total + self._forward(write.path, next(writes))
            streams.append(total)
            for site in block.sites:
                z = recording.activations[self._step, index, site.columns]
                units = z.nonzero().flatten()
                wrote = z[units].double() @ columns(model, site, units.tolist()).double()
                own = bias(model, site)
                total = total + self._forward(site.path, wrote if own is None else wrote + own.double())
        return torch.stack(streams)

    def written(
        self, places: Sequence[tuple[int, int]], z: Float[Tensor, "blocks width"]
    ) -> Float[Tensor, "places hidden"]:
        """What some neurons wrote, as it arrives at the final norm. Float64."""
        rows = []
        for block, column in places:
            site = self._vlm.anatomy.site(block, column)
            vector = columns(self._vlm.model, site, [column - site.start])[0].double()
            rows.append(self._forward(site.path, vector * float(z[block, column])))
        return torch.stack(rows)

    def logits(self, streams: Float[Tensor, "rows hidden"]) -> Float[Tensor, "rows vocabulary"]:
        """What parts of the stream say. Float32 on the CPU."""
        head = self._head
        normed = head.center(streams) * head.statistic(self._whole)[:, None] * head.gain.double()
        normed = (normed if head.shift is None else normed + head.shift.double()).float()
        given = normed.to(head.unembedding.device).to(head.unembedding.dtype)
        logits = torch.nn.functional.linear(given, head.unembedding, head.bias).float().cpu() * head.scale
        return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)

    def slopes(self, weights: Float[Tensor, "rows vocabulary"]) -> list[Carried]:
        """The directions of weighted sums of unembeddings, carried back from the final norm."""
        rows, _ = self._head.mixture(weights)
        pulled = self._head.pull_back(rows, self._whole.expand(len(rows), -1)).double()
        return [self._back(own[None]) for own in pulled]
