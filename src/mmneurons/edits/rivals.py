"""What others do to have a model say something else: no learning, or no edit at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mmneurons.edits.edit import Delta
from mmneurons.edits.forms import all_forms, with_capital
from mmneurons.edits.neurons import best_neurons, by_block
from mmneurons.edits.solution import Solution, settings
from mmneurons.edits.task import Task
from mmneurons.errors import OptionError
from mmneurons.options import check_whole
from mmneurons.vlm.readout import readout
from mmneurons.vlm.sites import columns as columns_of
from mmneurons.vlm.spellings import respelled, spelled

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

    def __call__(self, task: Task) -> Solution:
        """Write the edit down."""
        return Solution(_scaled(task, best_neurons(task, self.finder, self.k), self.factor - 1), settings(self))


@dataclass(frozen=True)
class Ban:
    """No edit: generation may not say the word, whatever tokens spell it (``bad_words_ids``); no weight changes.

    Of spellings that are not the tokenizer's own those of at most four tokens are banned, and none that has neither a
    blank before it nor a capital: it would be the end of other words.
    """

    def __call__(self, task: Task) -> Solution:
        """Spell them: all forms, in lower case, capitals and with a capital, with and without a blank before them."""
        tokenizer = getattr(task.vlm.processor, "tokenizer", None)
        assert tokenizer is not None
        swap, vocabulary = task.swap, tokenizer.get_vocab()
        forms = swap.spellings | (all_forms(swap.source) if swap.inflections else frozenset())
        joined = forms | {form.replace(" ", "-") for form in forms}
        texts = {
            before + written
            for form in joined
            for written in (form, with_capital(form), form.title(), form.upper())
            for before in ("", " ")
        }
        own = {spelled(tokenizer, text) for text in texts}
        others = {one for text in texts if not text[0].islower() for one in respelled(tokenizer, vocabulary, text)}
        return Solution((), settings(self), tuple(sorted(own | others)))


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
