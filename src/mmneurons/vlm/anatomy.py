"""Where things are in a model: blocks, write sites, the final norm and the head. Found by one rule, measured elsewhere.

``find_anatomy`` reads the module tree and the shapes of its weights; nothing it finds is believed before
``mmneurons.vlm.measurement.measure`` has seen it on a forward.
"""

import re
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from mmneurons.errors import AnatomyError

__all__ = ["Anatomy", "Block", "FinalNorm", "Head", "Write", "WriteSite", "find_anatomy"]


@dataclass(frozen=True)
class Write:
    """A module, other than the FFN, whose output is added to the residual stream.

    Attributes:
        module: its dotted name in the model.
        gain: what its output is multiplied by on the way to the final norm, as measured.
    """

    module: str
    gain: float = 1.0


@dataclass(frozen=True)
class WriteSite:
    """The last linear map of a block's FFN: its columns are the output vectors of the block's neurons.

    Attributes:
        module: its dotted name in the model.
        width: the number of neurons.
        transposed: the weight is stored (width, hidden), as in GPT-2's Conv1D.
        gate: the dotted name of the activation function of a gated FFN, whose output is the gate alone; None where
            the FFN has no gate.
        gain: what its output is multiplied by on the way to the final norm, as measured.
    """

    module: str
    width: int
    transposed: bool = False
    gate: str | None = None
    gain: float = 1.0

    def weight(self, model: nn.Module) -> Float[Tensor, "hidden width"]:
        """The weight whose columns are the output vectors before ``gain``; a view, not a copy."""
        weight = model.get_submodule(self.module).get_parameter("weight")
        return weight.T if self.transposed else weight

    def bias(self, model: nn.Module) -> Float[Tensor, "hidden"] | None:
        """The bias that is written whatever the neurons do, if there is one."""
        return getattr(model.get_submodule(self.module), "bias", None)


@dataclass(frozen=True)
class Block:
    """One decoder layer: what it is called, its FFN, and what else it writes into the stream."""

    module: str
    ffn: WriteSite
    writes: tuple[Write, ...]


@dataclass(frozen=True)
class FinalNorm:
    """The norm between the residual stream and the head.

    Attributes:
        module: its dotted name.
        kind: "rms" or "layer" (which takes the mean away).
        eps: what is added to the mean square or the variance.
        offset: what is added to the stored weight to give the gain (1 in Gemma, otherwise 0).
    """

    module: str
    kind: str
    eps: float
    offset: float = 0.0


@dataclass(frozen=True)
class Head:
    """The output head: logits = softcap · tanh(scale · (U norm(h) + bias) / softcap); without a cap, no tanh.

    Attributes:
        module: its dotted name.
        scale: a constant that the logits are multiplied by.
        softcap: the bound of a soft-cap, or None.
    """

    module: str
    scale: float = 1.0
    softcap: float | None = None


@dataclass(frozen=True)
class Anatomy:
    """Where the parts of the language model of a vision-language model are.

    Attributes:
        decoder: the dotted name of the module that holds the blocks and the final norm.
        blocks: the decoder layers, in order.
        norm: the final norm.
        head: the output head.
        hidden: the width of the residual stream.
        entry_gain: what the stream entering block 0 is multiplied by on the way to the final norm, as measured.
    """

    decoder: str
    blocks: tuple[Block, ...]
    norm: FinalNorm
    head: Head
    hidden: int
    entry_gain: float = 1.0

    @property
    def width(self) -> int:
        """The number of neurons of the widest FFN."""
        return max(block.ffn.width for block in self.blocks)

    def name(self, block: int, column: int) -> str:
        """The name of a neuron, ``L27.u1234``.

        Raises:
            AnatomyError: there is no such neuron.
        """
        if not 0 <= block < len(self.blocks):
            raise AnatomyError(f"There is no block {block}: this model has blocks 0 to {len(self.blocks) - 1}.")
        width = self.blocks[block].ffn.width
        if not 0 <= column < width:
            raise AnatomyError(f"There is no unit {column} in block {block}: its units are 0 to {width - 1}.")
        return f"L{block}.u{column}"

    def parse(self, name: str) -> tuple[int, int]:
        """The block and the column of a neuron's name.

        Raises:
            AnatomyError: the name is not a neuron's, or there is no such neuron.
        """
        match = re.fullmatch(r"L(\d+)\.u(\d+)", name)
        if match is None:
            raise AnatomyError(f"{name!r} does not name a neuron. A name looks like L27.u1234: block 27, unit 1234.")
        block, column = int(match[1]), int(match[2])
        self.name(block, column)
        return block, column


_NOT_FFN = re.compile(r"Attention|Attn|Mamba|DeltaNet|ShortConv|Conv1d|Indexer|Adapter|Cross|Router|Gate$|LoRA|Norm")
_ATTENTION = re.compile(r"Attention|Attn")
_NOT_TEXT = re.compile(r"vision|visual|image|cross|expert|audio|abstractor|resampler|qformer")
_DEPTHS = ("num_hidden_layers", "decoder_layers", "num_decoder_layers", "n_layer", "num_layers")


def find_anatomy(model: PreTrainedModel) -> Anatomy:
    """Find the parts of a model's language model by the shape of its module tree.

    The decoder is what ``get_decoder`` gives, followed to its end. Its blocks are the list of modules that is as long
    as the text configuration says. In a block, a write site is a linear map into the hidden width, outside attention,
    with a partner that maps the hidden width to its own input width, or to twice that (a fused gate).

    Raises:
        AnatomyError: some part was not found, or more than one module could be it.
    """
    names = {id(module): name for name, module in model.named_modules()}
    decoder = _decoder(model)
    text_config = model.config.get_text_config(decoder=True)
    hidden = _hidden(decoder, text_config)
    layers_name, layers = _blocks(decoder, text_config)
    prefix = ".".join(part for part in (names[id(decoder)], layers_name) if part)
    blocks = tuple(_block(layer, f"{prefix}.{index}", hidden) for index, layer in enumerate(layers))
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Module):
        raise AnatomyError(f"{type(model).__name__} names no output head. State it with anatomy=….")
    return Anatomy(
        decoder=names[id(decoder)],
        blocks=blocks,
        norm=_norm(decoder, names),
        head=Head(names[id(head)], softcap=getattr(text_config, "final_logit_softcapping", None)),
        hidden=hidden,
    )


def with_gains(block: Block, ffn: float, writes: tuple[float, ...]) -> Block:
    """The block with the gains that were measured."""
    return replace(
        block,
        ffn=replace(block.ffn, gain=ffn),
        writes=tuple(replace(write, gain=gain) for write, gain in zip(block.writes, writes, strict=True)),
    )


def _decoder(model: PreTrainedModel) -> nn.Module:
    decoder, seen = model.get_decoder(), set()
    while hasattr(decoder, "get_decoder") and id(decoder) not in seen:
        seen.add(id(decoder))
        decoder = decoder.get_decoder() or decoder
    return decoder


def _hidden(decoder: nn.Module, config: PretrainedConfig) -> int:
    for key in ("hidden_size", "d_model", "n_embd"):
        if isinstance(getattr(config, key, None), int):
            return getattr(config, key)
    raise AnatomyError(f"The text configuration of {type(decoder).__name__} does not say how wide its stream is.")


def _blocks(decoder: nn.Module, config: PretrainedConfig) -> tuple[str, nn.ModuleList]:
    depth = next((getattr(config, key) for key in _DEPTHS if isinstance(getattr(config, key, None), int)), None)
    lists = [
        (name, module)
        for name, module in decoder.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth and not _NOT_TEXT.search(name)
    ]
    if not lists:
        raise AnatomyError(f"{type(decoder).__name__} holds no list of {depth} decoder blocks.")
    shallowest = min(name.count(".") for name, _ in lists)
    lists = [(name, module) for name, module in lists if name.count(".") == shallowest]
    if len(lists) > 1:
        found = ", ".join(name for name, _ in lists)
        raise AnatomyError(f"Several lists in {type(decoder).__name__} could be the decoder blocks: {found}.")
    return lists[0]


def _block(layer: nn.Module, name: str, hidden: int) -> Block:
    outside_ffn = [child for child, module in layer.named_modules() if child and _NOT_FFN.search(type(module).__name__)]
    linear = {
        child: shape
        for child, module in layer.named_modules()
        if (shape := _linear_shape(module)) and not any(_inside(child, other) for other in outside_ffn)
    }
    sites = {child: shape[0] for child, shape in linear.items() if shape[1] == hidden and _partners(child, linear)}
    if any(parameter.dim() == 3 for child, parameter in layer.named_parameters() if "expert" in child):
        raise AnatomyError(f"{name} is a mixture of experts, which is not supported yet.")
    if len(sites) != 1:
        found = ", ".join(sites) or "none"
        raise AnatomyError(f"{name} should have one write site, a linear map that ends its FFN; found: {found}.")
    (site, width), *_ = sites.items()
    attention = [child for child, module in layer.named_modules() if child and _ATTENTION.search(type(module).__name__)]
    outermost = [child for child in attention if not any(child.startswith(f"{other}.") for other in attention)]
    return Block(
        module=name,
        ffn=WriteSite(
            module=f"{name}.{site}",
            width=width,
            transposed=type(layer.get_submodule(site)).__name__ == "Conv1D",
            gate=_gate(layer, name, site, linear),
        ),
        writes=tuple(Write(f"{name}.{child}") for child in outermost),
    )


def _linear_shape(module: nn.Module) -> tuple[int, int] | None:
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return module.get_parameter("weight").shape[0], module.get_parameter("weight").shape[1]
    taken, given = getattr(module, "in_features", None), getattr(module, "out_features", None)
    return (taken, given) if isinstance(taken, int) and isinstance(given, int) else None


def _partners(site: str, linear: dict[str, tuple[int, int]]) -> list[str]:
    width, hidden = linear[site]
    parent = site.rpartition(".")[0]
    near = (other for other in linear if other != site and other.rpartition(".")[0] == parent)
    return [other for other in near if linear[other][0] == hidden and linear[other][1] in (width, 2 * width)]


def _gate(layer: nn.Module, name: str, site: str, linear: dict[str, tuple[int, int]]) -> str | None:
    partners = _partners(site, linear)
    width = linear[site][0]
    gated = len(partners) == 2 or any(linear[partner][1] == 2 * width for partner in partners)
    if not gated:
        return None
    parent = site.rpartition(".")[0]
    siblings = layer.get_submodule(parent).named_children() if parent else layer.named_children()
    functions = [child for child, module in siblings if "act" in child and not list(module.parameters())]
    return f"{name}.{parent}.{functions[0]}" if len(functions) == 1 else None


def _inside(child: str, other: str) -> bool:
    return child == other or child.startswith(f"{other}.")


def _norm(decoder: nn.Module, names: dict[int, str]) -> FinalNorm:
    norms = [
        (child, module)
        for child, module in decoder.named_children()
        if "norm" in type(module).__name__.lower() and "emb" not in child.replace("embedding_norm", "")
    ]
    if len(norms) != 1:
        found = ", ".join(child for child, _ in norms) or "none"
        raise AnatomyError(f"{type(decoder).__name__} should have one norm before its head; found: {found}.")
    _, module = norms[0]
    eps = next((getattr(module, key) for key in ("variance_epsilon", "eps", "epsilon") if hasattr(module, key)), None)
    if eps is None:
        raise AnatomyError(f"{type(module).__name__} does not say what its epsilon is.")
    kind = "layer" if isinstance(module, nn.LayerNorm) or _takes_mean_away(module) else "rms"
    offset = 1.0 if kind == "rms" and _is_offset(module) else 0.0
    return FinalNorm(names[id(module)], kind=kind, eps=float(eps), offset=offset)


def _takes_mean_away(module: nn.Module) -> bool:
    return bool(_respond(module, 3.0).abs().max() < 1e-3 * _respond(module, None).abs().max())


def _is_offset(module: nn.Module) -> bool:
    """Gemma's norms store the gain less one."""
    weight = module.get_parameter("weight").detach().float()
    response = _respond(module, 1.0)
    return bool((response - (1 + weight)).abs().max() < (response - weight).abs().max())


def _respond(module: nn.Module, constant: float | None) -> Tensor:
    """What the norm makes of a constant stream, or of one that alternates between 1 and -1."""
    weight = module.get_parameter("weight")
    probe = torch.ones_like(weight) if constant is None else torch.full_like(weight, constant)
    if constant is None:
        probe[1::2] = -1
    with torch.no_grad():
        bias = module(torch.zeros_like(probe)[None, None])[0, 0]
        return (module(probe[None, None])[0, 0] - bias).float()
