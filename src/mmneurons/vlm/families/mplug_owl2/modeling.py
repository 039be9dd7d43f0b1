"""mPLUG-Owl2's model: a Llama some of whose parts are there twice, for text and for image positions.

In every decoder layer the two norms, the keys and the values have two sets of weights (``multiway.0`` text,
``multiway.1`` image); queries, outputs and the FFN are shared, so ``mlp.down_proj`` is the write site as in any Llama.
A picture is 1024 patches and a class token, of which the abstractor makes 64 queries; the position of its end counts as
image, too. What is generated is text. Parameter names are those of the published checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import LlamaForCausalLM, LlamaModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import TransformersKwargs

from mmneurons.vlm.families.mplug_owl2.configuration import MPLUGOwl2Config

__all__ = ["Abstractor", "MPLUGOwl2ForConditionalGeneration", "MPLUGOwl2Model", "VisionModel"]


class _Places:
    """Which positions of the forward that is under way are a picture's; None where none are."""

    image: Bool[Tensor, "batch length"] | None = None


class Multiway(nn.Module):
    """Two copies of a layer: the first for text positions, the second for image positions."""

    def __init__(self, make: Callable[[], nn.Module], places: _Places) -> None:
        """Make both, with ``make``; where is which, ``places`` says while the model runs."""
        super().__init__()
        self.multiway = nn.ModuleList([make(), make()])
        # not a module's attribute: it is shared, and no part of the state
        self.__dict__["places"] = places

    def forward(self, x: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch length given"]:
        """Each position through its own copy."""
        text, image = self.multiway[0](x), self.__dict__["places"].image
        if image is None:
            return text
        return torch.where(image[..., None], self.multiway[1](x), text)


class _VisionLayer(nn.Module):
    def __init__(self, settings: dict) -> None:
        super().__init__()
        width, inner, eps = settings["hidden_size"], settings["intermediate_size"], settings["layer_norm_eps"]
        self.heads = settings["num_attention_heads"]
        self.self_attn = nn.ModuleDict(
            {"query_key_value": nn.Linear(width, 3 * width), "dense": nn.Linear(width, width)}
        )
        self.input_layernorm = nn.LayerNorm(width, eps=eps)
        self.post_attention_layernorm = nn.LayerNorm(width, eps=eps)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})
        self.act = ACT2FN[settings["hidden_act"]]

    def forward(self, x: Float[Tensor, "batch patches width"]) -> Float[Tensor, "batch patches width"]:
        batch, count, width = x.shape
        fused = self.self_attn["query_key_value"](self.input_layernorm(x))
        # the published weights have query, key and value head by head
        query, key, value = fused.view(batch, count, self.heads, 3, width // self.heads).permute(3, 0, 2, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        x = x + self.self_attn["dense"](attended.transpose(1, 2).reshape(batch, count, width))
        return x + self.mlp["fc2"](self.act(self.mlp["fc1"](self.post_attention_layernorm(x))))


class _VisionEmbeddings(nn.Module):
    def __init__(self, settings: dict) -> None:
        super().__init__()
        width, patch = settings["hidden_size"], settings["patch_size"]
        count = (settings["image_size"] // patch) ** 2 + 1
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.patch_embed = nn.Conv2d(3, width, patch, patch, bias=False)
        self.position_embedding = nn.Parameter(torch.zeros(1, count, width))
        self.pre_layernorm = nn.LayerNorm(width, eps=settings["layer_norm_eps"])

    def forward(self, pixel_values: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch patches hidden"]:
        patches = self.patch_embed(pixel_values).flatten(2).transpose(1, 2)
        whole = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], 1)
        return self.pre_layernorm(whole + self.position_embedding)


class VisionModel(nn.Module):
    """A ViT with norms before, within and behind; all positions are given on, the class token's first."""

    def __init__(self, settings: dict) -> None:
        """Of these settings."""
        super().__init__()
        self.embeddings = _VisionEmbeddings(settings)
        layers = nn.ModuleList([_VisionLayer(settings) for _ in range(settings["num_hidden_layers"])])
        self.encoder = nn.ModuleDict({"layers": layers})
        self.post_layernorm = nn.LayerNorm(settings["hidden_size"], eps=settings["layer_norm_eps"])

    def forward(self, pixel_values: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch patches hidden"]:
        """The features of every patch."""
        x = self.embeddings(pixel_values)
        for layer in self.encoder["layers"].children():
            x = layer(x)
        return self.post_layernorm(x)


class _Attention(nn.Module):
    """What the queries attend with: to themselves and to the patches, with positions added to queries and keys."""

    def __init__(self, settings: dict) -> None:
        super().__init__()
        width, patches = settings["hidden_size"], settings["encoder_hidden_size"]
        self.heads = settings["num_attention_heads"]
        self.query = nn.Linear(width, width)
        self.key, self.value = nn.Linear(patches, width), nn.Linear(patches, width)
        places = torch.arange(settings["num_learnable_queries"])
        self.register_buffer("q_pos_embed", _waves(width, places))
        self.register_buffer("k_pos_embed", _grid_waves(width, settings["grid_size"]))

    def forward(
        self, query: Float[Tensor, "batch queries width"], whole: Float[Tensor, "batch all width"]
    ) -> Float[Tensor, "batch queries width"]:
        places = torch.cat([self.get_buffer("q_pos_embed"), self.get_buffer("k_pos_embed")])
        asked = self._split(self.query(query + self.get_buffer("q_pos_embed")))
        keys, values = self._split(self.key(whole + places)), self._split(self.value(whole))
        return nn.functional.scaled_dot_product_attention(asked, keys, values).transpose(1, 2).flatten(2)

    def _split(self, x: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch heads length part"]:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class _FeedForward(nn.Module):
    def __init__(self, width: int, inner: int, eps: float) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = nn.Linear(width, inner), nn.Linear(inner, width), nn.Linear(width, inner)
        self.ffn_ln = nn.LayerNorm(inner, eps=eps)

    def forward(self, x: Float[Tensor, "batch queries width"]) -> Float[Tensor, "batch queries width"]:
        return self.w2(self.ffn_ln(nn.functional.silu(self.w1(x)) * self.w3(x)))


class _CrossLayer(nn.Module):
    def __init__(self, settings: dict) -> None:
        super().__init__()
        patches = settings["encoder_hidden_size"]
        self.attention = _Attention(settings)
        self.norm1, self.normk = nn.LayerNorm(patches), nn.LayerNorm(patches)
        mlp = _FeedForward(settings["hidden_size"], settings["intermediate_size"], settings["layer_norm_eps"])
        self.output = nn.ModuleDict(
            {"out_proj": nn.Linear(patches, patches), "norm2": nn.LayerNorm(patches), "mlp": mlp}
        )

    def forward(
        self, query: Float[Tensor, "batch queries width"], patches: Float[Tensor, "batch patches width"]
    ) -> Float[Tensor, "batch queries width"]:
        # what is carried on starts at the query as it was normed
        query = self.norm1(query)
        whole = torch.cat([query, self.normk(patches)], 1)
        x = query + self.output["out_proj"](self.attention(query, whole))
        return x + self.output["mlp"](self.output["norm2"](x))


class Abstractor(nn.Module):
    """From patches to a fixed number of queries in the language model's width, and one for the picture's end."""

    def __init__(self, settings: dict, hidden: int) -> None:
        """Of these settings, into a stream of this width."""
        super().__init__()
        width = settings["hidden_size"]
        self.query_embeds = nn.Parameter(torch.zeros(1, settings["num_learnable_queries"], width))
        self.vit_eos = nn.Parameter(torch.zeros(1, 1, hidden))
        layers = [
            nn.ModuleDict({"crossattention": _CrossLayer(settings)}) for _ in range(settings["num_hidden_layers"])
        ]
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self.visual_fc = nn.Linear(width, hidden)

    def forward(self, patches: Float[Tensor, "batch patches width"]) -> Float[Tensor, "batch positions hidden"]:
        """The embeddings of a picture's positions."""
        query = self.query_embeds.expand(len(patches), -1, -1)
        for layer in self.encoder["layers"].children():
            query = layer.get_submodule("crossattention")(query, patches)
        return torch.cat([self.visual_fc(query), self.vit_eos.expand(len(query), -1, -1)], 1)


class MPLUGOwl2Model(LlamaModel):
    """The decoder with the vision model and the abstractor."""

    config_class = MPLUGOwl2Config
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq"]  # noqa: RUF012 - as transformers has it

    def __init__(self, config: MPLUGOwl2Config) -> None:
        """Of a configuration."""
        super().__init__(config)
        self.__dict__["places"] = _Places()
        for layer in self.layers:
            for name in ("input_layernorm", "post_attention_layernorm"):
                setattr(layer, name, self._twice(getattr(layer, name), config))
            for name in ("k_proj", "v_proj"):
                setattr(layer.self_attn, name, self._twice(getattr(layer.self_attn, name), config))
        self.vision_model = VisionModel(config.visual_model)
        self.visual_abstractor = Abstractor(config.visual_abstractor, config.hidden_size)
        self.post_init()

    def _twice(self, part: nn.Module, config: MPLUGOwl2Config) -> Multiway:
        def make() -> nn.Module:
            if isinstance(part, nn.Linear):
                return nn.Linear(part.in_features, part.out_features, bias=part.bias is not None)
            return type(part)(config.hidden_size, eps=config.rms_norm_eps)

        return Multiway(make, self.__dict__["places"])

    def get_image_features(
        self, pixel_values: Float[Tensor, "pictures 3 height width"]
    ) -> Float[Tensor, "pictures positions hidden"]:
        """The embeddings of the positions of pictures."""
        return self.visual_abstractor(self.vision_model(pixel_values))

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"] | None = None,
        pixel_values: Float[Tensor, "pictures 3 height width"] | None = None,
        inputs_embeds: Float[Tensor, "batch length hidden"] | None = None,
        **options: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """Run it; ids of ``config.image_token_id`` stand for the positions of pictures, in order.

        Raises:
            ValueError: pictures and placeholders do not fit.
        """
        image = None
        if inputs_embeds is None and input_ids is not None:
            image = input_ids == self.config.image_token_id
            inputs_embeds = self.embed_tokens(input_ids.masked_fill(image, 0))
            assert inputs_embeds is not None
            features = None if pixel_values is None else self.get_image_features(pixel_values).to(inputs_embeds)
            count = 0 if features is None else features.shape[0] * features.shape[1]
            if count != int(image.sum()):
                raise ValueError(f"Image features and image tokens do not match: {count} and {int(image.sum())}.")
            if features is not None:
                inputs_embeds = inputs_embeds.masked_scatter(image[..., None], features)
        places: _Places = self.__dict__["places"]
        places.image = image if image is not None and bool(image.any()) else None
        try:
            return super().forward(inputs_embeds=inputs_embeds, **options)
        finally:
            places.image = None


class MPLUGOwl2ForConditionalGeneration(LlamaForCausalLM):
    """The model with its output head."""

    config_class = MPLUGOwl2Config
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq"]  # noqa: RUF012 - as transformers has it
    input_modalities = ["image", "text"]  # noqa: RUF012 - as transformers has it

    def __init__(self, config: MPLUGOwl2Config) -> None:
        """Of a configuration."""
        super().__init__(config)
        self.model = MPLUGOwl2Model(config)
        self.post_init()

    def prepare_inputs_for_generation(
        self,
        input_ids: Int[Tensor, "batch length"],
        pixel_values: Tensor | None = None,
        is_first_iteration: bool = False,
        **kwargs: object,
    ) -> dict:
        """As transformers' own; pictures go with the step that has their placeholders."""
        own: Any = super()
        prepared = own.prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        whole = is_first_iteration or not kwargs.get("use_cache", True)
        return {**prepared, "pixel_values": pixel_values if whole else None}


def _waves(width: int, places: Tensor) -> Float[Tensor, "places width"]:
    """Sines, then cosines, of places."""
    rates = 1.0 / 10000 ** (torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    turns = places.reshape(-1, 1).double() * rates
    return torch.cat([turns.sin(), turns.cos()], 1).float()


def _grid_waves(width: int, side: int) -> Float[Tensor, "places width"]:
    """Those of a square of patches, columns before rows; zeros for the class token."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    grid = torch.cat([_waves(width // 2, x), _waves(width // 2, y)], 1)
    return torch.cat([torch.zeros(1, width), grid])
