"""The forms of a word and of what takes its place: dog → cat, dogs → cats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lemminflect import getInflection

from mmneurons.english import are_forms, base_of_noun, fold

__all__ = ["Form", "forms_of", "is_plural", "matching", "plural_of"]


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
    found = next(iter(getInflection(last, tag="NNS")), None)
    if found is None or fold(found) == fold(last):
        return None
    return f"{head} {found}".strip()


def forms_of(word: str, inflections: bool = True) -> tuple[Form, ...]:
    """A word as it was named, and its plural where that is another word."""
    own = Form(word, is_plural(word))
    more = plural_of(word) if inflections and not own.plural else None
    return (own,) if more is None else (own, Form(more, True))


def is_plural(word: str) -> bool:
    """Whether a word is a plural: another word is its base, and it is a form of that."""
    last = word.rpartition(" ")[2]
    base = base_of_noun(fold(last), plural=False)
    return base != fold(last) and are_forms(base, fold(last))


def matching(form: str, plural: bool, choices: Sequence[Form]) -> str:
    """Which of a word's forms takes the place of another word's form, written with a capital where that has one."""
    text = next((choice.text for choice in choices if choice.plural == plural), choices[0].text)
    return text[:1].upper() + text[1:] if form[:1].isupper() else text
