"""Ways of scoring neurons, one file each. A new one is a new file and one line in ``FINDERS``."""

from __future__ import annotations

from dataclasses import fields

from mmneurons.errors import OptionError
from mmneurons.finders.activation import Activation
from mmneurons.finders.chance import Random
from mmneurons.finders.contribution import Contribution
from mmneurons.finders.protocol import Finder, Scores, Target

__all__ = ["FINDERS", "Activation", "Contribution", "Finder", "Random", "Scores", "Target", "make_finder", "takes_seed"]

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


def takes_seed(finder: str) -> bool:
    """Whether a finder draws, and so takes a seed."""
    return finder in FINDERS and "seed" in {field.name for field in fields(FINDERS[finder])}
