"""The list of words that are not to be said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmneurons.edits.task import Swap, is_same_word
from mmneurons.errors import SourceError
from mmneurons.sources.lines import read_lines

__all__ = ["Wish", "check_wishes", "read_wishes"]

ARROWS = ("→", "->")


@dataclass(frozen=True)
class Wish:
    """One line of the list.

    Attributes:
        word: what is not to be said.
        to: what is to be said instead; None for what the model would say without the word.
    """

    word: str
    to: str | None = None

    @property
    def swap(self) -> Swap:
        """What an edit is asked for."""
        return Swap(self.word, self.to)

    def __str__(self) -> str:
        return self.word if self.to is None else f"{self.word} → {self.to}"


def read_wishes(path: Path) -> tuple[Wish, ...]:
    """Read a list: a word a line, or ``word -> other``; what follows a # is a remark.

    Raises:
        SourceError: it cannot be read, holds no word, or contradicts itself.
    """
    wishes = []
    for number, line in enumerate(read_lines(path, "word"), 1):
        own = line.partition("#")[0].strip()
        if own:
            wishes.append(_wish(own, f"Line {number} of {str(path)!r}"))
    if not wishes:
        raise SourceError(f"The list {str(path)!r} holds no word. Write one a line: word, or word -> other.")
    check_wishes(wishes)
    return tuple(wishes)


def _wish(line: str, where: str) -> Wish:
    for arrow in ARROWS:
        if arrow in line:
            word, _, to = (part.strip() for part in line.partition(arrow))
            if not word or not to or any(other in to for other in ARROWS):
                raise SourceError(f"{where}, {line!r}, is no wish. Write word, or word -> other.")
            return Wish(word, to)
    return Wish(line)


def check_wishes(wishes: Sequence[Wish]) -> None:
    """Refuse a list that contradicts itself.

    Raises:
        SourceError: a word is listed twice, is to be said instead of another one, or is to become itself.
    """
    for index, wish in enumerate(wishes):
        if wish.to is not None and is_same_word(wish.word, wish.to):
            raise SourceError(f"{wish.to!r} is {wish.word!r} itself, or a form of it. Choose another word there.")
        if any(is_same_word(wish.word, other.word) for other in wishes[:index]):
            raise SourceError(f"{wish.word!r}, or a form of it, is listed twice. Leave one line.")
        for other in wishes:
            if wish.to is not None and is_same_word(wish.to, other.word):
                raise SourceError(
                    f"{wish.to!r} is to be said instead of {wish.word!r}, and is not to be said itself. Choose another "
                    "word there."
                )
