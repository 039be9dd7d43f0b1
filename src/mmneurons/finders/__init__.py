"""Ways of scoring neurons, one file each. A new one is a new file and one line in ``FINDERS``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from mmneurons.finders.ablation import Ablation
from mmneurons.finders.activation import Activation
from mmneurons.finders.activation_times_unembedding import ActivationTimesUnembedding
from mmneurons.finders.chance import Random
from mmneurons.finders.contribution import Contribution
from mmneurons.finders.gradient import Gradient
from mmneurons.finders.gradient_times_activation import GradientTimesActivation
from mmneurons.finders.greedy import Greedy
from mmneurons.finders.integrated_gradients import IntegratedGradients
from mmneurons.finders.log_probability_increase import LogProbabilityIncrease
from mmneurons.finders.protocol import BatchFinder, Finder, Scores, Target
from mmneurons.finders.total import Total
from mmneurons.options import chosen
from mmneurons.vlm.model import VLM
from mmneurons.vlm.recording import Recording

__all__ = [
    "FINDERS",
    "Ablation",
    "Activation",
    "ActivationTimesUnembedding",
    "BatchFinder",
    "Contribution",
    "Finder",
    "Gradient",
    "GradientTimesActivation",
    "Greedy",
    "IntegratedGradients",
    "LogProbabilityIncrease",
    "Random",
    "Scores",
    "Target",
    "Total",
    "make_finder",
    "score_all",
    "takes_seed",
]

FINDERS: dict[str, type] = {
    "contribution": Contribution,
    "total": Total,
    "greedy": Greedy,
    "activation": Activation,
    "activation_times_unembedding": ActivationTimesUnembedding,
    "gradient": Gradient,
    "gradient_times_activation": GradientTimesActivation,
    "integrated_gradients": IntegratedGradients,
    "log_probability_increase": LogProbabilityIncrease,
    "ablation": Ablation,
    "random": Random,
}


def make_finder(finder: str | Finder, options: dict[str, object]) -> Finder:
    """The finder of a name with options, or the finder itself.

    Raises:
        OptionError: there is no such finder, or it has no such option.
    """
    return chosen("finder", FINDERS, finder, options)


def score_all(finder: Finder, vlm: VLM, work: Sequence[tuple[Recording, Sequence[Target]]]) -> list[list[Scores]]:
    """The scores of every recording's targets: at once where the finder can, otherwise recording by recording."""
    if isinstance(finder, BatchFinder):
        return finder.many(vlm, work)
    return [finder(vlm, recording, targets) for recording, targets in work]


def takes_seed(finder: str) -> bool:
    """Whether a finder draws, and so takes a seed."""
    return finder in FINDERS and "seed" in {field.name for field in fields(FINDERS[finder])}
