"""What the ways to ship an edit share: whether it fits, which write sites it changes, a folder that is whole or not."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jaxtyping import Float, Int
from torch import Tensor

from mmneurons.edits.edit import Edit
from mmneurons.errors import EditError
from mmneurons.vlm.anatomy import Anatomy, WriteSite
from mmneurons.vlm.fingerprint import fingerprint
from mmneurons.vlm.sites import split
from mmneurons.whole_files import why_unwritable

if TYPE_CHECKING:
    from mmneurons.vlm.model import VLM

__all__ = ["Part", "check_fits", "check_folder", "check_weights", "is_of", "new_folder", "parts"]


@dataclass(frozen=True, eq=False)
class Part:
    """What an edit does to one write site: ``W[:, units[k]] += weights[k] @ directions``.

    Attributes:
        site: the write site.
        units: its columns, counted from its first.
        weights: how much of every direction each of them gets.
        directions: the directions.
        vectors: what each of them gets: the product, as it is of the whole block.
    """

    site: WriteSite
    units: Int[Tensor, "neurons"]
    weights: Float[Tensor, "neurons rank"]
    directions: Float[Tensor, "rank hidden"]
    vectors: Float[Tensor, "neurons hidden"]

    @property
    def parameter(self) -> str:
        """The dotted name of the site's weight in the model."""
        return f"{self.site.module}.{self.site.parameter}"


def parts(edit: Edit, anatomy: Anatomy) -> tuple[Part, ...]:
    """What an edit does to every write site that it changes, in the order of the blocks."""
    found = []
    for delta in edit.deltas:
        columns, vectors = delta.columns.long().cpu(), delta.vectors.float().cpu()
        weights, directions = delta.weights.float().cpu(), delta.directions.float().cpu()
        for site, own, units in split(anatomy.blocks[delta.block], columns):
            found.append(Part(site, units, weights[own], directions, vectors[own]))
    return tuple(found)


def check_weights(edit: Edit) -> None:
    """See that an edit changes weights.

    Raises:
        EditError: it only bans words.
    """
    if not edit.deltas:
        raise EditError(
            "This edit bans words and changes nothing in the weights, so there is nothing to write. Use it with "
            "edit.on(vlm), or make an edit by another method."
        )


def check_fits(edit: Edit, vlm: VLM, force: bool = False) -> None:
    """See that an edit changes weights, and that they are this model's. A warning says what else it does.

    Args:
        edit: the edit.
        vlm: the model.
        force: whether it may be another model's of the same shapes, or the same model's with edits in force.

    Raises:
        EditError: it changes no weights, has other shapes, holds NaN or infinity, or is of another model.
    """
    check_weights(edit)
    if edit.banned:
        warnings.warn("The edit bans words, too. Weights cannot: generate with bad_words_ids.", stacklevel=3)
    blocks, hidden = vlm.anatomy.blocks, vlm.anatomy.hidden
    misfit = f"The edit does not fit {vlm.name!r}: it is of {_named(edit)}, and"
    for delta in edit.deltas:
        if not 0 <= delta.block < len(blocks):
            raise EditError(f"{misfit} there is no block {delta.block} here, only blocks 0 to {len(blocks) - 1}.")
        width = blocks[delta.block].width
        if not 0 <= int(delta.columns.min()) <= int(delta.columns.max()) < width:
            raise EditError(f"{misfit} block {delta.block} has units 0 to {width - 1}; others are to be changed.")
        if delta.directions.shape[1] != hidden:
            raise EditError(f"{misfit} its vectors have {delta.directions.shape[1]} numbers, the stream {hidden}.")
        if not bool(delta.vectors.isfinite().all()):
            raise EditError(f"The edit's change of block {delta.block} holds NaN or infinity. Make it anew.")
    names = defaultdict(list)
    for name, weight in vlm.model.named_parameters(remove_duplicate=False):
        names[id(weight)].append(name)
    changed = {part.parameter for part in parts(edit, vlm.anatomy)}
    if twice := [own for own in names.values() if len(own) > 1 and changed & {*own}]:
        raise EditError(f"{twice[0][0]} is also {twice[0][1]}, and the files would have to hold it twice.")
    if getattr(vlm.model, "_hf_peft_config_loaded", False):
        raise EditError(f"{vlm.name!r} has adapters of peft in it. Load the model without them, or merged.")
    if not force and not is_of(edit, vlm):
        raise EditError(
            f"The edit is of {_named(edit)}; the weights of {vlm.name!r} are others, or an edit is in force in them. "
            "Load that model, withdraw what is in force, or pass force=True."
        )


def is_of(edit: Edit, vlm: VLM) -> bool:
    """Whether the weights of a model, as they are now, are those that an edit was made of.

    Raises:
        EditError: they are stored in a way that has no fingerprint.
    """
    try:
        return edit.model.get("fingerprint") == fingerprint(vlm.model)
    except NotImplementedError as error:
        raise EditError(
            f"The weights of {vlm.name!r} are stored in a way that has no fingerprint. Pass force=True to write the "
            "edit without comparing it."
        ) from error


def check_folder(folder: str | os.PathLike[str]) -> None:
    """See that something new can be written there. Nothing is made.

    Raises:
        EditError: it is a file, a link, a folder that holds something, or one that cannot be replaced or written.
    """
    path = Path(folder)
    if path.is_symlink() or os.path.ismount(path) or path.resolve() == Path.cwd():
        # what is written gets the folder's name when it is whole
        raise EditError(f"{str(path)!r} is a link, a mount, or where you are. Choose the name of a new folder.")
    if path.is_dir():
        if any(path.iterdir()):
            raise EditError(f"The folder {str(path)!r} holds other files. Choose an empty folder, or a new one.")
    elif path.exists():
        raise EditError(f"{str(path)!r} is a file. Choose an empty folder, or a new one.")
    if why := why_unwritable(path):
        raise EditError(f"{str(path)!r} cannot be written: {why}. Choose another folder.")


@contextmanager
def new_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder of another name to write to, which gets its own when the block ends well, and goes when it does not.

    Raises:
        EditError: there is something of that name, or it cannot be written.
    """
    check_folder(folder)
    path = Path(folder)
    building = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        yield building
        building.chmod(0o755)
        if path.is_dir():
            path.rmdir()
        building.rename(path)
    except OSError as error:
        raise EditError(f"{str(path)!r} cannot be written: {error}. Nothing was left there.") from error
    finally:
        if building is not None:
            shutil.rmtree(building, ignore_errors=True)


def _named(edit: Edit) -> str:
    print_ = edit.model.get("fingerprint")
    return f"{edit.model.get('name')!r} with the fingerprint {str(print_)[:12]}…"
