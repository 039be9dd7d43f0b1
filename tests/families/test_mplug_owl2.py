"""mPLUG-Owl2 against what its original code gave: a tiny model of random weights, every tensor of it."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageTextToText, CLIPImageProcessor

import mmneurons as mmn
from helpers.tiny import tiny_tokenizer
from mmneurons.vlm.families.mplug_owl2 import MPLUGOwl2ForConditionalGeneration, MPLUGOwl2Processor
from mmneurons.vlm.hooks import listening

pytestmark = pytest.mark.families

FOLDER = Path(__file__).parents[1] / "data" / "owl2_reference"
CLOSE = 1e-5
MARKER = -200
"""What the original has in the ids for a picture."""


@pytest.fixture(scope="module")
def reference():
    return load_file(FOLDER / "reference.safetensors")


@pytest.fixture(scope="module")
def model():
    assert mmn.load  # registers the family
    loaded, report = AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert isinstance(loaded, MPLUGOwl2ForConditionalGeneration)
    return loaded.eval()


def expanded(model, ids):
    """The original's ids with a placeholder for every position of a picture."""
    count, image = model.config.image_seq_length, model.config.image_token_id
    rows = [[other for one in row for other in ([image] * count if one == MARKER else [one])] for row in ids.tolist()]
    return torch.tensor(rows)


@pytest.mark.parametrize("case", ["one", "two", "text", "batch"])
def test_every_tensor_is_the_originals(model, reference, case):
    ids = expanded(model, reference[f"{case}.input_ids"])
    acts = {}
    sites = {f"model.layers.{i}.mlp.down_proj": lambda x, i=i: acts.update({i: x.clone()}) for i in range(3)}
    layers = {f"model.layers.{i}": lambda x, i=i: acts.update({f"layer{i}": x.clone()}) for i in range(3)}
    with torch.no_grad(), listening(model, sites, layers):
        output = model(input_ids=ids, pixel_values=reference.get(f"{case}.images"), output_hidden_states=True)
    seen = {"logits": output.logits}
    seen |= {f"hidden{index}": state for index, state in enumerate(output.hidden_states)}
    seen |= {f"act{i}": acts[i] for i in range(3)} | {f"layer{i}": acts[f"layer{i}"] for i in range(3)}
    for name, value in seen.items():
        assert (value - reference[f"{case}.{name}"]).abs().max() < CLOSE, name


def test_the_pictures_part_is_the_originals(model, reference):
    with torch.no_grad():
        features = model.model.vision_model(reference["one.images"])
        positions = model.model.get_image_features(reference["one.images"])
    assert (features - reference["vision.last_hidden_state"]).abs().max() < CLOSE
    assert (positions - reference["abstractor.last_hidden_state"]).abs().max() < CLOSE


@pytest.mark.parametrize("how", [{}, {"cache_implementation": "static"}, {"use_cache": False}])
def test_greedy_tokens_are_the_originals_with_every_cache(model, reference, how):
    ids = expanded(model, reference["one.input_ids"])
    said = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=reference["one.images"],
        max_new_tokens=12,
        min_new_tokens=12,
        do_sample=False,
        pad_token_id=0,
        **how,
    )
    assert said[0, ids.shape[1] :].tolist() == reference["gen.sequences"][0, 8:].tolist()


def test_padding_on_the_left_changes_nothing(model, reference):
    """The original's last logits move by more than one here."""
    ids = expanded(model, reference["one.input_ids"])
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], 1)
    mask = torch.cat([torch.zeros(1, 3, dtype=torch.long), torch.ones_like(ids)], 1)
    places = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        seen = model(
            input_ids=padded, attention_mask=mask, position_ids=places, pixel_values=reference["one.images"]
        ).logits
    assert (seen[:, 3:] - reference["one.logits"]).abs().max() < CLOSE


def test_pictures_and_placeholders_have_to_fit(model, reference):
    ids = expanded(model, reference["one.input_ids"])
    with pytest.raises(ValueError, match="do not match: 0 and 5"):
        model(input_ids=ids)


def test_pictures_are_prepared_as_the_original_does():
    kept = load_file(FOLDER / "preprocess.safetensors")
    images = CLIPImageProcessor(size={"height": 56, "width": 56}, crop_size={"height": 56, "width": 56})
    processor = MPLUGOwl2Processor(images, tiny_tokenizer(), num_image_tokens=5)
    picture = Image.fromarray(kept["raw_uint8"].numpy())
    seen = processor(images=[picture], text=["<|image|>"], return_tensors="pt")["pixel_values"]
    assert (seen - kept["pixel_values"]).abs().max() < CLOSE


def test_the_prompt_is_the_originals_and_text_is_cut_at_pictures():
    tokenizer = tiny_tokenizer()
    images = CLIPImageProcessor(size={"height": 56, "width": 56}, crop_size={"height": 56, "width": 56})
    processor = MPLUGOwl2Processor(images, tokenizer, num_image_tokens=5)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe the image."}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert text == (FOLDER / "prompt.txt").read_text()
    ids = processor(images=[Image.new("RGB", (9, 9))], text=[text], return_tensors="pt")["input_ids"][0].tolist()
    before, after = tokenizer("USER: ")["input_ids"], tokenizer("Describe the image. ASSISTANT:")["input_ids"]
    assert ids == [*before, *[len(tokenizer)] * 5, *after[1:]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, model):
    """A folder as the published one is: configuration, weights, tokenizer and preprocessor."""
    path = tmp_path_factory.mktemp("owl2")
    tokenizer = tiny_tokenizer()
    config = AutoConfig.from_pretrained(FOLDER)
    config.vocab_size, config.image_token_id = len(tokenizer), None
    config = type(config)(**{**config.to_dict(), "image_token_id": len(tokenizer)})
    torch.manual_seed(0)
    other = MPLUGOwl2ForConditionalGeneration(config)
    for weight in other.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.15)
    other.save_pretrained(path)
    images = CLIPImageProcessor(size={"height": 56, "width": 56}, crop_size={"height": 56, "width": 56})
    MPLUGOwl2Processor(images, tokenizer, num_image_tokens=5).save_pretrained(path)
    return path


def test_its_neurons_are_found(checkpoint, picture):
    vlm = mmn.load(checkpoint)
    assert vlm.anatomy.blocks[1].sites[0].module == "model.layers.1.mlp.down_proj"
    found = mmn.find(vlm, picture, caption="An image of a dog.", words=["dog"], against=None)
    assert mmn.completeness(found["dog"]).error < 1e-4
    assert mmn.check_neurons(found["dog"], found["dog"].neurons(3)).error < 1e-4
    assert len(found.recording.image_positions) == 5
    one, two = mmn.caption(vlm, [picture, picture], batch_size=2, max_new_tokens=6)
    assert one == two == mmn.caption(vlm, picture, max_new_tokens=6)
