"""Settings of published work, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mmneurons.errors import OptionError

__all__ = ["PRESETS", "Preset", "preset"]


@dataclass(frozen=True)
class Preset:
    """How a published work asked and scored.

    Attributes:
        source: the work.
        options: what ``mmn.find`` and ``mmn.run`` get.
        by: how what neurons promote is ranked: of ``WordFinding.top`` and ``mmn.run``.
        notes: where it cannot be followed, or is not known.
    """

    source: str
    options: Mapping[str, object] = field(default_factory=dict)
    by: str = "cosine"
    notes: str = ""


PRESETS = {
    "pan2024": Preset(
        source="Pan et al., Finding and Editing Multi-Modal Neurons in Pre-Trained Transformers, Findings of ACL 2024",
        options={
            "prompt": "Describe the image in few words.",
            "prefix": "An image of",
            "max_new_tokens": 50,
            "finder": "contribution",
            "against": None,
            "norm": None,
            "activation": "gate",
            "token": "first",
            "occurrence": "first",
        },
        by="product",
        notes="as the released code scores: the gate's activation for the whole activation, and no final norm",
    ),
}
"""The presets; a new one is one entry."""


def preset(name: str) -> Preset:
    """A preset by name.

    Raises:
        OptionError: there is none of that name.
    """
    if name not in PRESETS:
        raise OptionError(f"There is no preset {name!r}. There are: {', '.join(PRESETS)}.")
    return PRESETS[name]
