"""Ways of scoring neurons, one file each. A new one is a new file and one line in ``FINDERS``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from mmneurons.errors import OptionError
from mmneurons.finders.activation import Activation
from mmneurons.finders.chance import Random
from mmneurons.finders.contribution import Contribution
from mmneurons.finders.protocol import BatchFinder, Finder, Scores, Target
from mmneurons.vlm.model import VLM
from mmneurons.vlm.recording import Recording

__all__ = [
    "FINDERS",
    "Activation",
    "BatchFinder",
    "Contribution",
    "Finder",
    "Random",
    "Scores",
    "Target",
    "make_finder",
    "score_all",
    "takes_seed",
]

FINDERS: dict[str, type] = {
    "contribution": Contribution,
    "activation": Activation,
    "random": Random,
}


def make_finder(finder: str | Finder, options: dict[str, object]) -> Finder:
    """The finder of a name with options, or the finder itself.

    Raises:
        OptionError: there is no such finder, or it has no such option.
    """
    if not isinstance(finder, str):
        if not callable(finder):
            raise OptionError(f"finder={finder!r} is not possible: pass {', '.join(FINDERS)}, or a finder.")
        if options:
            raise OptionError(f"{finder!r} has its options already; these were passed beside it: {', '.join(options)}.")
        return finder
    if finder not in FINDERS:
        raise OptionError(f"There is no finder {finder!r}. There are: {', '.join(FINDERS)}.")
    known = [field.name for field in fields(FINDERS[finder])]
    if unknown := [name for name in options if name not in known]:
        has = f"Its options are: {', '.join(known)}." if known else "It has none."
        raise OptionError(f"The finder {finder!r} has no option {', '.join(unknown)}. {has}")
    return FINDERS[finder](**options)


def score_all(finder: Finder, vlm: VLM, work: Sequence[tuple[Recording, Sequence[Target]]]) -> list[list[Scores]]:
    """The scores of every recording's targets: at once where the finder can, otherwise recording by recording."""
    if isinstance(finder, BatchFinder):
        return finder.many(vlm, work)
    return [finder(vlm, recording, targets) for recording, targets in work]


def takes_seed(finder: str) -> bool:
    """Whether a finder draws, and so takes a seed."""
    return finder in FINDERS and "seed" in {field.name for field in fields(FINDERS[finder])}
