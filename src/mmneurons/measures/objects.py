"""Which objects a text names: by their names, plurals, and other names of the same thing; the longest match counts.

A "hot dog" is no dog, and a "teddy bear" no bear. WordNet, where it is at hand, adds nouns of the same sense, or of one
that is a kind of it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lemminflect import getInflection, getLemma

from mmneurons.errors import OptionError, SourceError

__all__ = ["Related", "Vocabulary", "coco_vocabulary", "read_aliases", "vocabulary"]

Related = Callable[[str], Iterable[str]]
"""From a noun to names of what it is, or is a kind of."""

_WORD = re.compile(r"[a-z0-9][a-z0-9'-]*")


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Names of objects, and how texts say them.

    Attributes:
        names: of the objects.
        surface: the words that say one → the object's name.
        related: what else a noun may be, asked where a word says no object by itself.
    """

    names: frozenset[str]
    surface: Mapping[tuple[str, ...], str]
    related: Related | None = None

    def said(self, text: str) -> list[str]:
        """The objects that a text names, one entry for every mention, in order."""
        words = _WORD.findall(text.lower())
        longest = max((len(words) for words in self.surface), default=1)
        found, at = [], 0
        while at < len(words):
            for length in range(min(longest, len(words) - at), 0, -1):
                if (name := self.surface.get(tuple(words[at : at + length]))) is not None:
                    found.append(name)
                    at += length
                    break
            else:
                if (name := self._related(words[at])) is not None:
                    found.append(name)
                at += 1
        return found

    def of_word(self, word: str) -> frozenset[str]:
        """The objects that a word, or a compound, names as a whole."""
        words = tuple(_WORD.findall(word.lower()))
        name = self.surface.get(words)
        if name is None and len(words) == 1:
            name = self._related(words[0])
        return frozenset() if name is None else frozenset({name})

    def digest(self) -> str:
        """What tells this vocabulary from others."""
        told = repr((sorted(self.surface.items()), self.related is not None))
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def _related(self, word: str) -> str | None:
        if self.related is None or len(word) < 3:
            return None
        lemma = getLemma(word, "NOUN")
        above = {one for noun in {word, *lemma} for one in self.related(noun)}
        return next(
            (self.surface[tuple(one.split())] for one in sorted(above) if tuple(one.split()) in self.surface), None
        )


def vocabulary(
    names: Iterable[str], aliases: Mapping[str, Sequence[str]] | None = None, related: Related | None = None
) -> Vocabulary:
    """The vocabulary of some names, their plurals and aliases.

    Raises:
        OptionError: there are no names.
    """
    own = list(dict.fromkeys(name.lower() for name in names))
    if not own:
        raise OptionError("There are no objects to look for: the truth names none.")
    surface: dict[tuple[str, ...], str] = {}
    # names before aliases: what is an object of its own says no other one
    for name in own:
        for form in _forms(name):
            surface[tuple(form.split())] = name
    for name in own:
        for alias in (aliases or {}).get(name, ()):
            for form in _forms(alias.lower()):
                surface.setdefault(tuple(form.split()), name)
    return Vocabulary(frozenset(own), surface, related)


def coco_vocabulary(related: Related | None = None) -> Vocabulary:
    """COCO's 80 objects, with names that we gathered by hand."""
    aliases = json.loads(Path(__file__).with_name("coco.json").read_text(encoding="utf-8"))
    return vocabulary(aliases, aliases, related)


def read_aliases(path: Path) -> dict[str, list[str]]:
    """Other names of objects: a JSON object from names to lists.

    Raises:
        SourceError: it is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {str(name).lower(): [str(alias) for alias in aliases] for name, aliases in content.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise SourceError(
            f"The aliases {path} cannot be read: {error}. They are a JSON object, name → list."
        ) from error


def _forms(name: str) -> set[str]:
    """A name and its plurals; a compound is inflected at its end."""
    *before, last = name.split()
    plurals = {last, *getInflection(last, "NNS"), *getInflection(last, "NNS", inflect_oov=True)}
    return {" ".join([*before, form]) for form in plurals}
