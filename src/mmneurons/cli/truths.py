"""What ``--truth``, ``--aliases`` and ``--wordnet`` say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmneurons.measures.objects import Vocabulary
    from mmneurons.measures.truth import Truth

__all__ = ["truths_of", "vocabulary_of"]


def truths_of(files: Sequence[str]) -> dict[str, Truth] | None:
    """What pictures show, by their file name; None where no file says it."""
    from mmneurons.measures.truth import read_truth

    return read_truth(files) if files else None


def vocabulary_of(truths: Mapping[str, Truth] | None, aliases: Path | None, wordnet: bool) -> Vocabulary | None:
    """The objects of a truth, with their other names; None where it names none.

    Raises:
        OptionError: names are given for a truth that is not.
        ExtraMissingError: WordNet is asked for, and not installed.
    """
    from mmneurons.errors import ExtraMissingError, OptionError
    from mmneurons.measures.objects import read_aliases, vocabulary_of_truth
    from mmneurons.measures.wordnet import WordNet, installed_folder

    if truths is None:
        if aliases is not None or wordnet:
            raise OptionError("--aliases and --wordnet are for the objects of --truth. Pass --truth, too.")
        return None
    related = None
    if wordnet:
        try:
            related = WordNet.read(installed_folder()).related
        except FileNotFoundError as error:
            raise ExtraMissingError(str(error)) from error
    names = {name for truth in truths.values() for name in truth.objects}
    if not names:
        return None
    return vocabulary_of_truth(names, None if aliases is None else read_aliases(aliases), related)
