"""Which edits of the demo model are measured: reported ones, and a sweep of every method's options.

What is swept is tried on words and scenes of their own, `--development`; nothing is reported of them but which default
they speak for.
"""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import mmneurons as mmn
from mmneurons.edits.methods import make_method
from zoo.sprites import read_concepts

__all__ = ["KEPT", "Job", "defaults", "jobs", "pairs", "swept", "words"]

KEPT = 160
"""How many scenes must stay as they are."""

DEVELOPED = ("dog", "horse", "car", "tree", "apple", "guitar", "umbrella", "clock", "bus", "chair")
"""Words on which choices were made. They are not reported."""

SWAPS, SUPPRESSED, COMPARED = 104, 20, 10
QUICK = ("erase", "ban")
"""Rivals that are quick enough for every word that is not to be said."""

MARGINS = (4.0, 8.0, 16.0, 24.0, 40.0)

RIVALS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "learned": ("learned", {}),
    "refined": ("refined", {}),
    "knowledge neurons, by contribution": ("knowledge_neurons", {"finder": "contribution"}),
    "erase": ("erase", {}),
    "scale": ("scale", {}),
    "fine-tune, the same columns": ("finetune", {}),
    "fine-tune, all of the last block": ("finetune", {"k": None, "rate": 0.0001}),
    "LoRA": ("lora", {}),
    "LoRA, with a keep set": ("lora", {"rate": 0.01, "keep": 5.0}),
    "ban": ("ban", {}),
    "FiNE": ("fine", {}),
}

SWEPT: Mapping[str, tuple[tuple[str, Mapping[str, object]], ...]] = {
    "least squares": (
        ("least_squares", {}),
        *(("least_squares", {"margin": value}) for value in MARGINS),
        *(("least_squares", {"columns": value}) for value in (50, 200, 800)),
        *(("least_squares", {"blocks": value}) for value in ((-2,), (-2, -1), (-6, -5, -4, -3, -2, -1))),
        *(("least_squares", {"keep": value}) for value in (0.1, 10.0)),
        *(("least_squares", {"ridge": value}) for value in (0.5, 50.0)),
        *(("least_squares", {"whitening": value}) for value in (None, 0.01, 1.0)),
        *(("least_squares", {"kept": value}) for value in (0, 10, 40)),
        *(("least_squares", {"rounds": value}) for value in (1, 10)),
    ),
    "refined": (
        ("refined", {}),
        ("refined", {"rate": 0.01}),
        *(("refined", {"rate": 0.01, "keep": value}) for value in (1.0, 20.0)),
        ("refined", {"rate": 0.01, "margin": 8.0}),
        *(("refined", {"keep": value}) for value in (1.0, 20.0)),
        *(("refined", {"steps": value}) for value in (5, 60)),
        *(("refined", {"repeat": value}) for value in (0.0, 1.0)),
        ("refined", {"kept_at_once": 8}),
    ),
    "learned": (
        ("learned", {}),
        *(("learned", {"keep": value}) for value in (5.0, 80.0)),
        *(("learned", {"rate": value}) for value in (0.003, 0.03)),
        *(("learned", {"k": value}) for value in (40, 160)),
        ("learned", {"finder": "activation"}),
        ("learned", {"skip_last": 3}),
        ("learned", {"steps": 150}),
        ("learned", {"kept_at_once": 32}),
        *(("learned", {"earlier": value}) for value in (0.0, 10.0)),
        *(("learned", {"repeat": value}) for value in (0.0, 1.0)),
        *(("learned", {"size": value}) for value in (0.0, 0.1)),
    ),
    "fine-tune": (
        *(("finetune", {"rate": value}) for value in (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)),
        *(("finetune", {"k": None, "rate": value}) for value in (0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.02)),
        *(("finetune", {"k": value}) for value in (3, 40)),
        *(("finetune", {"steps": value}) for value in (20, 150)),
        ("finetune", {"finder": "activation"}),
    ),
    "LoRA": (
        *(("lora", {"rate": value}) for value in (0.001, 0.003, 0.01)),
        *(("lora", {"rate": 0.01, "keep": value}) for value in (5.0, 20.0)),
        *(("lora", {"rank": value}) for value in (1, 16)),
        ("lora", {"blocks": (-1,)}),
        *(("lora", {"steps": value}) for value in (20, 150)),
    ),
    "knowledge neurons": (
        ("knowledge_neurons", {}),
        ("knowledge_neurons", {"finder": "contribution"}),
        *(("knowledge_neurons", {"finder": "contribution", "k": value}) for value in (3, 30)),
        *(("knowledge_neurons", {"finder": "contribution", "factor": value}) for value in (1.0, 5.0)),
    ),
    "erase": (
        ("erase", {}),
        *(("erase", {"k": value}) for value in (3, 30)),
        ("erase", {"finder": "activation"}),
    ),
    "scale": (
        ("scale", {}),
        *(("scale", {"k": value}) for value in (3, 30)),
        ("scale", {"finder": "activation"}),
        *(("scale", {"factor": value}) for value in (-3.0, 3.0)),
    ),
}
"""Options that are tried, by method. `kept` is of the study: how many scenes must stay."""


@dataclass(frozen=True)
class Job:
    """One edit.

    Attributes:
        kind: what it is for.
        name: of the method, as the tables have it.
        method: of `mmn.edit`.
        options: of the method.
        source: the word.
        to: what is said instead, or None.
        kept: how many scenes must stay; 0 for the pictures of the package instead.
    """

    kind: str
    name: str
    method: str
    options: Mapping[str, object]
    source: str
    to: str | None
    kept: int = KEPT

    @property
    def key(self) -> str:
        """What tells it from others."""
        return json.dumps([self.kind, self.name, self.source, self.to])


def words(vlm: mmn.VLM) -> list[str]:
    """Names of one token and of things that are counted, in random order."""
    assert vlm.processor is not None
    tokenizer = vlm.processor.tokenizer
    own = [
        concept.name
        for concept in read_concepts()
        if concept.number == "count"
        and " " not in concept.name
        and len(tokenizer(f" {concept.name}", add_special_tokens=False)["input_ids"]) == 1
    ]
    random.Random("words").shuffle(own)
    return own


def pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """What is said instead of what, in the swaps that are reported."""
    rest = [name for name in names if name not in DEVELOPED]
    return list(zip(rest[0::2], rest[1::2], strict=False))[:SWAPS]


def jobs(names: Sequence[str]) -> Iterator[Job]:
    """What is measured, the most important first. Nothing is reported of words on which choices were made."""
    own = pairs(names)
    for source, to in own:
        yield Job("swap", "least squares", "least_squares", {}, source, to)
    for source, _ in own[:SUPPRESSED]:
        yield Job("suppress", "least squares", "least_squares", {}, source, None)
    # pair by pair, so that all methods have the same pairs wherever it is stopped
    for source, _ in own[:SUPPRESSED]:
        for name in QUICK:
            yield Job("suppress rival", name, *RIVALS[name], source, None)
    for source, _ in own[:COMPARED]:
        for name in [name for name in RIVALS if name not in QUICK]:
            yield Job("suppress rival", name, *RIVALS[name], source, None)
    for source, to in own[:COMPARED]:
        for margin in MARGINS:
            yield Job("margin", f"least squares, margin {margin:g}", "least_squares", {"margin": margin}, source, to)
    for source, to in own[:COMPARED]:
        for name, (method, options) in RIVALS.items():
            yield Job("rival", name, method, options, source, to)


def swept(names: Sequence[str]) -> Iterator[Job]:
    """Every method's options, pair by pair, on words of which nothing is reported."""
    rest = [name for name in names if name not in DEVELOPED]
    for source, to in zip(DEVELOPED, rest, strict=False):
        for title, tried in SWEPT.items():
            for method, given in tried:
                options = {name: value for name, value in given.items() if name != "kept"}
                own = _name(given)
                kept = given.get("kept", KEPT)
                assert isinstance(kept, int)
                yield Job(f"sweep: {title}", own, method, options, source, to, kept)


def defaults(title: str) -> list[str]:
    """Names of what is swept of a method and is its default."""
    return [
        _name(given)
        for method, given in SWEPT[title]
        if "kept" not in given and make_method(method, given) == make_method(method, {})
    ]


def _name(given: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {_told(value)}" for name, value in given.items()) or "default"


def _told(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
