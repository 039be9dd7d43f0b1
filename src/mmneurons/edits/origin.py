"""Where an edit comes from: which model it fits, and what it was made with."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version

from mmneurons.edits.stack import base_fingerprint
from mmneurons.vlm.model import VLM

__all__ = ["about", "versions"]


def about(vlm: VLM) -> Mapping[str, object]:
    """The model that an edit fits, as JSON has it."""
    return {"name": vlm.name, "class": type(vlm.model).__name__, "fingerprint": base_fingerprint(vlm)}


def versions() -> Mapping[str, str]:
    """Of the libraries that an edit was made with."""
    return {name: version(name) for name in ("mmneurons", "torch", "transformers")}
