"""What an edit is asked for: where words are to change, into what, and what must stay as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from mmneurons.edits.forms import Form, forms_of, matching, with_capital
from mmneurons.english import are_forms, fold, takes_an
from mmneurons.errors import EditError, RecordingError
from mmneurons.recordings import read, spell
from mmneurons.vlm.decoding import may_not_say
from mmneurons.vlm.inputs import word_ids
from mmneurons.vlm.model import VLM
from mmneurons.vlm.recording import LEAN, Recording, record_forced
from mmneurons.vlm.upper import Said
from mmneurons.words import Word, find_words, places_of, token_spans

__all__ = [
    "Kept",
    "Swap",
    "Task",
    "Want",
    "check_kept",
    "check_request",
    "check_words",
    "described",
    "ids_of",
    "is_same_word",
    "make_task",
    "says",
]


@dataclass(frozen=True, eq=False)
class Want:
    """One step at which the model is to say another token.

    Attributes:
        recording: of a caption up to the word, and of what is to take its place.
        step: of it.
        target: the token that is wanted; None where the word is only not to be said.
        sources: the tokens that are not to be said: first tokens of the word's spellings, and what the model says now.
    """

    recording: Recording
    step: int
    target: int | None
    sources: tuple[int, ...]

    @property
    def now(self) -> int:
        """Which of the tokens that are not to be said is the likeliest, unedited."""
        logits = self.recording.logits[self.step]
        return max(self.sources, key=lambda token: float(logits[token]))

    def margin(self, logits: Float[Tensor, "vocabulary"]) -> float:
        """By how much the best token that may be said is before the best that may not; negative where it is not."""
        if self.target is None:
            banned = logits[list(self.sources)].max()
            others = logits.clone()
            others[list(self.sources)] = -float("inf")
            return float(others.max() - banned)
        others = logits.clone()
        others[self.target] = -float("inf")
        return float(logits[self.target] - others.max())


@dataclass(frozen=True, eq=False)
class Kept:
    """Steps of a caption that must stay as they are.

    Attributes:
        recording: of the caption.
        steps: of it.
        own: whether the caption says the word, and these steps lie before it or behind what takes its place.
    """

    recording: Recording
    steps: tuple[int, ...]
    own: bool = False


@dataclass(frozen=True)
class Swap:
    """What is to be said instead of what.

    Attributes:
        source: the word.
        to: what takes its place; None where it is only not to be said.
        inflections: whether forms of the word are meant, too.
    """

    source: str
    to: str | None
    inflections: bool = True

    @property
    def forms(self) -> tuple[Form, ...]:
        """Of the word."""
        return forms_of(self.source, self.inflections)

    @property
    def spellings(self) -> frozenset[str]:
        """The word's forms, as they were named, in lower case, and with a capital."""
        texts = [text for form in self.forms for text in (form.text, fold(form.text))]
        return frozenset([*texts, *map(with_capital, texts)])

    def places_in(self, text: str, begun: int) -> list[tuple[int, int]]:
        """Where a text says the word, other than as a part of what takes its place: "dog" in "police dog".

        Args:
            text: a caption, the prefix counted in.
            begun: where what the model said begins.
        """
        found = self._places(self.forms, text, begun)
        within = self._targets_in(text, begun)
        return [one for one in found if not any(own[0] <= one[0] and one[1] <= own[1] for own in within)]

    def target_in(self, text: str, begun: int) -> bool:
        """Whether a text says what takes the word's place."""
        return bool(self._targets_in(text, begun))

    def articles_in(self, text: str, begun: int) -> list[bool]:
        """Of every "a" or "an" right before what takes the word's place, whether it is the one that fits."""
        found = []
        for start, stop in self._targets_in(text, begun):
            before = fold(text[:start]).split()
            if text[:start][-1:].isspace() and before[-1:] in (["a"], ["an"]):
                found.append((before[-1] == "an") == takes_an(text[start:stop]))
        return found

    def _targets_in(self, text: str, begun: int) -> list[tuple[int, int]]:
        return [] if self.to is None else self._places(forms_of(self.to, self.inflections), text, begun)

    def _places(self, forms: Sequence[Form], text: str, begun: int) -> list[tuple[int, int]]:
        return sorted({place for form in forms for place in places_of(text, begun, form.text, self.inflections)})

    def instead_of(self, surface: str, begins: bool = False) -> str:
        """What takes the place of the word as it was said.

        Args:
            surface: the word, in some form.
            begins: whether a sentence begins with it. Elsewhere a capital is taken over only where the word was named
                without one: "Dog" for "dog", but not "TV" for "TV".
        """
        assert self.to is not None
        capital = surface[:1].isupper() and (begins or not self.source[:1].isupper())
        return matching(_is_plural(surface, self), forms_of(self.to, self.inflections), capital)


@dataclass(frozen=True, eq=False)
class Task:
    """What an edit has to do.

    Attributes:
        vlm: the model.
        swap: what is to be said instead of what.
        wants: where.
        kept: what must stay.
        notes: what was left out of the request, and why.
    """

    vlm: VLM
    swap: Swap
    wants: tuple[Want, ...]
    kept: tuple[Kept, ...]
    notes: tuple[str, ...] = ()

    def said(self) -> list[Said]:
        """The sequences of what is wanted, a step each, in their order."""
        return [Said(want.recording.request, ids_of(want.recording), (want.step,)) for want in self.wants]

    def kept_said(self) -> list[Said]:
        """The sequences that must stay."""
        return [Said(kept.recording.request, ids_of(kept.recording), kept.steps) for kept in self.kept if kept.steps]


def ids_of(recording: Recording) -> tuple[int, ...]:
    """What a recording says."""
    return tuple(recording.token_ids.tolist())


def says(recording: Recording, swap: Swap) -> bool:
    """Whether a caption says the word of a request."""
    return bool(swap.places_in(recording.caption, len(recording.request.prefix)))


def check_request(swap: Swap) -> None:
    """Refuse a request that no model could meet.

    Raises:
        EditError: the word or what is to take its place is blank, or both are the same word.
    """
    if not swap.source.strip():
        raise EditError("The word that is not to be said is empty. Name one.")
    if swap.to is not None and not swap.to.strip():
        raise EditError("The word that is to be said instead is empty. To have a word not said at all, pass to=None.")
    if swap.to is not None and is_same_word(swap.source, swap.to):
        raise EditError(f"{swap.to!r} is {swap.source!r} itself, or a form of it: there is nothing to change.")


def check_words(vlm: VLM, swap: Swap) -> None:
    """Refuse a request that cannot be met, before anything is run.

    Raises:
        EditError: as in ``check_request``; the model cannot write; or it has no tokens for a word, or may not say them.
    """
    tokenizer = getattr(vlm.processor, "tokenizer", None)
    if tokenizer is None:
        raise EditError("Words can only be edited in a model with a processor. Pass mmn.wrap(model, processor).")
    check_request(swap)
    silent = {*tokenizer.all_special_ids, vlm.image_token_id, tokenizer.unk_token_id}
    for text in (swap.source, swap.to):
        if text is None:
            continue
        ids = word_ids(vlm, text.strip())
        if not ids or silent.intersection(ids) or fold(text.strip()) not in fold(tokenizer.decode(ids)):
            raise EditError(f"{text!r} cannot be said by this model: its tokens are no text. Choose other words.")
        if may_not_say(vlm, ids):
            raise EditError(
                f"{text!r} is never said by this model: its generation_config suppresses the tokens. Choose other "
                "words, or change suppress_tokens and bad_words_ids there."
            )


def is_same_word(one: str, other: str) -> bool:
    """Whether two words, or phrases, are one, or forms of one."""
    *rest, last = fold(one.strip()).split()
    *others, final = fold(other.strip()).split()
    return rest == others and are_forms(last, final)


def check_kept(keep: Sequence[Recording], swap: Swap) -> None:
    """Refuse captions that say the word of a request, and are to stay.

    Raises:
        EditError: there is one.
    """
    if wrong := [recording.caption for recording in keep if says(recording, swap)]:
        raise EditError(
            f"What must stay as it is says {swap.source!r}: {wrong[0]!r}. Leave such pictures out of keep; they are "
            "examples of what is to change."
        )


def make_task(
    vlm: VLM, swap: Swap, sources: Sequence[tuple[Recording, Word | None]], keep: Sequence[Recording]
) -> Task:
    """Lay out where tokens are to change and where not.

    For every occurrence the caption is run again as it is to be: up to the word as it was said, then what takes its
    place. Where ``inflections`` are meant, so is the other number, if the model would say it: "two" in front of it.

    Args:
        vlm: the model, unedited.
        swap: what is to be said instead of what.
        sources: captions that say the word; each with one occurrence, or None for all of them.
        keep: captions that do not.

    Raises:
        EditError: no caption says the word in a way that can be changed, or one that must stay says it.
    """
    check_kept(keep, swap)
    spelled = _first_tokens(vlm, swap)
    wants: list[Want] = []
    kept: list[Kept] = []
    notes: list[str] = []
    seen: set[tuple[tuple[int, ...], int | None, int]] = set()
    for recording, one in sources:
        words = [one] if one is not None else _occurrences(recording, swap)
        for word in words:
            for variant, own in (recording, word), *_other_number(vlm, recording, word, swap):
                try:
                    found, rest = _wants(vlm, variant, own, swap, spelled)
                except RecordingError as error:
                    notes.append(f"{variant.caption!r} was left out: {error}")
                    continue
                wants += found
                kept += rest
        if words:
            kept.append(_before(recording, min(word.steps[0] for word in words), spelled))
    for recording in keep:
        steps = tuple(step for step, token in enumerate(recording.token_ids.tolist()) if token not in spelled)
        kept.append(Kept(recording, steps))
    unique = []
    for want in wants:
        key = (ids_of(want.recording)[: want.step], want.target, id(want.recording.request))
        if key not in seen:
            seen.add(key)
            unique.append(want)
    if not unique:
        raise EditError(
            f"No caption says {swap.source!r}, so there is nothing to learn from. Pass pictures whose captions say it: "
            "mmn.caption(vlm, picture) shows what they say."
        )
    return Task(vlm, swap, tuple(unique), tuple(one for one in kept if one.steps), tuple(notes))


def _occurrences(recording: Recording, swap: Swap) -> list[Word]:
    text, begun = recording.caption, len(recording.request.prefix)
    places = swap.places_in(text, begun)
    names = list(dict.fromkeys(text[slice(*place)] for place in places))
    found = find_words(text, begun, recording.spans, names) if names else ()
    return [word for word in found if (word.start, word.end) in places]


def _first_tokens(vlm: VLM, swap: Swap) -> frozenset[int]:
    """The first tokens of the word's spellings."""
    return frozenset(word_ids(vlm, text)[0] for text in swap.spellings)


def _before(recording: Recording, step: int, spelled: frozenset[int]) -> Kept:
    ids = recording.token_ids.tolist()
    # where the model would say the word and was kept from it, nothing must stay
    now = recording.logits[:step].argmax(-1).tolist()
    return Kept(recording, tuple(k for k in range(step) if not spelled & {ids[k], now[k]}), own=True)


def _wants(
    vlm: VLM, recording: Recording, word: Word, swap: Swap, spelled: frozenset[int]
) -> tuple[list[Want], list[Kept]]:
    """The steps of one occurrence that are to change, and what follows, which must stay as it would be then."""
    ids = ids_of(recording)
    first = word.steps[0]
    if swap.to is None:
        return [Want(recording, first, None, tuple({*spelled, ids[first]}))], []
    shift = len(recording.request.prefix)
    text = recording.caption
    target = swap.instead_of(word.surface, begins=text[: word.start].rstrip()[-1:] in {"", ".", "!", "?"})
    swapped = text[shift : word.start] + target
    new = tuple(spell(vlm, recording.request, swapped))
    if new[:first] != ids[:first] or len(new) <= first:
        raise RecordingError(f"{target!r} cannot be spelled there without changing tokens before it.")
    behind = ids[word.steps[-1] + 1 :]
    whole = read(vlm, record_forced(vlm, recording.request, (*new, *behind), LEAN))
    wants = []
    for step in range(first, len(new)):
        now = int(whole.logits[step].argmax())
        old = {ids[step]} if step == first else set()
        if new[step] != now or step == first:
            wants.append(Want(whole, step, new[step], tuple(({*old, now} | set(spelled)) - {new[step]})))
    grown = _grown(vlm, whole, len(new))
    if grown is not None:
        wants.append(Want(whole, len(new), behind[0], (grown,)))
    wants = [want for want in wants if want.target not in want.sources]
    asked = {want.step for want in wants}
    later = (step for step in range(len(new), len(whole)) if step not in asked)
    stay = tuple(step for step in later if int(whole.logits[step].argmax()) not in spelled)
    return wants, [Kept(whole, stay, own=True)]


def _grown(vlm: VLM, recording: Recording, step: int) -> int | None:
    """With what the model would go on there so that the word before became a longer one: hand, handbag."""
    assert vlm.processor is not None
    if step >= len(recording):
        return None
    now = int(recording.logits[step].argmax())
    text, _ = token_spans(vlm.processor.tokenizer, ids_of(recording)[:step], [now])
    return now if text[:1].isalnum() else None


def _is_plural(surface: str, swap: Swap) -> bool:
    own = fold(surface)
    return next((form.plural for form in swap.forms if fold(form.text) == own), False)


_OF_ONE = frozenset({"a", "an", "one", "the"})


def _other_number(vlm: VLM, recording: Recording, word: Word, swap: Swap) -> Iterator[tuple[Recording, Word]]:
    """The same caption with the word in the plural, where the model says the plural behind "two"."""
    other = next((form for form in swap.forms if form.plural), None)
    if not swap.inflections or other is None or _is_plural(word.surface, swap):
        return
    shift = len(recording.request.prefix)
    before = recording.caption[shift : word.start].rstrip()
    head, _, article = before.rpartition(" ")
    if article not in _OF_ONE:
        return
    text = f"{head} two {other.text}"
    try:
        ids = spell(vlm, recording.request, text)
        forced = read(vlm, record_forced(vlm, recording.request, ids, LEAN))
    except RecordingError:
        return
    place = len(forced.caption) - len(other.text)
    own = [w for w in find_words(forced.caption, shift, forced.spans, [other.text]) if w.start == place]
    # only where the model itself goes on like that is it the model's word
    if own and int(forced.logits[own[0].steps[0]].argmax()) == ids[own[0].steps[0]]:
        yield forced, own[0]


def described(task: Task) -> Mapping[str, object]:
    """The request, as JSON has it."""
    return {
        "source": task.swap.source,
        "to": task.swap.to,
        "inflections": task.swap.inflections,
        "wanted": len(task.wants),
        "kept captions": sum(not kept.own for kept in task.kept),
        "kept positions": sum(len(kept.steps) for kept in task.kept),
        "notes": list(task.notes),
    }
