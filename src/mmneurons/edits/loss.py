"""The loss of edits that are learned by gradient descent.

Over the requests (means over them, maxima over a request's target tokens j), after FiNE (Pan et al., ICLR 2025), with a
keep set:

    L = max_j NLL(target_j) + α·KL(before ‖ after, earlier positions) + κ·KL(before ‖ after, keep set)
        + β·max_j −log(1 − p(target_j again, right after)) + γ·‖δ‖

To have a word not said, the first term is KL to the unedited distribution without the word's first tokens, the rest
renormalised.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from mmneurons.edits.edit import Delta
from mmneurons.edits.task import Kept, Task, Want, ids_of
from mmneurons.vlm.distributions import kl
from mmneurons.vlm.upper import Added, Said, Upper

__all__ = ["Shown", "Terms", "Weights", "added", "losses", "with_next"]


@dataclass(frozen=True)
class Weights:
    """Of the terms of the loss: α, κ, β, γ."""

    earlier: float
    keep: float
    repeat: float
    size: float


Terms: TypeAlias = "Sequence[tuple[float, Sequence[tuple[Sequence[Kept], Upper]]]]"
"""What must stay: a weight, and batches of captions with what the upper part of the model says of them."""

Shown: TypeAlias = "Sequence[tuple[Delta, Tensor, Tensor]]"
"""A delta, its weights and its directions as they are learned."""


def added(shown: Shown) -> list[Added]:
    """What is added to columns, as it is now."""
    return [Added(delta.block, delta.columns, factors @ directions) for delta, factors, directions in shown]


def losses(
    task: Task,
    wanted: Upper,
    kept_terms: Terms,
    shown: Shown,
    weights: Weights,
    draw: random.Random,
) -> list[Tensor]:
    """The terms of the loss, each with a graph of its own.

    Args:
        task: what is asked.
        wanted: says the logits of ``with_next`` of every want.
        kept_terms: what must stay; of each one batch is drawn.
        shown: what is added.
        weights: β and γ; α and κ stand in ``kept_terms``.
        draw: chooses batches.
    """
    now = added(shown)
    logits = wanted.logits(now).log_softmax(-1)
    first = torch.tensor([len(with_next(want).steps) for want in task.wants]).cumsum(0).tolist()
    missed: dict[int, list[Tensor]] = {}
    repeats: dict[int, list[Tensor]] = {}
    for want, begin, end in zip(task.wants, [0, *first], first, strict=False):
        key = id(want.recording)
        missed.setdefault(key, []).append(_loss_of(want, logits[begin]))
        if end - begin > 1 and want.target is not None:
            again = logits[begin + 1, want.target].exp()
            repeats.setdefault(key, []).append(-torch.log((1 - again).clamp_min(1e-6)))
    terms = torch.stack([torch.stack(own).max() for own in missed.values()]).mean()
    if weights.repeat and repeats:
        terms = terms + weights.repeat * torch.stack([torch.stack(own).max() for own in repeats.values()]).mean()
    if weights.size:
        terms = terms + weights.size * torch.cat([own.vectors.flatten() for own in now]).norm()
    found = [terms]
    for weight, choices in kept_terms:
        kept, above = draw.choice(choices)
        after = above.logits(added(shown)).log_softmax(-1)
        before = torch.cat([one.recording.logits[list(one.steps)] for one in kept]).to(after).log_softmax(-1)
        found.append(weight * kl(before, after).mean())
    return found


def _loss_of(want: Want, after: Float[Tensor, "vocabulary"]) -> Float[Tensor, ""]:
    """What is lost at one step; ``after`` are log p."""
    if want.target is not None:
        return -after[want.target]
    # a copy: the recording is read again
    before = want.recording.logits[want.step].to(after, copy=True)
    before[list(want.sources)] = -float("inf")
    return kl(before.log_softmax(-1)[None], after[None])[0]


def with_next(want: Want) -> Said:
    """The step, and the one right after it where the target could be said again."""
    following = want.step + 1 < len(want.recording) and want.target is not None
    steps = (want.step, want.step + 1) if following else (want.step,)
    return Said(want.recording.request, ids_of(want.recording), steps)
