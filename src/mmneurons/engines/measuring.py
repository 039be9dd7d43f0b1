"""Measuring many pictures into a folder, picture by picture; what was cut off goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import torch
from filelock import FileLock, Timeout
from PIL import Image

from mmneurons.engines.local import describe_model
from mmneurons.errors import MMNeuronsError, OptionError, RunError
from mmneurons.finders import Contribution, Random, Target
from mmneurons.finding import Finding, WordFinding, find
from mmneurons.measures.case import Case, Observation, Ranking
from mmneurons.measures.hallucination import Question, ask
from mmneurons.measures.suites import Suite, is_sampled
from mmneurons.measures.truth import Truth, matched
from mmneurons.options import check_seed, named_words
from mmneurons.sources import gather
from mmneurons.sources.item import Item, as_text, image_id
from mmneurons.vlm.model import VLM
from mmneurons.vlm.pictures import decode_picture
from mmneurons.vlm.replay import prefixes_kept

if TYPE_CHECKING:
    from collections.abc import Iterator

    import polars

__all__ = ["MEASURED_FILE", "CaptionOptions", "Measured", "Told", "measure", "open_measured"]

MEASURED_FILE = "measured.json"
PARTS = "parts"
LOCK_FILE = ".lock"
KEPT = 200
"""How many neurons of a word and finder the folder keeps."""
COMPARED = ("model", "options", "suite")


@dataclass(frozen=True)
class Measured:
    """A folder of what was measured.

    Attributes:
        path: the folder.
        about: what was asked, of which model.
    """

    path: Path
    about: Mapping[str, object]

    def table(self, name: str) -> polars.DataFrame:
        """All rows of a table: ``"pictures"``, ``"words"``, ``"observed"``, ``"tops"`` or ``"answers"``.

        Raises:
            RunError: nothing has been measured.
        """
        import polars

        parts = sorted(self.path.glob(f"{PARTS}/*/{name}.parquet"))
        if not parts:
            raise RunError(f"Nothing has been measured in {str(self.path)!r} yet: no picture is whole.")
        return polars.concat([polars.read_parquet(part) for part in parts])


class CaptionOptions(TypedDict, total=False):
    """How captions come about; see ``mmneurons.recordings.RecordOptions``.

    Attributes:
        prompt: what the model is asked.
        prefix: how its answer begins.
        max_new_tokens: where it is cut.
    """

    prompt: str
    prefix: str
    max_new_tokens: int


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

    Args:
        vlm: the model.
        inputs: pictures, as in ``mmneurons.run``.
        out: the folder; where it holds a part of the same, that is gone on with.
        plan: what is measured.
        truths: by file name, what pictures show; see ``mmneurons.measures.truth``.
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
        RunError: the folder is of another model or other options, in use, or cannot be written; or no picture has a
            word that could be measured.
    """
    check_seed(seed)
    words = named_words(words)
    items = gather(inputs, images=images, column=column, limit=limit, sample=sample, seed=seed)
    if truths is not None:
        truths = matched(truths, [item.source for item in items])
    about = {
        "model": describe_model(vlm),
        "options": {
            "words": words,
            "seed": seed,
            "questions": len(questions),
            **(options or {}),
            "truth": None if truths is None else _digest(truths),
        },
        "suite": json.loads(json.dumps(dict(plan.about), default=repr)),
        "versions": {name: version(name) for name in ("mmneurons", "transformers", "torch")},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    path = Path(out)
    asked: dict[str, list[Question]] = {}
    for question in questions:
        asked.setdefault(question.file, []).append(question)
    with _held(path):
        _begin(path, about)
        started, told = time.perf_counter(), 0
        for done, item in enumerate(items, 1):
            told += _one(vlm, path, item, plan, truths or {}, words, seed, options or {}, asked)
            if progress is not None:
                progress(Told(len(items), done, told, time.perf_counter() - started))
    return open_measured(path)


def open_measured(path: str | os.PathLike[str]) -> Measured:
    """Open a folder that ``measure`` made.

    Raises:
        RunError: it is none.
    """
    try:
        about = json.loads(Path(path, MEASURED_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{os.fspath(path)!r} is no folder of 'mmn measure': it has no whole {MEASURED_FILE}."
        ) from error
    return Measured(Path(path), about)


def _digest(truths: Mapping[str, Truth]) -> str:
    return hashlib.sha256(repr(sorted(truths.items())).encode()).hexdigest()[:16]


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Hold a folder for one process.

    Raises:
        RunError: it is a file, holds something else, or another process holds it.
    """
    if path.exists() and not path.is_dir():
        raise RunError(f"{str(path)!r} is a file. Choose another folder with --out.")
    if path.is_dir() and not (path / MEASURED_FILE).exists() and any(one.name != LOCK_FILE for one in path.iterdir()):
        raise RunError(f"{str(path)!r} holds other files. Choose an empty folder, or a new one, with --out.")
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunError(f"Another process is writing to {str(path)!r}. Wait until it has ended.") from error
    try:
        yield
    finally:
        lock.release()


def _begin(path: Path, about: Mapping[str, object]) -> None:
    """Write what is asked, or see that it is the same.

    Raises:
        RunError: it is not.
    """
    file = path / MEASURED_FILE
    if file.exists():
        before = open_measured(path).about
        for name in COMPARED:
            if before.get(name) != about[name]:
                changed = _difference(before.get(name), about[name])
                raise RunError(
                    f"{str(path)!r} was begun with another {name} ({changed}). Choose another folder with --out, or "
                    "ask for the same."
                )
    else:
        _written(file, json.dumps(about, indent=2, ensure_ascii=False))
    for cut_off in (path / PARTS).glob(".*"):
        shutil.rmtree(cut_off)


def _difference(before: object, now: object) -> str:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        return ", ".join(
            f"{name}: {_short(before.get(name))} there, {_short(now.get(name))} here" for name in names[:3]
        )
    return f"{_short(before)} there, {_short(now)} here"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _written(file: Path, text: str) -> None:
    waiting = file.with_name(f".{file.name}")
    waiting.write_text(text, encoding="utf-8")
    waiting.rename(file)


def _one(
    vlm: VLM,
    path: Path,
    item: Item,
    plan: Suite,
    truths: Mapping[str, Truth],
    words: Sequence[str] | None,
    seed: int,
    options: CaptionOptions,
    asked: Mapping[str, Sequence[Question]],
) -> int:
    """Measure a picture, unless it was; how many words it has."""
    import polars

    known = hashlib.sha256(item.source.encode()).hexdigest()[:24]
    part = path / PARTS / known
    if part.exists():
        return int(polars.read_parquet(part / "words.parquet").height)
    rows = _Rows()
    try:
        data = item.read()
        picture_id = image_id(data)
        picture = decode_picture(data, item.source)
        found = _found(vlm, picture, plan, words, seed, options)
        truth = truths.get(Path(item.source).name)
        rows.picture(picture_id, item.source, found.caption, None)
        with prefixes_kept():
            _measure_words(vlm, found, picture_id, plan, truth, seed, rows)
        own = asked.get(Path(item.source).name, ())
        for question, yes in zip(own, ask(vlm, dict.fromkeys([one.file for one in own], picture), own), strict=True):
            rows.answer(picture_id, question, yes)
    except MMNeuronsError as error:
        rows = _Rows()
        rows.picture(known, item.source, None, f"{type(error).__name__}: {str(error).split(chr(10))[0]}")
    rows.write(part)
    return len(rows.words)


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
        self.pictures: list[dict[str, object]] = []
        self.words: list[dict[str, object]] = []
        self.observed: list[dict[str, object]] = []
        self.tops: list[dict[str, object]] = []
        self.answers: list[dict[str, object]] = []

    def picture(self, picture_id: str, source: str, caption: str | None, error: str | None) -> None:
        own = {"image_id": picture_id, "source": as_text(source), "caption": caption, "error": error}
        self.pictures.append(own)

    def word(self, key: str, picture_id: str, part: WordFinding) -> None:
        self.words.append(
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
        self.observed.append(
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
        self.tops.append(
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
        self.answers.append({"image_id": picture_id, **own})

    def write(self, part: Path) -> None:
        """All tables, in a folder that is renamed when it is whole."""
        import polars

        schemas = {
            "pictures": {name: polars.String for name in ("image_id", "source", "caption", "error")},
            "words": {
                "word_id": polars.String,
                "image_id": polars.String,
                "word": polars.String,
                "step": polars.Int64,
                "token": polars.Int64,
                "probability": polars.Float64,
            },
            "observed": {
                "word_id": polars.String,
                "image_id": polars.String,
                "finder": polars.String,
                "quantity": polars.String,
                "k": polars.Int64,
                "value": polars.Float64,
            },
            "tops": {
                "word_id": polars.String,
                "image_id": polars.String,
                "finder": polars.String,
                "neurons": polars.List(polars.Int32),
                "scores": polars.List(polars.Float32),
            },
            "answers": {
                "image_id": polars.String,
                "kind": polars.String,
                "name": polars.String,
                "there": polars.Boolean,
                "yes": polars.Boolean,
            },
        }
        waiting = part.with_name(f".{part.name}")
        shutil.rmtree(waiting, ignore_errors=True)
        waiting.mkdir(parents=True)
        for name, schema in schemas.items():
            polars.DataFrame(getattr(self, name), schema=schema).write_parquet(waiting / f"{name}.parquet")
        waiting.rename(part)
