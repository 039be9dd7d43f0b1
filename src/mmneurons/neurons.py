"""Neurons by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index

import torch
from jaxtyping import Float
from torch import Tensor

from mmneurons.errors import OptionError
from mmneurons.promotion import PromotedBy, promoted_tokens
from mmneurons.table import NeuronRow, NeuronTable
from mmneurons.vlm.model import VLM
from mmneurons.vlm.paths import gain_of
from mmneurons.vlm.pictures import PictureLike
from mmneurons.vlm.recording import Recording, image_activations
from mmneurons.vlm.sites import columns

__all__ = ["Neuron", "NeuronActivations", "NeuronRow", "NeuronTable", "Neurons", "output_vectors", "places_of"]


@dataclass(frozen=True)
class NeuronActivations:
    """How active one neuron is on one picture.

    Attributes:
        caption: what was said.
        steps: its activation at every emitting position.
        image: its activation at every image token.
    """

    caption: str
    steps: Float[Tensor, "steps"]
    image: Float[Tensor, "image"]


@dataclass(frozen=True, eq=False)
class Neuron:
    """One unit of an FFN."""

    vlm: VLM
    block: int
    column: int

    def __post_init__(self) -> None:
        self.vlm.anatomy.name(self.block, self.column)

    @property
    def name(self) -> str:
        """Its name, such as ``L27.u1234``."""
        return self.vlm.anatomy.name(self.block, self.column)

    @property
    def output_vector(self) -> Float[Tensor, "hidden"]:
        """What one unit of its activation adds to the residual stream, as the weights are now."""
        return output_vectors(self.vlm, [(self.block, self.column)])[0]

    def promotes(self, k: int = 10, sign: int = 1, by: PromotedBy = "cosine") -> tuple[str, ...]:
        """The tokens that it makes likelier while it is positive (``sign=1``) or negative (``sign=-1``)."""
        return promoted_tokens(self.vlm, self.output_vector[None] * sign, k, by)[0]

    def activations(
        self, pictures: PictureLike | list[PictureLike] | tuple[PictureLike, ...]
    ) -> NeuronActivations | list[NeuronActivations]:
        """How active it is while the model captions a picture; for a list of pictures a list."""
        from mmneurons.recordings import record

        def of(recording: Recording) -> NeuronActivations:
            return NeuronActivations(
                caption=recording.caption,
                steps=recording.activations[:, self.block, self.column],
                image=image_activations(self.vlm, recording, [(self.block, self.column)])[0],
            )

        recordings = record(self.vlm, pictures)
        return of(recordings) if isinstance(recordings, Recording) else [of(recording) for recording in recordings]

    def __repr__(self) -> str:
        return f"Neuron({self.name} of {self.vlm.name})"


Neurons = NeuronTable | Sequence[tuple[int, int] | str | NeuronRow | Neuron]
"""Neurons as people name them: block and column of each, their names, or what ``top`` gives."""


def places_of(vlm: VLM, neurons: Neurons) -> list[tuple[int, int]]:
    """Block and column of each neuron, however it is named.

    Raises:
        OptionError: something is no neuron.
        AnatomyError: this model has no such neuron.
    """
    try:
        return [_place(vlm, neuron) for neuron in ([neurons] if isinstance(neurons, str) else neurons)]
    except TypeError as error:
        raise OptionError(
            f"{neurons!r} is no list of neurons: pass found['dog'].top(20), found['dog'].neurons(20), or a list."
        ) from error


def _place(vlm: VLM, neuron: tuple[int, int] | str | NeuronRow | Neuron) -> tuple[int, int]:
    if isinstance(neuron, str):
        return vlm.anatomy.parse(neuron)
    if isinstance(neuron, NeuronRow):
        return vlm.anatomy.parse(neuron.neuron)
    if isinstance(neuron, Neuron):
        neuron = neuron.block, neuron.column
    try:
        block, column = (index(part) for part in neuron)
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"{neuron!r} is no neuron: pass its block and column, such as (29, 1022), or its name, 'L29.u1022'."
        ) from error
    vlm.anatomy.name(block, column)
    return block, column


def output_vectors(vlm: VLM, neurons: Sequence[tuple[int, int]]) -> Float[Tensor, "neurons hidden"]:
    """What one unit of activation of each neuron adds to the residual stream, as it arrives at the final norm.

    Where norms lie on the way (see ``mmneurons.vlm.anatomy.Path``), their weights are applied and their statistics,
    which differ from position to position and stretch a vector as a whole, are left out; likewise gates.
    """
    vectors = []
    for block, column in neurons:
        site = vlm.anatomy.site(block, column)
        vector = columns(vlm.model, site, [column - site.start])[0] * site.path.gain
        for norm in (*site.path.norms, *vlm.anatomy.carriers[site.path.carriers :]):
            vector = vector - vector.mean() if norm.kind == "layer" else vector
            vector = vector * gain_of(vlm.model, norm)
        vectors.append(vector)
    return torch.stack(vectors) if vectors else torch.zeros(0, vlm.anatomy.hidden)
