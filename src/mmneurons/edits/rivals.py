"""What others do to have a model say something else: no learning, or no edit at all."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mmneurons.edits.edit import Delta
from mmneurons.edits.forms import all_forms, with_capital
from mmneurons.edits.neurons import best_neurons, by_block, check_choice
from mmneurons.edits.solution import Solution, settings
from mmneurons.edits.task import Swap, Task
from mmneurons.errors import OptionError
from mmneurons.options import check_whole
from mmneurons.vlm.model import VLM
from mmneurons.vlm.readout import readout
from mmneurons.vlm.sites import columns as columns_of
from mmneurons.vlm.spellings import spellings

__all__ = ["Ban", "Erase", "KnowledgeNeurons", "Scale"]


@dataclass(frozen=True)
class KnowledgeNeurons:
    """δ = λ·(u_target − u_source) for the best neurons (Dai et al., ACL 2022; λ = 2 in EasyEdit).

    Only a word's first token counts, and the unembedding stands for the embedding, as the two are tied in most models.
    To have a word not said δ = −λ·u_source.

    Attributes:
        k: how many neurons.
        finder: what chooses them.
        factor: λ.
    """

    k: int = 10
    finder: str = "integrated_gradients"
    factor: float = 2.0

    def __post_init__(self) -> None:
        check_whole("k", self.k)

    def check(self, vlm: VLM) -> None:
        """Refuse neurons that the model does not have."""
        check_choice(vlm, self.finder, self.k)

    def __call__(self, task: Task) -> Solution:
        """Write the edit down."""
        want = task.wants[0]
        rows, _ = readout(task.vlm).rows(torch.tensor([want.now] if want.target is None else [want.now, want.target]))
        direction = self.factor * (-rows[0] if want.target is None else rows[1] - rows[0])
        deltas = [
            Delta(block, columns, torch.ones(len(columns), 1), direction[None])
            for block, columns in by_block(best_neurons(task, self.finder, self.k))
        ]
        return Solution(tuple(deltas), settings(self))


@dataclass(frozen=True)
class Erase:
    """The output vectors of the best neurons become zero; what is said instead is not asked for.

    Attributes:
        k: how many neurons.
        finder: what chooses them.
    """

    k: int = 10
    finder: str = "contribution"

    def __post_init__(self) -> None:
        check_whole("k", self.k)

    def check(self, vlm: VLM) -> None:
        """Refuse neurons that the model does not have."""
        check_choice(vlm, self.finder, self.k)

    def __call__(self, task: Task) -> Solution:
        """Write the edit down."""
        return Solution(_scaled(task, best_neurons(task, self.finder, self.k), -1.0), settings(self))


@dataclass(frozen=True)
class Scale:
    """The output vectors of the best neurons are multiplied by a factor.

    Attributes:
        k: how many neurons.
        finder: what chooses them.
        factor: below 0 they work against the word.
    """

    k: int = 10
    finder: str = "contribution"
    factor: float = -1.0

    def __post_init__(self) -> None:
        check_whole("k", self.k)
        if self.factor == 1:
            raise OptionError("factor=1 changes nothing.")

    def check(self, vlm: VLM) -> None:
        """Refuse neurons that the model does not have."""
        check_choice(vlm, self.finder, self.k)

    def __call__(self, task: Task) -> Solution:
        """Write the edit down."""
        return Solution(_scaled(task, best_neurons(task, self.finder, self.k), self.factor - 1), settings(self))


@dataclass(frozen=True)
class Ban:
    """No edit: generation may not say the word (``bad_words_ids``); no weight changes.

    Of spellings that are not the tokenizer's own those of at most four tokens are banned, see
    ``mmneurons.vlm.spellings``. Longer words that are written with the word's tokens cannot be said either: "snowman"
    and "manatee" where "man" is banned.
    """

    def __call__(self, task: Task) -> Solution:
        """Spell them: all forms, in lower case, capitals and with a capital, with and without a blank before them."""
        tokenizer = getattr(task.vlm.processor, "tokenizer", None)
        assert tokenizer is not None
        return Solution((), settings(self), tuple(sorted(spellings(tokenizer, _written(task.swap)))))


def _written(swap: Swap) -> frozenset[str]:
    """All forms of a word, however it is joined, in lower case, in capitals, and with a capital."""
    forms = swap.spellings | (all_forms(swap.source) if swap.inflections else frozenset())
    joined = {mark.join(re.split(r"[\s-]+", form)) for form in forms for mark in " -"} | forms
    joined |= {form.replace("'", "’") for form in joined}
    return frozenset(text for form in joined for text in (form, with_capital(form), form.title(), form.upper()))


def _scaled(task: Task, places: Sequence[tuple[int, int]], factor: float) -> tuple[Delta, ...]:
    """Columns as they are, times a factor, as what is added to them."""
    deltas = []
    for block, columns in by_block(places):
        rows: list[Float[Tensor, "hidden"]] = []
        for column in columns.tolist():
            site = task.vlm.anatomy.site(block, column)
            rows.append(columns_of(task.vlm.model, site, [column - site.start])[0] * factor)
        deltas.append(Delta.of_vectors(block, columns, torch.stack(rows)))
    return tuple(deltas)
