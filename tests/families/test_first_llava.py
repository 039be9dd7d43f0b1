"""First-generation LLaVA checkpoints, against a Llama and a CLIP that the tests put together by hand."""

import json

import pytest
import torch

import mmneurons as mmn
from helpers.command import mmn as command
from helpers.first_llava import Pieces
from mmneurons.errors import ModelLoadError
from mmneurons.vlm.families.first_llava import is_first_llava

pytestmark = pytest.mark.families


@pytest.fixture(params=[1, 2], ids=["one layer", "two layers"])
def pieces(request, tmp_path):
    return Pieces(tmp_path, request.param)


def test_logits_are_those_of_its_pieces(pieces):
    vlm = mmn.load(pieces.folder, vision_tower=pieces.tower)
    pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    before, after = torch.tensor([[1, 9, 17]]), torch.tensor([[7, 30, 11, 45]])
    image = torch.full((1, 4), vlm.image_token_id)
    with torch.no_grad():
        output = vlm.model(
            input_ids=torch.cat([before, image, after], 1), pixel_values=pixels, output_hidden_states=True
        )
    logits, hidden = pieces.logits(before, pixels, after)
    assert torch.equal(output.hidden_states[-1], hidden)
    # the head has 64 rows more, and a product of another size is added up in another order
    torch.testing.assert_close(output.logits[..., : logits.shape[-1]], logits, rtol=0, atol=2e-6)
    assert output.logits.shape[-1] == logits.shape[-1] + 64


def test_pickled_shards_are_read_where_that_is_asked(tmp_path):
    pieces = Pieces(tmp_path, 2, stored="bin")
    with pytest.raises(ModelLoadError, match="allow_pickle=True"):
        mmn.load(pieces.folder, vision_tower=pieces.tower)
    vlm = mmn.load(pieces.folder, vision_tower=pieces.tower, allow_pickle=True)
    head = vlm.model.lm_head.weight
    assert torch.equal(head[: len(pieces.llama.lm_head.weight)], pieces.llama.lm_head.weight)
    (pieces.folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(ModelLoadError, match=r"1 files of weights are not in .*pytorch_model-00002-of-00002\.bin"):
        mmn.load(pieces.folder, vision_tower=pieces.tower, allow_pickle=True)


def test_its_neurons_are_found(pieces, picture):
    vlm = mmn.load(pieces.folder, vision_tower=pieces.tower)
    found = mmn.find(vlm, picture, caption="An image of a dog.", words=["dog"])
    assert mmn.completeness(found["dog"]).error < 1e-4
    assert found["dog"].look(0).values.shape == (4,)
    text = vlm.processor.tokenizer.decode(found.recording.inputs["input_ids"][0])
    assert "USER: " in text
    assert text.endswith("Describe the image in few words. ASSISTANT: An image of")
    assert len(found.recording.image_positions) == 4


def test_converting_once_gives_an_ordinary_checkpoint(pieces, picture, tmp_path):
    arguments = ("convert", pieces.folder, "--vision-tower", pieces.tower, "--out", tmp_path / "out")
    result = command(*arguments)
    assert result.code == 0, result.err
    on_the_fly, once = mmn.load(pieces.folder, vision_tower=pieces.tower), mmn.load(tmp_path / "out")
    assert mmn.caption(once, picture) == mmn.caption(on_the_fly, picture)
    for name, weight in on_the_fly.model.state_dict().items():
        assert torch.equal(once.model.state_dict()[name], weight), name
    again = command(*arguments)
    assert (again.code, "not empty" in again.err) == (1, True)
    other = command("convert", tmp_path / "out", "--out", tmp_path / "more")
    assert (other.code, "no first-generation LLaVA" in other.err) == (1, True)
    assert not is_first_llava(tmp_path / "out")


def test_class_tokens_and_padding_are_as_the_checkpoint_says(tmp_path):
    pieces = Pieces(tmp_path, 2)
    config = json.loads((pieces.folder / "config.json").read_text())
    changed = {**config, "mm_vision_select_feature": "cls_patch", "image_aspect_ratio": "pad"}
    (pieces.folder / "config.json").write_text(json.dumps(changed))
    vlm = mmn.load(pieces.folder, vision_tower=pieces.tower)
    assert vlm.model.config.vision_feature_select_strategy == "full"
    assert vlm.processor.image_processor.do_pad


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda p: p.weights.pop("model.layers.1.mlp.up_proj.weight"), r"1 weights are not in .*up_proj"),
        (lambda p: p.weights.pop("model.mm_projector.0.weight"), "known are one layer and two"),
        (lambda p: p.weights.pop("lm_head.weight"), "no whole checkpoint"),
        (lambda p: p.weights.update({"model.norm.weight": torch.ones(65)}), r"is \(65,\) and should be \(64,\)"),
    ],
)
def test_what_is_missing_or_wrong_is_named(tmp_path, break_it, says):
    pieces = Pieces(tmp_path, 2)
    break_it(pieces)
    pieces.store("safetensors")
    with pytest.raises(ModelLoadError, match=says):
        mmn.load(pieces.folder, vision_tower=pieces.tower)


def test_a_tower_that_is_not_there_or_another_one(tmp_path):
    pieces = Pieces(tmp_path, 1)
    with pytest.raises(ModelLoadError, match=r"'openai/clip-vit-large-patch14' is not to be had.*vision_tower=…"):
        mmn.load(pieces.folder)
    config = json.loads((pieces.folder / "config.json").read_text())
    (pieces.folder / "config.json").write_text(json.dumps({**config, "mm_hidden_size": 1024}))
    with pytest.raises(ModelLoadError, match=r"is 32 wide, and .* asks for 1024"):
        mmn.load(pieces.folder, vision_tower=pieces.tower)
    with pytest.raises(ModelLoadError, match="vision_tower is for"):
        mmn.load("demo", vision_tower=pieces.tower)
