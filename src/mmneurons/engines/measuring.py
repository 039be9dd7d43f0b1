"""Measuring many pictures into a folder, picture by picture; what was cut off goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from PIL import Image

from mmneurons.engines.local import describe_model
from mmneurons.engines.measured_folder import (
    MEASURED_FILE,
    Measured,
    begin,
    held,
    open_measured,
    part_folders,
    part_of,
    read_part,
    write_part,
)
from mmneurons.errors import MMNeuronsError, OptionError
from mmneurons.finders import Contribution, Random, Target
from mmneurons.finding import Finding, WordFinding, find
from mmneurons.measures.case import Case, Observation, Ranking
from mmneurons.measures.hallucination import Question, ask
from mmneurons.measures.suites import Suite, is_sampled
from mmneurons.measures.truth import Truth, matched
from mmneurons.options import check_seed, named_words
from mmneurons.recordings import CaptionOptions
from mmneurons.sources import gather
from mmneurons.sources.item import Item, as_text, image_id
from mmneurons.vlm.model import VLM
from mmneurons.vlm.pictures import decode_picture
from mmneurons.vlm.replay import prefixes_kept

__all__ = ["MEASURED_FILE", "Measured", "Told", "measure", "open_measured"]

KEPT = 200
"""How many neurons of a word and finder the folder keeps."""


@dataclass(frozen=True)
class Told:
    """How far it is.

    Attributes:
        total: how many pictures there are.
        done: how many are done.
        words: how many words of them.
        seconds: since this began.
    """

    total: int
    done: int
    words: int
    seconds: float


def measure(
    vlm: VLM,
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    plan: Suite,
    *,
    truths: Mapping[str, Truth] | None = None,
    words: Sequence[str] | None = None,
    images: str | os.PathLike[str] | None = None,
    column: str | None = None,
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 0,
    options: CaptionOptions | None = None,
    questions: Sequence[Question] = (),
    progress: Callable[[Told], None] | None = None,
) -> Measured:
    """Measure every word of every picture's caption by a suite.

    Of pictures with the same bytes the first one is measured.

    Args:
        vlm: the model.
        inputs: pictures, as in ``mmneurons.run``.
        out: the folder; where it holds a part of the same, that is gone on with.
        plan: what is measured.
        truths: by file name, what pictures show; see ``mmneurons.measures.truth``. Those of other pictures do no harm.
        words: instead of all nouns.
        images: as in ``mmneurons.run``; likewise the next three.
        column: see there.
        limit: see there.
        sample: see there.
        seed: of whatever is drawn.
        options: of captions.
        questions: what the model is asked of pictures, by their file names.
        progress: told after every picture.

    Raises:
        OptionError: the truth is of other pictures, or an option has a value that it cannot have.
        SourceError: ``inputs`` name no picture.
        RunError: the folder is of another model or other options, in use, damaged, or cannot be written.
    """
    check_seed(seed)
    words = named_words(words)
    items = gather(inputs, images=images, column=column, limit=limit, sample=sample, seed=seed)
    own = None if truths is None else matched(truths, [item.source for item in items])
    about = {
        "model": describe_model(vlm),
        "options": {
            "words": words,
            "seed": seed,
            "questions": len(questions),
            **(options or {}),
            # of all that the files say: more pictures of the same truth may be asked for later
            "truth": None if truths is None else _digest(truths),
        },
        "suite": json.loads(json.dumps(dict(plan.about), default=repr)),
        "versions": {name: version(name) for name in ("mmneurons", "transformers", "torch")},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    path = Path(out)
    named: dict[str, list[Question]] = {}
    for question in questions:
        named.setdefault(question.file, []).append(question)
    asked = _Asked(vlm, path, plan, own or {}, words, seed, options or {}, named)
    with held(path):
        # folders of before have the digest of what the truth says of the pictures that were chosen
        begin(path, about, () if own is None else (_digest(own),))
        met = _met(path)
        started, told = time.perf_counter(), 0
        for done, item in enumerate(items, 1):
            told += _one(asked, item, met)
            if progress is not None:
                progress(Told(len(items), done, told, time.perf_counter() - started))
    return open_measured(path)


def _met(path: Path) -> set[str]:
    """The ids of the pictures that were measured, which their bytes give."""
    tables = [read_part(part, "pictures") for part in part_folders(path)]
    return {known for table in tables for known in table.drop_nulls("caption")["image_id"]}


def _digest(truths: Mapping[str, Truth]) -> str:
    return hashlib.sha256(repr(sorted(truths.items())).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Asked:
    """What is asked of every picture; attributes as the arguments of ``measure``, questions by their file names."""

    vlm: VLM
    path: Path
    plan: Suite
    truths: Mapping[str, Truth]
    words: Sequence[str] | None
    seed: int
    options: CaptionOptions
    questions: Mapping[str, Sequence[Question]]


def _one(asked: _Asked, item: Item, met: set[str]) -> int:
    """Measure a picture, unless it was, or its bytes are those of one that was; how many words it has."""
    part = part_of(asked.path, item.source)
    if part.exists():
        return read_part(part, "words").height
    rows = _Rows()
    try:
        data = item.read()
        picture_id = image_id(data)
        if picture_id in met:
            rows.picture(picture_id, item.source, None, None)
        else:
            _measure_picture(asked, item, data, picture_id, rows)
            met.add(picture_id)
    except MMNeuronsError as error:
        rows = _Rows()
        rows.picture(part.name, item.source, None, f"{type(error).__name__}: {str(error).split(chr(10))[0]}")
    write_part(part, rows.tables)
    return len(rows.tables["words"])


def _measure_picture(asked: _Asked, item: Item, data: bytes, picture_id: str, rows: _Rows) -> None:
    vlm, name = asked.vlm, Path(item.source).name
    picture = decode_picture(data, item.source)
    found = _found(vlm, picture, asked.plan, asked.words, asked.seed, asked.options)
    rows.picture(picture_id, item.source, found.caption, None)
    with prefixes_kept():
        _measure_words(vlm, found, picture_id, asked.plan, asked.truths.get(name), asked.seed, rows)
    own = asked.questions.get(name, ())
    for question, yes in zip(own, ask(vlm, dict.fromkeys([one.file for one in own], picture), own), strict=True):
        rows.answer(picture_id, question, yes)


def _found(
    vlm: VLM,
    picture: Image.Image,
    plan: Suite,
    words: Sequence[str] | None,
    seed: int,
    options: CaptionOptions,
) -> Finding:
    found = find(
        vlm,
        picture,
        words=words,
        missing="skip",
        occurrence="first",
        gates=plan.gates,
        finder=Contribution(),
        seed=seed,
        **options,
    )
    assert isinstance(found, Finding)
    return found


def _measure_words(
    vlm: VLM, found: Finding, picture_id: str, plan: Suite, truth: Truth | None, seed: int, rows: _Rows
) -> None:
    keys = [f"{picture_id} {part.word} {part.span[0]}" for part in found]
    ranked = _rankings(vlm, found, plan, keys, seed)
    cases: dict[str, Case] = {}
    for part, key, rankings in zip(found, keys, ranked, strict=True):
        own = int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:4]) >> 1
        cases[key] = Case(part, rankings, truth, seed=own)
        rows.word(key, picture_id, part)
        for finder, ranking in rankings.items():
            rows.top(key, picture_id, finder, ranking, vlm.anatomy.width)
            rows.observe(key, picture_id, Observation(finder, "seconds", 0, ranking.seconds))
    named = {id(case): key for key, case in cases.items()}
    for one in plan.measures:
        for case, observation in one(list(cases.values())):
            rows.observe(named[id(case)], picture_id, observation)


def _rankings(vlm: VLM, found: Finding, plan: Suite, keys: Sequence[str], seed: int) -> list[dict[str, Ranking]]:
    """How every finder puts the neurons of every word."""
    widths = [block.width for block in vlm.anatomy.blocks]
    keep = min(plan.keep, vlm.anatomy.neurons)
    ranked: list[dict[str, Ranking]] = [{} for _ in keys]
    for name, finder in plan.finders.items():
        if isinstance(finder, Random):
            finder = Random(seed)
        chosen = [index for index, key in enumerate(keys) if is_sampled(key, plan.every.get(name, 1))]
        targets: list[Target] = [found.parts[index].targets[0] for index in chosen]
        if not targets:
            continue
        began = time.perf_counter()
        try:
            scored = finder(vlm, found.recording, targets)
        except OptionError:
            # a finder that this model does not have, such as one of image tokens where there are none
            continue
        each = (time.perf_counter() - began) / len(targets)
        for index, scores in zip(chosen, scored, strict=True):
            places = scores.best(keep, widths)
            flat = torch.tensor([block * scores.values.shape[1] + column for block, column in places])
            signs = torch.where(scores.activations.flatten()[flat] < 0, -1, 1).tolist()
            values = scores.values.flatten()[flat].tolist()
            ranked[index][name] = Ranking(tuple(places), tuple(signs), tuple(values), scores.values, each)
    return ranked


class _Rows:
    """The rows of one picture, until they are written at once."""

    def __init__(self) -> None:
        names = ("pictures", "words", "observed", "tops", "answers")
        self.tables: dict[str, list[dict[str, object]]] = {name: [] for name in names}

    def picture(self, picture_id: str, source: str, caption: str | None, error: str | None) -> None:
        own = {"image_id": picture_id, "source": as_text(source), "caption": caption, "error": error}
        self.tables["pictures"].append(own)

    def word(self, key: str, picture_id: str, part: WordFinding) -> None:
        self.tables["words"].append(
            {
                "word_id": key,
                "image_id": picture_id,
                "word": part.word,
                "step": part.targets[0].step,
                "token": part.targets[0].token,
                "probability": float(part.found.recording.log_probabilities[part.targets[0].step].exp()),
            }
        )

    def observe(self, key: str, picture_id: str, observation: Observation) -> None:
        self.tables["observed"].append(
            {
                "word_id": key,
                "image_id": picture_id,
                "finder": observation.finder,
                "quantity": observation.quantity,
                "k": observation.k,
                "value": observation.value,
            }
        )

    def top(self, key: str, picture_id: str, finder: str, ranking: Ranking, width: int) -> None:
        self.tables["tops"].append(
            {
                "word_id": key,
                "image_id": picture_id,
                "finder": finder,
                "neurons": [block * width + column for block, column in ranking.places[:KEPT]],
                "scores": list(ranking.scores[:KEPT]),
            }
        )

    def answer(self, picture_id: str, question: Question, yes: bool) -> None:
        own = {"kind": question.kind, "name": question.name, "there": question.there, "yes": yes}
        self.tables["answers"].append({"image_id": picture_id, **own})
