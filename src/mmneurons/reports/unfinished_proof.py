"""What a proof of edits has measured so far, kept in its folder until the page is written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch

from mmneurons.edits.edit import Edit
from mmneurons.engines.proving import Column, Tried
from mmneurons.errors import RunError
from mmneurons.measures.edit_outcome import Agreement, Outcome, Surprise
from mmneurons.measures.edit_quality import Figure, Quality
from mmneurons.measures.intervals import Estimate
from mmneurons.vlm.decoding import generator
from mmneurons.vlm.model import VLM
from mmneurons.whole_files import write_whole

__all__ = ["UNFINISHED", "key_of", "read_unfinished", "write_unfinished"]

UNFINISHED = "unfinished.json"


def key_of(vlm: VLM, edits: Sequence[Edit], tried: Tried) -> str:
    """What tells a proof from others: columns of equal keys stand in one table."""
    known = tried.known
    own = [
        [version(name) for name in ("mmneurons", "transformers", "torch")],
        repr(vlm),
        str(vlm.device),
        torch.cuda.get_device_name(vlm.device) if vlm.device.type == "cuda" else "",
        generator(vlm).generation_config,
        [(one.edit_id, sorted(one.recipe.items(), key=lambda item: item[0])) for one in edits],
        [[(one.name, one.pixels) for one in part] for part in (tried.pictures, tried.learned, tried.kept)],
        sorted(tried.truths.items()),
        None if known is None else (sorted(known.names), sorted(known.surface.items()), known.told),
        list(tried.hops),
        list(tried.questions),
        (tried.prompt, tried.prefix, tried.max_new_tokens),
    ]
    return hashlib.sha256(repr(own).encode()).hexdigest()[:32]


def read_unfinished(folder: Path, key: str) -> dict[str, Column]:
    """The columns of an earlier start, by name; none of another key, and none where the file is damaged."""
    try:
        kept = json.loads((folder / UNFINISHED).read_text(encoding="utf-8"))
        if kept["key"] != key:
            return {}
        return {name: _column(own) for name, own in kept["columns"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def write_unfinished(folder: Path, key: str, edits: Sequence[Edit], columns: Mapping[str, Column]) -> None:
    """Keep the columns that are measured.

    Raises:
        RunError: they cannot be written; what was kept before is there still.
    """
    kept = {
        "key": key,
        "edits": [{"id": one.edit_id} for one in edits],
        "columns": {
            name: {
                "note": own.note,
                "figures": [asdict(one) for one in own.quality.figures],
                "outcomes": {pool: [asdict(one) for one in part] for pool, part in own.quality.outcomes.items()},
            }
            for name, own in columns.items()
        },
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / UNFINISHED, json.dumps(kept, ensure_ascii=False).encode())
    except OSError as error:
        raise RunError(
            f"What is measured could not be kept in {str(folder)!r}: {error.strerror or error}. Make room, or choose "
            "another folder with --out, and give the command again."
        ) from error


def _column(kept: Mapping) -> Column:
    figures = tuple(Figure(one["name"], Estimate(**one["estimate"]), one["captions"]) for one in kept["figures"])
    outcomes = {pool: [_outcome(one) for one in part] for pool, part in kept["outcomes"].items()}
    return Column(Quality(figures, outcomes), kept["note"])


def _outcome(kept: Mapping) -> Outcome:
    agreement, surprise = kept["agreement"], kept["surprise"]
    return Outcome(
        **{
            **kept,
            "agreement": None if agreement is None else Agreement(**agreement),
            "surprise": None if surprise is None else Surprise(**surprise),
        }
    )
