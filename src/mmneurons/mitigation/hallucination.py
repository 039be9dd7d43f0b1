"""Less of what is not there: learned where the truth of pictures is known, measured on other pictures."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import islice
from typing import Unpack

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from mmneurons.edits.edit import Delta, Edit
from mmneurons.edits.forms import forms_of
from mmneurons.edits.least_squares import covariance
from mmneurons.edits.stack import active, base_fingerprint
from mmneurons.edits.task import Swap, check_words
from mmneurons.errors import EditError
from mmneurons.measures.figures import Figure, changed, share
from mmneurons.measures.hallucination import Mentions, chair, mentions
from mmneurons.measures.objects import Vocabulary
from mmneurons.measures.truth import Truth
from mmneurons.mitigation.grounding import Settings, Steps, Written, ground
from mmneurons.mitigation.mentions import Mention, mentions_in
from mmneurons.mitigation.proof import Change
from mmneurons.recordings import BATCH_SIZE, CaptionOptions, caption, record_pictures
from mmneurons.vlm.model import VLM
from mmneurons.vlm.paths import carry_back
from mmneurons.vlm.pictures import PictureLike
from mmneurons.vlm.readout import Readout, readout
from mmneurons.vlm.recording import Recording
from mmneurons.words import stands_in

__all__ = ["GENERAL", "Grounded", "Lesson", "Shown", "Word", "ground_captions", "learn", "read_lesson"]

GENERAL = "thing"
"""What is said where the model is unsure, by default."""

OTHER_STEPS = 3
"""How many steps of a caption that name nothing are learned from: they stay as they are."""

RANK, ENERGY = 128, 0.999
"""The edit's rank at most, and the share of its squared size that is enough."""


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
class _Step:
    """One step of a caption; ``mention`` is None where nothing is named."""

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
    """

    steps: tuple[_Step, ...]
    words: tuple[Word, ...]
    captions: int

    @property
    def false(self) -> int:
        """How many mentions are of what is not there."""
        return sum(word.false for word in self.words)


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
    draw = random.Random(seed)
    steps: list[_Step] = []
    false, true = Counter[str](), Counter[str]()
    done = 0
    for batch in _batches(pictures):
        recordings = record_pictures(vlm, [one.open() for one in batch], image_budget=0, **how)
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
    return Lesson(tuple(steps), ordered, done)


def _batches(pictures: Iterable[Shown]) -> Iterator[list[Shown]]:
    stream = iter(pictures)
    while batch := list(islice(stream, BATCH_SIZE)):
        yield batch


def _steps_of(
    recording: Recording, found: Sequence[Mention], there: frozenset[str], number: int, draw: random.Random
) -> list[_Step]:
    named: dict[int, Mention | None] = {mention.step: mention for mention in found}
    others = [step for step in range(len(recording)) if step not in named]
    missed = there - {mention.name for mention in found}
    chosen = {**named, **dict.fromkeys(draw.sample(others, min(OTHER_STEPS, len(others))))}
    return [
        _Step(
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


def learn(
    vlm: VLM, lesson: Lesson, known: Vocabulary, general: str | None = GENERAL, settings: Settings | None = None
) -> Edit:
    """Learn an edit of the last block: see ``mmneurons.mitigation.grounding``.

    Args:
        vlm: the model, unedited.
        lesson: what is learned from.
        known: the objects.
        general: the word that is said where the model is unsure; None for none.
        settings: of what is learned.

    Raises:
        EditError: an edit is in force, nothing is said of what is not there, or the general word is an object or cannot
            be said.
    """
    if active(vlm):
        raise EditError("An edit is in force in this model. Revert it first: edits are learned on unedited weights.")
    if not lesson.false:
        raise EditError(
            f"Nothing is said in these {lesson.captions} captions of what is not there, so there is nothing to learn "
            "from. Give more pictures, or pictures of which the model says wrong things."
        )
    settings = settings or Settings()
    if general is None:
        settings = replace(settings, recall=None)
    elif known.of_word(general):
        raise EditError(f"{general!r} is itself one of the objects. Choose a word that may be said of all of them.")
    tokens, spelled = _competing(vlm, lesson, known)
    if general is not None:
        check_words(vlm, Swap(general, None))
    word = _token(vlm, GENERAL if general is None else general)
    head = readout(vlm)
    written, steps = _laid_out(vlm, head, lesson, tokens, spelled, word)
    found = ground(steps, written, settings)
    recipe = {
        "title": "less of what is not there",
        "method": "grounding",
        "general": general if found.eased > -float("inf") else None,
        "options": asdict(settings),
        "captions": lesson.captions,
        "false mentions": lesson.false,
        "versions": {name: version(name) for name in ("mmneurons", "torch", "transformers")},
    }
    about = {"name": vlm.name, "class": type(vlm.model).__name__, "fingerprint": base_fingerprint(vlm)}
    used = steps.activations.abs().amax(0) > 0
    return Edit((_delta(vlm, found.vectors(written), used),), recipe, about)


def _token(vlm: VLM, word: str) -> int:
    tokenizer = getattr(vlm.processor, "tokenizer", None)
    if tokenizer is None:
        raise EditError("Words can only be edited in a model with a processor. Pass mmn.wrap(model, processor).")
    ids = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
    if not ids:
        raise EditError(f"{word!r} cannot be said by this model: it has no tokens. Choose another word.")
    return ids[0]


def _competing(vlm: VLM, lesson: Lesson, known: Vocabulary) -> tuple[Int[Tensor, "tokens"], dict[str, frozenset[int]]]:
    """The tokens that names begin with, and those that were said; and by object how its name begins."""
    spelled = {
        name: frozenset(_token(vlm, form.text) for form in forms_of(name))
        for name in sorted({name for step in lesson.steps for name in step.there} & known.names)
    }
    tokens = {step.token for step in lesson.steps}.union(*spelled.values())
    return torch.tensor(sorted(tokens)), spelled


def _laid_out(
    vlm: VLM,
    head: Readout,
    lesson: Lesson,
    tokens: Int[Tensor, "tokens"],
    spelled: Mapping[str, frozenset[int]],
    word: int,
) -> tuple[Written, Steps]:
    """What the logits are read along where the last block writes; and every step with what may be said there."""
    rows, _ = head.rows(torch.cat([tokens, torch.tensor([word])]))
    streams = torch.stack([step.stream for step in lesson.steps])
    through = _carried(vlm, head, torch.eye(rows.shape[1]), [lesson.steps[0]] * rows.shape[1])
    probe = rows.mean(0)
    sizes = _carried(vlm, head, probe.expand(len(lesson.steps), -1), lesson.steps).norm(dim=-1)
    seen = rows @ through
    spread = through.T @ covariance(head) @ through
    spread += 0.1 * spread.diagonal().mean() * torch.eye(len(spread))
    lift = torch.linalg.solve(spread.double(), seen[-1].double()).float()
    logits = torch.cat([head.normalize(part) @ rows.T for part in streams.split(512)])
    if head.bias is not None:
        logits += head.scale * head.bias.float().cpu()[torch.cat([tokens, torch.tensor([word])])]
    place = {token: index for index, token in enumerate(tokens.tolist())}
    wanted = torch.zeros(len(lesson.steps), len(tokens), dtype=torch.bool)
    right = wanted.clone()
    for index, step in enumerate(lesson.steps):
        allowed = {token for name in step.there & spelled.keys() for token in spelled[name]}
        missed = {token for name in step.missed & spelled.keys() for token in spelled[name]}
        if step.mention is None or step.mention.there:
            missed = {step.token}
            allowed = {step.token} if step.mention is None else allowed | missed
        wanted[index, [place[token] for token in sorted(missed)]] = True
        right[index, [place[token] for token in sorted(allowed)]] = True
    steps = Steps(
        torch.stack([step.activations for step in lesson.steps]),
        logits[:, :-1],
        logits[:, -1],
        sizes / sizes[0],
        wanted,
        right,
        torch.tensor([step.mention is not None for step in lesson.steps]),
        torch.tensor([step.caption for step in lesson.steps]),
    )
    return Written(seen[:-1], lift / float(lift @ seen[-1])), steps


def _carried(
    vlm: VLM, head: Readout, directions: Float[Tensor, "steps hidden"], steps: Sequence[_Step]
) -> Float[Tensor, "steps hidden"]:
    """Directions of the head, one for each step, where the last block writes."""
    stream, statistics, factors = (
        torch.stack([getattr(step, name) for step in steps]) for name in ("stream", "statistics", "factors")
    )
    back = carry_back(vlm.model, vlm.anatomy, head.pull_back(directions, stream), statistics, factors)
    return back.at(vlm.anatomy.blocks[-1].sites[0].path).float()


def _delta(vlm: VLM, vectors: Float[Tensor, "width hidden"], used: Bool[Tensor, "width"]) -> Delta:
    """The vectors of columns that are ever active, as few directions as hold nearly all of their squared size."""
    columns = used.nonzero().flatten()
    vectors = vectors[columns]
    left, sizes, right = torch.linalg.svd(vectors.double(), full_matrices=False)
    kept = sizes.square().cumsum(0) / sizes.square().sum()
    rank = min(RANK, int((kept < ENERGY).sum()) + 1)
    return Delta(
        len(vlm.anatomy.blocks) - 1, columns, (left[:, :rank] * sizes[:rank]).float(), right[:rank].float().contiguous()
    )


@dataclass(frozen=True)
class Grounded:
    """What was measured on pictures that nothing was learned from.

    Attributes:
        figures: CHAIRs, CHAIRi and recall before, after, and after less before; the share of captions without a false
            mention that stay word for word; the share of captions that say the general word.
        changes: captions that changed.
        captions: how many there are.
        refusal: why the edit should not be used; empty where nothing that was measured speaks against it.
    """

    figures: tuple[Figure, ...]
    changes: tuple[Change, ...]
    captions: int
    refusal: str

    def __getitem__(self, name: str) -> Figure:
        """A figure by its name."""
        return next(one for one in self.figures if one.name == name)


def ground_captions(
    vlm: VLM,
    edit: Edit,
    pictures: Sequence[Shown],
    known: Vocabulary,
    at_least: float,
    recall: float,
    progress: Callable[[int], None] | None = None,
    **how: Unpack[CaptionOptions],
) -> Grounded:
    """Caption pictures without the edit and with it, and compare.

    Args:
        vlm: the model, unedited.
        edit: what was learned.
        pictures: that nothing was learned from.
        known: the objects.
        at_least: the share of captions without a false mention that has to stay word for word.
        recall: by how much recall may fall.
        progress: told how many pictures are done.
        **how: of captions.
    """
    before: list[str] = []
    after: list[str] = []
    for start in range(0, len(pictures), BATCH_SIZE):
        opened: list[PictureLike] = [one.open() for one in pictures[start : start + BATCH_SIZE]]
        before += caption(vlm, opened, **how)
        with edit.on(vlm):
            after += caption(vlm, opened, **how)
        if progress is not None:
            progress(len(before))
    said = {
        later: [mentions(text, one.truth, known) for text, one in zip(texts, pictures, strict=True)]
        for later, texts in ((False, before), (True, after))
    }
    figures = _figures(said, before, after, [one.name for one in pictures], edit)
    changes = tuple(
        Change(one.name, old, new) for one, old, new in zip(pictures, before, after, strict=True) if old != new
    )
    found = Grounded(tuple(figures), changes, len(pictures), "")
    return Grounded(found.figures, changes, len(pictures), _refusal(found, at_least, recall))


def _figures(
    said: Mapping[bool, Sequence[Mentions]],
    before: Sequence[str],
    after: Sequence[str],
    names: Sequence[str],
    edit: Edit,
) -> list[Figure]:
    def counted(places: Sequence[int], later: bool) -> list[float]:
        whole = chair([said[later][place] for place in places])
        return [whole.sentences, whole.instances, whole.recall]

    figures = changed(("CHAIRs", "CHAIRi", "recall"), names, counted)
    pairs = list(zip(before, after, said[False], strict=True))
    figures.append(share("right captions unchanged", [old == new for old, new, own in pairs if not own.hallucinated]))
    general = edit.recipe.get("general")
    if isinstance(general, str):
        figures.append(share(f"captions that say {general!r}", [stands_in(new, 0, general) for new in after]))
    return figures


def _refusal(found: Grounded, at_least: float, recall: float) -> str:
    unchanged, fallen = found["right captions unchanged"], found["recall added"].estimate.value
    less = found["CHAIRi added"].estimate.value
    if not unchanged.captions:
        return "No caption was right before, so what stays cannot be measured."
    if unchanged.estimate.value < at_least:
        return (
            f"{unchanged.estimate.value:.0%} of the captions that were right stay as they were, less than "
            f"{at_least:.0%}."
        )
    if fallen < -recall:
        return f"Recall falls by {-fallen:.3f}, more than {recall:g}."
    if not less < 0:
        return "Nothing was gained: as much is said as before of what is not there."
    return ""
