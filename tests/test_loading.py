import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

import mmneurons as mmn
from helpers import tiny
from mmneurons.errors import AnatomyError, ModelLoadError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("llava")
    model, processor = tiny.tiny_llava()
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


def copy(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.mark.parametrize("make", [tiny.tiny_llava, tiny.tiny_llava_next, tiny.tiny_llava_onevision])
def test_a_folder_laid_out_like_the_hubs(make, tmp_path, picture):
    model, processor = make()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, wrapped = mmn.load(tmp_path), mmn.wrap(model, processor)
    assert loaded.anatomy == wrapped.anatomy
    assert type(loaded.processor).__name__ == type(processor).__name__
    one, other = (mmn.record(vlm, picture, max_new_tokens=5) for vlm in (loaded, wrapped))
    assert one.token_ids.tolist() == other.token_ids.tolist()
    torch.testing.assert_close(one.activations, other.activations)


def test_dtype_is_the_checkpoints_unless_stated(folder):
    assert mmn.load(folder).dtype == torch.float32
    assert mmn.load(folder, dtype="bfloat16").dtype == torch.bfloat16
    assert mmn.load(str(folder), dtype=torch.float16).model.dtype == torch.float16
    assert not mmn.load(folder).model.training


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "~/no-such-folder-here"])
def test_no_such_folder(name):
    with pytest.raises(ModelLoadError, match="There is no folder"):
        mmn.load(name)


def test_no_such_model_and_no_network():
    with pytest.raises(ModelLoadError, match=r"the hub could not be asked|the hub gave no model"):
        mmn.load("nobody/no-such-model")


def test_a_file_and_an_empty_folder(folder, tmp_path):
    with pytest.raises(ModelLoadError, match=r"holds no config\.json"):
        mmn.load(tmp_path)
    with pytest.raises(ModelLoadError, match="is a file"):
        mmn.load(folder / "config.json")


def test_a_config_that_is_not_json(folder, tmp_path):
    (copy(folder, tmp_path) / "config.json").write_text("{")
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        mmn.load(tmp_path)


def test_a_model_that_takes_no_pictures(tmp_path):
    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=r"'gpt2', which takes no pictures"):
        mmn.load(tmp_path)


def test_an_unknown_type(folder, tmp_path):
    path = copy(folder, tmp_path) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "llava_of_2031"}))
    with pytest.raises(ModelLoadError, match="does not know the type"):
        mmn.load(tmp_path)


def test_weights_that_are_missing_are_not_made_up(folder, tmp_path):
    path = copy(folder, tmp_path) / "model.safetensors"
    weights = load_file(path)
    gone = next(name for name in weights if "layers.1.mlp.down_proj" in name)
    save_file({name: weight for name, weight in weights.items() if name != gone}, path, {"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"1 weights .*layers\.1\.mlp\.down_proj"):
        mmn.load(tmp_path)


def test_weights_that_are_damaged(folder, tmp_path):
    path = copy(folder, tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ModelLoadError):
        mmn.load(tmp_path)
    path.unlink()
    with pytest.raises(ModelLoadError):
        mmn.load(tmp_path)


def test_pickles_only_when_asked(folder, tmp_path):
    path = copy(folder, tmp_path)
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="allow_pickle=True"):
        mmn.load(path)
    assert len(mmn.load(path, allow_pickle=True).anatomy.blocks) == 3


def test_a_first_generation_checkpoint(folder, tmp_path):
    path = copy(folder, tmp_path) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "mm_vision_tower": "openai/clip-vit-large-patch14"}))
    with pytest.raises(ModelLoadError, match="first-generation LLaVA"):
        mmn.load(tmp_path)


def test_a_processor_that_is_not_there(folder, tmp_path):
    copy(folder, tmp_path)
    for name in ("processor_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(ModelLoadError, match="its processor was not"):
        mmn.load(tmp_path)


def test_remote_code_only_when_asked(folder, tmp_path):
    path = copy(folder, tmp_path)
    config = json.loads((path / "config.json").read_text())
    own = {"AutoConfig": "own.Config", "AutoModelForImageTextToText": "own.Model"}
    (path / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": own}))
    (path / "own.py").write_text("raise SystemExit('ran')\n")
    with pytest.raises(ModelLoadError, match="trust_remote_code=True"):
        mmn.load(path)


def test_a_checkpoint_that_stays_on_the_disk(folder, picture):
    away, here = mmn.load(folder, device_map={"": "disk"}), mmn.load(folder)
    assert all(weight.device.type == "meta" for weight in away.model.parameters())
    one, other = (mmn.find(vlm, picture, words=[], max_new_tokens=3).at(1) for vlm in (away, here))
    torch.testing.assert_close(one.scores, other.scores, rtol=1e-4, atol=1e-6)


def test_weights_that_are_nowhere_are_refused():
    model, processor = tiny.tiny_llava()
    model.model.language_model.layers[1].to("meta")
    with pytest.raises(AnatomyError, match="nothing says where they are"):
        mmn.wrap(model, processor)


def test_a_misspelt_demo():
    with pytest.raises(ModelLoadError, match="Did you mean 'demo'"):
        mmn.load("demoo")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    path = tmp_path_factory.mktemp("sharded")
    model, processor = tiny.tiny_llava()
    model.save_pretrained(path, max_shard_size="200KB")
    processor.save_pretrained(path)
    return path


def test_a_folder_with_a_shard_missing(sharded, tmp_path):
    path = copy(sharded, tmp_path)
    (path / "model-00002-of-00005.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"1 of the 5 files .* are not there: model-00002-of-00005\.safetensors"):
        mmn.load(path)
    (path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ModelLoadError, match="is damaged"):
        mmn.load(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"intermediate_size": 128}, r"down_proj\.weight is \(64, 112\) in the file and should be \(64, 128\)"),
        ({"num_hidden_layers": 5}, "fill them with random numbers"),
        ({"num_hidden_layers": 1}, "weights of more blocks than its config.json asks for"),
        ({"hidden_act": "nonsense"}, "does not fit its kind of model"),
    ],
)
def test_a_config_that_is_wrong_for_its_weights(sharded, tmp_path, change, says):
    path = copy(sharded, tmp_path) / "config.json"
    config = json.loads(path.read_text())
    config["text_config"].update(change)
    path.write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match=says):
        mmn.load(tmp_path)


def test_a_config_of_another_family(sharded, tmp_path):
    path = copy(sharded, tmp_path) / "config.json"
    path.write_text(path.read_text().replace('"model_type": "llava"', '"model_type": "paligemma"'))
    with pytest.raises(ModelLoadError, match="does not fit its kind of model"):
        mmn.load(tmp_path)


def test_no_image_processor(sharded, tmp_path):
    path = copy(sharded, tmp_path)
    (path / "processor_config.json").unlink()
    with pytest.raises(ModelLoadError, match=r"its processor was not.*preprocessor_config\.json"):
        mmn.load(path)


@pytest.mark.parametrize(("kind", "says"), [("pi0", "no head for words"), ("gemma3n", "needs timm")])
def test_families_out_of_reach(kind, says, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(ModelLoadError, match=says):
        mmn.load(tmp_path)
