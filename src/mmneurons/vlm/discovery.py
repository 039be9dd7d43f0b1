"""Finding the parts of a language model by the shape of its module tree.

Nothing that is found here is believed before ``mmneurons.vlm.measurement.measure`` has seen it on a forward.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from mmneurons.errors import AnatomyError
from mmneurons.vlm.anatomy import Anatomy, Block, Experts, Head, Norm, WriteSite
from mmneurons.vlm.families import FAMILIES, OUT_OF_REACH
from mmneurons.vlm.weights import own_weight

__all__ = ["find_anatomy", "norm_of", "norms_in"]

_NOT_FFN = re.compile(
    r"Attention|Attn|Mamba|DeltaNet|ShortConv|Conv1d|Indexer|Adapter|Cross(?!AttentionDecoderLayer)|Router|Gate$|LoRA"
)
_NOT_TEXT = re.compile(r"vision|visual|image|cross|expert|audio|abstractor|resampler|qformer")
_LAST = re.compile(r"(down_proj|fc2|w2|wo|c_proj|dense_4h_to_h|output\.dense|linear_2|fc_out)$")
_FINAL = re.compile(r"norm|ln_f|(final_)?layer_?norm|embedding_norm")
_DEPTHS = ("num_hidden_layers", "decoder_layers", "num_decoder_layers", "n_layer", "num_layers")
_WIDTHS = (
    "intermediate_size",
    "ffn_dim",
    "decoder_ffn_dim",
    "d_ff",
    "n_inner",
    "ffn_hidden_size",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "intermediate_size_mlp",
    "dense_intermediate_size",
)


def find_anatomy(model: PreTrainedModel) -> Anatomy:
    """Find the parts of a model's language model.

    The decoder is what ``get_decoder`` gives, followed to its end. Its blocks are the list of modules that is as long
    as the text configuration says. In a block, a write site is a linear map into the hidden width, outside attention,
    with a partner near by that maps the hidden width to its own input width, or to twice that (a fused gate); or a
    module that holds such maps for many experts in one tensor. The paths are left as they are in the plainest model.

    Raises:
        AnatomyError: some part was not found, or more than one module could be it.
    """
    if (reason := OUT_OF_REACH.get(model.config.model_type)) is not None:
        raise AnatomyError(f"Models of type {model.config.model_type!r} cannot be studied: {reason}.")
    names = {id(module): name for name, module in model.named_modules()}
    decoder = _decoder(model)
    text_config = _text_config(model, decoder)
    hidden = _hidden(decoder, text_config)
    layers_name, layers = _blocks(decoder, text_config)
    prefix = ".".join(part for part in (names[id(decoder)], layers_name) if part)
    holder = prefix.rpartition(".")[0]
    blocks = tuple(
        Block(f"{prefix}.{index}", _sites(layer, f"{prefix}.{index}", hidden, text_config))
        for index, layer in enumerate(layers)
    )
    head = _head(model)
    bias = [name for name, _ in model.named_buffers() if name.endswith("final_logits_bias")]
    return Anatomy(
        decoder=holder,
        blocks=blocks,
        norm=_final_norm(model.get_submodule(holder), names),
        head=Head(
            names[id(head)],
            softcap=getattr(text_config, "final_logit_softcapping", None),
            bias=bias[0] if len(bias) == 1 else None,
            transform=_transform(model, names[id(head)]),
        ),
        hidden=hidden,
    )


def norms_in(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The norms below a module, by the names of their classes, with their dotted names."""
    for name, child in module.named_modules():
        weights = list(child.parameters(recurse=False))
        if "norm" in type(child).__name__.lower() and all(weight.dim() <= 1 for weight in weights):
            yield name, child


def norm_of(module: nn.Module, name: str) -> Norm:
    """What kind of norm a module is, found out by what it makes of two streams.

    Raises:
        AnatomyError: it does not say what its epsilon is, or has no weight.
    """
    eps = next((getattr(module, key) for key in ("variance_epsilon", "eps", "epsilon") if hasattr(module, key)), None)
    if eps is None or not isinstance(getattr(module, "weight", None), Tensor):
        raise AnatomyError(f"{name} ({type(module).__name__}) does not say what its epsilon and its weight are.")
    kind = "layer" if isinstance(module, nn.LayerNorm) or _takes_mean_away(module) else "rms"
    offset = 1.0 if kind == "rms" and _is_offset(module) else 0.0
    return Norm(name, kind=kind, eps=float(eps), offset=offset)


def _decoder(model: PreTrainedModel) -> nn.Module:
    decoder, seen = model.get_decoder(), set()
    while hasattr(decoder, "get_decoder") and id(decoder) not in seen:
        seen.add(id(decoder))
        decoder = decoder.get_decoder() or decoder
    return decoder


def _text_config(model: PreTrainedModel, decoder: nn.Module) -> PretrainedConfig:
    """The decoder's own configuration, which a composite model's may not lead to."""
    own = getattr(decoder, "config", None)
    if isinstance(own, PretrainedConfig) and not hasattr(own, "text_config"):
        return own
    return model.config.get_text_config(decoder=True)


def _head(model: PreTrainedModel) -> nn.Module:
    head = model.get_output_embeddings()
    family = FAMILIES.get(model.config.model_type)
    if head is None and family is not None and family.head is not None:
        head = model.get_submodule(family.head)
    if not isinstance(head, nn.Module):
        raise AnatomyError(f"{type(model).__name__} names no output head. State it with anatomy=….")
    return head


def _transform(model: PreTrainedModel, head: str) -> str | None:
    """What BERT puts before its head, where the model has that."""
    name = f"{head.rpartition('.')[0]}.transform"
    parts = {child for child, _ in model.get_submodule(head.rpartition(".")[0]).named_children()}
    if "transform" not in parts or "." not in head:
        return None
    own = {child for child, _ in model.get_submodule(name).named_children()}
    return name if {"dense", "transform_act_fn", "LayerNorm"} <= own else None


def _hidden(decoder: nn.Module, config: PretrainedConfig) -> int:
    for key in ("hidden_size", "d_model", "n_embd", "embed_dim"):
        if isinstance(getattr(config, key, None), int):
            return getattr(config, key)
    raise AnatomyError(f"The text configuration of {type(decoder).__name__} does not say how wide its stream is.")


def _blocks(decoder: nn.Module, config: PretrainedConfig) -> tuple[str, nn.ModuleList]:
    depths = [getattr(config, key) for key in _DEPTHS if isinstance(getattr(config, key, None), int)]
    if getattr(config, "is_encoder_decoder", False):
        depths = [getattr(config, key) for key in ("decoder_layers", "num_decoder_layers") if hasattr(config, key)]
    lists = [
        (name, module)
        for name, module in decoder.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) in depths and not _NOT_TEXT.search(name)
    ]
    if not lists:
        raise AnatomyError(f"{type(decoder).__name__} holds no list of {depths} decoder blocks.")
    shallowest = min(name.count(".") for name, _ in lists)
    lists = [(name, module) for name, module in lists if name.count(".") == shallowest]
    if len(lists) > 1:
        found = ", ".join(name for name, _ in lists)
        raise AnatomyError(f"Several lists in {type(decoder).__name__} could be the decoder blocks: {found}.")
    return lists[0]


def _sites(layer: nn.Module, name: str, hidden: int, config: PretrainedConfig) -> tuple[WriteSite, ...]:
    others = [child for child, module in layer.named_modules() if child and _NOT_FFN.search(type(module).__name__)]
    mixtures = _mixtures(layer, name, hidden, others)
    inside = [site.module.removeprefix(f"{name}.") for site in mixtures]
    linear = {
        child: shape
        for child, module in layer.named_modules()
        if (shape := _linear_shape(module)) and not any(_inside(child, other) for other in (*others, *inside))
    }
    found = {child for child, shape in linear.items() if shape[1] == hidden and _partners(child, linear)}
    shared = {child for child in found if "shared" in child}
    for rule in (
        lambda child: linear[child][0] in {getattr(config, key, None) for key in _WIDTHS},
        lambda child: _LAST.search(child) is not None,
    ):
        # several: a map that feeds something else into the stream looks the same (Gemma 4's per-layer inputs)
        if len(found - shared) > 1:
            found = {child for child in found if child in shared or rule(child)} or found
    if len(found - shared) > 1 or (not found and not mixtures):
        seen = ", ".join(sorted(found)) or "none"
        raise AnatomyError(f"{name} should have one write site, a linear map that ends its FFN; found: {seen}.")
    sites, start = [], 0
    dense = (_dense(layer, name, child, linear) for child in sorted(found, key=lambda child: child in shared))
    for site in (*mixtures, *dense):
        sites.append(WriteSite(**{**vars(site), "start": start}))
        start += site.width
    return tuple(sites)


def _dense(layer: nn.Module, name: str, site: str, linear: dict[str, tuple[int, int]]) -> WriteSite:
    return WriteSite(
        module=f"{name}.{site}",
        width=linear[site][0],
        transposed=type(layer.get_submodule(site)).__name__ == "Conv1D",
        gate=_gate(layer, name, site, linear),
    )


def _mixtures(layer: nn.Module, name: str, hidden: int, others: list[str]) -> list[WriteSite]:
    """The modules that hold the weights of many experts in one tensor."""
    sites = []
    for child, module in layer.named_modules():
        weights = [key for key, weight in module.named_parameters(recurse=False) if weight.dim() == 3]
        if not weights or any(_inside(child, other) for other in others):
            continue
        kind = type(module).__name__
        own = getattr(module, "down_proj", None)
        layout = "routed" if hasattr(module, "_apply_gate") else "sorted" if kind == "Llama4TextExperts" else None
        if layout is None or not isinstance(own, Tensor) or own.dim() != 3:
            raise AnatomyError(
                f"{name}.{child} ({kind}) is a mixture of experts of a kind that is not supported: its weights are "
                f"{', '.join(weights)}."
            )
        if getattr(module, "has_bias", False) or getattr(module, "has_post_expert_norm", False):
            raise AnatomyError(f"{name}.{child} ({kind}) has experts with biases or norms, which are not supported.")
        transposed = layout == "sorted" or bool(getattr(module, "is_transposed", False))
        count, width = own.shape[0], own.shape[1 if transposed else 2]
        if own.shape[2 if transposed else 1] != hidden:
            raise AnatomyError(f"{name}.{child} does not write into the stream: its weight is {tuple(own.shape)}.")
        experts = Experts(count, width, transposed, layout)
        sites.append(WriteSite(f"{name}.{child}", count * width, experts=experts, parameter="down_proj"))
    return sites


def _linear_shape(module: nn.Module) -> tuple[int, int] | None:
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return module.get_parameter("weight").shape[0], module.get_parameter("weight").shape[1]
    taken, given = getattr(module, "in_features", None), getattr(module, "out_features", None)
    return (taken, given) if isinstance(taken, int) and isinstance(given, int) else None


def _partners(site: str, linear: dict[str, tuple[int, int]]) -> list[str]:
    width, hidden = linear[site]
    parent = site.rpartition(".")[0]
    for near in dict.fromkeys([parent, parent.rpartition(".")[0]]):
        others = [other for other in linear if other != site and (not near or other.startswith(f"{near}."))]
        fitting = [other for other in others if linear[other][0] == hidden and linear[other][1] in (width, 2 * width)]
        if fitting and width > 1:
            return fitting
    return []


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


def _final_norm(holder: nn.Module, names: dict[int, str]) -> Norm | None:
    """The norm beside the list of blocks; none in post-norm models."""
    norms = {
        child: module
        for child, module in holder.named_children()
        if "norm" in type(module).__name__.lower() and "emb" not in child.replace("embedding_norm", "")
    }
    if len(norms) > 1:
        norms = {child: module for child, module in norms.items() if _FINAL.fullmatch(child)} or norms
    if len(norms) > 1:
        raise AnatomyError(f"{type(holder).__name__} should have one norm before its head; found: {', '.join(norms)}.")
    return next((norm_of(module, names[id(module)]) for module in norms.values()), None)


def _takes_mean_away(module: nn.Module) -> bool:
    return bool(_respond(module, 3.0).abs().max() < 1e-3 * _respond(module, None).abs().max())


def _is_offset(module: nn.Module) -> bool:
    """Gemma's norms store the gain less one."""
    weight = own_weight(module).float()
    response = _respond(module, 1.0)
    return bool((response - (1 + weight)).abs().max() < (response - weight).abs().max())


def _respond(module: nn.Module, constant: float | None) -> Tensor:
    """What the norm makes of a constant stream, or of one that alternates between 1 and -1."""
    weight = own_weight(module)
    probe = torch.ones_like(weight) if constant is None else torch.full_like(weight, constant)
    if constant is None:
        probe[1::2] = -1
    with torch.no_grad():
        bias = module(torch.zeros_like(probe)[None, None])[0, 0]
        return (module(probe[None, None])[0, 0] - bias).float()
