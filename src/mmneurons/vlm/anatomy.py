"""Where things are in a model: blocks, write sites, the paths of what they write, the final norm and the head.

``mmneurons.vlm.discovery`` finds the parts by the shape of the module tree; ``mmneurons.vlm.measurement`` runs the
model once and fills in the paths that it saw.

A path is what lies between a write and the final norm. What a block's FFN gives may be normed before it is added (Gemma
2), the sum may be normed after it (BERT), the stream may be multiplied by a constant (Granite) and a write by a gate
(Qwen3.5's shared expert). With the norms' statistics and the gates held at what they were at a position, all of it is
linear there.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from mmneurons.errors import AnatomyError

__all__ = ["Anatomy", "Block", "Experts", "Gate", "Head", "Norm", "Path", "Write", "WriteSite"]


@dataclass(frozen=True)
class Norm:
    """A norm that the stream, or what is written into it, goes through.

    Attributes:
        module: its dotted name in the model.
        kind: "rms" or "layer" (which takes the mean away).
        eps: what is added to the mean square or the variance.
        offset: what is added to the stored weight to give the gain (1 in Gemma, otherwise 0).
        gain: the constants that what it gives is multiplied by on the way to the final norm, as measured.
    """

    module: str
    kind: str
    eps: float
    offset: float = 0.0
    gain: float = 1.0


@dataclass(frozen=True)
class Gate:
    """A number that a write is multiplied by, which depends on the stream: the sigmoid of what a module gives.

    Attributes:
        module: the dotted name of the module.
    """

    module: str


@dataclass(frozen=True)
class Path:
    """How a write gets to the final norm.

    Attributes:
        norms: the norms that it goes through before it is added to the stream, in order.
        carriers: how many of ``Anatomy.carriers`` lie behind it: it goes through those from this number on.
        gain: the product of all constants on the way, as measured.
        gate: what else it is multiplied by.
    """

    norms: tuple[Norm, ...] = ()
    carriers: int = 0
    gain: float = 1.0
    gate: Gate | None = None

    @property
    def plain(self) -> bool:
        """Whether it is nothing but a constant."""
        return not self.norms and self.gate is None


@dataclass(frozen=True)
class Write:
    """A module, other than an FFN, whose output is added to the residual stream.

    Attributes:
        module: its dotted name in the model.
        path: how its output gets to the final norm, as measured.
    """

    module: str
    path: Path = Path()


@dataclass(frozen=True)
class Experts:
    """That a write site is a mixture of experts, with the weights of all experts in one tensor.

    Attributes:
        count: how many experts.
        width: the number of neurons of each.
        transposed: the weight is stored (experts, width, hidden) instead of (experts, hidden, width).
        layout: "routed": called with the tokens, the experts chosen and the factors, by which it multiplies what it
            gives; "sorted": called with every token for every expert, already multiplied by the factor (Llama 4).
    """

    count: int
    width: int
    transposed: bool
    layout: str


@dataclass(frozen=True)
class WriteSite:
    """The last linear map of an FFN: its columns are the output vectors of neurons.

    Attributes:
        module: its dotted name in the model; that of the module that holds the experts' weights in a mixture.
        width: the number of neurons, of all experts.
        start: the column of its first neuron among those of the block.
        transposed: the weight is stored (width, hidden), as in GPT-2's Conv1D.
        gate: the dotted name of the activation function of a gated FFN, whose output is the gate alone; None where
            the FFN has no gate, or it cannot be heard.
        path: how its output gets to the final norm, as measured.
        experts: for a mixture of experts.
        parameter: the weight's name in the module.
    """

    module: str
    width: int
    start: int = 0
    transposed: bool = False
    gate: str | None = None
    path: Path = Path()
    experts: Experts | None = None
    parameter: str = "weight"

    @property
    def columns(self) -> slice:
        """Its neurons among those of the block."""
        return slice(self.start, self.start + self.width)


@dataclass(frozen=True)
class Block:
    """One decoder layer.

    Attributes:
        module: its dotted name.
        sites: its write sites, in the order of its columns: experts first, then shared ones. Most blocks have one.
        writes: what else is written into the stream from the block before it on.
    """

    module: str
    sites: tuple[WriteSite, ...]
    writes: tuple[Write, ...] = ()

    @property
    def width(self) -> int:
        """The number of its neurons."""
        return sum(site.width for site in self.sites)

    @property
    def gated(self) -> bool:
        """Whether the gate of every neuron can be heard."""
        return all(site.gate for site in self.sites)


@dataclass(frozen=True)
class Head:
    """The output head: logits = softcap · tanh(scale · (U norm(h) + bias) / softcap); without a cap, no tanh.

    Attributes:
        module: its dotted name.
        scale: a constant that the logits are multiplied by.
        softcap: the bound of a soft-cap, or None.
        bias: the dotted name of a buffer that is added to the logits besides (BART), or None.
        transform: the dotted name of a dense layer, an activation function and a norm before the head (BERT), or None.
    """

    module: str
    scale: float = 1.0
    softcap: float | None = None
    bias: str | None = None
    transform: str | None = None


@dataclass(frozen=True)
class Anatomy:
    """Where the parts of the language model of a vision-language model are.

    Attributes:
        decoder: the dotted name of the module that holds the blocks and the final norm.
        blocks: the decoder layers, in order.
        norm: the final norm; None where the head reads the stream as it is, because the last carrier normed it.
        head: the output head.
        hidden: the width of the residual stream.
        carriers: the norms that the whole stream goes through on its way (post-norm models), in order.
        entry: how what enters block 0 gets to the final norm.
    """

    decoder: str
    blocks: tuple[Block, ...]
    norm: Norm | None
    head: Head
    hidden: int
    carriers: tuple[Norm, ...] = ()
    entry: Path = Path()

    @property
    def width(self) -> int:
        """The number of neurons of the widest block."""
        return max(block.width for block in self.blocks)

    @property
    def neurons(self) -> int:
        """The number of neurons of all blocks."""
        return sum(block.width for block in self.blocks)

    @property
    def end(self) -> str:
        """The module whose input is the residual stream before the final norm: the norm, or else the head."""
        return (self.head.transform or self.head.module) if self.norm is None else self.norm.module

    @property
    def norms(self) -> tuple[Norm, ...]:
        """All norms on the paths, each once: the carriers, then those of single writes."""
        own = {norm.module: norm for path in self.paths for norm in path.norms}
        return (*self.carriers, *own.values())

    @property
    def gates(self) -> tuple[Gate, ...]:
        """All gates on the paths, each once."""
        return tuple(dict.fromkeys(path.gate for path in self.paths if path.gate is not None))

    @property
    def paths(self) -> Iterator[Path]:
        """The paths of all writes."""
        for block in self.blocks:
            for part in (*block.writes, *block.sites):
                yield part.path

    def site(self, block: int, column: int) -> WriteSite:
        """The write site that a neuron belongs to.

        Raises:
            AnatomyError: there is no such neuron.
        """
        self.name(block, column)
        return next(site for site in reversed(self.blocks[block].sites) if site.start <= column)

    def name(self, block: int, column: int) -> str:
        """The name of a neuron: ``L27.u1234``, in a mixture of experts ``L27.e3.u12``.

        Shared experts, and dense FFNs beside a mixture, count as experts behind the routed ones.

        Raises:
            AnatomyError: there is no such neuron.
        """
        layer, expert, unit = self.place(block, column)
        return f"L{layer}.u{unit}" if expert is None else f"L{layer}.e{expert}.u{unit}"

    def place(self, block: int, column: int) -> tuple[int, int | None, int]:
        """The block, the expert (None where there is one dense FFN) and the unit of a column.

        Raises:
            AnatomyError: there is no such neuron.
        """
        if not 0 <= block < len(self.blocks):
            raise AnatomyError(f"There is no block {block}: this model has blocks 0 to {len(self.blocks) - 1}.")
        width = self.blocks[block].width
        if not 0 <= column < width:
            raise AnatomyError(f"There is no unit {column} in block {block}: its units are 0 to {width - 1}.")
        groups = self._experts(block)
        if len(groups) == 1:
            return block, None, column
        expert = next(index for index, (_, end) in enumerate(groups) if column < end)
        return block, expert, column - groups[expert][0]

    def parse(self, name: str) -> tuple[int, int]:
        """The block and the column of a neuron's name.

        Raises:
            AnatomyError: the name is not a neuron's, or there is no such neuron.
        """
        match = re.fullmatch(r"L(\d+)(?:\.e(\d+))?\.u(\d+)", name)
        if match is None:
            raise AnatomyError(f"{name!r} does not name a neuron. A name looks like L27.u1234: block 27, unit 1234.")
        block, expert, unit = int(match[1]), match[2], int(match[3])
        self.name(block, 0)
        groups = self._experts(block)
        if (expert is None) != (len(groups) == 1):
            how = f"L{block}.e0.u{unit}" if expert is None else f"L{block}.u{unit}"
            raise AnatomyError(f"Neurons of block {block} are named like {how}, not {name}.")
        start, end = groups[int(expert or 0)] if int(expert or 0) < len(groups) else (0, 0)
        if unit >= end - start:
            raise AnatomyError(f"There is no neuron {name}: block {block} has {len(groups)} × {groups[0][1]} units.")
        return block, start + unit

    def _experts(self, block: int) -> list[tuple[int, int]]:
        """The first column, and the one behind the last, of every expert of a block."""
        groups = []
        for site in self.blocks[block].sites:
            size = site.width if site.experts is None else site.experts.width
            groups += [(start, start + size) for start in range(site.start, site.start + site.width, size)]
        return groups
