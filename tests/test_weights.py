"""Columns of write sites that are quantised or offloaded, against the same model in plain float32."""

from importlib.util import find_spec

import pytest
import torch
from transformers import (
    BitsAndBytesConfig,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    QuantoConfig,
    TorchAoConfig,
)

import mmneurons as mmn
from mmneurons.errors import AnatomyError
from mmneurons.finders import Contribution, Target
from mmneurons.interventions import logits_without
from mmneurons.neurons import output_vectors
from mmneurons.vlm.fingerprint import fingerprint
from mmneurons.vlm.inputs import check_inputs
from mmneurons.vlm.recording import record_forced
from mmneurons.vlm.sites import columns, project
from mmneurons.vlm.sites import weight as weight_of
from mmneurons.vlm.weights import asked_columns, products

IMAGE = 199


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A LLaVA wide enough for blocks of quantised numbers."""
    path = tmp_path_factory.mktemp("wide")
    text = LlamaConfig(
        vocab_size=200,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=28,
        patch_size=14,
        projection_dim=32,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, image_token_index=IMAGE)
    )
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.1)
    model.generation_config.eos_token_id = None
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def asked():
    pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[1, 5, *[IMAGE] * 4, 6, 7]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


@pytest.fixture(scope="module")
def plain(folder):
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    return mmn.wrap(model)


def needs(module):
    return pytest.mark.skipif(find_spec(module) is None, reason=f"{module} is not installed")


def bits(count):
    if count == 4:
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    return BitsAndBytesConfig(load_in_8bit=True)


def torchao():
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


QUANTISED = [
    pytest.param(lambda: bits(4), 0.12, marks=needs("bitsandbytes"), id="bitsandbytes nf4"),
    pytest.param(lambda: bits(8), 0.02, marks=needs("bitsandbytes"), id="bitsandbytes int8"),
    pytest.param(torchao, 0.02, marks=needs("torchao"), id="torchao int8"),
    pytest.param(lambda: QuantoConfig(weights="int8"), 0.02, marks=needs("optimum"), id="quanto int8"),
]


def load(folder, settings):
    model = LlavaForConditionalGeneration.from_pretrained(
        folder, quantization_config=settings, device_map="cpu", dtype=torch.float32
    )
    model.generation_config.eos_token_id = None
    return model.eval()


@pytest.mark.parametrize(("settings", "error"), QUANTISED)
def test_columns_of_quantised_sites_are_the_plain_ones_to_the_precision_of_the_numbers(
    folder, plain, asked, settings, error
):
    model = load(folder, settings())
    # the trap: 4-bit weights are packed anew at the first forward on a CPU, and read wrong from then on
    with torch.no_grad():
        model(**asked)
    vlm = mmn.wrap(model)
    assert vlm.quantised
    for index, block in enumerate(vlm.anatomy.blocks):
        own = weight_of(plain.model, plain.anatomy.blocks[index].sites[0])
        seen = columns(model, block.sites[0], range(256)).T
        assert float((seen - own).norm() / own.norm()) < error
        directions = torch.randn(5, 128, generator=torch.Generator().manual_seed(1))
        expected, found = directions @ seen, project(model, block.sites[0], directions)
        assert float((found - expected).norm() / expected.norm()) < 0.01
    with pytest.raises(AnatomyError, match="not a plain matrix"):
        weight_of(model, vlm.anatomy.blocks[0].sites[0])


@pytest.mark.parametrize(("settings", "error"), QUANTISED)
def test_neurons_of_a_quantised_model_are_scored_and_taken_away(folder, plain, asked, settings, error):
    vlm = mmn.wrap(load(folder, settings()))
    recording = mmn.record(vlm, inputs=asked, max_new_tokens=3)
    target = Target(1, 17)
    (scores,) = Contribution(against=None)(vlm, recording, [target])
    assert "quantised" in scores.note
    forced = record_forced(plain, check_inputs(plain, asked), recording.token_ids.tolist())
    (expected,) = Contribution(against=None)(plain, forced, [target])
    one, other = scores.values.flatten(), expected.values.flatten()
    assert float(torch.corrcoef(torch.stack([one, other]))[0, 1]) > 1 - 1.5 * error
    found = mmn.find(vlm, inputs=asked, max_new_tokens=3, against=None).at(1)
    check = mmn.check_neurons(found, found.neurons(5))
    assert (check.measured - check.claimed).abs().max() < 0.05 * check.measured.abs().max()
    fall = logits_without(found, [found.neurons(20)])
    assert float((fall[0] - recording.logits[1]).abs().max()) < 1e-3
    assert float((fall[0] - fall[1]).abs().max()) > 1e-3
    assert output_vectors(vlm, [(0, 3)]).shape == (1, 128)


def test_a_derivative_that_is_wrong_is_not_believed():
    class Liar(torch.nn.Linear):
        """A map whose backward pass reads numbers that are stored otherwise."""

        def forward(self, x):
            right = super().forward(x)
            wrong = x @ torch.ones_like(self.weight).T
            return right.detach() + wrong - wrong.detach()

    module = Liar(600, 8)
    directions = torch.randn(3, 8)
    assert torch.allclose(products(module, 600, directions, torch.float32), directions @ module.weight, atol=1e-5)
    assert torch.allclose(asked_columns(module, 600, [5, 7], torch.float32), module.weight[:, [5, 7]].T, atol=1e-6)


@pytest.mark.parametrize("where", ["disk", "cpu"])
def test_offloaded_weights_are_fetched_and_stay_where_they_are(folder, plain, asked, where, tmp_path):
    if where == "disk":
        places = {name: "cpu" for name in ("model.vision_tower", "model.multi_modal_projector", "lm_head")}
        places |= {f"model.language_model.{name}": "cpu" for name in ("embed_tokens", "norm", "rotary_emb")}
        places |= {f"model.language_model.layers.{i}": "disk" if i == 1 else "cpu" for i in range(3)}
        model = LlavaForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, device_map=places, offload_folder=tmp_path
        ).eval()
    else:
        from accelerate import cpu_offload

        model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        cpu_offload(model, execution_device=torch.device("cpu"))
    model.generation_config.eos_token_id = None
    away = {name for name, weight in model.named_parameters() if weight.device.type == "meta"}
    assert "model.language_model.layers.1.mlp.down_proj.weight" in away
    vlm = mmn.wrap(model)
    assert not vlm.quantised
    for index in range(3):
        sites = [one.anatomy.blocks[index].sites[0] for one in (vlm, plain)]
        assert torch.equal(weight_of(model, sites[0]), weight_of(plain.model, sites[1]))
    seen, expected = (mmn.find(one, inputs=asked, max_new_tokens=3).at(1) for one in (vlm, plain))
    torch.testing.assert_close(seen.scores, expected.scores, rtol=1e-4, atol=1e-6)
    assert mmn.completeness(seen).error < 1e-4
    assert fingerprint(model) == fingerprint(plain.model)
    assert away == {name for name, weight in model.named_parameters() if weight.device.type == "meta"}


def test_weights_that_are_nowhere_are_refused(folder):
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(LlavaForConditionalGeneration.config_class.from_pretrained(folder))
    with pytest.raises(AnatomyError, match="nothing says where they are"):
        mmn.wrap(model)
