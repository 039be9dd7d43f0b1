"""What the head and the foot of a report say of the run: the model, what was asked, and with which versions."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from mmneurons.reports.over_run import notes
from mmneurons.reports.texts import plain
from mmneurons.runs.reader import Run

__all__ = ["blocks", "facts", "group", "model_name", "utc"]

DIGITS = 12
"""How much is shown of a revision and of a fingerprint."""


def group(run: Run, name: str) -> Mapping[str, object]:
    """One group of ``run.json``, empty where it is not there."""
    found = run.about.get(name)
    return found if isinstance(found, dict) else {}


def model_name(run: Run) -> str:
    """What the model is called."""
    return plain(group(run, "model").get("name") or "unnamed model")


def blocks(run: Run) -> int:
    """How many blocks the model has, as far as the run says; 0 where it does not."""
    known = group(run, "model").get("blocks")
    return known if isinstance(known, int) else 0


def facts(run: Run) -> list[tuple[str, str]]:
    """Names and values for the head of the report."""
    options = group(run, "options")
    prefix = f", begun with “{plain(options['prefix'])}”" if options.get("prefix") else ""
    named = {
        "Model": ", ".join(_model_parts(run)),
        "Weights": ", ".join(_weights(run)),
        "Prompt": f"“{plain(options['prompt'])}”{prefix}" if options.get("prompt") else "",
        "Scores": "; ".join(plain(note) for note in notes(run)),
        "Begun": utc(run.about.get("created")),
    }
    return [(name, value) for name, value in named.items() if value]


def utc(moment: object) -> str:
    """A moment in ISO 8601 as it is read; what is no moment as it is, and nothing where there is none."""
    try:
        return datetime.fromisoformat(str(moment)).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return plain(moment) if moment else ""


def _model_parts(run: Run) -> list[str]:
    model = group(run, "model")
    parts = [plain(model[name]) for name in ("class", "dtype", "description") if model.get(name)]
    width = model.get("width")
    return [*parts, f"{blocks(run)} blocks of {width:,} neurons"] if blocks(run) and isinstance(width, int) else parts


def _weights(run: Run) -> list[str]:
    model = group(run, "model")
    return [f"{name} {plain(str(model[name])[:DIGITS])}" for name in ("revision", "fingerprint") if model.get(name)]
