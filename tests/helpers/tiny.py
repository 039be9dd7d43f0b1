"""Tiny vision-language models with random weights and working processors, made without a network.

``tiny_llava()`` and its two sisters return ``(model, processor)``. The processor takes
``processor(images=picture, text="<image>\ndescribe", return_tensors="pt")`` and a chat; the model generates. Both can
be saved and loaded as any checkpoint (without torchvision, LLaVA-OneVision's processor can only be saved). Equal
arguments give equal weights.
"""

import json
import math
import re

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaProcessor,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

__all__ = [
    "BACKBONES",
    "IMAGE_SIZE",
    "PATCH_SIZE",
    "redraw",
    "tiny_llava",
    "tiny_llava_next",
    "tiny_llava_onevision",
    "tiny_tokenizer",
]

IMAGE_SIZE = 56
PATCH_SIZE = 14
PADDING_ROWS = 8

CORPUS = """
An image of a dog and a ball. An image of two red apples and a dog. The dogs are playing with a yellow ball.
Describe the image in few words. describe the picture. What is in this image? USER: ASSISTANT: SYSTEM:
a hot dog, a teddy bear and a fire truck; the cat's tail is black-and-white. Cats, horses, mice and geese!
There is a green tree beside an old house, and a boat on the blue water. A plate of pizza with one tomato.
the man is riding a bicycle down the street, while three children watch from the window of the school bus.
""".strip().split("\n")

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper }}: "
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %} {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def _text_config(kind, vocabulary, layers, tied, token_ids):
    shared = dict(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=112,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=tied,
        **token_ids,
    )
    if kind == "mistral":
        return MistralConfig(head_dim=16, sliding_window=None, **shared)
    return {"llama": LlamaConfig, "qwen2": Qwen2Config}[kind](**shared)


BACKBONES = ("llama", "qwen2", "mistral")
"""The language models there are. Llama and mistral come with a metaspace tokenizer, qwen2 with a byte-level one."""


def _add_bytes(tokenizer):
    """Give a trained BPE the 256 byte entries that it spells unknown characters with, as ordinary tokens."""
    state = json.loads(tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    merges = [tuple(pair) for pair in state["model"]["merges"]]
    tokenizer.model = models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True)


def tiny_tokenizer(style: str = "metaspace", padding_side: str = "left") -> PreTrainedTokenizerFast:
    """Return a fast tokenizer of about 560 entries, trained on a few captions.

    Args:
        style: ``"metaspace"`` (as Llama: a word starts with ``▁``, ``<s>`` in front, bytes for what is unknown) or
            ``"byte-level"`` (as GPT-2 and Qwen: no token in front).
        padding_side: Where a batch is padded.
    """
    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "<video>"]
    if style == "metaspace":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        # Splitting in front of the mark keeps merges inside a word, as in a trained sentencepiece model.
        tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        alphabet: list[str] = []
    elif style == "byte-level":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        raise ValueError(style)
    entries = len(special) + len(alphabet) + 300
    trainer = trainers.BpeTrainer(
        vocab_size=entries, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    if style == "metaspace":
        _add_bytes(tokenizer)
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>", "video_token": "<video>"},
        padding_side=padding_side,
        clean_up_tokenization_spaces=False,
    )


def redraw(model: torch.nn.Module, seed: int = 0, scale: float = 1.0) -> torch.nn.Module:
    """Draw every weight anew, so that activations are of order one and the logits are spread.

    The usual initial weights of 0.02 leave all tokens equally likely, and then no test of a score can fail. Matrices
    are drawn with standard deviation ``scale``/√(fan-in), norms around one, biases small but not zero. What writes into
    the residual stream is four times as large, so that the blocks and not the embedding of the last token decide what
    comes next; so is the output head, so that logits differ by several nats.
    """
    generator = torch.Generator().manual_seed(seed)
    head = model.get_output_embeddings()
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() > 1 and "embed" in name and "patch" not in name:
                weight.copy_(noise)
            elif weight.dim() > 1:
                gain = 4 if name.endswith(("down_proj.weight", "o_proj.weight")) else 1
                weight.copy_(noise * gain * scale / math.sqrt(weight[0].numel()))
            elif "norm" in name and name.endswith("weight"):
                weight.copy_(1 + 0.2 * noise)
            elif name.endswith("bias"):
                weight.copy_(0.1 * noise)
            else:
                weight.copy_(noise)
        # Tied embeddings were drawn as embeddings; their rows have to be as short as those of a head.
        generator.manual_seed(seed + 1)
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * 4 / math.sqrt(head.weight.shape[1]))
    return model


def _parts(text, vision, layers, tied, image_size=IMAGE_SIZE):
    tokenizer = tiny_tokenizer("byte-level" if text == "qwen2" else "metaspace")
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    vocabulary = len(tokenizer) + PADDING_ROWS
    return tokenizer, dict(
        text_config=_text_config(text, vocabulary, layers, tied, ids),
        vision_config=vision(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=image_size,
            patch_size=PATCH_SIZE,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=tied,
    )


def _finish(model, tokenizer, seed):
    redraw(model, seed)
    # An untrained model would sooner or later say "<image>", half a character, or an entry that stands for no text.
    spoken = {index for entry, index in tokenizer.get_vocab().items() if re.fullmatch("[▁Ġ]?[A-Za-z.,!?;:'-]*", entry)}
    silent = set(range(model.config.text_config.vocab_size)) - spoken - {tokenizer.eos_token_id}
    model.generation_config.suppress_tokens = sorted(silent)
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.eval()


def tiny_llava(text: str = "llama", layers: int = 3, tied: bool = False, seed: int = 0):
    """Return a LLaVA of 16 image tokens (4 by 4 patches of a picture whose middle is cropped), float32.

    Args:
        text: The language model, one of ``BACKBONES``.
        layers: How many blocks the language model has.
        tied: Whether the output head is the input embedding.
        seed: What the weights are drawn with.
    """
    tokenizer, parts = _parts(text, CLIPVisionConfig, layers, tied)
    model = LlavaForConditionalGeneration(LlavaConfig(vision_feature_layer=-2, **parts))
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=side),
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    return _finish(model, tokenizer, seed), processor


def _without_video(processor_class):
    """Return the processor class without its video part, which transformers makes only where torchvision is installed.

    The name stays, so that what is saved is an ordinary checkpoint.
    """

    def get_attributes(cls):
        return [part for part in processor_class.get_attributes() if part != "video_processor"]

    return type(processor_class.__name__, (processor_class,), {"get_attributes": classmethod(get_attributes)})


def _pinpoints(one=IMAGE_SIZE):
    two, three = 2 * one, 3 * one
    return [[one, two], [two, one], [two, two], [one, three], [three, one]]


def tiny_llava_next(
    text: str = "mistral", layers: int = 3, tied: bool = False, seed: int = 0, image_size: int = IMAGE_SIZE
):
    """Return a LLaVA-NeXT: the whole picture in 16 tokens, and up to 2 by 2 or 1 by 3 tiles of as many, float32.

    For the other arguments see ``tiny_llava``.

    Args:
        text: The language model, one of ``BACKBONES``.
        layers: How many blocks the language model has.
        tied: Whether the output head is the input embedding.
        seed: What the weights are drawn with.
        image_size: Side of a tile in pixels; what is left over of patches of 14 belongs to none.
    """
    tokenizer, parts = _parts(text, CLIPVisionConfig, layers, tied, image_size)
    pinpoints = _pinpoints(image_size)
    config = LlavaNextConfig(vision_feature_layer=-2, image_grid_pinpoints=pinpoints, **parts)
    model = LlavaNextForConditionalGeneration(config)
    side = {"height": image_size, "width": image_size}
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(
            size={"shortest_edge": image_size}, crop_size=side, image_grid_pinpoints=pinpoints
        ),
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    return _finish(model, tokenizer, seed), processor


def tiny_llava_onevision(
    text: str = "qwen2",
    layers: int = 3,
    tied: bool = False,
    seed: int = 0,
    aspect: str = "anyres_max_9",
    image_size: int = IMAGE_SIZE,
):
    """Return a LLaVA-OneVision: as LLaVA-NeXT, with a SigLIP tower and a limit on the tiles' tokens, float32.

    For the other arguments see ``tiny_llava``.

    Args:
        text: The language model, one of ``BACKBONES``.
        layers: How many blocks the language model has.
        tied: Whether the output head is the input embedding.
        seed: What the weights are drawn with.
        aspect: ``"anyres_max_N"``: tokens of the tiles beyond those of N tiles are interpolated away.
        image_size: Side of a tile in pixels; what is left over of patches of 14 belongs to none.
    """
    tokenizer, parts = _parts(text, SiglipVisionConfig, layers, tied, image_size)
    pinpoints = _pinpoints(image_size)
    config = LlavaOnevisionConfig(
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pinpoints,
        vision_aspect_ratio=aspect,
        **parts,
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    side = {"height": image_size, "width": image_size}
    processor = _without_video(LlavaOnevisionProcessor)(
        image_processor=LlavaOnevisionImageProcessor(size=side, image_grid_pinpoints=pinpoints),
        tokenizer=tokenizer,
        num_image_tokens=(image_size // PATCH_SIZE) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=aspect,
        chat_template=CHAT_TEMPLATE,
    )
    return _finish(model, tokenizer, seed), processor
