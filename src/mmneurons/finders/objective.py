"""What a word's score is the derivative of: the same left-hand sides as in ``contribution``, as functions of logits."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmneurons.errors import OptionError
from mmneurons.finders.protocol import Target
from mmneurons.vlm.derivatives import Objective
from mmneurons.vlm.model import VLM
from mmneurons.vlm.readout import readout

__all__ = ["REFERENCES", "check_against", "log_probability", "objective", "probability", "reference_note"]

REFERENCES = (None, "vocabulary", "distribution", "word")


def check_against(against: str | None) -> None:
    """Refuse a reference that there is not.

    Raises:
        OptionError: it is none of ``REFERENCES``.
    """
    if against not in REFERENCES:
        raise OptionError(f"against={against!r} is not possible. Choose one of {', '.join(map(repr, REFERENCES))}.")


def objective(vlm: VLM, target: Target, against: str | None) -> Objective:
    """The left-hand side of a target: its logit before a soft-cap, less its reference.

    ``"distribution"`` is log p itself, whose derivative the reference was made for.

    Args:
        vlm: the model.
        target: the token, and with ``against="word"`` the other one.
        against: as in ``mmneurons.finders.Contribution``.

    Raises:
        OptionError: ``against="word"`` with a target that names no other token.
    """
    if against == "distribution":
        return log_probability(target)
    head = readout(vlm)
    cap, ordinary = head.softcap, head.ordinary
    if against == "word":
        if target.other is None:
            raise OptionError("A contrast needs the other token of every target. Pass the other word as against='…'.")
        other = target.other
        return lambda logits: _uncapped(logits[:, [target.token]], cap)[:, 0] - _uncapped(logits[:, [other]], cap)[:, 0]
    if against == "vocabulary":
        return lambda logits: _uncapped(logits[:, [target.token]], cap)[:, 0] - _mean(_uncapped(logits, cap), ordinary)
    return lambda logits: _uncapped(logits[:, [target.token]], cap)[:, 0]


def log_probability(target: Target) -> Objective:
    """The log p of a target's token, natural, before any logits processor."""
    return lambda logits: logits.log_softmax(-1)[:, target.token]


def probability(target: Target) -> Objective:
    """The probability of a target's token, before any logits processor."""
    return lambda logits: logits.softmax(-1)[:, target.token]


def reference_note(against: str | None) -> str:
    """What a score is read against, in words."""
    return {
        None: "of the raw logit",
        "vocabulary": "of the logit, against the mean of ordinary tokens",
        "distribution": "of log p",
        "word": "of the logit, against another word",
    }[against]


def _uncapped(logits: Float[Tensor, "rows some"], cap: float | None) -> Float[Tensor, "rows some"]:
    if cap is None:
        return logits
    # a logit that rounds to its cap has no derivative any more
    return cap * torch.atanh((logits / cap).clamp(-1 + 1e-7, 1 - 1e-7))


def _mean(logits: Float[Tensor, "rows vocabulary"], ordinary: Bool[Tensor, "vocabulary"]) -> Float[Tensor, "rows"]:
    return logits[:, ordinary].mean(-1)
