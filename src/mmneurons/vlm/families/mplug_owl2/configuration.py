"""mPLUG-Owl2's configuration: a flat Llama's, with a vision model and an abstractor in ``visual_config``."""

from __future__ import annotations

from transformers import LlamaConfig

__all__ = ["MPLUGOwl2Config"]

VISUAL_MODEL = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 448,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-6,
}
VISUAL_ABSTRACTOR = {
    "hidden_size": 1024,
    "encoder_hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 6,
    "num_attention_heads": 16,
    "num_learnable_queries": 64,
    "grid_size": 32,
    "layer_norm_eps": 1e-6,
}


class MPLUGOwl2Config(LlamaConfig):
    """As the published ``config.json`` has it; what ``visual_config`` leaves out is as published.

    Attributes:
        visual_config: ``visual_model`` and ``visual_abstractor``.
        image_token_id: what stands for a position of a picture in the ids; by default the first id behind the
            vocabulary. The published code has −200 there, which no tokenizer and no embedding takes.
    """

    model_type = "mplug_owl2"

    def __init__(self, visual_config: dict | None = None, image_token_id: int | None = None, **kwargs) -> None:
        """Fill in what is left out."""
        own = visual_config or {}
        self.visual_config = {
            "visual_model": {**VISUAL_MODEL, **own.get("visual_model", {})},
            "visual_abstractor": {**VISUAL_ABSTRACTOR, **own.get("visual_abstractor", {})},
        }
        super().__init__(**kwargs)
        self.image_token_id = self.vocab_size if image_token_id is None else image_token_id

    @property
    def visual_model(self) -> dict:
        """The vision model's settings."""
        return self.visual_config["visual_model"]

    @property
    def visual_abstractor(self) -> dict:
        """The abstractor's settings."""
        return self.visual_config["visual_abstractor"]

    @property
    def image_seq_length(self) -> int:
        """How many positions a picture takes: one for each query, and one for its end."""
        return self.visual_abstractor["num_learnable_queries"] + 1
