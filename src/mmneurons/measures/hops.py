"""Portability: questions that the user gives, whose answers follow from an edit.

    [{"file": "dog.jpg", "prompt": "What sound does this animal make? Answer in one word.", "answer": "meow"}]

is a question about a picture of a dog that is to be called a cat. It is answered where the answer's words stand in what
the model says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmneurons.edits.edit import Edit
from mmneurons.errors import OptionError, SourceError
from mmneurons.measures.edit_outcome import After, Pool
from mmneurons.measures.figures import Figure, before_after
from mmneurons.recordings import record
from mmneurons.vlm.model import VLM
from mmneurons.vlm.pictures import PictureLike
from mmneurons.words import stands_in

__all__ = ["Hop", "Hops", "ask_hops", "read_hops"]


@dataclass(frozen=True)
class Hop:
    """One question.

    Attributes:
        file: of the picture, without folders.
        prompt: what is asked.
        answer: what follows from the edit.
    """

    file: str
    prompt: str
    answer: str

    def answered(self, text: str) -> bool:
        """Whether a text says the answer, or a form of it."""
        return stands_in(text, 0, self.answer)


@dataclass(frozen=True, eq=False)
class Hops:
    """Questions, and how the unedited model answers them.

    Attributes:
        asked: the questions.
        pool: the unedited model's answers, in the order of the questions.
    """

    asked: tuple[Hop, ...]
    pool: Pool

    def answers(self, edits: Edit | Sequence[Edit]) -> list[After]:
        """What is answered with edits in force."""
        return self.pool.afterwards(edits)

    def figures(self, after: Sequence[After]) -> list[Figure]:
        """The shares that are answered."""
        before = [float(hop.answered(one.caption)) for hop, one in zip(self.asked, self.pool.recordings, strict=True)]
        now = [float(hop.answered(one.caption)) for hop, one in zip(self.asked, after, strict=True)]
        return before_after("portability", before, now, [hop.file for hop in self.asked])


def read_hops(path: Path) -> list[Hop]:
    """Read questions from JSON.

    Raises:
        SourceError: it cannot be read, or holds none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = [Hop(Path(one["file"]).name, one["prompt"], one["answer"]) for one in content]
        whole = all(isinstance(text, str) and text.strip() for one in found for text in (one.prompt, one.answer))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SourceError(f"The questions {path} cannot be read: {type(error).__name__}: {error}. {_FORM}") from error
    if not found or not whole:
        raise SourceError(f"{path} holds no questions, or some without a text. {_FORM}")
    return found


_FORM = 'They are a JSON list: [{"file": "dog.jpg", "prompt": "…?", "answer": "…"}].'


def ask_hops(vlm: VLM, pictures: Mapping[str, PictureLike], asked: Sequence[Hop], max_new_tokens: int = 20) -> Hops:
    """Ask the unedited model; greedy, without a forced beginning.

    Args:
        vlm: the model.
        pictures: by file name, without folders.
        asked: the questions.
        max_new_tokens: where an answer is cut.

    Raises:
        OptionError: a question is about a picture that is not there.
    """
    if missing := [hop.file for hop in asked if hop.file not in pictures]:
        raise OptionError(
            f"A question is about {missing[0]}, which is none of the pictures: {', '.join(list(pictures)[:3])}, … Name "
            "it among them."
        )
    found = [
        record(vlm, pictures[hop.file], prompt=hop.prompt, prefix="", max_new_tokens=max_new_tokens, image_budget=0)
        for hop in asked
    ]
    return Hops(tuple(asked), Pool(vlm, found, max_new_tokens))
