"""What a model says of many pictures, sorted by the words that it is not to say. One pass; few recordings are kept."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Unpack

from PIL import Image

from mmneurons.edits.task import says
from mmneurons.errors import EditError
from mmneurons.measures.edit_outcome import lean
from mmneurons.mitigation.wishes import Wish
from mmneurons.recordings import CaptionOptions, batches, record_pictures
from mmneurons.vlm.model import VLM
from mmneurons.vlm.recording import Recording

__all__ = ["Captioned", "Found", "Named", "Sizes", "Survey", "survey"]

Named = tuple[str, Image.Image]
"""A picture and what it is called."""


@dataclass(frozen=True, eq=False)
class Captioned:
    """One picture's caption by the unedited model.

    Attributes:
        name: of the picture.
        recording: of the caption.
    """

    name: str
    recording: Recording


@dataclass(frozen=True)
class Sizes:
    """How many captions are kept of each kind, at most.

    Attributes:
        learned: of each word, to learn from.
        held: of each word, to measure on.
        kept: that say no word of the list, to learn what must stay.
        others: likewise, to measure whether it does.
    """

    learned: int = 8
    held: int = 24
    kept: int = 160
    others: int = 200

    def __post_init__(self) -> None:
        if min(self.learned, self.held, self.kept, self.others) < 1:
            raise EditError(f"Of every kind at least one caption is needed, to learn from and to measure on: {self}.")


@dataclass(frozen=True, eq=False)
class Found:
    """The captions that say one word.

    Attributes:
        wish: the word.
        count: how many say it.
        learned: those to learn from.
        held: those to measure on.
    """

    wish: Wish
    count: int
    learned: tuple[Captioned, ...]
    held: tuple[Captioned, ...]


@dataclass(frozen=True, eq=False)
class Survey:
    """All captions, sorted. No caption is in two parts but where it says two words.

    Attributes:
        pictures: how many there were.
        found: by word, in the order of the list.
        kept: captions that say none of the words, to learn from.
        others: likewise, to measure on.
    """

    pictures: int
    found: tuple[Found, ...]
    kept: tuple[Captioned, ...]
    others: tuple[Captioned, ...]

    @property
    def saying(self) -> tuple[Found, ...]:
        """The words that are said at all."""
        return tuple(found for found in self.found if found.count)


def survey(
    vlm: VLM,
    pictures: Iterable[Named],
    wishes: Sequence[Wish],
    sizes: Sizes | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    **how: Unpack[CaptionOptions],
) -> Survey:
    """Caption pictures and sort them.

    Every other caption of a word is learned from, the ones between are measured on; of captions that say none, so many
    as are kept are drawn at random. A caption that says two words is learned from for both, or measured on for both.

    Args:
        vlm: the model, unedited.
        pictures: read as they are needed.
        wishes: the words.
        sizes: how many captions are kept.
        seed: of the draw.
        progress: told how many pictures are done.
        **how: of captions.
    """
    sizes = sizes or Sizes()
    learned: dict[str, list[Captioned]] = {wish.word: [] for wish in wishes}
    held: dict[str, list[Captioned]] = {wish.word: [] for wish in wishes}
    counts = dict.fromkeys(learned, 0)
    free = _Reservoir(sizes.kept + sizes.others, seed)
    done = 0
    for batch in batches(pictures):
        recordings = record_pictures(vlm, [picture for _, picture in batch], image_budget=0, **how)
        for (name, _), recording in zip(batch, recordings, strict=True):
            own = Captioned(name, recording)
            said = [wish.word for wish in wishes if says(recording, wish.swap)]
            if not said:
                free.offer(own)
                continue
            # the first word decides for all, so that no caption is on both sides
            side, most = (learned, sizes.learned) if counts[said[0]] % 2 == 0 else (held, sizes.held)
            for word in said:
                counts[word] += 1
                if len(side[word]) < most:
                    side[word].append(own if side is learned else _thinned(own))
        done += len(batch)
        if progress is not None:
            progress(done)
    rest = free.shuffled()
    kept = round(len(rest) * sizes.kept / (sizes.kept + sizes.others))
    found = (Found(wish, counts[wish.word], tuple(learned[wish.word]), tuple(held[wish.word])) for wish in wishes)
    return Survey(done, tuple(found), tuple(rest[:kept]), tuple(map(_thinned, rest[kept:])))


def _thinned(own: Captioned) -> Captioned:
    """A caption that is only measured on."""
    return replace(own, recording=lean(own.recording))


class _Reservoir:
    """So many out of a stream whose end is not known, each as likely as any other (Vitter 1985, algorithm R)."""

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._draw, self._seen = size, random.Random(seed), 0
        self._kept: list[Captioned] = []

    def offer(self, one: Captioned) -> None:
        self._seen += 1
        if len(self._kept) < self._size:
            self._kept.append(one)
        elif (place := self._draw.randrange(self._seen)) < self._size:
            self._kept[place] = one

    def shuffled(self) -> list[Captioned]:
        return self._draw.sample(self._kept, len(self._kept))
