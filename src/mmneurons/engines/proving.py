"""Proving edits: what they are tried on is captioned once; every edit, and every rival, is measured the same way."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from PIL import Image

from mmneurons.edits.edit import ASKED, SEEN, TEXTS, Edit
from mmneurons.edits.make import edit as make_edit
from mmneurons.edits.methods import METHODS
from mmneurons.edits.stack import check_fits
from mmneurons.edits.task import Swap, says
from mmneurons.errors import MMNeuronsError, OptionError, RecordingError
from mmneurons.measures.edit_hallucination import ask_pope
from mmneurons.measures.edit_outcome import Pool, as_edits, lean, swap_of
from mmneurons.measures.edit_quality import Quality, edit_quality
from mmneurons.measures.hallucination import Question, mentions
from mmneurons.measures.hops import Hop, ask_hops
from mmneurons.measures.objects import Vocabulary, with_names
from mmneurons.measures.text_prompts import PROMPTS
from mmneurons.measures.truth import BUNDLED, Truth, matched
from mmneurons.recordings import MAX_NEW_TOKENS, batches, record_pictures, record_texts
from mmneurons.sources import gather
from mmneurons.sources.item import Item
from mmneurons.sources.readable import Skipped, readable
from mmneurons.vlm.inputs import PREFIX, PROMPT
from mmneurons.vlm.model import VLM
from mmneurons.vlm.pictures import pixel_digest
from mmneurons.vlm.recording import Recording

if TYPE_CHECKING:
    import polars

__all__ = [
    "OTHER_PROMPTS",
    "STEPS",
    "AskedOfPictures",
    "Column",
    "Picture",
    "Proof",
    "Tried",
    "prove",
    "read_pictures",
]

OTHER_PROMPTS = ("What is in this image?", "Tell me briefly what you see.", "Write a short caption.")
"""How pictures of the source are asked about, beside what they are asked anyway."""

STEPS = (1, 10, 50)
"""With how many edits of a sequence in force together it is measured."""

REPORTED = 80
"""After how many captions it is said how many are done."""

_TEXT_TOKENS = 20


class AskedOfPictures(TypedDict):
    """How captions come about."""

    prompt: str
    prefix: str
    max_new_tokens: int


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture that was read.

    Attributes:
        name: what names it among others.
        image: the picture.
        pixels: the same for pictures that show the same: ``pixel_digest``.
    """

    name: str
    image: Image.Image
    pixels: str


@dataclass(frozen=True, eq=False)
class Tried:
    """What edits are tried on.

    Attributes:
        pictures: that the edits have not seen.
        learned: that they were learned from; those whose captions say the source are looked at.
        kept: that they were to leave as they are, for rivals; without any the bundled ones that are not tried.
        truths: what pictures show, by file name.
        known: the objects that captions may name.
        hops: questions whose answers follow from the edits.
        questions: after objects.
        prompt: what is asked of pictures.
        prefix: how captions are begun.
        max_new_tokens: where they are cut.
    """

    pictures: Sequence[Picture]
    learned: Sequence[Picture] = ()
    kept: Sequence[Picture] = ()
    truths: Mapping[str, Truth] = field(default_factory=dict)
    known: Vocabulary | None = None
    hops: Sequence[Hop] = ()
    questions: Sequence[Question] = ()
    prompt: str = PROMPT
    prefix: str = PREFIX
    max_new_tokens: int = MAX_NEW_TOKENS


@dataclass(frozen=True, eq=False)
class Column:
    """What was measured of edits in force together, or of a rival.

    Attributes:
        quality: the figures, and the captions that they count.
        note: what must be said of it; empty where that is nothing.
    """

    quality: Quality
    note: str = ""


@dataclass(frozen=True, eq=False)
class Proof:
    """What was measured.

    Attributes:
        edits: which.
        columns: the edit, or the first so many of several, and rivals, by name.
        outcomes: a row for every caption, edit and column.
        notes: what was left out, and why.
    """

    edits: tuple[Edit, ...]
    columns: Mapping[str, Quality]
    outcomes: polars.DataFrame
    notes: tuple[str, ...]


def read_pictures(items: Sequence[Item], skipped: Skipped | None = None) -> list[Picture]:
    """Read what was listed; a picture that is listed twice under two names is taken once.

    Args:
        items: what was listed.
        skipped: told the name of one that cannot be read, and why; None to stop there.

    Raises:
        PictureError: one cannot be read, or none of them.
    """
    found: dict[str, Picture] = {}
    for item, image in readable(items, skipped, needed=True):
        own = pixel_digest(image)
        if own not in found:
            found[own] = Picture(item.source, image, own)
    return list(found.values())


def prove(
    vlm: VLM,
    edits: Edit | Sequence[Edit],
    tried: Tried,
    rivals: bool = False,
    progress: Callable[[str], None] | None = None,
    done: Mapping[str, Column] | None = None,
    finished: Callable[[Mapping[str, Column]], None] | None = None,
) -> Proof:
    """Measure an edit, beside every other way to make it if that is asked for; or several in force together.

    Args:
        vlm: the model, unedited.
        edits: one; or several, of which the first 1, 10 and 50, and all, are measured.
        tried: on what.
        rivals: whether every other method learns the same from ``tried.learned`` and is measured, too.
        progress: told what is done now.
        done: columns that were measured before, of the same edits on the same pictures: they are taken as they are,
            unless the unedited model says something else now.
        finished: given the columns there are, whenever another one is measured.

    Raises:
        OptionError: there is nothing to try them on, or rivals have nothing to learn from.
        EditError: an edit does not fit the model.
    """
    chosen = as_edits(edits)
    if rivals and (len(chosen) > 1 or not tried.learned):
        raise OptionError("Rivals learn one edit anew: pass a single edit, and in learned the pictures to learn from.")
    for one in chosen:
        check_fits(vlm, one)
    tell = progress or (lambda _: None)
    tell("without edits")
    trial = _Trial(vlm, chosen, tried, tell)
    steps = _steps(chosen)
    plan: dict[str, Callable[[], Column | None]] = {name: partial(trial.column, own) for name, own in steps.items()}
    if rivals:
        others = _Rivals(vlm, chosen[0], tried, trial)
        plan |= {name: partial(others.column, name) for name in _others(chosen[0])}
    columns = {name: own for name, own in (done or {}).items() if name in plan and trial.has_captions_of(own)}
    for name, measure in plan.items():
        if name in columns:
            tell(f"{name}: measured before")
            continue
        tell(name)
        if (found := measure()) is not None:
            columns[name] = found
            if finished is not None:
                finished(columns)
    columns = {name: columns[name] for name in plan if name in columns}
    rows = [row for name, own in columns.items() for row in trial.rows(name, steps.get(name, chosen), own.quality)]
    notes = [*trial.notes, *(own.note for own in columns.values() if own.note)]
    return Proof(tuple(chosen), {name: own.quality for name, own in columns.items()}, _frame(rows), tuple(notes))


def _steps(edits: Sequence[Edit]) -> dict[str, list[Edit]]:
    if len(edits) == 1:
        return {"this edit": list(edits)}
    counts = sorted({count for count in (*STEPS, len(edits)) if count <= len(edits)})
    return {f"first {count}": list(edits[:count]) for count in counts}


def _others(edit: Edit) -> Iterator[str]:
    own = edit.recipe.get("method")
    for name, kind in METHODS.items():
        if own not in (name, kind.__name__):
            yield name


def _how(tried: Tried, prompt: str | None = None) -> AskedOfPictures:
    asked = tried.prompt if prompt is None else prompt
    return {"prompt": asked, "prefix": tried.prefix, "max_new_tokens": tried.max_new_tokens}


def _seen(pictures: Sequence[Picture], pool: Pool, edits: Sequence[Edit]) -> int:
    """How many pictures, each with its caption in a pool, some edit has seen, as far as its file tells."""
    told = frozenset[str]().union(*(one.given(SEEN) for one in edits))
    return sum(not told.isdisjoint([one.pixels, own]) for one, own in zip(pictures, pool.pictures, strict=True))


def _asked_otherwise(tried: Tried, edits: Sequence[Edit]) -> Iterator[str]:
    """That pictures are asked about in another way than an edit was learned with."""
    for name in ASKED:
        now = getattr(tried, name)
        learned = {one.recipe.get(name, now) for one in edits} - {now}
        if learned:
            own = ", ".join(sorted(map(repr, learned)))
            note = f"Captions are made with {name}={now!r}, and learned was with {own}"
            yield f"{note}: reliability is not of the captions that were learned from." if tried.learned else f"{note}."


def _check_names(pictures: Sequence[Picture], asked: Collection[str]) -> None:
    """Refuse a question that may be about either of two pictures."""
    ids: dict[str, str] = {}
    for one in pictures:
        file = Path(one.name).name
        if file in asked and ids.setdefault(file, one.pixels) != one.pixels:
            raise OptionError(f"A question is about {file}, and two of the pictures are called so. Rename one of them.")


class _Trial:
    """What the unedited model says, once for all edits."""

    def __init__(self, vlm: VLM, edits: Sequence[Edit], tried: Tried, tell: Callable[[str], None]) -> None:
        self.notes: list[str] = []
        swaps = [swap_of(one) for one in edits]
        self._vlm, self._tried, self._tell = vlm, tried, tell
        learned = {one.pixels for one in tried.learned}
        pictures = [one for one in tried.pictures if one.pixels not in learned]
        if len(pictures) < len(tried.pictures):
            count = len(tried.pictures) - len(pictures)
            self.notes.append(f"{count} of the pictures are among those learned from, and were left out of the others.")
        if not pictures:
            raise OptionError("There is no picture to try the edit on that it was not learned from. Name others.")
        _check_names((*tried.learned, *pictures), {hop.file for hop in tried.hops})
        self._truths = self._matched(pictures)
        # the target that a swap says of what is none is a hallucination, whether or not a picture shows one
        targets = [swap.to for swap in swaps if swap.to is not None]
        self._known = None if tried.known is None else with_names(tried.known, targets)
        self._shown = [_shown(truth, self._known, swaps) for truth in self._truths]
        self._labels: dict[str, list[tuple[str, str]]] = {}
        self._others = self._pool("others", pictures)
        if count := _seen(pictures, self._others, edits):
            self.notes.append(
                f"{count} of the {len(pictures)} pictures were given when the edit was made, to learn from or to keep: "
                "it does better on them than on others. Name pictures that it has not seen."
            )
        self.notes += _asked_otherwise(tried, edits)
        self._learned = self._pool("learned", tried.learned, swaps) if tried.learned else None
        concerned = [
            one
            for one, recording in zip(pictures, self._others.recordings, strict=True)
            if any(says(recording, swap) for swap in swaps)
        ]
        self._rephrased = self._pool("rephrased", concerned, swaps, OTHER_PROMPTS)
        self._texts = self._asked_without_pictures(edits)
        named = {Path(one.name).name: one.image for one in (*tried.learned, *pictures)}
        self._hops = ask_hops(vlm, named, tried.hops, _TEXT_TOKENS) if tried.hops else None
        if self._hops is not None:
            self._labels["hops"] = [(hop.file, hop.prompt) for hop in tried.hops]
        about = [one for one in tried.questions if one.file in {Path(own.name).name for own in pictures}]
        if about:
            self._tell(f"without edits, pope: {len(about)} questions")
        self._pope = ask_pope(vlm, named, about) if about else None

    def has_captions_of(self, column: Column) -> bool:
        """Whether what was measured before began with what the unedited model says now."""
        pools = {"others": self._others, "learned": self._learned, "rephrased": self._rephrased, "texts": self._texts}
        pools["hops"] = None if self._hops is None else self._hops.pool
        now = {name: [one.caption for one in pool.recordings] for name, pool in pools.items() if pool is not None}
        if now.keys() != column.quality.outcomes.keys():
            return False
        for name, outcomes in column.quality.outcomes.items():
            captions = [one.before for one in outcomes]
            count = len(captions) // max(1, len(now[name]))
            if captions != now[name] * count or (now[name] and not count):
                return False
        return True

    @property
    def examples(self) -> int:
        """How many pictures that were learned from say a source."""
        return 0 if self._learned is None else len(self._learned.recordings)

    def column(self, edits: Sequence[Edit]) -> Column:
        """Measure edits in force together, as a column of the table."""
        return Column(self.quality(edits))

    def quality(self, edits: Sequence[Edit]) -> Quality:
        """Measure edits in force together."""
        return edit_quality(
            edits,
            self._others,
            self._learned,
            self._shown,
            rephrased=self._rephrased,
            texts=self._texts,
            hops=self._hops,
            truths=self._truths if any(self._truths) else None,
            known=self._known,
            pope=self._pope,
        )

    def rows(self, column: str, edits: Sequence[Edit], quality: Quality) -> list[dict[str, object]]:
        """What was said, caption by caption."""
        found: list[dict[str, object]] = []
        for pool, outcomes in quality.outcomes.items():
            labels = self._labels[pool]
            for place, one in enumerate(outcomes):
                swap = swap_of(edits[place // len(labels)])
                picture, prompt = labels[place % len(labels)]
                agreement, surprise = one.agreement, one.surprise
                found.append(
                    {
                        "column": column,
                        "source": swap.source,
                        "to": swap.to,
                        "pool": pool,
                        "picture": picture,
                        "prompt": prompt,
                        "before": one.before,
                        "after": one.after,
                        "said": one.said,
                        "said_target": one.said_target,
                        "swapped": one.swapped if one.said else None,
                        "intruded": one.intruded,
                        "same_top_1": None if agreement is None else agreement.top,
                        "same_top_10": None if agreement is None else agreement.top_ten,
                        "kl": None if agreement is None else agreement.divergence,
                        "nats_before": None if surprise is None else surprise.before,
                        "nats_after": None if surprise is None else surprise.after,
                    }
                )
        return found

    def _pool(
        self, name: str, pictures: Sequence[Picture], swaps: Sequence[Swap] = (), prompts: Sequence[str] = ()
    ) -> Pool:
        """The captions of pictures; where requests are named, only those that say a source."""
        tried, found = self._tried, list[Recording]()
        self._labels[name] = []
        asked = prompts or (tried.prompt,)
        done, total = 0, len(asked) * len(pictures)
        for prompt in asked:
            for part in batches(pictures):
                recordings = record_pictures(
                    self._vlm,
                    [one.image for one in part],
                    image_budget=0,
                    **_how(tried, prompt),
                )
                for one, recording in zip(part, recordings, strict=True):
                    if not swaps or any(says(recording, swap) for swap in swaps):
                        found.append(lean(recording))
                        self._labels[name].append((one.name, prompt))
                done += len(part)
                if done == total or done // REPORTED > (done - len(part)) // REPORTED:
                    self._tell(f"without edits, {name}: {done}/{total} captions")
        return Pool(self._vlm, found, tried.max_new_tokens)

    def _asked_without_pictures(self, edits: Sequence[Edit]) -> Pool | None:
        given = frozenset[str]().union(*(edit.given(TEXTS) for edit in edits))
        prompts = [prompt for prompt in PROMPTS if prompt not in given]
        if len(prompts) < len(PROMPTS):
            count = len(PROMPTS) - len(prompts)
            self.notes.append(f"{count} of {len(PROMPTS)} prompts without a picture were given when the edit was made.")
        if not prompts:
            return None
        try:
            found = record_texts(self._vlm, prompts, _TEXT_TOKENS)
        except RecordingError as error:
            self.notes.append(f"Prompts without a picture were not measured: {error.args[0]}")
            return None
        self._labels["texts"] = [("", prompt) for prompt in prompts]
        return Pool(self._vlm, [lean(one) for one in found], _TEXT_TOKENS)

    def _matched(self, pictures: Sequence[Picture]) -> list[Truth | None]:
        if not self._tried.truths:
            return [None] * len(pictures)
        found = matched(self._tried.truths, [one.name for one in pictures])
        missing = sum(Path(one.name).name not in found for one in pictures)
        if missing:
            self.notes.append(f"The truth says nothing of {missing} of the {len(pictures)} pictures.")
        return [found.get(Path(one.name).name) for one in pictures]


class _Rivals:
    """The same edit by other methods."""

    def __init__(self, vlm: VLM, edit: Edit, tried: Tried, trial: _Trial) -> None:
        self._vlm, self._swap, self._tried, self._trial = vlm, swap_of(edit), tried, trial
        self._texts = sorted(edit.given(TEXTS))
        own = edit.recipe.get("kept captions")
        # of what is given to learn from, what does not say the word must stay, too
        answers = record_texts(vlm, self._texts, tried.max_new_tokens)
        staying = sum(not says(one, self._swap) for one in answers)
        count = len(self._kept) + len(tried.learned) - trial.examples + staying
        if isinstance(own, int) and own != count:
            trial.notes.append(
                f"Rivals keep {count} captions as they are; the edit kept {own}. Name the same pictures with --keep."
            )

    def column(self, method: str) -> Column | None:
        """Learn it, and measure it; None where that cannot be, and a note."""
        try:
            rival = make_edit(
                self._vlm,
                self._swap.source,
                self._swap.to,
                pictures=[one.image for one in self._tried.learned],
                texts=self._texts,
                keep=self._kept,
                bundled=False,
                method=method,
                inflections=self._swap.inflections,
                **_how(self._tried),
            )
            quality = self._trial.quality([rival])
        except MMNeuronsError as error:
            self._trial.notes.append(f"The rival {method} could not be measured: {error.args[0]}")
            return None
        note = "" if rival.converged else f"The rival {method} did not get as far as it was asked to."
        return Column(quality, note)

    @cached_property
    def _kept(self) -> list[Recording]:
        """What rivals have to keep as it is: what was named, or else the bundled pictures, less what is tried."""
        seen = {one.pixels for one in (*self._tried.pictures, *self._tried.learned)}
        given = self._tried.kept or read_pictures(gather(BUNDLED))
        images = [one.image for one in given if one.pixels not in seen]
        recordings = record_pictures(self._vlm, images, image_budget=0, **_how(self._tried)) if images else []
        return [one for one in recordings if not says(one, self._swap)]


def _shown(truth: Truth | None, known: Vocabulary | None, swaps: Sequence[Swap]) -> frozenset[str]:
    """What a picture shows: its objects, and the words of requests that name one of them."""
    if truth is None:
        return frozenset()
    names = {name.lower() for name in truth.objects}
    there = mentions("", truth, known).there if known is not None else frozenset(names)
    words = {word for swap in swaps for word in (swap.source, swap.to) if word is not None}
    named = {
        word
        for word in words
        if word.lower() in names or (known is not None and bool(known.of_word(word.lower()) & there))
    }
    return frozenset(names | named)


def _frame(rows: Sequence[Mapping[str, object]]) -> polars.DataFrame:
    import polars

    return polars.DataFrame(list(rows), infer_schema_length=None)
