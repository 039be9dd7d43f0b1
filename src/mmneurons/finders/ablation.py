"""The effect itself: how far log p of a token falls when one neuron is taken away and later blocks react."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mmneurons.errors import OptionError
from mmneurons.finders.contribution import Contribution
from mmneurons.finders.protocol import Scores, Target
from mmneurons.finders.total import Total
from mmneurons.options import check_whole
from mmneurons.vlm.model import VLM
from mmneurons.vlm.recording import Recording
from mmneurons.vlm.replay import Prefix, logits_without, prefix

__all__ = ["Ablation"]


@dataclass(frozen=True)
class Ablation:
    """The fall of log p when a neuron's activation is zero at the emitting position.

    Attributes:
        candidates: how many neurons are tried, the best by ``choose_by``; all others have the score 0, untried. None
            tries all that are not at zero, a row of a replay for each.
        choose_by: what candidates are chosen by: ``"total"`` or ``"contribution"``.
    """

    candidates: int | None = 256
    choose_by: str = "contribution"

    def __post_init__(self) -> None:
        if self.candidates is not None:
            check_whole("candidates", self.candidates)
        if self.choose_by not in ("total", "contribution"):
            raise OptionError(f"choose_by={self.choose_by!r} is not possible. Choose 'total' or 'contribution'.")

    def __call__(self, vlm: VLM, recording: Recording, targets: Sequence[Target]) -> list[Scores]:
        """Score the candidates of each target.

        Raises:
            RecordingError: the model is no longer the one that was recorded; or as the finder of candidates.
        """
        if not targets:
            return []
        before = prefix(vlm, recording, max(target.step for target in targets))
        first = (Total() if self.choose_by == "total" else Contribution())(vlm, recording, targets)
        return [self._try(vlm, recording, *both, before) for both in zip(targets, first, strict=True)]

    def _try(self, vlm: VLM, recording: Recording, target: Target, first: Scores, before: Prefix) -> Scores:
        z = recording.activations[target.step]
        places = [(int(block), int(column)) for block, column in z.nonzero()]
        if self.candidates is None:
            note = f"falls of log p without each of {len(places):,} neurons that were not at zero; no shares"
        else:
            alive = set(places)
            widths = [block.width for block in vlm.anatomy.blocks]
            places = [place for place in first.best(vlm.anatomy.neurons, widths) if place in alive][: self.candidates]
            note = (
                f"falls of log p without each of {len(places):,} candidates by {self.choose_by}; the others are at 0, "
                "untried; no shares"
            )
        logits = logits_without(vlm, recording, target.step, [[place] for place in places], before)
        falls = logits.double().log_softmax(-1)[:, target.token]
        values = torch.zeros_like(z)
        for place, fall in zip(places, (falls[0] - falls[1:]).tolist(), strict=True):
            values[place] = fall
        return Scores(values, z, None, note)
