"""Which objects the nouns of a text name: by their names, plurals, and other names; the longest match counts.

Only a noun names an object, and a compound by its end: "a police car" a car, "an orange cat" no orange, "a man ties"
no tie, "a train track" no train. A "hot dog" is no dog, and a "teddy bear" no bear, also where there are only dogs and
bears to look for. This is narrower than CHAIR's published code, which looks at every word.

WordNet, where it is at hand, adds nouns of the same sense, or of one that is a kind of it. An approximation: it is
asked by spelling, so a sense of the object's name that is not the object's counts, too.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lemminflect import getInflection, getLemma

from mmneurons.english import KINDS_OF_THEIR_OWN, compounds_in, fold
from mmneurons.errors import OptionError, SourceError
from mmneurons.nouns import nouns

__all__ = [
    "Related",
    "Vocabulary",
    "coco_vocabulary",
    "read_aliases",
    "vocabulary",
    "vocabulary_of_truth",
    "with_names",
]

Related = Callable[[str], Iterable[str]]
"""From a noun to names of what it is, or is a kind of."""

_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Names of objects, and how texts say them.

    Attributes:
        names: of the objects.
        surface: the words that say one → the object's name.
        related: what else a noun may be, asked where a word says no object by itself.
        told: which objects these are and how they may be said, in a sentence for people.
    """

    names: frozenset[str]
    surface: Mapping[tuple[str, ...], str]
    related: Related | None = None
    told: str = ""

    def said(self, text: str) -> list[str]:
        """The objects that a text names, one entry for every mention, in order.

        Raises:
            NounPipelineMissingError: no spaCy pipeline for English is installed.
        """
        return [name for name, _, _ in self.said_where(text)]

    def said_where(self, text: str) -> list[tuple[str, int, int]]:
        """The same, each with where it begins and ends, in characters.

        Raises:
            NounPipelineMissingError: no spaCy pipeline for English is installed.
        """
        folded = fold(text)
        words = [match.span() for match in _WORD.finditer(folded)]
        hidden = compounds_in(folded, KINDS_OF_THEIR_OWN)
        longest = max(len(form) for form in self.surface)
        found, free = [], 0
        for noun in nouns(text):
            # "dog's" ends a noun with what is no word of its own
            stop = sum(end <= noun.end for _, end in words)
            for first in range(max(free, stop - longest), stop):
                if not _whole(folded, words[first][0], noun.end, hidden):
                    continue
                spelled = tuple(folded[start:end] for start, end in words[first:stop])
                name = self.surface.get(spelled)
                if name is None and first == stop - 1:
                    name = self._related(spelled[0])
                if name is not None:
                    found.append((name, words[first][0], noun.end))
                    break
            free = stop
        return found

    def of_word(self, word: str) -> frozenset[str]:
        """The objects that a word, or a compound, names as a whole."""
        words = _words(word)
        name = self.surface.get(words)
        if name is None and len(words) == 1:
            name = self._related(words[0])
        return frozenset() if name is None else frozenset({name})

    def digest(self) -> str:
        """What tells this vocabulary from others."""
        told = repr((sorted(self.surface.items()), self.related is not None))
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def _related(self, word: str) -> str | None:
        """The nearest object that a noun is a kind of; None where there are several, none of them a kind of another."""
        if self.related is None or len(word) < 3:
            return None
        above = self._above({word, *getLemma(word, "NOUN")})
        nearest = [name for name in above if not any(name in self._above({other}) for other in above - {name})]
        return nearest[0] if len(nearest) == 1 else None

    def _above(self, nouns: Iterable[str]) -> set[str]:
        """The objects among what nouns are. By their names alone: other names mean other things, too ("stool")."""
        assert self.related is not None
        what = {one.replace(" ", "") for noun in nouns for one in self.related(noun)}
        return {name for name in self.names if name.replace(" ", "") in what}


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
    if empty := [name for name in own if not _words(name)]:
        raise OptionError(f"An object is called {empty[0]!r}, which no text can say. Give it a name with letters.")
    surface: dict[tuple[str, ...], str] = {}
    # names before aliases: what is an object of its own says no other one
    for name in own:
        for form in _forms(name):
            surface[_words(form)] = name
    for name in own:
        for alias in (aliases or {}).get(name, ()):
            for form in _forms(alias.lower()):
                surface.setdefault(_words(form), name)
    things = f"the {len(own)} objects that the truth names" if len(own) > 1 else "the one object that the truth names"
    ways = "names and plurals" if aliases is None else "names, plurals and the other names that were given"
    return Vocabulary(frozenset(own), surface, related, f"Looked for are {things}, by their {ways}{_kinds(related)}.")


def coco_vocabulary(related: Related | None = None) -> Vocabulary:
    """COCO's 80 objects, with names that we gathered by hand."""
    aliases = json.loads(Path(__file__).with_name("coco.json").read_text(encoding="utf-8"))
    told = (
        f"Looked for are the 80 objects of COCO, by our list of their names, plurals and other names{_kinds(related)}."
    )
    return replace(vocabulary(aliases, aliases, related), told=told)


def vocabulary_of_truth(
    names: Iterable[str], aliases: Mapping[str, Sequence[str]] | None = None, related: Related | None = None
) -> Vocabulary:
    """The vocabulary of the objects that a truth names: COCO's where all of them are COCO's, unless aliases are given.

    Raises:
        OptionError: there are no names.
    """
    own = {name.lower(): None for name in sorted(names)}.keys()
    coco = coco_vocabulary(related)
    if aliases is not None or not own or not own & coco.names:
        return vocabulary(own, aliases, related)
    if own <= coco.names:
        return coco
    found = vocabulary(own, None, related)
    strange = sorted(own - coco.names)[0]
    told = f"{found.told} Our list of other names of COCO's objects is not used, because {strange!r} is none of them; "
    return replace(found, told=told + "other names can be given with `--aliases`.")


def with_names(known: Vocabulary, names: Iterable[str]) -> Vocabulary:
    """The vocabulary with further objects, by their names and plurals; those that it has already stay as they are."""
    fresh = [name for name in names if _words(name) and not known.of_word(name)]
    if not fresh:
        return known
    more = vocabulary(fresh)
    told = f"{known.told} Added were: {', '.join(sorted(more.names))}."
    return replace(known, names=known.names | more.names, surface={**more.surface, **known.surface}, told=told)


def _kinds(related: Related | None) -> str:
    return "" if related is None else ", and by nouns that are a kind of one in WordNet"


def read_aliases(path: Path) -> dict[str, list[str]]:
    """Other names of objects: a JSON object from names to lists.

    Raises:
        SourceError: it is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8")).items()
    except (OSError, ValueError, AttributeError) as error:
        raise SourceError(
            f"The aliases {path} cannot be read: {error}. They are a JSON object, name → list."
        ) from error
    found: dict[str, list[str]] = {}
    for name, aliases in content:
        if not isinstance(aliases, list) or not all(isinstance(alias, str) and alias.strip() for alias in aliases):
            raise SourceError(
                f"In the aliases {path} {name!r} has {aliases!r}. Write a list of its other names: "
                f'"{name}": ["puppy", "hound"].'
            )
        found.setdefault(name.lower(), []).extend(aliases)
    return found


def _words(name: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(fold(name)))


def _whole(folded: str, start: int, end: int, hidden: Sequence[tuple[int, int]]) -> bool:
    """Whether characters are no part of a hyphened word ("table-cloth"), nor of a compound of its own kind."""
    if folded[max(start - 1, 0) : start] == "-" and start > 1 and folded[start - 2].isalnum():
        return False
    if folded[end : end + 1] == "-" and folded[end + 1 : end + 2].isalnum():
        return False
    return not any(low <= start and end <= high and (start, end) != (low, high) for low, high in hidden)


def _forms(name: str) -> set[str]:
    """A name and its plurals; a compound is inflected at its end."""
    *before, last = name.split()
    plurals = {last, *getInflection(last, "NNS"), *getInflection(last, "NNS", inflect_oov=True)}
    return {" ".join([*before, form]) for form in plurals}
