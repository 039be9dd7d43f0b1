"""mPLUG-Owl2's processor: pictures pressed into a square, and text cut at the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import no_type_check

from PIL import Image
from transformers import BatchFeature, ProcessorMixin

__all__ = ["CHAT_TEMPLATE", "IMAGE_TOKEN", "MPLUGOwl2Processor"]

IMAGE_TOKEN = "<|image|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}USER: "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|image|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% else %} ASSISTANT: {{ message['content'][0]['text'] }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
"""As the published code asks: no text of the system's, and a blank between the turns."""


class MPLUGOwl2Processor(ProcessorMixin):
    """An image processor of CLIP's kind and a Llama tokenizer.

    A picture is first pressed into a square as long as its longer side, whatever that does to its shape. The text
    around a picture is tokenised piece by piece, as the published code does, so that a piece behind a picture begins
    like a text of its own; the first piece alone keeps the token of the beginning.

    Attributes:
        image_token: what stands for a picture in a text.
        image_token_id: what stands for each of its positions in the ids; that of the model's configuration.
        num_image_tokens: how many positions a picture takes.
    """

    image_token = IMAGE_TOKEN

    # transformers reads the names of its arguments from its code, which a wrapper that checks types would hide
    @no_type_check
    def __init__(
        self,
        image_processor: object = None,
        tokenizer: object = None,
        chat_template: str | None = None,
        image_token_id: int | None = None,
        num_image_tokens: int = 65,
    ) -> None:
        """Of an image processor and a tokenizer."""
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)
        self.image_token_id = len(self.tokenizer) if image_token_id is None else image_token_id
        self.num_image_tokens = num_image_tokens

    def __call__(
        self,
        images: Image.Image | Sequence[Image.Image] | None = None,
        text: str | Sequence[str] | None = None,
        return_tensors: str | None = None,
        **options: object,
    ) -> BatchFeature:
        """Prepare pictures and texts, padded on the left.

        Args:
            images: as many as the texts have placeholders, in order.
            text: one, or several.
            return_tensors: ``"pt"`` for tensors, otherwise lists.
            **options: ``add_special_tokens``, of the tokenizer.

        Raises:
            ValueError: pictures and placeholders are not equally many.
        """
        pictures = [images] if isinstance(images, Image.Image) else list(images or ())
        texts = [text] if isinstance(text, str) else list(text or ())
        if (count := sum(one.count(IMAGE_TOKEN) for one in texts)) != len(pictures):
            raise ValueError(f"There are {len(pictures)} pictures and {count} places for them in the text.")
        data: dict[str, object] = {}
        if texts:
            special = bool(options.get("add_special_tokens", True))
            rows = [self._ids(one, special) for one in texts]
            longest = max(map(len, rows))
            pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
            data["input_ids"] = [[pad] * (longest - len(row)) + row for row in rows]
            data["attention_mask"] = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        features = BatchFeature(data, tensor_type=return_tensors)
        if pictures:
            squares = [picture.convert("RGB").resize((max(picture.size), max(picture.size))) for picture in pictures]
            features.update(self.image_processor(images=squares, return_tensors=return_tensors))
        return features

    def _ids(self, text: str, special: bool) -> list[int]:
        pieces = [self.tokenizer(piece, add_special_tokens=special)["input_ids"] for piece in text.split(IMAGE_TOKEN)]
        bos = self.tokenizer.bos_token_id
        ids = list(pieces[0])
        for piece in pieces[1:]:
            begins = bool(piece) and special and piece[0] == bos
            ids += [self.image_token_id] * self.num_image_tokens + list(piece[1:] if begins else piece)
        return ids

    @property
    def model_input_names(self) -> list[str]:
        """What the model gets."""
        return ["input_ids", "attention_mask", "pixel_values"]
