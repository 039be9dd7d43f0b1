"""Hallucination: objects that are said and not there (CHAIR), and answers to whether something is there (POPE).

CHAIR (Rohrbach et al., EMNLP 2018, equations 1 and 2): CHAIRs = captions with a hallucinated object / captions; CHAIRi
= hallucinated mentions / mentions of objects; recall = objects that are there and said / objects that are there. There
is what the truth lists, and what its captions name. Which objects a text names, and that this is narrower than in the
published code, is said in ``mmneurons.measures.objects``.

POPE (Li et al., EMNLP 2023): is there a dog in the image? As many objects that are there as such that are not: drawn at
random, the most frequent ones elsewhere (popular), or those most often seen together with what is there (adversarial).
An answer is "no" where its first sentence has "no" or "not" as a word, otherwise "yes": so is an answer that says
nothing. Beyond the published rule "n't" and capitals count, and a sentence ends at "!", "?" and a line's end, too.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mmneurons.errors import OptionError
from mmneurons.measures.objects import Vocabulary
from mmneurons.measures.truth import Truth
from mmneurons.options import check_whole
from mmneurons.recordings import caption
from mmneurons.vlm.model import VLM
from mmneurons.vlm.pictures import PictureLike

__all__ = [
    "KINDS",
    "Chair",
    "Kind",
    "Mentions",
    "Pope",
    "Question",
    "ask",
    "chair",
    "is_yes",
    "mentions",
    "pope",
    "pope_questions",
]

Kind = Literal["random", "popular", "adversarial"]
KINDS: tuple[Kind, ...] = ("random", "popular", "adversarial")


@dataclass(frozen=True)
class Mentions:
    """What one caption says of its picture.

    Attributes:
        said: objects, one entry for every mention.
        there: the picture's.
    """

    said: tuple[str, ...]
    there: frozenset[str]

    @property
    def hallucinated(self) -> tuple[str, ...]:
        """Mentions of what is not there."""
        return tuple(name for name in self.said if name not in self.there)


@dataclass(frozen=True)
class Chair:
    """CHAIR over captions; NaN where there is nothing to divide by.

    Attributes:
        sentences: CHAIRs.
        instances: CHAIRi.
        recall: of the objects that are there.
        captions: how many.
    """

    sentences: float
    instances: float
    recall: float
    captions: int


def mentions(text: str, truth: Truth, known: Vocabulary) -> Mentions:
    """What a caption says, and what is there by the truth's objects and captions, in a vocabulary's names."""
    there = {name for thing in truth.objects for name in known.of_word(thing)}
    there |= {name for own in truth.captions for name in known.said(own)}
    return Mentions(tuple(known.said(text)), frozenset(there))


def chair(captions: Sequence[Mentions]) -> Chair:
    """CHAIR of captions.

    Raises:
        OptionError: there are none.
    """
    if not captions:
        raise OptionError("There are no captions to look for hallucinations in.")
    said = sum(len(own.said) for own in captions)
    false = sum(len(own.hallucinated) for own in captions)
    there = sum(len(own.there) for own in captions)
    found = sum(len(own.there.intersection(own.said)) for own in captions)
    return Chair(
        sentences=float(np.mean([bool(own.hallucinated) for own in captions])),
        instances=false / said if said else float("nan"),
        recall=found / there if there else float("nan"),
        captions=len(captions),
    )


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        file: of the picture.
        name: the object asked after.
        there: whether it is there.
        kind: how those that are not there were chosen.
    """

    file: str
    name: str
    there: bool
    kind: Kind = "random"

    @property
    def text(self) -> str:
        """As a model is asked."""
        article = "an" if self.name[:1] in "aeiou" else "a"
        return f"Is there {article} {self.name} in the image? Answer yes or no."


@dataclass(frozen=True)
class Pope:
    """How questions were answered; NaN where there is nothing to divide by.

    Attributes:
        accuracy: share of right answers.
        precision: of "yes".
        recall: of "yes".
        f1: of both.
        yes_ratio: share of "yes".
        questions: how many.
    """

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_ratio: float
    questions: int


def pope_questions(truths: Mapping[str, frozenset[str]], kind: Kind, each: int = 3, seed: int = 0) -> list[Question]:
    """Up to ``each`` questions after objects that are there, and as many after such that are not, for every picture.

    Args:
        truths: file → the objects that are there.
        kind: how those that are not there are chosen.
        each: how many of either kind a picture.
        seed: of the draws.

    Raises:
        OptionError: there is no such kind, ``each`` is below 1, or every picture shows every object.
    """
    if kind not in KINDS:
        raise OptionError(f"kind={kind!r} is not possible. Choose 'random', 'popular' or 'adversarial'.")
    check_whole("each", each)
    names = sorted(set().union(*truths.values())) if truths else []
    frequency = Counter(name for there in truths.values() for name in there)
    together: dict[str, Counter[str]] = {name: Counter() for name in names}
    for there in truths.values():
        for name in there:
            together[name].update(there - {name})
    questions = []
    for file, there in truths.items():
        draw = random.Random(f"{seed} {file}")
        absent = [name for name in names if name not in there]
        asked = draw.sample(sorted(there), min(each, len(there), len(absent)))
        seen = sum((together[name] for name in there), Counter())
        # ties are drawn, not settled by the alphabet
        draw.shuffle(absent)
        order = {
            "random": absent,
            "popular": sorted(absent, key=lambda name: -frequency[name]),
            "adversarial": sorted(absent, key=lambda name: -seen[name]),
        }[kind]
        questions += [Question(file, name, True, kind) for name in asked]
        questions += [Question(file, name, False, kind) for name in order[: len(asked)]]
    if truths and not questions:
        raise OptionError("No question can be asked: every picture shows every object, or none.")
    return questions


def is_yes(answer: str) -> bool:
    """Whether an answer says yes: its first sentence has no "no", "not" or "…n't" as a word."""
    first = re.split(r"[.!?\n]", answer.strip(), maxsplit=1)[0]
    return not re.search(r"\b(no|not)\b|n't\b", first.lower())


def pope(questions: Sequence[Question], answers: Iterable[bool]) -> Pope:
    """How questions were answered.

    Args:
        questions: what was asked.
        answers: whether each was answered with yes.

    Raises:
        OptionError: there are no questions.
    """
    pairs = [(question.there, answer) for question, answer in zip(questions, answers, strict=True)]
    if not pairs:
        raise OptionError("There are no questions.")
    right = sum(there == yes for there, yes in pairs)
    true = sum(there and yes for there, yes in pairs)
    said = sum(yes for _, yes in pairs)
    positive = sum(there for there, _ in pairs)
    nan = float("nan")
    return Pope(
        accuracy=right / len(pairs),
        precision=true / said if said else nan,
        recall=true / positive if positive else nan,
        f1=2 * true / (said + positive) if said + positive else nan,
        yes_ratio=said / len(pairs),
        questions=len(pairs),
    )


def ask(
    vlm: VLM, pictures: Mapping[str, PictureLike], questions: Sequence[Question], max_new_tokens: int = 10
) -> list[bool]:
    """Ask a model; greedy, without a forced beginning."""
    return [
        is_yes(caption(vlm, pictures[one.file], prompt=one.text, prefix="", max_new_tokens=max_new_tokens))
        for one in questions
    ]
