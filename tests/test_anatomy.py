from dataclasses import replace

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    Gemma2Config,
    GraniteConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MixtralConfig,
    Phi3Config,
    PhiConfig,
)

import mmneurons as mmn
from helpers import tiny
from mmneurons.errors import AnatomyError
from mmneurons.vlm.anatomy import Anatomy, Path
from mmneurons.vlm.discovery import find_anatomy
from mmneurons.vlm.sites import bias

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def llava_over(text_config) -> LlavaForConditionalGeneration:
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text_config, image_token_id=3))
    return tiny.redraw(model)


@pytest.mark.parametrize("backbone", tiny.BACKBONES)
def test_the_parts_of_a_llava(backbone):
    model, _ = tiny.tiny_llava(backbone, layers=4)
    anatomy = mmn.wrap(model).anatomy
    assert [site.module for block in anatomy.blocks for site in block.sites] == [
        f"model.language_model.layers.{i}.mlp.down_proj" for i in range(4)
    ]
    assert [write.module for write in anatomy.blocks[2].writes] == ["model.language_model.layers.2.self_attn.o_proj"]
    assert anatomy.blocks[1].sites[0].gate == "model.language_model.layers.1.mlp.act_fn"
    assert {path for path in anatomy.paths} | {anatomy.entry} == {Path()}
    assert (anatomy.norm.module, anatomy.norm.kind) == ("model.language_model.norm", "rms")
    assert anatomy.head.module == "lm_head"
    assert (anatomy.hidden, anatomy.width) == (64, 112)


def test_a_constant_residual_multiplier_is_measured():
    vlm = mmn.wrap(llava_over(GraniteConfig(**SMALL, residual_multiplier=0.22)))
    for block in vlm.anatomy.blocks:
        assert block.sites[0].path.gain == pytest.approx(0.22, abs=1e-5)
        assert block.writes[0].path.gain == pytest.approx(0.22, abs=1e-5)
    assert vlm.anatomy.entry == Path()


def test_a_layer_norm_with_biases_and_a_parallel_block_without_a_gate():
    config = dict(SMALL, num_key_value_heads=4)
    vlm = mmn.wrap(llava_over(PhiConfig(**config)))
    assert vlm.anatomy.norm.kind == "layer"
    (site,) = vlm.anatomy.blocks[0].sites
    assert site.module.endswith("mlp.fc2")
    assert site.gate is None
    assert bias(vlm.model, site) is not None


def test_a_fused_gate_is_a_gate():
    anatomy = find_anatomy(llava_over(Phi3Config(**SMALL)))
    assert anatomy.blocks[0].sites[0].gate == "model.language_model.layers.0.mlp.activation_fn"


def test_a_norm_after_the_ffn_is_on_the_path():
    anatomy = mmn.wrap(llava_over(Gemma2Config(**SMALL, head_dim=8))).anatomy
    for index, block in enumerate(anatomy.blocks):
        (norm,) = block.sites[0].path.norms
        assert norm.module == f"model.language_model.layers.{index}.post_feedforward_layernorm"
        assert (norm.kind, norm.offset, block.sites[0].path.gain) == ("rms", 1.0, 1.0)


def test_neurons_of_experts_have_names_of_their_own():
    config = MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2)
    anatomy = mmn.wrap(llava_over(config)).anatomy
    assert (anatomy.width, anatomy.neurons) == (4 * 48, 2 * 4 * 48)
    assert anatomy.name(1, 2 * 48 + 5) == "L1.e2.u5"
    assert anatomy.parse("L1.e2.u5") == (1, 2 * 48 + 5)
    for wrong in ("L1.u5", "L1.e4.u0", "L1.e0.u48", "L2.e0.u0", "L1.e0"):
        with pytest.raises(AnatomyError):
            anatomy.parse(wrong)


@pytest.mark.parametrize("change", ["bias", "class"])
def test_experts_of_a_kind_that_is_not_known_are_refused(change):
    model = llava_over(MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2))
    experts = model.model.language_model.layers[1].mlp.experts
    if change == "bias":
        experts.has_bias = True
    else:

        class JetMoeExperts(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.down_proj = experts.down_proj

        model.model.language_model.layers[1].mlp.experts = JetMoeExperts()
    with pytest.raises(AnatomyError, match="not supported"):
        mmn.wrap(model)


def altered(anatomy: Anatomy, module: str) -> Anatomy:
    """With another module for the write site of block 0."""
    first, *rest = anatomy.blocks
    return replace(anatomy, blocks=(replace(first, sites=(replace(first.sites[0], module=module),)), *rest))


def test_a_stated_anatomy_is_measured_too():
    model, processor = tiny.tiny_llava()
    found = find_anatomy(model)
    anatomy = mmn.wrap(model, processor).anatomy
    assert mmn.wrap(model, processor, anatomy=found).anatomy == anatomy
    assert mmn.wrap(model, processor, anatomy=anatomy).anatomy == anatomy

    wrong_site = altered(anatomy, "model.language_model.layers.0.mlp.up_proj")
    with pytest.raises(AnatomyError, match="not a 64 × 112 matrix"):
        mmn.wrap(model, processor, anatomy=wrong_site)

    with pytest.raises(AnatomyError, match="does not norm as"):
        mmn.wrap(model, processor, anatomy=replace(anatomy, norm=replace(anatomy.norm, eps=0.5)))

    unused = next(name for name, _ in model.named_modules() if name.endswith("encoder.layers.0.mlp.fc2"))
    with pytest.raises(AnatomyError, match="never ran"):
        mmn.wrap(model, processor, anatomy=altered(anatomy, unused))


def test_what_lies_between_the_block_and_the_norm_is_followed():
    """A later block that scales the stream changes the path of every earlier write."""
    model, processor = tiny.tiny_llava()
    layer = model.model.language_model.layers[1]
    layer.register_forward_hook(lambda module, args, output: output * 0.5)
    vlm = mmn.wrap(model, processor)
    assert [block.sites[0].path.gain for block in vlm.anatomy.blocks] == pytest.approx([0.5, 0.5, 1.0], abs=1e-6)
    assert vlm.anatomy.entry.gain == pytest.approx(0.5, abs=1e-6)


def test_a_stream_that_something_unrecorded_writes_into_is_refused():
    model, processor = tiny.tiny_llava()
    layer = model.model.language_model.layers[1]
    layer.register_forward_hook(lambda module, args, output: output + 1.0)
    with pytest.raises(AnatomyError, match="is not the sum of what was recorded"):
        mmn.wrap(model, processor)


def test_a_non_linear_path_is_refused():
    model, processor = tiny.tiny_llava()
    layer = model.model.language_model.layers[1]
    layer.register_forward_hook(lambda module, args, output: torch.tanh(output))
    with pytest.raises(AnatomyError, match="times a constant"):
        mmn.wrap(model, processor)


def test_logits_that_the_head_does_not_give_are_refused():
    model, processor = tiny.tiny_llava()
    model.lm_head.register_forward_hook(lambda module, args, output: output + torch.linspace(0, 9, output.shape[-1]))
    with pytest.raises(AnatomyError, match="does not give the model's logits"):
        mmn.wrap(model, processor)


def test_a_scale_of_the_head_is_measured():
    model, processor = tiny.tiny_llava()
    model.lm_head.register_forward_hook(lambda module, args, output: output * 0.125)
    assert mmn.wrap(model, processor).anatomy.head.scale == pytest.approx(0.125, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_measured_and_the_same(dtype):
    model, processor = tiny.tiny_llava()
    expected = mmn.wrap(model, processor).anatomy
    assert mmn.wrap(model.to(dtype), processor).anatomy == expected


def test_measuring_changes_nothing():
    model, processor = tiny.tiny_llava()
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mmn.wrap(model, processor)
    assert model.training
    assert model.model.language_model.layers[0].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_names():
    vlm = mmn.wrap(*tiny.tiny_llava())
    assert vlm.neuron(2, 7).name == "L2.u7"
    assert vlm.neuron("L2.u7").block == 2
    assert vlm.neuron("L2.u7").column == 7
    for name in ("L3.u0", "L0.u112", "u5", "L1.u-1", "L1.e2.u3", "l1.u1", ""):
        with pytest.raises(AnatomyError):
            vlm.neuron(name)
    with pytest.raises(AnatomyError, match="blocks 0 to 2"):
        vlm.neuron(3, 0)
