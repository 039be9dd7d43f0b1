"""Which things a caption says, and CHAIR.

A thing counts as said by its name, the name's plural or an entry of `aliases.json`; the longest match counts, so that
"fire truck" says neither a fire nor a truck.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from zoo.scenes import plural
from zoo.sprites import Concept

__all__ = ["Lexicon", "Tally", "read_aliases"]

# what captions hold besides names of things
COLORS = frozenset(("red", "yellow", "green", "blue", "purple", "black", "white"))
FUNCTION_WORDS = COLORS | {"a", "an", "the", "and", "with", "next", "to", "of", "two", "three", "four"}


def read_aliases() -> dict[str, list[str]]:
    """The committed table: name -> other names of the same thing."""
    return json.loads(Path(__file__).with_name("aliases.json").read_text())


class Lexicon:
    """Finds the concepts that a caption says."""

    def __init__(self, concepts: Iterable[Concept], aliases: Mapping[str, Sequence[str]]) -> None:
        self.surface: dict[tuple[str, ...], str] = {}
        for concept in concepts:
            for name in (concept.name, *aliases.get(concept.name, ())):
                self.surface[tuple(name.split())] = concept.name
                if concept.number != "plural":
                    self.surface[tuple(plural(name).split())] = concept.name
        self.longest = max(map(len, self.surface))

    def said(self, caption: str) -> tuple[list[str], list[str]]:
        """Concepts said, one entry per mention, and words that are neither a concept nor a function word."""
        words = re.findall(r"[a-z][a-z'-]*", caption.lower())
        concepts, others, at = [], [], 0
        while at < len(words):
            for length in range(self.longest, 0, -1):
                name = self.surface.get(tuple(words[at : at + length]))
                if name is not None:
                    concepts.append(name)
                    at += length
                    break
            else:
                if words[at] not in FUNCTION_WORDS:
                    others.append(words[at])
                at += 1
        return concepts, others


@dataclass
class Tally:
    """Object recall and CHAIR (Rohrbach et al. 2018, eq. 1 and 2) over captions."""

    true: int = 0
    found: int = 0
    mentions: int = 0
    invented: int = 0
    captions: int = 0
    inventing: int = 0
    others: list[str] = field(default_factory=list)

    def add(self, said: Sequence[str], truth: Iterable[str], others: Sequence[str] = ()) -> None:
        """Counts one caption: what it says against what is there."""
        truth = set(truth)
        wrong = [name for name in said if name not in truth]
        self.true += len(truth)
        self.found += len(truth & set(said))
        self.mentions += len(said)
        self.invented += len(wrong)
        self.captions += 1
        self.inventing += bool(wrong)
        self.others.extend(others)

    @property
    def recall(self) -> float:
        """Share of the things shown that are said."""
        return self.found / max(self.true, 1)

    @property
    def chair_i(self) -> float:
        """Share of the mentions that name something not there."""
        return self.invented / max(self.mentions, 1)

    @property
    def chair_s(self) -> float:
        """Share of the captions with such a mention."""
        return self.inventing / max(self.captions, 1)
