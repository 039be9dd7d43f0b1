"""A tiny random model of every family that is claimed, and inputs with a picture for each, made without a network.

``FAMILIES[name]()`` gives a ``Case``: a model whose weights are redrawn, so that no norm is 1 and no bias 0, and what
it gets for one picture and a few words.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import transformers as tf
from torch import Tensor
from transformers import PreTrainedModel

from mmneurons.vlm.families.mplug_owl2 import MPLUGOwl2Config, MPLUGOwl2ForConditionalGeneration

__all__ = ["FAMILIES", "Case", "opt", "queries", "redraw", "t5"]

IMAGE = 199
"""The id of the image placeholder, wherever the family has one."""


@dataclass
class Case:
    """A tiny model and what it is asked.

    Attributes:
        model: the model.
        inputs: a batch of one with a picture.
        text: whether the model also runs, in all its blocks, without a picture.
        build: what makes another like it.
        pictures: how many image tokens the decoder, or what it looks at, has.
        hooks: how many hooks the model has of its own.
        writes: how large what is written into the stream is. Less where the stream is normed after every write, which
            would otherwise leave nothing of the first blocks.
    """

    model: PreTrainedModel
    inputs: dict[str, Tensor] = field(default_factory=dict)
    text: bool = True
    build: Callable[[], "Case"] | None = None
    pictures: int = 4
    hooks: int = 0
    writes: float = 2.0


FAMILIES: dict[str, Callable[[], Case]] = {}

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
ROPE = {"rope_type": "default", "rope_theta": 1e4}
IDS = {"image_token_id": IMAGE, "video_token_id": 198, "vision_start_token_id": 197, "vision_end_token_id": 196}
GRIDS = [[28, 56], [56, 28], [56, 56]]


def text(**changes: object) -> dict:
    """The options of a tiny text model in the style of Llama."""
    return {
        "vocab_size": 200,
        "hidden_size": 64,
        "intermediate_size": 112,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **changes,
    }


def family(name: str) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    """Enter a builder under a name."""

    def enter(build: Callable[[], Case]) -> Callable[[], Case]:
        def made() -> Case:
            torch.manual_seed(0)
            case = build()
            redraw(case.model, case.writes)
            case.build = made
            return case

        FAMILIES[name] = made
        return made

    return enter


def redraw(model: PreTrainedModel, writes: float) -> None:
    """Draw every weight anew, so that activations are of order one, norms differ from 1 and biases from 0."""
    last = ("fc2.weight", "output.dense.weight", "out_proj.weight")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() > 1 and "embed" in name and "patch" not in name:
                weight.copy_(0.5 * noise)
            elif weight.dim() > 1:
                fan_in = weight[0].numel() if weight.dim() == 2 else math.prod(weight.shape[1:]) ** 0.5
                weight.copy_((writes if name.endswith(last) else 2) * noise / math.sqrt(fan_in))
            elif "norm" in name.lower() and name.endswith("weight"):
                weight.add_(0.2 * noise)
            elif name.endswith("bias") or weight.dim() == 0 or "gate" in name:
                weight.add_(0.3 * noise)
        for name, buffer in model.named_buffers():
            if name.endswith("layer_scalar"):
                buffer.mul_(0.7)
    model.tie_weights()
    ends(model)
    model.eval()


def ends(model: PreTrainedModel) -> None:
    """No token ends an answer, so that every case says as many as it is asked for."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and getattr(module, "generation_config", None) is not None:
            module.generation_config.eos_token_id = None
            module.generation_config.forced_eos_token_id = None
            module.generation_config.forced_bos_token_id = None


def noise(*shape: int) -> Tensor:
    """A picture's pixels, normalised."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def asked(
    count: int, pictures: dict[str, Tensor], before: tuple[int, ...] = (1, 5), **more: Tensor
) -> dict[str, Tensor]:
    """Ids with so many placeholders, and a picture's tensors."""
    ids = torch.tensor([[*before, *[IMAGE] * count, 6, 7, 8]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pictures, **more}


def counted(model: PreTrainedModel, pictures: dict[str, Tensor], **more: Tensor) -> Case:
    """A case with as many placeholders as the model makes features of the picture."""
    holder = model.model if hasattr(getattr(model, "model", None), "get_image_features") else model
    given = {name: value for name, value in pictures.items() if name != "pixel_attention_mask"}
    with torch.no_grad():
        features = holder.get_image_features(**given)
    features = getattr(features, "pooler_output", features)
    if isinstance(features, list | tuple):
        features = torch.cat([feature.reshape(-1, feature.shape[-1]) for feature in features])
    count = features.reshape(-1, features.shape[-1]).shape[0]
    return Case(model, asked(count, pictures, **more))


def pixels(size: int = 28) -> dict[str, Tensor]:
    """One square picture."""
    return {"pixel_values": noise(1, 3, size, size)}


def llava(config: object, kind: type = tf.LlavaForConditionalGeneration, wrap: type = tf.LlavaConfig, **more: object):
    """A LLaVA over a text model."""
    vision = tf.CLIPVisionConfig(**VISION, projection_dim=32)
    return kind(wrap(vision_config=vision, text_config=config, image_token_id=IMAGE, image_token_index=IMAGE, **more))


def over(name: str, config: Callable[[], object]) -> None:
    """Enter a LLaVA over a text model under ``llava/name``."""

    @family(f"llava/{name}")
    def build() -> Case:
        return counted(llava(config(), vision_feature_layer=-2), pixels())


@family("llava")
def _() -> Case:
    return counted(llava(tf.LlamaConfig(**text()), vision_feature_layer=-2), pixels())


@family("vipllava")
def _() -> Case:
    config = tf.LlamaConfig(**text())
    model = llava(config, tf.VipLlavaForConditionalGeneration, tf.VipLlavaConfig, vision_feature_layers=[-2, -1])
    return Case(model, asked(4, pixels()))


@family("llava_next")
def _() -> Case:
    config = tf.MistralConfig(**text(head_dim=16, sliding_window=None))
    model = llava(config, tf.LlavaNextForConditionalGeneration, tf.LlavaNextConfig, image_grid_pinpoints=GRIDS)
    pictures = {"pixel_values": noise(1, 3, 3, 28, 28), "image_sizes": torch.tensor([[28, 56]])}
    return counted(model, pictures)


@family("llava_onevision")
def _() -> Case:
    config = tf.LlavaOnevisionConfig(
        vision_config=tf.SiglipVisionConfig(**VISION),
        text_config=tf.Qwen2Config(**text()),
        image_token_id=IMAGE,
        image_token_index=IMAGE,
        video_token_id=198,
        video_token_index=198,
        image_grid_pinpoints=GRIDS,
    )
    pictures = {"pixel_values": noise(1, 3, 3, 28, 28), "image_sizes": torch.tensor([[28, 56]])}
    return counted(tf.LlavaOnevisionForConditionalGeneration(config), pictures)


@family("video_llava")
def _() -> Case:
    config = tf.VideoLlavaConfig(
        vision_config=tf.CLIPVisionConfig(**VISION, projection_dim=32),
        text_config=tf.LlamaConfig(**text()),
        image_token_index=IMAGE,
        image_token_id=IMAGE,
        video_token_index=198,
        video_token_id=198,
    )
    model = tf.VideoLlavaForConditionalGeneration(config)
    return Case(model, asked(4, {"pixel_values_images": noise(1, 3, 28, 28)}))


def paligemma(kind: str, **more: object) -> Case:
    config = tf.PaliGemmaConfig(
        text_config={"model_type": kind, "head_dim": 16, **text(), **more},
        vision_config={"model_type": "siglip_vision_model", **VISION},
        image_token_index=IMAGE,
        projection_dim=64,
    )
    case = counted(tf.PaliGemmaForConditionalGeneration(config), pixels())
    case.inputs["token_type_ids"] = torch.zeros_like(case.inputs["input_ids"])
    return case


@family("paligemma")
def _() -> Case:
    return paligemma("gemma")


@family("paligemma/gemma2")
def _() -> Case:
    return paligemma("gemma2", query_pre_attn_scalar=16)


@family("internvl")
def _() -> Case:
    config = tf.InternVLConfig(
        text_config={"model_type": "qwen2", **text()},
        vision_config={**VISION, "image_size": [56, 56], "patch_size": [14, 14]},
        image_token_id=IMAGE,
    )
    return counted(tf.InternVLForConditionalGeneration(config), pixels(56))


@family("mistral3")
def _() -> Case:
    config = tf.Mistral3Config(
        text_config={"model_type": "mistral", "head_dim": 16, **text()},
        vision_config={"model_type": "pixtral", **VISION, "image_size": 56, "head_dim": 8},
        image_token_index=IMAGE,
        image_token_id=IMAGE,
        spatial_merge_size=2,
    )
    return counted(tf.Mistral3ForConditionalGeneration(config), {**pixels(56), "image_sizes": torch.tensor([[56, 56]])})


@family("aya_vision")
def _() -> Case:
    config = tf.AyaVisionConfig(
        text_config={"model_type": "cohere2", "head_dim": 16, "sliding_window": 16, **text()},
        vision_config={"model_type": "siglip_vision_model", **VISION, "image_size": 56},
        image_token_index=IMAGE,
        downsample_factor=2,
        alignment_intermediate_size=64,
    )
    return counted(tf.AyaVisionForConditionalGeneration(config), pixels(56))


@family("cohere2_vision")
def _() -> Case:
    config = tf.Cohere2VisionConfig(
        text_config={"model_type": "cohere2", "head_dim": 16, "sliding_window": 16, **text()},
        vision_config={"model_type": "siglip_vision_model", **VISION, "image_size": 56},
        image_token_id=IMAGE,
        downsample_factor=2,
        alignment_intermediate_size=64,
    )
    return counted(tf.Cohere2VisionForConditionalGeneration(config), pixels(56))


@family("lfm2_vl")
def _() -> Case:
    config = tf.Lfm2VlConfig(
        text_config={
            "model_type": "lfm2",
            **text(),
            "layer_types": ["conv", "full_attention", "full_attention"],
            "block_auto_adjust_ff_dim": False,
        },
        vision_config={
            "model_type": "siglip2_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_patches": 16,
            "patch_size": 14,
        },
        image_token_id=IMAGE,
    )
    pictures = {
        "pixel_values": noise(1, 16, 3 * 14 * 14),
        "spatial_shapes": torch.tensor([[4, 4]]),
        "pixel_attention_mask": torch.ones(1, 16, dtype=torch.long),
    }
    return Case(tf.Lfm2VlForConditionalGeneration(config), asked(4, pictures))


@family("gemma3")
def _() -> Case:
    config = tf.Gemma3Config(
        text_config=text(
            head_dim=16,
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            final_logit_softcapping=30.0,
        ),
        vision_config=dict(VISION),
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
    )
    case = counted(tf.Gemma3ForConditionalGeneration(config), pixels())
    case.inputs["token_type_ids"] = (case.inputs["input_ids"] == IMAGE).long()
    return case


@family("gemma4")
def _() -> Case:
    config = tf.Gemma4Config(
        text_config=text(
            head_dim=16,
            global_head_dim=16,
            vocab_size_per_layer_input=200,
            hidden_size_per_layer_input=8,
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention", "full_attention"],
            num_kv_shared_layers=0,
        ),
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 8,
            "patch_size": 4,
            "pooling_kernel_size": 2,
            "position_embedding_size": 64,
        },
        audio_config=None,
        image_token_id=IMAGE,
    )
    places = torch.cartesian_prod(torch.arange(4), torch.arange(4)).flip(-1)[None]
    inputs = asked(4, {"pixel_values": noise(1, 16, 3 * 4 * 4), "image_position_ids": places})
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).long()
    return Case(tf.Gemma4ForConditionalGeneration(config), inputs)


QWEN2 = {"pixel_values": (24, 3 * 2 * 14 * 14), "grid": [[1, 4, 6]]}


def qwen(model: PreTrainedModel, patch: int = 14) -> Case:
    pictures = {"pixel_values": noise(24, 3 * 2 * patch * patch), "image_grid_thw": torch.tensor([[1, 4, 6]])}
    inputs = asked(6, pictures, before=(1, 197))
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).long()
    return Case(model, inputs)


def sections(*sizes: int, **more: object) -> dict:
    return {"rope_parameters": {**ROPE, "mrope_section": list(sizes), **more}}


@family("qwen2_vl")
def _() -> Case:
    vision = {
        "depth": 2,
        "embed_dim": 32,
        "hidden_size": 64,
        "num_heads": 4,
        "mlp_ratio": 2,
        "patch_size": 14,
        "spatial_merge_size": 2,
    }
    config = tf.Qwen2VLConfig(text_config=text(**sections(2, 3, 3)), vision_config=vision, **IDS)
    return qwen(tf.Qwen2VLForConditionalGeneration(config))


@family("qwen2_5_vl")
def _() -> Case:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "out_hidden_size": 64,
        "fullatt_block_indexes": [1],
    }
    config = tf.Qwen2_5_VLConfig(text_config=text(**sections(2, 3, 3)), vision_config=vision, **IDS)
    return qwen(tf.Qwen2_5_VLForConditionalGeneration(config))


DEEPSTACK = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 4,
    "out_hidden_size": 64,
    "deepstack_visual_indexes": [0, 1],
    "num_position_embeddings": 16,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}


@family("qwen3_vl")
def _() -> Case:
    config = tf.Qwen3VLConfig(text_config=text(head_dim=16, **sections(2, 3, 3)), vision_config=DEEPSTACK, **IDS)
    return qwen(tf.Qwen3VLForConditionalGeneration(config), 16)


@family("qwen3_vl_moe")
def _() -> Case:
    config = tf.Qwen3VLMoeConfig(
        text_config=text(head_dim=16, decoder_sparse_step=1, **EXPERTS, **sections(2, 3, 3)),
        vision_config=DEEPSTACK,
        **IDS,
    )
    return qwen(tf.Qwen3VLMoeForConditionalGeneration(config), 16)


LINEAR = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention", "full_attention"],
    **sections(2, 1, 1, partial_rotary_factor=0.5),
}
VISION35 = {key: value for key, value in DEEPSTACK.items() if key != "deepstack_visual_indexes"}


@family("qwen3_5")
def _() -> Case:
    config = tf.Qwen3_5Config(text_config=text(head_dim=16, **LINEAR), vision_config=VISION35, **IDS)
    return qwen(tf.Qwen3_5ForConditionalGeneration(config), 16)


@family("qwen3_5_moe")
def _() -> Case:
    config = tf.Qwen3_5MoeConfig(
        text_config=text(head_dim=16, shared_expert_intermediate_size=48, **EXPERTS, **LINEAR),
        vision_config=VISION35,
        **IDS,
    )
    return qwen(tf.Qwen3_5MoeForConditionalGeneration(config), 16)


GLM_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 4,
    "out_hidden_size": 64,
    "patch_size": 14,
    "image_size": 28,
    "spatial_merge_size": 2,
}
GLM_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": 198,
    "image_start_token_id": 197,
    "image_end_token_id": 196,
    "video_start_token_id": 195,
    "video_end_token_id": 194,
}


@family("glm4v")
def _() -> Case:
    options = text(**sections(1, 1, 2, partial_rotary_factor=0.5))
    return qwen(
        tf.Glm4vForConditionalGeneration(tf.Glm4vConfig(text_config=options, vision_config=GLM_VISION, **GLM_IDS))
    )


@family("glm4v_moe")
def _() -> Case:
    options = text(
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=48,
        n_shared_experts=1,
        first_k_dense_replace=1,
        n_group=1,
        topk_group=1,
        **sections(1, 1, 2, partial_rotary_factor=0.5),
    )
    config = tf.Glm4vMoeConfig(text_config=options, vision_config=GLM_VISION, **GLM_IDS)
    return qwen(tf.Glm4vMoeForConditionalGeneration(config))


@family("deepseek_vl")
def _() -> Case:
    config = tf.DeepseekVLConfig(
        text_config=tf.LlamaConfig(**text()).to_dict(),
        vision_config={"model_type": "siglip_vision_model", **VISION},
        image_token_id=IMAGE,
    )
    return counted(tf.DeepseekVLForConditionalGeneration(config), pixels())


@family("janus")
def _() -> Case:
    config = tf.JanusConfig(
        text_config={"model_type": "llama", **text()},
        vision_config={**VISION, "projection_dim": 64, "mlp_ratio": 2, "depth": 2},
        vq_config={
            "embed_dim": 8,
            "num_embeddings": 8,
            "latent_channels": 16,
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
            "image_token_embed_dim": 64,
            "projection_dim": 64,
            "num_patches": 4,
        },
        image_token_id=IMAGE,
    )
    return Case(tf.JanusForConditionalGeneration(config), asked(4, pixels()))


@family("mllama")
def _() -> Case:
    config = tf.MllamaConfig(
        text_config=text(num_hidden_layers=4, cross_attention_layers=[1], rope_parameters=ROPE),
        vision_config={
            **VISION,
            "num_global_layers": 1,
            "attention_heads": 4,
            "vision_output_dim": 64,
            "intermediate_layers_indices": [1],
            "max_num_tiles": 2,
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
        },
        image_token_index=IMAGE,
    )
    inputs = asked(1, {"pixel_values": noise(1, 1, 2, 3, 28, 28)})
    length = inputs["input_ids"].shape[1]
    return Case(
        tf.MllamaForConditionalGeneration(config),
        {
            **inputs,
            "aspect_ratio_ids": torch.tensor([[1]]),
            "aspect_ratio_mask": torch.tensor([[[1, 0]]]),
            "cross_attention_mask": torch.tensor([1, 0]).expand(1, length, 1, 2).contiguous(),
        },
        text=False,
    )


@family("llama4")
def _() -> Case:
    config = tf.Llama4Config(
        text_config=text(
            num_hidden_layers=4,
            head_dim=16,
            intermediate_size_mlp=96,
            num_local_experts=4,
            num_experts_per_tok=1,
            interleave_moe_layer_step=2,
            attention_chunk_size=64,
        ),
        vision_config={
            **VISION,
            "image_size": 56,
            "intermediate_size": 128,
            "vision_output_dim": 32,
            "projector_input_dim": 32,
            "projector_output_dim": 32,
            "pixel_shuffle_ratio": 0.5,
        },
        image_token_index=IMAGE,
    )
    return Case(tf.Llama4ForConditionalGeneration(config), asked(4, pixels(56)))


@family("idefics")
def _() -> Case:
    config = tf.IdeficsConfig(
        **text(num_hidden_layers=4),
        additional_vocab_size=2,
        cross_layer_interval=2,
        use_resampler=False,
        vision_config={
            "embed_dim": 32,
            "image_size": 28,
            "patch_size": 14,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
        },
    )
    ids = torch.tensor([[1, 5, 200, 6, 7, 8]])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": noise(1, 1, 3, 28, 28),
        "image_attention_mask": torch.ones(1, 6, 1, dtype=torch.long),
    }
    return Case(tf.IdeficsForVisionText2Text(config), inputs, text=False)


@family("idefics2")
def _() -> Case:
    config = tf.Idefics2Config(
        text_config={"model_type": "mistral", **text()},
        vision_config=dict(VISION),
        perceiver_config={
            "hidden_size": 64,
            "resampler_n_latents": 4,
            "resampler_depth": 1,
            "resampler_n_heads": 4,
            "num_key_value_heads": 2,
            "resampler_head_dim": 16,
        },
        image_token_id=IMAGE,
    )
    pictures = {"pixel_values": noise(1, 1, 3, 28, 28), "pixel_attention_mask": torch.ones(1, 1, 28, 28)}
    return Case(tf.Idefics2ForConditionalGeneration(config), asked(4, pictures))


def idefics3(model: type, config: type) -> Case:
    made = config(
        text_config={"model_type": "llama", **text()},
        vision_config={**VISION, "image_size": 56},
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=0,
    )
    pictures = {"pixel_values": noise(1, 1, 3, 56, 56), "pixel_attention_mask": torch.ones(1, 1, 56, 56)}
    return Case(model(made), asked(4, pictures))


@family("idefics3")
def _() -> Case:
    return idefics3(tf.Idefics3ForConditionalGeneration, tf.Idefics3Config)


@family("smolvlm")
def _() -> Case:
    return idefics3(tf.SmolVLMForConditionalGeneration, tf.SmolVLMConfig)


def opt(vocabulary: int = 200) -> tf.PretrainedConfig:
    return tf.OPTConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        ffn_dim=112,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=128,
        word_embed_proj_dim=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def t5(vocabulary: int = 200) -> tf.PretrainedConfig:
    return tf.T5Config(
        vocab_size=vocabulary,
        d_model=64,
        d_ff=112,
        d_kv=16,
        num_layers=3,
        num_decoder_layers=3,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=2,
        decoder_start_token_id=0,
    )


def queries(name: str, language: tf.PretrainedConfig, image: int = IMAGE) -> Case:
    config: type = getattr(tf, f"{name}Config")
    vision: type = getattr(tf, f"{name}VisionConfig")
    qformer = {
        "vocab_size": language.vocab_size,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "encoder_hidden_size": 32,
        "max_position_embeddings": 64,
    }
    made = config(
        vision_config=vision(**VISION).to_dict(),
        qformer_config=qformer,
        text_config=language,
        num_query_tokens=5,
        image_token_index=image,
        image_token_id=image,
    )
    inputs = asked(5, pixels(), before=())
    if name == "InstructBlip":
        inputs |= {"qformer_input_ids": torch.tensor([[3, 4, 5]]), "qformer_attention_mask": torch.ones(1, 3).long()}
    return Case(getattr(tf, f"{name}ForConditionalGeneration")(made), inputs, text=False)


@family("blip-2/opt")
def _() -> Case:
    return queries("Blip2", opt())


@family("blip-2/t5")
def _() -> Case:
    return queries("Blip2", t5())


@family("instructblip/llama")
def _() -> Case:
    return queries("InstructBlip", tf.LlamaConfig(**text()))


@family("instructblip/opt")
def _() -> Case:
    return queries("InstructBlip", opt())


@family("instructblip/t5")
def _() -> Case:
    return queries("InstructBlip", t5())


@family("blip")
def _() -> Case:
    config = tf.BlipConfig(
        text_config={
            "vocab_size": 200,
            "hidden_size": 64,
            "encoder_hidden_size": 32,
            "intermediate_size": 112,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
            "bos_token_id": 1,
            "sep_token_id": 2,
            "pad_token_id": 0,
            "eos_token_id": 2,
        },
        vision_config=dict(VISION),
    )
    ids = torch.tensor([[3, 5, 6, 2]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels()}
    return Case(tf.BlipForConditionalGeneration(config), inputs, text=False, writes=0.5)


@family("git")
def _() -> Case:
    config = tf.GitConfig(
        vocab_size=200,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=112,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        vision_config=dict(VISION),
    )
    ids = torch.tensor([[1, 5, 6, 7]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels()}
    return Case(tf.GitForCausalLM(config), inputs, writes=0.5)


@family("kosmos-2")
def _() -> Case:
    config = tf.Kosmos2Config(
        text_config={
            "vocab_size": 200,
            "embed_dim": 64,
            "layers": 3,
            "ffn_dim": 112,
            "attention_heads": 4,
            "max_position_embeddings": 128,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        vision_config=dict(VISION),
        latent_query_num=4,
    )
    inputs = asked(4, pixels())
    inputs["image_embeds_position_mask"] = (inputs["input_ids"] == IMAGE).long()
    inputs["input_ids"] = inputs["input_ids"].where(inputs["input_ids"] != IMAGE, 9)
    return Case(tf.Kosmos2ForConditionalGeneration(config), inputs, text=False)


@family("florence2")
def _() -> Case:
    config = tf.Florence2Config(
        text_config={
            "model_type": "bart",
            "vocab_size": 200,
            "d_model": 64,
            "encoder_layers": 3,
            "decoder_layers": 3,
            "encoder_ffn_dim": 112,
            "decoder_ffn_dim": 112,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "max_position_embeddings": 128,
        },
        vision_config={
            "embed_dim": [16, 16, 16, 16],
            "depths": [1, 1, 1, 1],
            "num_heads": [2, 2, 2, 2],
            "num_groups": [2, 2, 2, 2],
            "projection_dim": 64,
            "patch_size": [3, 3, 3, 3],
            "patch_stride": [2, 2, 2, 2],
            "patch_padding": [1, 1, 1, 1],
            "window_size": 4,
        },
        image_token_id=IMAGE,
    )
    case = counted(tf.Florence2ForConditionalGeneration(config), pixels(64))
    case.writes = 0.5
    return case


@family("chameleon")
def _() -> Case:
    vocabulary = {"<image>": IMAGE} | {f"IMGIMG{chr(65 + index)}Z": 100 + index for index in range(8)}
    config = tf.ChameleonConfig(
        **text(),
        vocabulary_map=vocabulary,
        vq_config={
            "embed_dim": 16,
            "num_embeddings": 8,
            "latent_channels": 16,
            "resolution": 16,
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
        },
    )
    return Case(tf.ChameleonForConditionalGeneration(config), asked(64, pixels(16)))


@family("fuyu")
def _() -> Case:
    config = tf.FuyuConfig(
        **text(),
        image_size=60,
        patch_size=30,
        text_config={"model_type": "persimmon", **text(), "qk_layernorm": True},
        image_token_id=IMAGE,
    )
    return Case(tf.FuyuForCausalLM(config), asked(4, {"image_patches": noise(1, 4, 30 * 30 * 3)}))


@family("vision-encoder-decoder")
def _() -> Case:
    encoder = tf.ViTConfig(**VISION)
    decoder = tf.GPT2Config(
        vocab_size=200,
        n_embd=64,
        n_layer=3,
        n_head=4,
        n_positions=128,
        add_cross_attention=True,
        is_decoder=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    config = tf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    return Case(tf.VisionEncoderDecoderModel(config), pixels(), text=False)


@family("ovis2")
def _() -> Case:
    config = tf.Ovis2Config(
        vision_config={**VISION, "vocab_size": 40, "hidden_stride": 1, "num_visual_indicator_tokens": 5},
        text_config={"model_type": "qwen2", **text()},
        image_token_id=IMAGE,
        visual_indicator_token_ids=[191, 192, 193, 194, 195],
        hidden_size=64,
        vocab_size=200,
    )
    return Case(tf.Ovis2ForConditionalGeneration(config), asked(4, pixels()))


@family("molmo2")
def _() -> Case:
    config = tf.Molmo2Config(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 8,
            "image_size": [28, 28],
            "patch_size": 14,
        },
        adapter_config={
            "vision_feature_layer": [-1, -2],
            "hidden_size": 32,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 8,
            "intermediate_size": 64,
            "text_hidden_size": 64,
        },
        text_config={**text(head_dim=16), "additional_vocab_size": 4, "rope_parameters": ROPE},
        image_patch_id=IMAGE,
        image_start_token_id=190,
        low_res_image_start_token_id=191,
        image_end_token_id=192,
        frame_start_token_id=193,
        frame_end_token_id=194,
    )
    pictures = {
        "pixel_values": noise(1, 4, 14 * 14 * 3),
        "image_token_pooling": torch.tensor([[0], [1], [2], [3]]),
        "image_grids": torch.tensor([[2, 2, 0, 0]]),
        "image_num_crops": torch.tensor([1]),
    }
    return Case(tf.Molmo2ForConditionalGeneration(config), asked(4, pictures))


@family("mplug_owl2")
def _() -> Case:
    config = MPLUGOwl2Config(
        **text(),
        visual_config={
            "visual_model": {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "image_size": 28,
                "patch_size": 14,
            },
            "visual_abstractor": {
                "hidden_size": 32,
                "encoder_hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_learnable_queries": 4,
                "grid_size": 2,
            },
        },
        image_token_id=IMAGE,
    )
    return counted(MPLUGOwl2ForConditionalGeneration(config), pixels())


@family("aria")
def _() -> Case:
    config = tf.AriaConfig(
        vision_config={"model_type": "idefics3_vision", **VISION},
        text_config=text(moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1, head_dim=16),
        projector_patch_to_query_dict={4: 4},
        image_token_index=IMAGE,
    )
    pictures = {"pixel_values": noise(1, 3, 28, 28), "pixel_mask": torch.ones(1, 28, 28, dtype=torch.bool)}
    return Case(tf.AriaForConditionalGeneration(config), asked(4, pictures))


over("phi", lambda: tf.PhiConfig(**text(num_key_value_heads=4)))
over("phi3", lambda: tf.Phi3Config(**text()))
over(
    "gpt_neox",
    lambda: tf.GPTNeoXConfig(
        vocab_size=200,
        hidden_size=64,
        intermediate_size=112,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=128,
        use_parallel_residual=True,
    ),
)
over("qwen3", lambda: tf.Qwen3Config(**text(head_dim=16)))
over("mixtral", lambda: tf.MixtralConfig(**text(num_local_experts=4, num_experts_per_tok=2)))
over(
    "granite",
    lambda: tf.GraniteConfig(
        **text(residual_multiplier=0.22, embedding_multiplier=12.0, logits_scaling=8.0, attention_multiplier=0.0625)
    ),
)
over("olmo2", lambda: tf.Olmo2Config(**text()))
