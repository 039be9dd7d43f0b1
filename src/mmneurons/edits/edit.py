"""An edit: what is added to the output vectors of some neurons, how it came about, and which model it fits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmneurons.errors import OptionError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from os import PathLike
    from pathlib import Path

    from mmneurons.edits.checkpoint import Merged
    from mmneurons.vlm.model import VLM

__all__ = ["ASKED", "KEPT", "QUALITY", "SEEN", "TEXTS", "Delta", "Edit"]

KEPT = "kept captions"
"""What ``measured`` has under this name: how many captions that must stay would be changed, of how many."""

QUALITY = "quality"
"""What ``measured`` has under this name: the figures of ``mmn measure --edit`` or ``mmn mitigate``, by name."""

SEEN = "seen"
"""What the recipe has under this name: what tells the pictures that were given to learn from or keep.

The ``pixel_digest`` of a picture, or ``picture_of`` a recording where that was given."""

TEXTS = "texts"
"""What the recipe has under this name: the prompts without a picture that were given to learn from or keep."""

ASKED = ("prompt", "prefix", "max_new_tokens")
"""What the recipe has under these names: how the captions came about that were learned from."""


@dataclass(frozen=True, eq=False)
class Delta:
    """What is added to columns of one block: ``W[:, columns[k]] += weights[k] @ directions``.

    Attributes:
        block: their block.
        columns: among those of the block, in ascending order, each once.
        weights: how much of every direction each column gets, float32. The identity where each has its own.
        directions: float32.
    """

    block: int
    columns: Int[Tensor, "neurons"]
    weights: Float[Tensor, "neurons rank"]
    directions: Float[Tensor, "rank hidden"]

    def __post_init__(self) -> None:
        ordered = self.columns.tolist()
        if not ordered or ordered != sorted(set(ordered)):
            raise OptionError("The columns of a delta are in ascending order, each once, and there is at least one.")

    @property
    def vectors(self) -> Float[Tensor, "neurons hidden"]:
        """What each column gets. Where each has its own direction, or all have one, no sum is rounded."""
        return self.weights @ self.directions

    @classmethod
    def of_vectors(cls, block: int, columns: Int[Tensor, "neurons"], vectors: Float[Tensor, "neurons hidden"]) -> Delta:
        """Columns with a direction of their own each."""
        return cls(block, columns, torch.eye(len(columns)), vectors)


@dataclass(frozen=True, eq=False)
class Edit:
    """A set of output-vector changes, with the recipe, the model that it fits and what was measured.

    Attributes:
        deltas: one for a block, in the order of the blocks; none where only words are banned.
        recipe: how it came about, as JSON has it: source, target, method, options, requests.
        model: the model that it fits, as JSON has it: its name, class, and the fingerprint of its unedited weights.
        measured: what was measured of it, as JSON has it; ``"kept captions"`` is how many of the captions that must
            stay it would change, seen when it was made.
        converged: whether the solver got as far as it was asked to.
        banned: token sequences that generation must not say; a rival of edits, not one.
    """

    deltas: tuple[Delta, ...]
    recipe: Mapping[str, object]
    model: Mapping[str, object]
    measured: Mapping[str, object] = field(default_factory=dict)
    converged: bool = True
    banned: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        blocks = [delta.block for delta in self.deltas]
        if blocks != sorted(set(blocks)):
            raise OptionError("The deltas of an edit are one for a block, in the order of the blocks.")

    @property
    def edit_id(self) -> str:
        """32 hex digits that tell this edit's changes from others: of the same changes of the same model the same."""
        digest = hashlib.sha256()
        digest.update(json.dumps([self.model.get("fingerprint"), self.banned]).encode())
        for delta in self.deltas:
            digest.update(f"{delta.block} {tuple(delta.weights.shape)}".encode())
            for tensor in (delta.columns.long(), delta.weights, delta.directions):
                digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:32]

    @property
    def neurons(self) -> tuple[tuple[int, int], ...]:
        """Block and column of every neuron that is changed."""
        return tuple((delta.block, column) for delta in self.deltas for column in delta.columns.tolist())

    @property
    def kept_changed(self) -> tuple[int, int] | None:
        """How many captions that must stay were found to change, of how many; None where that was not measured."""
        kept = self.measured.get(KEPT)
        if not isinstance(kept, Mapping):
            return None
        changed, of = kept.get("changed"), kept.get("of")
        return (changed, of) if isinstance(changed, int) and isinstance(of, int) else None

    def given(self, name: str) -> frozenset[str]:
        """What the recipe, and of several edits as one that of each, has under ``SEEN`` or ``TEXTS``."""
        return frozenset(_listed(self.recipe, name))

    def on(self, vlm: VLM, force: bool = False) -> AbstractContextManager[None]:
        """Have the edit in force while the block runs; afterwards every bit is as it was: ``edits.stack``."""
        from mmneurons.edits.stack import applied

        return applied(vlm, self, force)

    def apply(self, vlm: VLM, force: bool = False) -> None:
        """Put the edit into the model's weights, until it is reverted. See ``mmneurons.edits.stack.apply``."""
        from mmneurons.edits.stack import apply

        apply(vlm, self, force)

    def revert(self, vlm: VLM) -> None:
        """Take the edit out of the model's weights. See ``mmneurons.edits.stack.revert``."""
        from mmneurons.edits.stack import revert

        revert(vlm, self)

    def save(self, path: str | PathLike[str]) -> None:
        """Write one safetensors file. See ``mmneurons.edits.file``."""
        from mmneurons.edits.file import save

        save(self, path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Edit:
        """Read a file that ``save`` wrote. See ``mmneurons.edits.file``."""
        from mmneurons.edits.file import load

        return load(path)

    def to_peft(self, folder: str | PathLike[str], vlm: VLM | None = None, force: bool = False) -> Path:
        """Write a LoRA adapter that peft loads; the folder. See ``mmneurons.edits.peft``.

        Without a model the one that the edit names is loaded, for the names of its modules.
        """
        from mmneurons.edits.peft import to_peft
        from mmneurons.edits.shipping import check_folder
        from mmneurons.vlm.loading import load

        if vlm is None:
            check_folder(folder)
            vlm = load(str(self.model["name"]))
        return to_peft(self, vlm, folder, force)

    def merge(self, vlm: VLM, folder: str | PathLike[str], force: bool = False) -> Merged:
        """Write a whole checkpoint with the edit in its weights. See ``mmneurons.edits.checkpoint``."""
        from mmneurons.edits.checkpoint import merge

        return merge(self, vlm, folder, force)

    def __repr__(self) -> str:
        source, to = self.recipe.get("source"), self.recipe.get("to")
        what = f"{source!r} → {to!r}" if to is not None else f"without {source!r}"
        count = len(self.deltas)
        where = f"{len(self.neurons)} neurons of {count} block{'' if count == 1 else 's'}" if count else "banned words"
        kept = self.kept_changed
        said = f", {kept[0]} of {kept[1]} kept captions changed" if kept is not None and kept[1] else ""
        missed = "" if self.converged else ", not converged"
        own = f"{what}, {self.recipe.get('method')}"
        if isinstance(parts := self.recipe.get("edits"), list):
            own = f"{len(parts)} edits as one"
        elif (title := self.recipe.get("title")) is not None:
            own = f"{title}, {self.recipe.get('method')}"
        return f"Edit({own}, {where}{missed}{said})"


def _listed(recipe: Mapping[str, object], name: str) -> Iterator[str]:
    own, parts = recipe.get(name), recipe.get("edits")
    yield from (one for one in own if isinstance(one, str)) if isinstance(own, list | tuple) else ()
    for part in parts if isinstance(parts, list | tuple) else ():
        if isinstance(part, Mapping):
            yield from _listed(part, name)
