"""A neuron's exact share of a logit.

At the emitting position, with the final norm's statistics frozen, the logit of a token is linear in the residual
stream, and the stream is a sum of what was written into it. So neuron (l, i) with activation z and output vector v has
the share

    contribution(l, i, t) = z(l, i) · (v(l, i) · ũ_t),

where ũ_t is the unembedding of the token pulled back through the frozen norm (Pan et al. 2024, whose released score is
the same formula without the norm and with the gate's activation alone). These shares, those of attention and of the
stream's entry, and the biases add up to the logit: see ``mmneurons.exactness``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mmneurons.errors import OptionError, RecordingError
from mmneurons.finders.protocol import Scores, Target
from mmneurons.vlm.model import VLM
from mmneurons.vlm.paths import Carried, carry_back, write_paths
from mmneurons.vlm.readout import Readout, readout
from mmneurons.vlm.recording import Recording
from mmneurons.vlm.sites import bias, project

__all__ = ["DEFAULT_AGAINST", "Contribution", "directions"]

AGAINST = (None, "vocabulary", "distribution", "word")
DEFAULT_AGAINST = "distribution"
ANOTHER_WORD = "against another word"


@dataclass(frozen=True)
class Contribution:
    """The direct contribution of every neuron to the logit of a token, against a reference.

    Attributes:
        against: what is subtracted from the token's unembedding. None: nothing, the raw logit. ``"vocabulary"``: the
            mean of the unembeddings of ordinary tokens. ``"distribution"``: their mean under the model's own
            distribution at that position, so that scores add up to first order to the change of log p. ``"word"``: the
            unembedding of the target's ``other`` token.
        norm: ``"frozen"`` (exact) or None (the paper's, which leaves the final norm out).
        activation: ``"product"``, what the write site is given, or ``"gate"``, the gate alone (the paper's released
            code; not a share of the logit).
    """

    against: str | None = DEFAULT_AGAINST
    norm: str | None = "frozen"
    activation: str = "product"

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("against", self.against, AGAINST),
            ("norm", self.norm, (None, "frozen")),
            ("activation", self.activation, ("product", "gate")),
        ):
            if value not in allowed:
                raise OptionError(f"{name}={value!r} is not possible. Choose one of {', '.join(map(repr, allowed))}.")

    def __call__(self, vlm: VLM, recording: Recording, targets: Sequence[Target]) -> list[Scores]:
        """Score every neuron for each target.

        Raises:
            OptionError: ``activation="gate"`` with FFNs that have no gate, or ``against="word"`` without another token.
        """
        return self.many(vlm, [(recording, targets)])[0]

    def many(self, vlm: VLM, work: Sequence[tuple[Recording, Sequence[Target]]]) -> list[list[Scores]]:
        """As a call for each recording; the weights are read once for all targets.

        Raises:
            OptionError: as a call does.
        """
        with torch.autocast(vlm.device.type, enabled=False):
            return self._many(vlm, work)

    def _many(self, vlm: VLM, work: Sequence[tuple[Recording, Sequence[Target]]]) -> list[list[Scores]]:
        flat = [target for _, targets in work for target in targets]
        if not flat:
            return [[] for _ in work]
        steps = [(recording, [target.step for target in targets]) for recording, targets in work]
        activations = torch.cat([self._activations(vlm, recording)[own] for recording, own in steps])
        stream = torch.cat([recording.stream[own] for recording, own in steps])
        head = readout(vlm)
        logits = torch.cat([recording.logits[own] for recording, own in steps])
        rows, constants = directions(head, logits, flat, self.against)
        if self.norm is None:
            totals = (rows.double() * stream.double()).sum(-1)
            pulled = rows
        else:
            totals = (rows.double() * head.normalize(stream).double()).sum(-1) + _biases(head, rows, constants)
            pulled = head.pull_back(rows, stream).float()
        statistics, factors = (
            torch.cat([getattr(recording, name)[own] for recording, own in steps]) for name in ("statistics", "factors")
        )
        carried = carry_back(vlm.model, vlm.anatomy, pulled, statistics, factors)
        values = torch.zeros_like(activations)
        for index, block in enumerate(vlm.anatomy.blocks):
            for site in block.sites:
                active = activations[:, index, site.columns] if site.experts is not None else None
                values[:, index, site.columns] = project(vlm.model, site, carried.at(site.path), active)
        values *= activations
        if self.activation == "product":
            exact = carry_back(vlm.model, vlm.anatomy, pulled.double(), statistics, factors)
            apart = constants + head.offset(rows, stream) if self.norm else 0.0
            _check_sum(vlm, work, values, exact, totals - apart)
        note = self._note(int(head.ordinary.sum()))
        if vlm.quantised:
            note += "; the weights are quantised, and columns are as the quantised map gives them"
        if head.transform is not None and self.norm is not None:
            note += "; the head is not linear: its activation is held at its ratio to its input, an approximation"
        shares = self.activation == "product"
        scores = (
            Scores(own, z, float(total) if shares else None, note)
            for own, z, total in zip(values, activations, totals, strict=True)
        )
        return [[next(scores) for _ in targets] for _, targets in work]

    def _activations(self, vlm: VLM, recording: Recording) -> Float[Tensor, "steps blocks width"]:
        activations = recording.activations if self.activation == "product" else recording.gates
        if activations is None:
            if all(block.gated for block in vlm.anatomy.blocks):
                raise OptionError("activation='gate' needs the gates. Record with gates=True, or pass it to find.")
            raise OptionError("activation='gate' needs gated FFNs whose gate can be heard; this model has others.")
        return activations

    def _note(self, ordinary: int) -> str:
        notes = [
            {
                None: "the raw logit",
                "vocabulary": f"against the mean of {ordinary:,} ordinary tokens",
                "distribution": "against the model's own distribution: the first-order change of log p",
                "word": ANOTHER_WORD,
            }[self.against]
        ]
        if self.norm is None and self.activation == "product":
            notes.append("the final norm is left out, so scores are shares of u·h, not of the logit")
        elif self.norm is None:
            notes.append("the final norm is left out")
        if self.activation == "gate":
            notes.append("the gate stands for the activation, so scores are no shares")
        return "; ".join(notes)


def directions(
    head: Readout, logits: Float[Tensor, "targets vocabulary"], targets: Sequence[Target], against: str | None
) -> tuple[Float[Tensor, "targets hidden"], Float[Tensor, "targets"]]:
    """The direction that each target is read along, ``u_t`` less its reference, and the constant that belongs to it.

    Raises:
        OptionError: ``against="word"`` with a target that names no other token.
    """
    tokens = torch.tensor([target.token for target in targets])
    if against is None:
        return head.rows(tokens)
    if against == "word":
        others = [target.other for target in targets if target.other is not None]
        if len(others) < len(targets):
            raise OptionError("A contrast needs the other token of every target. Pass the other word as against='…'.")
        rows, constants = head.rows(tokens)
        other_rows, other_constants = head.rows(torch.tensor(others))
        return rows - other_rows, constants - other_constants
    if against == "vocabulary":
        rows, constants = head.rows(tokens)
        ordinary = head.ordinary.float()
        mean_row, mean_constant = head.mixture((ordinary / ordinary.sum())[None])
        return rows - mean_row, constants - mean_constant
    rows = torch.arange(len(targets))
    weights = -logits.softmax(-1)
    # 1 − p as the sum of the others: where p rounds to 1, the difference would be nothing but rounding
    weights[rows, tokens] = 0
    weights[rows, tokens] = -weights.sum(-1)
    if head.softcap is not None:
        weights = weights * (1 - (logits / head.softcap).square())
    return head.mixture(weights)


def _check_sum(
    vlm: VLM,
    work: Sequence[tuple[Recording, Sequence[Target]]],
    contributions: Float[Tensor, "targets blocks width"],
    carried: Carried,
    totals: Float[Tensor, "targets"],
) -> None:
    """Refuse scores that do not add up, with everything else that was recorded, to what they are shares of.

    They do not where weights or modules changed between the recording and now, or since the model was measured.
    """
    anatomy = vlm.anatomy
    entry = torch.cat([recording.entry[[t.step for t in targets]] for recording, targets in work if targets]).double()
    writes = torch.cat([recording.writes[[t.step for t in targets]] for recording, targets in work if targets]).double()
    parts = [(entry * carried.at(anatomy.entry)).sum(-1), carried.constants()]
    parts += [
        (own * carried.at(path)).sum(-1) for own, path in zip(writes.unbind(1), write_paths(anatomy), strict=True)
    ]
    for site in (site for block in anatomy.blocks for site in block.sites):
        if (own := bias(vlm.model, site)) is not None:
            parts.append(carried.at(site.path) @ own.double())
    others = torch.stack(parts, 1)
    error = (others.sum(1) + contributions.double().sum((1, 2)) - totals).abs()
    size = others.abs().sum(1) + contributions.double().abs().sum((1, 2))
    bound = 1e-3 * totals.abs().clamp_min(1) + 64 * vlm.rounding * size
    if not bool((error <= bound).all()):
        raise RecordingError(
            f"The scores do not add up to the logit: {float(error.max()):.3g} is missing. Were weights or modules "
            "changed since the picture was recorded, or since the model was loaded? Find again; after a change of "
            "modules wrap the model again."
        )


def _biases(head: Readout, rows: Tensor, constants: Tensor) -> Tensor:
    """What ``constants`` holds beyond the norm's shift, which ``normalize`` has added already."""
    return constants.double() - (0.0 if head.shift is None else (rows @ head.shift).double())
