"""What is learned from: the steps of captions, with what pictures truly show. Of a recording little is kept."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Unpack

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mmneurons.measures.hallucination import mentions
from mmneurons.measures.objects import Vocabulary
from mmneurons.measures.truth import Truth
from mmneurons.mitigation.mentions import Mention, mentions_in
from mmneurons.recordings import MAX_NEW_TOKENS, CaptionOptions, batches, record_pictures
from mmneurons.vlm.inputs import PREFIX, PROMPT
from mmneurons.vlm.model import VLM
from mmneurons.vlm.pictures import pixel_digest
from mmneurons.vlm.recording import Recording

__all__ = ["Lesson", "Shown", "Step", "Word", "read_lesson", "split"]

OTHER_STEPS = 3
"""How many steps of a caption that name nothing are learned from: they stay as they are."""


@dataclass(frozen=True, eq=False)
class Shown:
    """A picture and what it shows.

    Attributes:
        name: of the picture.
        open: reads it.
        truth: what it shows.
    """

    name: str
    open: Callable[[], Image.Image]
    truth: Truth


@dataclass(frozen=True)
class Word:
    """How often an object is named.

    Attributes:
        name: of the object.
        false: where it is not.
        true: where it is.
    """

    name: str
    false: int
    true: int


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a caption.

    Attributes:
        caption: of which caption.
        token: that was said.
        activations: of the last block.
        stream: before the final norm.
        statistics: of the norms.
        factors: of the gates.
        mention: of what is named there; None where nothing is.
        there: what the picture shows.
        missed: of that, what the caption does not name.
    """

    caption: int
    token: int
    activations: Float[Tensor, "width"]
    stream: Float[Tensor, "hidden"]
    statistics: Float[Tensor, "norms"]
    factors: Float[Tensor, "gates"]
    mention: Mention | None
    there: frozenset[str]
    missed: frozenset[str]


@dataclass(frozen=True, eq=False)
class Lesson:
    """What is learned from.

    Attributes:
        steps: of the captions.
        words: that are said, those most often wrong first.
        captions: how many there are.
        asked: how they came about: ``prompt``, ``prefix`` and ``max_new_tokens``.
        seen: what tells their pictures from others, see ``pixel_digest``.
    """

    steps: tuple[Step, ...]
    words: tuple[Word, ...]
    captions: int
    asked: CaptionOptions
    seen: frozenset[str]

    @property
    def false(self) -> int:
        """How many mentions are of what is not there."""
        return sum(word.false for word in self.words)


def split(pictures: Sequence[Shown], held: float, seed: int) -> tuple[list[Shown], list[Shown]]:
    """Pictures to learn from, and a share of all that is held out, drawn with a seed."""
    drawn = {*random.Random(seed).sample(range(len(pictures)), round(held * len(pictures)))}
    return (
        [one for place, one in enumerate(pictures) if place not in drawn],
        [one for place, one in enumerate(pictures) if place in drawn],
    )


def read_lesson(
    vlm: VLM,
    pictures: Iterable[Shown],
    known: Vocabulary,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    **how: Unpack[CaptionOptions],
) -> Lesson:
    """Caption pictures and find what is said of things that are not there. Of a recording little is kept.

    Args:
        vlm: the model, unedited.
        pictures: with their truth.
        known: the objects.
        seed: of the draw of steps that name nothing.
        progress: told how many pictures are done.
        **how: of captions.
    """
    asked: CaptionOptions = {"prompt": PROMPT, "prefix": PREFIX, "max_new_tokens": MAX_NEW_TOKENS, **how}
    draw = random.Random(seed)
    seen: set[str] = set()
    steps: list[Step] = []
    false, true = Counter[str](), Counter[str]()
    done = 0
    for batch in batches(pictures):
        images = [one.open() for one in batch]
        seen.update(map(pixel_digest, images))
        recordings = record_pictures(vlm, images, image_budget=0, **asked)
        for one, recording in zip(batch, recordings, strict=True):
            found = mentions_in(recording, one.truth, known)
            false.update(mention.name for mention in found if not mention.there)
            true.update(mention.name for mention in found if mention.there)
            steps += _steps_of(recording, found, mentions("", one.truth, known).there, done, draw)
            done += 1
        if progress is not None:
            progress(done)
    words = [Word(name, false[name], true[name]) for name in {*false, *true}]
    ordered = tuple(sorted(words, key=lambda word: (-word.false, -word.true, word.name)))
    return Lesson(tuple(steps), ordered, done, asked, frozenset(seen))


def _steps_of(
    recording: Recording, found: Sequence[Mention], there: frozenset[str], number: int, draw: random.Random
) -> list[Step]:
    named: dict[int, Mention | None] = {mention.step: mention for mention in found}
    others = [step for step in range(len(recording)) if step not in named]
    missed = there - {mention.name for mention in found}
    chosen = {**named, **dict.fromkeys(draw.sample(others, min(OTHER_STEPS, len(others))))}
    return [
        Step(
            number,
            int(recording.token_ids[step]),
            # copies: a view would keep the whole recording
            recording.activations[step, -1].clone(),
            recording.stream[step].clone(),
            recording.statistics[step].clone(),
            recording.factors[step].clone(),
            mention,
            there,
            missed,
        )
        for step, mention in chosen.items()
    ]
