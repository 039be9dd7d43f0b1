"""First-generation LLaVA checkpoints (``liuhaotian/*``), the one of Pan et al. (2024) among them.

Their ``config.json`` is a flat Llama configuration that names a CLIP to be had elsewhere (``mm_vision_tower``), and the
weights are a Llama's with a projector of one or two layers beside it. transformers takes the type ``llava`` for its own
and silently builds a random model from it. Here the weights are put where transformers' LLaVA has them: the same model,
to the bit. A projector of one layer is followed by the identity, since transformers' has two.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessor,
    LlavaProcessor,
    PreTrainedTokenizerBase,
)

from mmneurons.errors import ModelLoadError

__all__ = ["convert", "is_first_llava"]

MORE_ROWS = 64
"""How many rows are added to the vocabulary, for the image token and round numbers; they are the mean of the others."""

IMAGE_TOKEN = "<image>"

_TYPES = ("llava", "llava_llama")
_SHORT = "USER: {image}\n{question} ASSISTANT:"
_LLAMA_2 = "[INST] {image}\n{question} [/INST]"


@dataclass(frozen=True)
class _Checkpoint:
    """What a first-generation folder says of itself."""

    folder: Path
    config: Mapping[str, object]

    def number(self, name: str, default: int) -> int:
        value = self.config.get(name, default)
        return value if isinstance(value, int) else default


def is_first_llava(folder: Path) -> bool:
    """Whether a folder holds a first-generation LLaVA."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") in _TYPES and "mm_vision_tower" in config


def convert(
    folder: Path, vision_tower: str | None = None, dtype: str | torch.dtype | None = None, allow_pickle: bool = False
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Read a first-generation LLaVA as transformers' own.

    Args:
        folder: with ``config.json``, the weights and the tokenizer.
        vision_tower: the folder of the CLIP, or its name on the hub; by default what the configuration names.
        dtype: of the weights; by default the checkpoint's own.
        allow_pickle: also read ``.bin`` weights, without running any code of theirs.

    Returns:
        The model, in evaluation mode on the CPU, and its processor.

    Raises:
        ModelLoadError: the CLIP, a weight or the tokenizer is not there, or a setting is not known.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    own = _Checkpoint(folder, config)
    tower = vision_tower or str(config["mm_vision_tower"])
    vision, images = _vision(own, tower)
    tokenizer = _tokenizer(own)
    kind = _dtype(dtype, config)
    weights = _renamed(own, vision, kind, allow_pickle)
    layers = "gelu" if "model.mm_projector.2.weight" in weights.projector else "linear"
    image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    assert isinstance(image_token_id, int)
    strategy = "full" if config.get("mm_vision_select_feature", "patch") == "cls_patch" else "default"
    text = LlamaConfig(**{name: value for name, value in config.items() if name in _llama_settings()})
    text.vocab_size = weights.vocabulary + MORE_ROWS
    if image_token_id >= text.vocab_size:
        raise ModelLoadError(f"The tokenizer of {str(folder)!r} has more tokens than the model. It is another model's.")
    made = LlavaConfig(
        text_config=text,
        vision_config=vision.config,
        image_token_index=image_token_id,
        image_seq_length=_patches(vision) + (strategy == "full"),
        vision_feature_layer=own.number("mm_vision_select_layer", -2),
        vision_feature_select_strategy=strategy,
        projector_hidden_act=layers,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        outline = LlavaForConditionalGeneration(made)
    state = weights.state(outline, layers, text.hidden_size, kind)
    loaded: Any = LlavaForConditionalGeneration.from_pretrained(
        None, config=made, state_dict=state, dtype=kind, output_loading_info=True, ignore_mismatched_sizes=True
    )
    model, report = loaded
    if mismatched := sorted(report["mismatched_keys"]):
        name, there, asked = mismatched[0]
        raise ModelLoadError(
            f"{len(mismatched)} weights of {str(folder)!r} have another shape than its config.json and the vision "
            f"tower {tower!r} ask for: {name} is {tuple(there)} and should be {tuple(asked)}."
        )
    if missing := sorted(report["missing_keys"]):
        raise ModelLoadError(f"{len(missing)} weights are not in {str(folder)!r}: {', '.join(missing[:3])}, …")
    ends = tokenizer.eos_token_id
    model.generation_config.update(eos_token_id=ends, bos_token_id=tokenizer.bos_token_id, pad_token_id=ends)
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=vision.config.patch_size,
        vision_feature_select_strategy=strategy,
        chat_template=_template(own),
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,
    )
    return model.eval(), processor


@dataclass(frozen=True)
class _Weights:
    """The weights of a checkpoint under the names that they had."""

    language: dict[str, Tensor]
    projector: dict[str, Tensor]
    vision: Mapping[str, Tensor]
    vocabulary: int

    def state(
        self, model: LlavaForConditionalGeneration, layers: str, hidden: int, kind: torch.dtype
    ) -> dict[str, Tensor]:
        """Under the names that transformers' LLaVA has for them."""
        state = {}
        for name, weight in self.language.items():
            grown = weight
            if name in ("model.embed_tokens.weight", "lm_head.weight"):
                grown = torch.cat([weight, weight.float().mean(0, keepdim=True).to(weight).expand(MORE_ROWS, -1)])
            state[name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name] = grown
        renamed = (
            {".0.": ".linear_1.", ".2.": ".linear_2."} if layers == "gelu" else {"projector.": "projector.linear_1."}
        )
        for name, weight in self.projector.items():
            other = name.replace("mm_projector", "multi_modal_projector")
            for old, new in renamed.items():
                other = other.replace(old, new, 1)
            state[other] = weight
        if layers == "linear":
            state["model.multi_modal_projector.linear_2.weight"] = torch.eye(hidden, dtype=kind)
            state["model.multi_modal_projector.linear_2.bias"] = torch.zeros(hidden, dtype=kind)
        prefix = "model.vision_tower."
        for name in model.state_dict():
            if name.startswith(prefix):
                short = name.removeprefix(prefix)
                found = self.vision.get(short, self.vision.get(f"vision_model.{short}"))
                if found is not None:
                    state[name] = found.to(kind)
        return state


def _renamed(own: _Checkpoint, vision: CLIPVisionModel, kind: torch.dtype, allow_pickle: bool) -> _Weights:
    language: dict[str, Tensor] = {}
    projector: dict[str, Tensor] = {}
    tower = dict(vision.state_dict())
    for name, weight in _read(own.folder, allow_pickle):
        if name.endswith("rotary_emb.inv_freq"):
            continue
        if "vision_tower" in name:
            tower[name.rpartition("vision_tower.")[2]] = weight
        elif "mm_projector" in name:
            projector[name] = weight.to(kind)
        else:
            language[name] = weight.to(kind)
    widths = [name for name in projector if name.endswith("weight")]
    known = (["model.mm_projector.weight"], ["model.mm_projector.0.weight", "model.mm_projector.2.weight"])
    if sorted(widths) not in known:
        raise ModelLoadError(
            f"The projector of {str(own.folder)!r} has the weights {', '.join(sorted(widths)) or 'none'}; known are "
            "one layer and two. If it lies in a file of its own (mm_projector.bin), put it into the folder."
        )
    if "model.embed_tokens.weight" not in language or "lm_head.weight" not in language:
        raise ModelLoadError(f"{str(own.folder)!r} holds no embedding or no head: it is no whole checkpoint.")
    return _Weights(language, projector, tower, len(language["model.embed_tokens.weight"]))


def _read(folder: Path, allow_pickle: bool) -> Iterator[tuple[str, Tensor]]:
    """All weights of a folder, file by file."""
    safe = sorted(folder.glob("*.safetensors"))
    pickled = [] if safe else sorted(folder.glob("*.bin"))
    if not safe and not pickled:
        raise ModelLoadError(f"{str(folder)!r} holds no weights.")
    if pickled and not allow_pickle:
        raise ModelLoadError(
            f"{str(folder)!r} holds its weights as .bin files. If you trust them, pass allow_pickle=True "
            "(--allow-pickle)."
        )
    for index in (*folder.glob("*.safetensors.index.json"), *folder.glob("*.bin.index.json")):
        named: set[str] = set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
        missing = sorted(named - {path.name for path in (*safe, *pickled)})
        if missing and (".safetensors." in index.name) == bool(safe):
            raise ModelLoadError(
                f"{len(missing)} files of weights are not in {str(folder)!r}: {', '.join(missing[:3])}."
            )
    for path in (*safe, *pickled):
        try:
            if path.suffix == ".bin":
                yield from torch.load(path, map_location="cpu", weights_only=True, mmap=True).items()
                continue
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - it is no mapping
                    yield name, file.get_tensor(name)
        except (SafetensorError, OSError, RuntimeError, ValueError, EOFError) as error:
            raise ModelLoadError(
                f"{str(path)!r} cannot be read: {str(error).splitlines()[0]}. Get it again."
            ) from error


def _vision(own: _Checkpoint, tower: str) -> tuple[CLIPVisionModel, CLIPImageProcessor | LlavaImageProcessor]:
    try:
        config = AutoConfig.from_pretrained(tower)
        config = getattr(config, "vision_config", config)
        if not isinstance(config, CLIPVisionConfig):
            raise ModelLoadError(f"The vision tower {tower!r} is a {config.model_type}, and should be a CLIP.")
        model = CLIPVisionModel.from_pretrained(tower, config=config, dtype="auto")
        images = CLIPImageProcessor.from_pretrained(tower)
    except (OSError, ValueError) as error:
        raise ModelLoadError(
            f"{str(own.folder)!r} is a first-generation LLaVA checkpoint, whose vision tower is kept apart, and "
            f"{tower!r} is not to be had here. Pass its folder: mmn.load(…, vision_tower=…), or --vision-tower."
        ) from error
    if model.config.hidden_size != own.number("mm_hidden_size", model.config.hidden_size):
        raise ModelLoadError(
            f"The vision tower {tower!r} is {model.config.hidden_size} wide, and {str(own.folder)!r} asks for "
            f"{own.config.get('mm_hidden_size')}. It is another one."
        )
    if own.config.get("image_aspect_ratio") == "pad":
        settings: dict[str, Any] = {**images.to_dict(), "do_pad": True}
        known = LlavaImageProcessor().to_dict()
        return model, LlavaImageProcessor(**{name: value for name, value in settings.items() if name in known})
    return model, images


def _patches(vision: CLIPVisionModel) -> int:
    embeddings = vision.state_dict()
    places = next(weight for name, weight in embeddings.items() if name.endswith("position_embedding.weight"))
    return len(places) - 1


def _tokenizer(own: _Checkpoint) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(own.folder)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ModelLoadError(
            f"The tokenizer of {str(own.folder)!r} cannot be loaded: {str(error).splitlines()[0]}"
        ) from error
    tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    return tokenizer


def _template(own: _Checkpoint) -> str:
    """The question in the words that the checkpoint was trained with, as a chat template."""
    name = f"{own.folder.resolve().name} {own.config.get('_name_or_path', '')}".lower()
    image = IMAGE_TOKEN
    if own.config.get("mm_use_im_start_end"):
        image = f"<im_start>{IMAGE_TOKEN}<im_end>"
    style = _LLAMA_2 if "llama-2" in name or "llama_2" in name else _SHORT
    before, after = style.format(image=image, question="QUESTION").split("QUESTION")
    return (
        "{% for message in messages %}{% if message['role'] == 'user' %}"
        f"{{{{ {before!r} }}}}"
        "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
        f"{{{{ {after!r} }}}}"
        "{% else %}{{ ' ' + message['content'][0]['text'] }}{% endif %}{% endfor %}"
    )


def _llama_settings() -> set[str]:
    return set(LlamaConfig().to_dict()) - {"model_type", "architectures", "transformers_version", "dtype"}


def _dtype(dtype: str | torch.dtype | None, config: Mapping[str, object]) -> torch.dtype:
    named = config.get("torch_dtype", "float32") if dtype in (None, "auto") else dtype
    found = named if isinstance(named, torch.dtype) else getattr(torch, str(named), None)
    if not isinstance(found, torch.dtype):
        raise ModelLoadError(f"dtype={dtype!r} is no dtype of torch.")
    return found
