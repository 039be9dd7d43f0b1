"""A set of neurons, chosen a handful at a time: those that are left are scored again without those chosen already.

Neurons stand in for one another, so the k best one by one are not the best k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from mmneurons.errors import OptionError
from mmneurons.finders.contribution import Contribution
from mmneurons.finders.objective import check_against, objective, reference_note
from mmneurons.finders.protocol import Scores, Target
from mmneurons.options import check_whole
from mmneurons.vlm.changes import zeros
from mmneurons.vlm.derivatives import step_derivatives
from mmneurons.vlm.model import VLM
from mmneurons.vlm.recording import Recording
from mmneurons.vlm.replay import Prefix, prefix, record_again

__all__ = ["Greedy"]

Place = tuple[int, int]


@dataclass(frozen=True)
class Greedy:
    """The best handful, put to zero at the emitting position; what is left, scored again; until there are k.

    Attributes:
        k: how many neurons are chosen.
        handful: how many at a time. A replay of one position for each handful.
        choose_by: what scores: ``"total"`` or ``"contribution"``, which needs no derivative.
        against: as in ``contribution``. Beside ``total`` and ``contribution`` the default is another one: sets
            that were chosen against the vocabulary weighed more on development scenes (``docs/decisions.md``).
    """

    k: int = 20
    handful: int = 5
    choose_by: str = "total"
    against: str | None = "vocabulary"

    def __post_init__(self) -> None:
        check_against(self.against)
        check_whole("k", self.k)
        check_whole("handful", self.handful)
        if self.choose_by not in ("total", "contribution"):
            raise OptionError(f"choose_by={self.choose_by!r} is not possible. Choose 'total' or 'contribution'.")

    def __call__(self, vlm: VLM, recording: Recording, targets: Sequence[Target]) -> list[Scores]:
        """Choose a set for each target.

        Raises:
            OptionError: there are not k neurons; or as in ``total`` or ``contribution``.
            RecordingError: the model cannot be differentiated, or is no longer the one that was recorded.
        """
        if self.k > vlm.anatomy.neurons:
            raise OptionError(f"k={self.k} is not possible: this model has {vlm.anatomy.neurons} neurons.")
        before = prefix(vlm, recording, max(target.step for target in targets)) if targets else None
        return [self._choose(vlm, recording, target, before) for target in targets]

    def _choose(self, vlm: VLM, recording: Recording, target: Target, before: Prefix | None) -> Scores:
        widths = [block.width for block in vlm.anatomy.blocks]
        chosen: list[Place] = []
        then: dict[Place, float] = {}
        z: Float[Tensor, "blocks width"] | None = None
        while True:
            values, now, before = self._scores(vlm, recording, target, chosen, before)
            z = now if z is None else z
            for place, value in then.items():
                values[place] = value
            if len(chosen) == self.k:
                break
            ranked = Scores(values, z, None, order=tuple(chosen)).best(min(self.k, len(chosen) + self.handful), widths)
            then |= {place: float(values[place]) for place in ranked[len(chosen) :]}
            chosen = ranked
        note = (
            f"a set of {self.k}, {self.handful} at a time by {self.choose_by} {reference_note(self.against)}, each "
            "scored when it was chosen, the rest without the set; no shares"
        )
        return Scores(values, z, None, note, tuple(chosen))

    def _scores(
        self, vlm: VLM, recording: Recording, target: Target, chosen: Sequence[Place], before: Prefix | None
    ) -> tuple[Float[Tensor, "blocks width"], Float[Tensor, "blocks width"], Prefix]:
        """The scores and activations of all neurons without those chosen already."""
        changes, intact = zeros(chosen), not chosen
        if self.choose_by == "total":
            own = step_derivatives(
                vlm,
                recording,
                target.step,
                objective(vlm, target, self.against),
                changes=changes,
                before=before,
                check=intact,
            )
            z = own.activations[0]
            return z * own.gradients[0], z, own.before
        again, before = record_again(vlm, recording, target.step, changes, before, check=intact)
        (scores,) = Contribution(against=self.against)(vlm, again, [Target(0, target.token, target.other)])
        return scores.values, scores.activations, before
