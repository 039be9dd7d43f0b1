"""How long it takes to measure where image tokens lie, at the sizes of real models: random weights, float32, on a CPU.

Once for every size of picture; what was found is kept.
"""

import time

import torch
import transformers as tf
from PIL import Image

import mmneurons as mmn
from bench.doctor import random_weights, seven_billion
from mmneurons.vlm.measured_layout import measured_geometry
from mmneurons.vlm.model import VLM
from mmneurons.vlm.supports import tokens_per_image

__all__ = ["main"]

SIZE = (1024, 768)


def llava() -> VLM:
    """LLaVA-1.5-7B's vision tower and projector over one block."""
    model, processor = seven_billion(1)
    return mmn.wrap(model.float(), processor)


def qwen2_vl() -> VLM:
    """Qwen2-VL-7B's vision tower and merger over one block."""
    demo = mmn.load("demo").processor
    assert demo is not None
    tokenizer = demo.tokenizer
    config = tf.Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer) + 8,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 1,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        vision_config={"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16, "mlp_ratio": 4},
        image_token_id=len(tokenizer),
        vision_start_token_id=len(tokenizer) + 1,
        vision_end_token_id=len(tokenizer) + 2,
        video_token_id=len(tokenizer) + 3,
    )
    with torch.device("meta"):
        outline = tf.Qwen2VLForConditionalGeneration(config)
    model = tf.Qwen2VLForConditionalGeneration.from_pretrained(
        None, config=config, state_dict=random_weights(outline), dtype="float32"
    )
    vlm = mmn.wrap(model.eval())
    return VLM(vlm.model, _Pictures(tf.Qwen2VLImageProcessor()), vlm.anatomy, vlm.name)


class _Pictures(tf.ProcessorMixin):
    def __init__(self, images: tf.Qwen2VLImageProcessor) -> None:
        self.image_processor = images


def main() -> None:
    """Print the seconds for each model."""
    for name, make in (("LLaVA-1.5-7B", llava), ("Qwen2-VL-7B", qwen2_vl)):
        vlm = make()
        processor = vlm.processor
        assert processor is not None
        prepared = processor.image_processor(images=[Image.new("RGB", SIZE)], return_tensors="pt")
        inputs = {key: value for key, value in prepared.items() if isinstance(value, torch.Tensor)}
        count = sum(tokens_per_image(vlm.model, inputs))
        started = time.perf_counter()
        found = measured_geometry(vlm, SIZE, count)
        seconds = time.perf_counter() - started
        grid = found.grids[0]
        print(f"{name}: {count} tokens of {SIZE[0]} × {SIZE[1]} pixels, {grid.rows} × {grid.columns}: {seconds:.1f} s")


if __name__ == "__main__":
    main()
