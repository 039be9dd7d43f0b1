"""A whole data set in this process: pictures in, a run folder out, stopped and gone on with at will."""

from __future__ import annotations

import json
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal, TypedDict, Unpack

from PIL import Image

from mmneurons.engines.rows import Depth, Meanings, ShardRows, joined
from mmneurons.errors import MMNeuronsError, OptionError, RunError
from mmneurons.finders import FINDERS, Finder
from mmneurons.finding import Explained, Finding, Occurrence, find
from mmneurons.nouns import nouns
from mmneurons.options import check_seed, check_whole, named_words, refuse_unknown
from mmneurons.promotion import PromotedBy, check_by, promoter
from mmneurons.recordings import BATCH_SIZE, MAX_NEW_TOKENS
from mmneurons.runs.reader import Run, open_run
from mmneurons.runs.writer import begin, finished_sources, forget_failed, locked, write_shard
from mmneurons.sources import Item, gather, image_id
from mmneurons.sources.item import as_text
from mmneurons.vlm.fingerprint import fingerprint
from mmneurons.vlm.inputs import PREFIX, PROMPT, make_inputs
from mmneurons.vlm.model import VLM
from mmneurons.vlm.pictures import decode_picture
from mmneurons.vlm.recording import IMAGE_BUDGET

__all__ = ["SHARD", "Progress", "RunArguments", "RunOptions", "run"]

SHARD = 32
"""How many pictures are written at once, and lost at most when a run is killed."""

IN_A_ROW = 3
"""After how many pictures in a row that fail, and not by an error of ours, a run ends: then it is not the pictures."""


class RunOptions(TypedDict, total=False):
    """How captions come about, and the options of the finder: those of ``mmn.find`` that are the same for all pictures.

    Attributes:
        prompt: see ``mmneurons.recordings.RecordOptions``; likewise those up to ``generation``.
        prefix: how captions are begun.
        batch_size: how many pictures are generated for at once. It may be changed when a run is gone on with.
        max_new_tokens: where a caption is cut.
        generation: further options of ``generate``; no sampling, since a run is to be the same however it is stopped.
        shuffle_image_tokens: the seed of another order of the picture's tokens; there are no heatmaps then.
        against: see ``mmneurons.finding.FindOptions``; likewise the rest.
        norm: of ``contribution``.
        activation: of ``contribution``.
        k: of ``greedy``.
        handful: of ``greedy``.
        choose_by: of ``greedy`` and ``ablation``.
        steps: of ``integrated_gradients``.
        candidates: of ``ablation`` and ``log_probability_increase``.
    """

    prompt: str
    prefix: str
    batch_size: int
    max_new_tokens: int
    generation: Mapping[str, object] | None
    shuffle_image_tokens: int | None
    against: str | None
    norm: Literal["frozen"] | None
    activation: Literal["product", "gate"]
    k: int
    handful: int
    choose_by: Literal["total", "contribution"]
    steps: int
    candidates: int | None


class RunArguments(RunOptions, total=False):
    """What a preset can settle: ``RunOptions``, and those arguments of ``run`` that say how it is scored.

    Attributes:
        finder: see ``run``.
        token: see ``run``.
        occurrence: see ``run``.
        by: see ``run``.
    """

    finder: str | Finder
    token: Explained
    occurrence: Occurrence
    by: PromotedBy


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        total: how many pictures there are.
        before: how many of them had been done when this began, whatever became of them.
        done: how many are done now.
        failed: how many of those could not be read or captioned.
        duplicates: how many are copies of an earlier one.
        words: how many words have been explained since this began.
        seconds: since this began.
    """

    total: int
    before: int
    done: int
    failed: int
    duplicates: int
    words: int
    seconds: float


@dataclass(frozen=True)
class _Read:
    """A picture that has been read: its bytes' hash, and the picture or what was wrong."""

    source: str
    image_id: str | None
    picture: Image.Image | None
    error: str | None


@dataclass(frozen=True)
class _Failure:
    """What went wrong with a picture, and whether it was an error of ours, which is the picture's."""

    text: str
    ours: bool


def run(
    vlm: VLM,
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    column: str | None = None,
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 0,
    words: Sequence[str] | None = None,
    finder: str | Finder = "contribution",
    token: Explained = "first",
    occurrence: Occurrence = "all",
    neurons: int = 10,
    promotes: int = 10,
    by: PromotedBy = "cosine",
    maps: int = 10,
    shard: int = SHARD,
    retry_failed: bool = False,
    progress: Callable[[Progress], None] | None = None,
    **options: Unpack[RunOptions],
) -> Run:
    """Find the neurons behind the words of every picture's caption, into a run folder.

    The same call again goes on where the last one stopped, however it was stopped: after Ctrl-C behind the last batch,
    after a kill behind the last shard. A picture that cannot be read is a row with its error, and stays one unless
    ``retry_failed`` is asked; one whose bytes were met before is a row that says so.

    Args:
        vlm: the model.
        inputs: what ``mmneurons.sources.gather`` takes: files, folders, globs, a Parquet file, a dataset's folder,
            annotation files.
        out: the run folder; made if it is not there.
        images: the folder of the pictures that annotation files name.
        column: the column of a table that holds the pictures.
        limit: only the first so many pictures. It may grow when a run is gone on with.
        sample: only so many pictures, drawn with ``seed``.
        seed: of what is drawn: pictures, and neurons by finders that draw.
        words: the words to explain where a caption holds them; by default the nouns of every caption. A word that
            cannot be contrasted with ``against`` in a caption is left out of it.
        finder: as in ``mmn.find``.
        token: as in ``mmn.find``.
        occurrence: as in ``mmn.find``.
        neurons: how many of a word's best neurons are written down.
        promotes: how many tokens that each of them promotes.
        by: how these are ranked, see ``mmneurons.promotion``.
        maps: for how many of the neurons a heatmap; and one of their mean.
        shard: how many pictures are written at once, and lost at most when the run is killed.
        retry_failed: whether pictures that failed before are tried again.
        progress: is told after every batch how far the run is.
        **options: see ``RunOptions``.

    Returns:
        The run folder, opened.

    Raises:
        OptionError: an option has a value that it cannot have.
        SourceError: ``inputs`` name no picture.
        RunError: the folder is of another model or other options, in use, or cannot be written.
    """
    if not isinstance(out, str | os.PathLike):
        raise OptionError(f"out={out!r} is not possible: it has to be the path of a folder.")
    depth = _depth(vlm, neurons, promotes, maps)
    check_by(by)
    refuse_unknown(options, list(RunOptions.__annotations__))
    check_whole("shard", shard)
    check_seed(seed)
    words = named_words(words)
    generation = _generation(options)
    items = gather(inputs, images=images, column=column, limit=limit, sample=sample, seed=seed)
    named = [os.fspath(name) for name in ([inputs] if isinstance(inputs, str | os.PathLike) else inputs)]
    batch_size = options.get("batch_size", BATCH_SIZE)

    def find_all(pictures: list[Image.Image]) -> list[Finding]:
        return find(
            vlm,
            [*pictures],
            words=words,
            finder=finder,
            token=token,
            missing="skip",
            occurrence=occurrence,
            image_budget=_budget(depth),
            seed=seed,
            **options,
        )

    # what is wrong with the options shows here, before anything is written
    find_all([])
    make_inputs(vlm, Image.new("RGB", (64, 64)), options.get("prompt", PROMPT), options.get("prefix", PREFIX))
    if words is None:
        nouns("An image of a dog.")
    about = {
        "model": describe_model(vlm),
        "options": {
            "words": words,
            "finder": finder if isinstance(finder, str) else repr(finder),
            "token": token,
            "occurrence": occurrence,
            "shuffle_image_tokens": options.get("shuffle_image_tokens"),
            "prompt": options.get("prompt", PROMPT),
            "prefix": options.get("prefix", PREFIX),
            "max_new_tokens": options.get("max_new_tokens", MAX_NEW_TOKENS),
            "generation": generation,
            **_finder_options(finder, options),
            **asdict(depth),
            "by": by,
            "seed": seed,
        },
        "pictures": {
            "inputs": [as_text(name) for name in named],
            "images": None if images is None else as_text(os.fspath(images)),
            "column": column,
            "sample": sample,
            "limit": limit,
        },
        "total": len(items),
        "folder": as_text(os.getcwd()),
        "versions": {name: version(name) for name in ("mmneurons", "transformers", "torch")}
        | {"python": platform.python_version()},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    path = Path(out)
    with locked(path):
        begin(path, about)
        if retry_failed:
            forget_failed(path)
        _work(vlm, path, items, find_all, depth, by, batch_size, shard, progress)
    return open_run(path)


def describe_model(vlm: VLM) -> dict[str, object]:
    """What a run folder says of its model."""
    return {
        "name": vlm.name,
        "revision": getattr(vlm.model.config, "_commit_hash", None),
        "class": type(vlm.model).__name__,
        "dtype": str(vlm.dtype).removeprefix("torch."),
        "fingerprint": fingerprint(vlm.model),
        "blocks": len(vlm.anatomy.blocks),
        "width": vlm.anatomy.width,
    }


def _work(
    vlm: VLM,
    path: Path,
    items: Sequence[Item],
    find_all: Callable[[list[Image.Image]], list[Finding]],
    depth: Depth,
    by: PromotedBy,
    batch_size: int,
    shard: int,
    progress: Callable[[Progress], None] | None,
) -> None:
    finished = finished_sources(path)
    done = set(finished["source"])
    # a copy's row stands for no words: where the first one's part was deleted, it is explained anew
    met = set(finished.filter(finished["status"] != "duplicate")["image_id"].drop_nulls())
    listed = finished.filter(finished["source"].is_in([item.source for item in items]))["status"]
    counts = {status: int((listed == status).sum()) for status in ("ok", "duplicate", "error")}
    todo = [item for item in items if item.source not in done]
    before, words, started, strange = len(items) - len(todo), 0, time.perf_counter(), 0
    del finished, done, listed

    def tell() -> None:
        if progress is not None:
            gone = time.perf_counter() - started
            count = sum(counts.values())
            progress(Progress(len(items), before, count, counts["error"], counts["duplicate"], words, gone))

    tell()
    meanings = Meanings(promoter(vlm, by), depth.promotes) if todo else None
    batches = _ahead(_batches(todo, batch_size, shard))
    for start in range(0, len(todo), shard):
        whole: list[ShardRows] = []
        try:
            for _ in range(-(-len(todo[start : start + shard]) // batch_size)):
                began = time.perf_counter()
                batch = next(batches)
                outcomes = _outcomes(batch, met, find_all)
                each = (time.perf_counter() - began) / len(batch)
                rows = ShardRows(depth)
                for read, outcome in zip(batch, outcomes, strict=True):
                    strange = _in_a_row(strange, outcome)
                    counts[_write_down(rows, read, outcome, each)] += 1
                    words += len(outcome) if isinstance(outcome, Finding) else 0
                whole.append(rows)
                tell()
        finally:
            # also where the run is stopped or fails: the batches that are whole are not lost
            if whole and meanings is not None:
                with _uninterrupted():
                    write_shard(path, joined(whole).finish(meanings))


def _outcomes(
    batch: Sequence[_Read], met: set[str], find_all: Callable[[list[Image.Image]], list[Finding]]
) -> list[Finding | _Failure | None]:
    """For every picture of a batch a finding, what went wrong, or None where it was met before."""
    fresh: dict[str, Image.Image] = {}
    for read in batch:
        if read.picture is not None and read.image_id not in met:
            fresh.setdefault(str(read.image_id), read.picture)
    met.update(fresh)
    found = dict(zip(fresh, _find_each(find_all, list(fresh.values())), strict=True))
    return [
        found.pop(str(read.image_id), None) if read.error is None else _Failure(read.error, ours=True) for read in batch
    ]


def _in_a_row(before: int, outcome: Finding | _Failure | None) -> int:
    """How many pictures in a row have failed by no error of ours, after this one.

    Raises:
        RunError: too many.
    """
    if not isinstance(outcome, _Failure) or outcome.ours:
        return before if outcome is None else 0
    if before + 1 == IN_A_ROW:
        raise RunError(
            f"{IN_A_ROW} pictures in a row failed (the last: {outcome.text}), which does not look like the pictures. "
            "Mend it; then the same with --retry-failed (retry_failed=True) goes on and tries the failed ones again."
        )
    return before + 1


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until a shard is written."""
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or usual is None:
        yield
        return
    caught: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: caught.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if caught:
        raise KeyboardInterrupt


def _write_down(rows: ShardRows, read: _Read, outcome: Finding | _Failure | None, seconds: float) -> str:
    """A picture's rows; its status comes back."""
    size = None if read.picture is None else read.picture.size
    if isinstance(outcome, Finding) and read.picture is not None:
        rows.add_image(read.source, read.image_id, "ok", size=size, caption=outcome.caption, seconds=seconds)
        rows.add_finding(str(read.image_id), outcome, read.picture)
        return "ok"
    if isinstance(outcome, _Failure):
        rows.add_image(read.source, read.image_id, "error", size=size, error=outcome.text, seconds=seconds)
        return "error"
    rows.add_image(read.source, read.image_id, "duplicate", size=size, seconds=seconds)
    return "duplicate"


def _find_each(
    find_all: Callable[[list[Image.Image]], list[Finding]], pictures: list[Image.Image]
) -> list[Finding | _Failure]:
    """A finding for every picture, or what went wrong with it.

    Where a batch fails, its pictures are tried one by one, so that one of them does not take the others along.

    Raises:
        RunError: all pictures of a batch of several fail, and not by an error of ours: then it is not the pictures.
    """
    if not pictures:
        return []
    try:
        return list(find_all(pictures))
    except (MMNeuronsError, ArithmeticError, LookupError, MemoryError, RuntimeError, ValueError) as error:
        if len(pictures) == 1:
            return [_Failure(f"{type(error).__name__}: {_message(error)}", isinstance(error, MMNeuronsError))]
        outcomes = [outcome for picture in pictures for outcome in _find_each(find_all, [picture])]
        if not isinstance(error, MMNeuronsError) and all(isinstance(outcome, _Failure) for outcome in outcomes):
            raise RunError(
                f"All {len(pictures)} pictures of a batch failed ({type(error).__name__}: {_message(error)}), which "
                "does not look like the pictures. Mend it (for memory: a smaller batch); the same again goes on."
            ) from error
        return outcomes


def _message(error: Exception) -> str:
    """An error's message without the name of its page, which a table does not need."""
    return (str(error).split("\n(more: docs/")[0] or "no message").strip()


def _batches(items: Sequence[Item], batch_size: int, shard: int) -> Iterator[list[Item]]:
    """The batches of every shard; none reaches over the end of its shard, so that a resumed run has the same ones."""
    for first in range(0, len(items), shard):
        own = items[first : first + shard]
        for start in range(0, len(own), batch_size):
            yield list(own[start : start + batch_size])


def _ahead(batches: Iterable[list[Item]]) -> Iterator[list[_Read]]:
    """Read and decode the next batch while the model is at work on the last one."""
    with ThreadPoolExecutor(1, "read pictures") as pool:
        waiting = None
        for batch in batches:
            following = pool.submit(lambda items: [_read(item) for item in items], batch)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


def _read(item: Item) -> _Read:
    known = None
    try:
        data = item.read()
        known = image_id(data)
        return _Read(item.source, known, decode_picture(data, item.source), None)
    except MMNeuronsError as error:
        return _Read(item.source, known, None, f"{type(error).__name__}: {_message(error)}")


def _depth(vlm: VLM, neurons: int, promotes: int, maps: int) -> Depth:
    count = vlm.anatomy.neurons
    for name, value, least in (("neurons", neurons, 1), ("promotes", promotes, 0), ("maps", maps, 0)):
        check_whole(name, value, least, count)
    return Depth(neurons, promotes, maps)


def _generation(options: RunOptions) -> dict[str, object]:
    """The options of ``generate``, as ``run.json`` can hold them."""
    generation = dict(options.get("generation") or {})
    if generation.get("do_sample"):
        raise OptionError(
            "A run does not sample: what is drawn would depend on the batches and on where it was stopped. Leave "
            "do_sample out, or sample picture by picture with mmn.find(…, seed=…)."
        )
    try:
        return json.loads(json.dumps(generation))
    except (TypeError, ValueError) as error:
        raise OptionError(f"generation={generation!r} cannot be written into run.json: {error}.") from error


def _budget(depth: Depth) -> int:
    return IMAGE_BUDGET if depth.maps else 0


def _finder_options(finder: str | Finder, options: RunOptions) -> dict[str, object]:
    """What the finder's own options are, those that were left out included."""
    if not isinstance(finder, str) or finder not in FINDERS:
        return {}
    default = FINDERS[finder]()
    own: dict[str, object] = {**options}
    # the seed is that of the whole run
    names = [field.name for field in fields(default) if field.name != "seed"]
    return {name: own.get(name, getattr(default, name)) for name in names}
