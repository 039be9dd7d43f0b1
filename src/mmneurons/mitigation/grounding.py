"""Changes of the last block's output vectors under which captions say more of what is there, and less of what is not.

At every step that begins to name an object, what may be said is known: the objects that are there. Two things are
learned from many such steps, both linear in the last block's activations z.

- The *correction* C: likelihood of what is there, with weight decay and few steps of Adam from C = 0,

      max_C  mean_s log Σ_{t may be said at s} p_s(t; C) − decay·‖C‖² − others·mean_o ‖z_o C‖²,
      logit_s(t; C) = logit_s(t) + r_s·z_s C w_t

  where w_t is what the head reads token t along, carried back to where the block writes, and o are steps that name
  nothing: there, little is to be written.
- The *doubt* a: at steps where even the corrected model would name what is not there, a general word ("thing") is
  lifted above all names, and nowhere else: logistic regression of that on the general word's lead.

How easily the general word is lifted is one number. It is chosen by cross-validation among the steps that are learned
from: as far as recall may fall and right captions may change, and no further.

Approximations: norms behind the block are frozen at their statistics without the edit, and what they let through at one
step stands for all, but for its size r_s; tokens that no caption says there, and no object is called by, are taken to
stay behind; a soft-cap of the head is left out. So what the edit does is measured by captions, not taken from here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

__all__ = ["Grounding", "Settings", "Steps", "Written", "ground"]


@dataclass(frozen=True, eq=False)
class Steps:
    """Steps of captions.

    Attributes:
        activations: of the last block.
        logits: of the tokens that compete, without an edit.
        general: the logit of the general word.
        reach: r, how much of what is written at a step reaches the logits, over the same at the first step.
        wanted: which tokens are to be said.
        right: which tokens would be no mistake.
        mention: whether an object is named there. Other steps stay as they are.
        caption: of which caption.
        objects: how many objects that caption's picture shows.
    """

    activations: Float[Tensor, "steps width"]
    logits: Float[Tensor, "steps tokens"]
    general: Float[Tensor, "steps"]
    reach: Float[Tensor, "steps"]
    wanted: Bool[Tensor, "steps tokens"]
    right: Bool[Tensor, "steps tokens"]
    mention: Bool[Tensor, "steps"]
    caption: Int[Tensor, "steps"]
    objects: Int[Tensor, "steps"]

    def __getitem__(self, which: Bool[Tensor, "steps"]) -> Steps:
        return Steps(**{name: value[which] for name, value in vars(self).items()})

    def is_right(self, said: Int[Tensor, "steps"]) -> Bool[Tensor, "steps"]:
        """Where it would be no mistake to say the tokens with these indices."""
        return self.right[torch.arange(len(self)), said]

    def __len__(self) -> int:
        return len(self.mention)

    @property
    def there(self) -> int:
        """How many objects the pictures of these captions show."""
        return sum(dict(zip(self.caption.tolist(), self.objects.tolist(), strict=True)).values())


@dataclass(frozen=True, eq=False)
class Written:
    """What the logits are read along where the block writes.

    Attributes:
        tokens: w_t of the tokens that compete.
        general: what is written to lift the general word by one logit, at the first step.
    """

    tokens: Float[Tensor, "tokens hidden"]
    general: Float[Tensor, "hidden"]

    @property
    def others(self) -> Float[Tensor, "tokens"]:
        """What that does to the other tokens' logits."""
        return self.tokens @ self.general


@dataclass(frozen=True)
class Settings:
    """How it is learned.

    Attributes:
        decay: of the correction.
        rounds: steps of Adam for the correction; they are few, so that it stays small.
        rate: of these.
        others: the weight of what is written at steps that name nothing.
        ridge: of the doubt's first guess, over the number of steps.
        stay: weight decay of the doubt, towards its first guess.
        recall: by how much recall may fall among steps that are learned from, in cross-validation. None for no general
            word.
        unchanged: which share of the captions that were right has to stay as it is there.
        folds: of the cross-validation.
    """

    decay: float = 3e-5
    rounds: int = 100
    rate: float = 3e-4
    others: float = 1e-3
    ridge: float = 2.0
    stay: float = 1e-2
    recall: float | None = 0.015
    unchanged: float = 0.925
    folds: int = 4


@dataclass(frozen=True, eq=False)
class Grounding:
    """What was learned.

    Attributes:
        correction: what every column gets of C.
        doubt: how much of the general word every column writes.
        eased: how easily the general word is lifted, in logits; −inf where it is not.
    """

    correction: Float[Tensor, "width hidden"]
    doubt: Float[Tensor, "width"]
    eased: float

    def vectors(self, written: Written) -> Float[Tensor, "width hidden"]:
        """What every column gets in all.

        Args:
            written: what the logits are read along.
        """
        return self.correction + self.doubt[:, None] * written.general


def ground(steps: Steps, written: Written, settings: Settings | None = None) -> Grounding:
    """Learn the correction, and the doubt if a general word is asked for.

    Args:
        steps: of captions whose truth is known.
        written: what the logits are read along.
        settings: how it is learned.

    Returns:
        What every column gets; the doubt is zero where no general word is asked for, or where every ease costs more
        recall than may be lost.
    """
    settings = settings or Settings()
    scale = _scale(steps)
    correction = _corrected(steps, written, settings, scale)
    nothing = torch.zeros(len(scale))
    if settings.recall is None:
        return Grounding(correction / scale[:, None], nothing, -float("inf"))
    eased = _eased(steps, written, settings)
    if eased == -float("inf"):
        return Grounding(correction / scale[:, None], nothing, eased)
    doubt = _doubt(steps, written, correction, settings, scale)
    return Grounding(correction / scale[:, None], (doubt + eased * _naming(steps, scale)) / scale, eased)


_EASED = tuple(step / 4 for step in range(-12, 25))
"""How easily the general word may be lifted, in logits."""


def _scale(steps: Steps) -> Float[Tensor, "width"]:
    size = steps.activations.square().mean(0).sqrt()
    return size + 1e-2 * size.mean().clamp_min(1e-6)


def _reaching(steps: Steps, scale: Float[Tensor, "width"]) -> Float[Tensor, "steps width"]:
    """By how much what a column writes for one unit of its scale moves the logits of a step."""
    return steps.reach[:, None] * steps.activations / scale


def _corrected(
    steps: Steps, written: Written, settings: Settings, scale: Float[Tensor, "width"]
) -> Float[Tensor, "width hidden"]:
    own = steps[steps.mention & steps.wanted.any(1)]
    features = own.activations / scale
    rest = steps[~steps.mention].activations / scale
    written_there = rest.T @ rest / max(1, len(rest))
    correction = torch.zeros(len(scale), written.tokens.shape[1], requires_grad=True)
    if not settings.rounds or not len(own):
        return correction.detach()
    adam = torch.optim.Adam([correction], lr=settings.rate)
    for _ in range(settings.rounds):
        adam.zero_grad()
        after = (own.logits + own.reach[:, None] * (features @ correction @ written.tokens.T)).log_softmax(-1)
        likelihood = after.masked_fill(~own.wanted, -1e9).logsumexp(-1)
        still = (correction * (written_there @ correction)).sum()
        loss = -likelihood.mean() + settings.decay * correction.square().sum() + settings.others * still
        loss.backward()
        adam.step()
    return correction.detach()


def _after(
    steps: Steps, written: Written, correction: Float[Tensor, "width hidden"], scale: Float[Tensor, "width"]
) -> Float[Tensor, "steps tokens"]:
    moved = (steps.activations / scale) @ correction @ written.tokens.T
    return steps.logits + steps.reach[:, None] * moved


def _lead(
    steps: Steps, written: Written, after: Float[Tensor, "steps tokens"], doubt: Float[Tensor, "steps"]
) -> tuple[Float[Tensor, "steps"], Int[Tensor, "steps"]]:
    """How far the general word is ahead of all names when so much of it is written, and of which name."""
    best = (after + doubt[:, None] * written.others).max(-1)
    return steps.general + doubt - best.values, best.indices


def _ridge(
    features: Float[Tensor, "steps width"], wanted: Float[Tensor, "steps"], ridge: float
) -> Float[Tensor, "width"]:
    rows = features.double()
    weight = ridge * len(rows) * torch.eye(min(rows.shape)).double()
    if len(rows) <= rows.shape[1]:
        return (rows.T @ torch.linalg.solve(rows @ rows.T + weight, wanted.double())).float()
    return torch.linalg.solve(rows.T @ rows + weight, rows.T @ wanted.double()).float()


_NAMING = 0.05
"""The ridge of what tells steps that name an object: it has to be near 1 at all of them."""


def _naming(steps: Steps, scale: Float[Tensor, "width"]) -> Float[Tensor, "width"]:
    """What is 1 at steps that name an object, and 0 at others."""
    return _ridge(_reaching(steps, scale), steps.mention.float(), _NAMING)


_DOUBTED = 60
"""Steps of Adam for the doubt."""

_BEHIND = 3.0
"""How far behind the sum of all names, in logits, the general word is guessed to belong."""


def _doubt(
    steps: Steps,
    written: Written,
    correction: Float[Tensor, "width hidden"],
    settings: Settings,
    scale: Float[Tensor, "width"],
) -> Float[Tensor, "width"]:
    features = _reaching(steps, scale)
    after = _after(steps, written, correction, scale)
    wanted = after.logsumexp(-1) - _BEHIND - steps.general
    best = after.max(-1)
    needed = wanted / (1 - written.others[best.indices]).clamp_min(0.1)
    guess = _ridge(features, needed.where(steps.mention, torch.zeros(())), settings.ridge)
    wrong = ~steps.is_right(best.indices) & steps.mention
    doubt = guess.clone().requires_grad_()
    adam = torch.optim.Adam([doubt], lr=2e-3)
    for _ in range(_DOUBTED):
        adam.zero_grad()
        lead, _ = _lead(steps, written, after, features @ doubt)
        missed = binary_cross_entropy_with_logits(lead / 2, wrong.float(), reduction="none")
        loss = missed.sum() / steps.mention.sum().clamp_min(1) + settings.stay * (doubt - guess).square().sum()
        loss.backward()
        adam.step()
    return doubt.detach()


def _eased(steps: Steps, written: Written, settings: Settings) -> float:
    """How easily the general word may be lifted so that no more is lost than may be, by cross-validation."""
    assert settings.recall is not None
    gained, stayed = torch.zeros(len(_EASED)), torch.zeros(len(_EASED))
    there = right = 0
    for fold in range(settings.folds):
        out = steps.caption % settings.folds == fold
        learned, held = steps[~out], steps[out]
        if not len(learned) or not len(held):
            continue
        scale = _scale(learned)
        correction = _corrected(learned, written, settings, scale)
        lift = _doubt(learned, written, correction, settings, scale)
        naming = _naming(learned, scale)
        after = _after(held, written, correction, scale)
        features = _reaching(held, scale)
        said = held.logits.argmax(-1)
        was = held.is_right(said)
        captions = {*held.caption.tolist()} - {*held.caption[held.mention & ~was].tolist()}
        right += len(captions)
        for place, eased in enumerate(_EASED):
            lead, best = _lead(held, written, after, features @ (lift + eased * naming))
            changed = (best != said) | (lead >= 0)
            stayed[place] += len(captions - {*held.caption[changed].tolist()})
            now = held.is_right(best) & (lead < 0)
            gained[place] += float((now[held.mention].float() - was[held.mention].float()).sum())
        there += held.there
    fits = (gained >= -settings.recall * there) & (stayed >= settings.unchanged * right)
    # from the strictest on, and no further than where it first costs too much
    allowed = int(fits.long().cumprod(0).sum())
    return _EASED[allowed - 1] if allowed else -float("inf")
