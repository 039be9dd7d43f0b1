"""Which finders are compared, and by which measures."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from mmneurons.errors import OptionError
from mmneurons.finders import (
    FINDERS,
    Ablation,
    Activation,
    ActivationTimesUnembedding,
    Contribution,
    Finder,
    Gradient,
    GradientTimesActivation,
    Greedy,
    IntegratedGradients,
    LogProbabilityIncrease,
    Random,
    Total,
)
from mmneurons.measures.case import Measure
from mmneurons.measures.causal_effect import CausalEffect
from mmneurons.measures.looking import Looking
from mmneurons.measures.objects import Vocabulary
from mmneurons.measures.region_invariance import RegionInvariance
from mmneurons.measures.sensitivity import SemanticSensitivity
from mmneurons.options import check_known
from mmneurons.vlm.text_encoder import Clip, TextEncoder

__all__ = ["BASELINE", "MEASURES", "VARIANTS", "Suite", "is_sampled", "suite"]

BASELINE = "contribution"
"""What other finders are compared with in pairs."""

RANDOM = "random"
"""The control that every table has."""

VARIANTS: Mapping[str, Finder] = {
    BASELINE: Contribution(),
    "contribution, vocabulary": Contribution(against="vocabulary"),
    "contribution, raw": Contribution(against=None),
    "contribution, no norm": Contribution(against=None, norm=None),
    "paper (gate, no norm)": Contribution(against=None, norm=None, activation="gate"),
    "total": Total(),
    "total, vocabulary": Total("vocabulary"),
    "total, raw": Total(None),
    "greedy": Greedy(),
    "greedy, distribution": Greedy(against="distribution"),
    "greedy by contribution": Greedy(choose_by="contribution", against="distribution"),
    "activation": Activation(),
    "activation × unembedding": ActivationTimesUnembedding(),
    "gradient": Gradient(),
    "gradient × activation": GradientTimesActivation(),
    "integrated gradients": IntegratedGradients(),
    "integrated gradients, 4 steps": IntegratedGradients(steps=4),
    "log p increase": LogProbabilityIncrease(),
    "ablation": Ablation(),
    RANDOM: Random(),
}
"""All that the whole study compares: every finder, and what gates and references change."""

_READ = (
    BASELINE,
    "contribution, vocabulary",
    "contribution, raw",
    "paper (gate, no norm)",
    "total",
    "greedy",
    "activation",
    "integrated gradients, 4 steps",
    RANDOM,
)
"""Whose neurons' words are compared with texts, the dearest part of a word."""

MEASURES = ("causal", "sensitivity", "region", "across", "looking", "hallucination", "pope")

_ASKED_FOR = ("pope",)
"""Measures that are taken only where they are named: a model that captions need not answer questions."""

_NEED_GATES = ("paper (gate, no norm)",)

_REFERENCES = ("total, vocabulary", "total, raw", "greedy, distribution", "contribution, no norm")
"""What is compared with the others by its effect alone."""


@dataclass(frozen=True)
class Suite:
    """What is measured.

    Attributes:
        name: of it.
        finders: by the name that tables show.
        measures: of single words.
        names: of all measures, those of several words and of captions among them.
        every: finders that are asked of every so many-th word only, because they are dear.
        keep: how many neurons of a word and finder are kept.
        about: the options, as the folder keeps and compares them.
    """

    name: str
    finders: Mapping[str, Finder]
    measures: tuple[Measure, ...]
    names: tuple[str, ...]
    every: Mapping[str, int] = field(default_factory=dict)
    keep: int = 1000
    about: Mapping[str, object] = field(default_factory=dict)

    @property
    def gates(self) -> bool:
        """Whether some finder needs the gates alone."""
        return any(isinstance(one, Contribution) and one.activation == "gate" for one in self.finders.values())


def suite(
    name: str = "pan2024",
    *,
    quick: bool = False,
    finders: tuple[str, ...] = (),
    measures: tuple[str, ...] = (),
    gated: bool = True,
    encoder: TextEncoder | None = None,
    clip: Clip | None = None,
    vocabulary: Vocabulary | None = None,
) -> Suite:
    """The whole study, or a part of it.

    Args:
        name: ``"pan2024"``, the only one.
        quick: fewer orders of image tokens, fewer words for dear finders and for texts; every measure is there.
        finders: names of ``VARIANTS`` or of ``mmneurons.finders.FINDERS``; all variants by default. The control is
            always among them.
        measures: names of ``MEASURES``; all but ``pope`` by default.
        gated: whether the model's gates can be heard.
        encoder: for semantic sensitivity, which needs one.
        clip: for its CLIPScore.
        vocabulary: which objects words name, for looking and hallucination.

    Raises:
        OptionError: something is named that there is not.
    """
    if name != "pan2024":
        raise OptionError(f"There is no suite {name!r}. There is pan2024.")
    for one in measures:
        check_known("measure", one, MEASURES)
    chosen = {one: _finder(one) for one in finders} if finders else dict(VARIANTS)
    if not gated:
        if needing := [one for one in finders if one in _NEED_GATES]:
            raise OptionError(f"{needing[0]!r} needs FFNs whose gate can be heard; this model has others.")
        chosen = {one: own for one, own in chosen.items() if one not in _NEED_GATES}
    chosen.setdefault(RANDOM, Random())
    wanted = measures or tuple(
        one for one in MEASURES if one not in _ASKED_FOR and (one != "sensitivity" or encoder is not None)
    )
    if "sensitivity" in wanted and encoder is None:
        raise OptionError("sensitivity compares texts and needs an encoder.")
    orders = range(3) if quick else range(10)
    again = {one: own for one, own in chosen.items() if _is_fast(own) and one not in _REFERENCES}
    spoken = tuple(one for one in chosen if one not in _REFERENCES)
    of_words: dict[str, Measure] = {
        "causal": CausalEffect(again=spoken),
        "region": RegionInvariance(again, seeds=orders),
    }
    if encoder is not None:
        of_words["sensitivity"] = SemanticSensitivity(
            encoder, clip, (1, 10) if quick else (1, 10, 50), finders=None if finders else _READ
        )
    if vocabulary is not None:
        of_words["looking"] = Looking(vocabulary.of_word)
    dear = {one: (4 if quick else 1) for one in ("ablation", "log p increase", "integrated gradients, 4 steps")}
    dear["integrated gradients"] = 8 if quick else 4
    every = {one: times for one, times in dear.items() if one in chosen and times > 1}
    return Suite(
        name=name,
        finders=chosen,
        measures=tuple(of_words[one] for one in wanted if one in of_words),
        names=tuple(wanted),
        every=every,
        about={
            "suite": name,
            "quick": quick,
            "finders": {one: repr(own) for one, own in chosen.items()},
            "measures": {one: repr(of_words[one]) if one in of_words else "" for one in wanted},
            "every": dict(every),
            "encoder": None if encoder is None else encoder.name,
            "clip": None if clip is None else clip.name,
            "objects": None if vocabulary is None else vocabulary.digest(),
        },
    )


def is_sampled(key: str, every: int) -> bool:
    """Whether a word is among the every so many-th, by what it is called and nothing else."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) % every == 0


def _finder(name: str) -> Finder:
    if name in VARIANTS:
        return VARIANTS[name]
    check_known("finder", name, [*VARIANTS, *FINDERS])
    return FINDERS[name]()


def _is_fast(finder: Finder) -> bool:
    """Whether it is asked again for every order of the image tokens."""
    return isinstance(finder, Activation | ActivationTimesUnembedding | Contribution | Total | Random)
