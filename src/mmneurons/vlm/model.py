"""A vision-language model with what we know of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel, ProcessorMixin

from mmneurons.vlm.anatomy import Anatomy
from mmneurons.vlm.sites import dtype, plain

if TYPE_CHECKING:
    from mmneurons.neurons import Neuron

__all__ = ["VLM"]


@dataclass(frozen=True, eq=False)
class VLM:
    """A vision-language model of transformers, unchanged, with its processor and its anatomy.

    Attributes:
        model: the transformers model itself.
        processor: the transformers processor itself; None where ``inputs`` are given by hand.
        anatomy: where its blocks, write sites, final norm and head are, as measured when it was loaded.
        name: what it was loaded from.
    """

    model: PreTrainedModel
    processor: ProcessorMixin | None
    anatomy: Anatomy
    name: str

    @property
    def device(self) -> torch.device:
        """Where the model takes its inputs."""
        embeddings = self.model.get_input_embeddings()
        weight = getattr(embeddings, "weight", None)
        if isinstance(weight, torch.Tensor) and weight.device.type != "meta":
            return weight.device
        return torch.device(getattr(getattr(embeddings, "_hf_hook", None), "execution_device", None) or "cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the write sites, in which the neurons' activations are computed."""
        return dtype(self.model, self.anatomy.blocks[0].sites[0])

    @property
    def quantised(self) -> bool:
        """Whether some write site's weight is no ordinary matrix, so that its columns are asked for, not read."""
        return not all(plain(self.model, site) for block in self.anatomy.blocks for site in block.sites)

    @property
    def rounding(self) -> float:
        """How far two ways to compute the same may be apart, relative to what was added up.

        That of the dtype; of a quantised model at least that of eight bits, to which its kernels may round inputs.
        """
        own = torch.finfo(self.dtype).eps
        return max(own, 2.0**-8) if self.quantised else own

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether the prompt and the picture are read by an encoder, and the decoder begins with a token of its own."""
        config = self.model.config
        text = config.get_text_config(decoder=True)
        return any(bool(getattr(one, "is_encoder_decoder", False)) for one in (config, text))

    @property
    def image_token_id(self) -> int | None:
        """The id of the token that stands for a part of a picture."""
        config = self.model.config
        for key in ("image_token_id", "image_token_index"):
            if isinstance(getattr(config, key, None), int):
                return getattr(config, key)
        return None

    def neuron(self, block: int | str, column: int | None = None) -> Neuron:
        """One neuron, by its block and column or by its name.

        Raises:
            AnatomyError: there is no such neuron.
        """
        from mmneurons.neurons import Neuron

        place = self.anatomy.parse(block) if isinstance(block, str) else (block, 0 if column is None else column)
        if isinstance(block, int) and column is None:
            raise TypeError("vlm.neuron takes a block and a column, or a name such as 'L27.u1234'")
        return Neuron(self, *place)

    def __repr__(self) -> str:
        blocks, width = len(self.anatomy.blocks), self.anatomy.width
        kind, dtype = type(self.model).__name__, str(self.dtype).removeprefix("torch.")
        return f"VLM({self.name!r}: {kind}, {blocks} blocks of {width} neurons, {dtype})"
