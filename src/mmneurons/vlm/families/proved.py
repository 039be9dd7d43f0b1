"""What is proved of each family: written down by its tests, shown by ``mmn models`` and on a page of the docs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

from mmneurons.vlm.families import OUT_OF_REACH

__all__ = ["PROPERTIES", "Proved", "page", "proved"]

PROPERTIES = {
    "scores": "shares add up to the logit to 1e-4, and are what it loses without a neuron, in every block",
    "experts": "its neurons are those of experts, in some blocks",
    "batches": "a batch gives what single pictures give",
    "static cache": "so does a static cache",
    "beams": "beam search is recorded by what it said",
    "heatmaps": "which part of the picture an image token shows is measured; whole: each sees the whole picture. The "
    "own image processors of cohere2_vision, lfm2_vl, llama4 and molmo2 need torchvision: shown with others like them",
    "shuffling": "image tokens can be put into another order",
}
"""What is shown of a family, and what it means."""

RESULTS = "proved.json"


@dataclass(frozen=True)
class Proved:
    """What the tests have shown of one family.

    Attributes:
        name: its type in transformers; behind a slash the kind of its text model.
        properties: for every one of ``PROPERTIES`` "yes", "no" (not shown), or "–" where the family does not have it.
    """

    name: str
    properties: Mapping[str, str]


def proved() -> tuple[Proved, ...]:
    """The families that have been tested, by name."""
    results = json.loads(files("mmneurons.vlm.families").joinpath(RESULTS).read_text(encoding="utf-8"))
    return tuple(Proved(name, properties) for name, properties in sorted(results["families"].items()))


def page() -> str:
    """The table as a page of the docs."""
    lines = [
        "# Models",
        "",
        "Every family below is tested on a tiny random model of its kind, in float32. A model of another family that",
        "transformers can load is measured when it is loaded, and refused by name if what is found does not hold. This",
        "page and `mmn models` are written by the tests (`MMN_PROVED=write pytest -m families`).",
        "",
        "| | " + " | ".join(PROPERTIES) + " |",
        "|---|" + "---|" * len(PROPERTIES),
    ]
    for family in proved():
        lines.append(
            f"| {family.name} | " + " | ".join(family.properties.get(name, "no") for name in PROPERTIES) + " |"
        )
    lines += ["", *(f"- **{name}**: {meaning}" for name, meaning in PROPERTIES.items())]
    lines += ["", "## Out of reach", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {reason} |" for name, reason in sorted(OUT_OF_REACH.items())]
    return "\n".join(lines) + "\n"
