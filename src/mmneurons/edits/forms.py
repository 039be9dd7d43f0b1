"""The forms of a word and of what takes its place: dog → cat, dogs → cats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lemminflect import getAllInflections, getInflection

from mmneurons.english import LEMMAS, OTHER_PLURALS, are_forms, base_of_noun, fold, parts_of_speech

__all__ = ["Form", "all_forms", "forms_of", "is_plural", "matching", "plural_of", "with_capital"]


@dataclass(frozen=True)
class Form:
    """One form of a word.

    Attributes:
        text: as it is written in the middle of a sentence.
        plural: whether it stands for several.
    """

    text: str
    plural: bool


def plural_of(word: str) -> str | None:
    """The most usual plural of a noun, only its last word inflected; None where it has none of its own."""
    head, _, last = word.rpartition(" ")
    folded = fold(last)
    if other := next((plural for plural, base in OTHER_PLURALS.items() if base == folded), None):
        return f"{head} {_cased(other, last)}".strip()
    # of a plural that is no form of another word to the dictionary another one would be made: "headphoneses"
    if LEMMAS.get(folded) == folded or (folded.endswith("s") and not parts_of_speech(folded)):
        return None
    found = next(iter(getInflection(folded, tag="NNS")), None)
    if found is None or found == folded:
        return None
    return f"{head} {_cased(found, last)}".strip()


def forms_of(word: str, inflections: bool = True) -> tuple[Form, ...]:
    """A word as it was named, and its plural, or what it is the plural of, where that is another word."""
    own = Form(word, is_plural(word))
    if not inflections:
        return (own,)
    other = _singular_of(word) if own.plural else plural_of(word)
    return (own,) if other is None else (own, Form(other, not own.plural))


def all_forms(word: str) -> frozenset[str]:
    """Everything that counts as a form of a word, of a verb, too; the last word of a phrase is inflected."""
    head, _, last = word.rpartition(" ")
    own = {fold(form.text) for form in forms_of(last)}
    tried = own.union(*(forms for form in own for forms in getAllInflections(form).values()))
    return frozenset(f"{head} {form}".strip() for form in tried if are_forms(fold(last), fold(form)))


def _singular_of(word: str) -> str:
    head, _, last = word.rpartition(" ")
    return f"{head} {_cased(_base_of(last), last)}".strip()


def _base_of(last: str) -> str:
    return OTHER_PLURALS.get(fold(last)) or base_of_noun(fold(last), plural=False)


def _cased(word: str, like: str) -> str:
    """A form with the capitals of another: all, where one goes on as the other does (TV, TVs), else the first."""
    shared = min(len(word), len(like))
    if word[:shared] == fold(like[:shared]):
        return like[:shared] + word[shared:]
    return with_capital(word) if like[:1].isupper() else word


def with_capital(text: str) -> str:
    """The text with a capital in front, and otherwise as it is."""
    return text[:1].upper() + text[1:]


def is_plural(word: str) -> bool:
    """Whether a word is a plural: another word is its base, and it is a form of that."""
    last = word.rpartition(" ")[2]
    base = _base_of(last)
    return base != fold(last) and are_forms(base, fold(last))


def matching(plural: bool, choices: Sequence[Form], capital: bool = False) -> str:
    """Which of a word's forms takes the place of another word's, with a capital where that is wanted."""
    text = next((choice.text for choice in choices if choice.plural == plural), choices[0].text)
    return with_capital(text) if capital else text
