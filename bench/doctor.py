"""What ``mmn doctor`` costs at the size of a 7B model: LLaVA-1.5's shape, random weights, bfloat16, on a CPU.

The weights are of no use, so what the checks find is, too; their times are those of a real checkpoint. Needs 16 GiB of
memory.
"""

import argparse
import time

import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

import mmneurons as mmn
from mmneurons.diagnosis import diagnose

__all__ = ["main", "random_weights", "seven_billion"]


def seven_billion(blocks: int = 32) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """LLaVA-1.5-7B's shape with random weights, and the demo's tokenizer."""
    demo = mmn.load("demo").processor
    assert demo is not None
    tokenizer = demo.tokenizer
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=blocks,
        num_attention_heads=32,
        num_key_value_heads=32,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    image = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_index=image)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    made = LlavaForConditionalGeneration.from_pretrained(
        None, config=config, state_dict=random_weights(model), dtype="bfloat16"
    )
    side = {"height": 336, "width": 336}
    images = CLIPImageProcessor(size={"shortest_edge": 336}, crop_size=side)
    template = "{% for m in messages %}USER: <image>\n{{ m['content'][1]['text'] }} ASSISTANT:{% endfor %}"
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    )
    return made.eval(), processor


def random_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights for a model on the meta device, in bfloat16."""
    torch.manual_seed(0)
    block = torch.randn(2**22, dtype=torch.float32).to(torch.bfloat16)
    weights = {}
    for name, weight in model.state_dict().items():
        count = weight.numel()
        # drawing seven billion numbers takes minutes; repeating four million takes seconds
        flat = block.repeat(-(-count // len(block)))[:count] if count > len(block) else block[:count].clone()
        weights[name] = flat.view(weight.shape).mul_(weight[0].numel() ** -0.5 if weight.dim() > 1 else 1.0)
    return weights


def main(arguments: list[str] | None = None) -> None:
    """Print how long each part takes."""
    parser = argparse.ArgumentParser(prog="python -m bench.doctor", description=__doc__)
    parser.add_argument("--blocks", type=int, default=32, help="how many blocks; 32 for 7B")
    asked = parser.parse_args(arguments)
    started = time.perf_counter()
    model, processor = seven_billion(asked.blocks)
    print(f"{sum(weight.numel() for weight in model.parameters()) / 1e9:.2f} billion weights", flush=True)
    print(f"made in {time.perf_counter() - started:.0f} s", flush=True)
    started = time.perf_counter()
    vlm = mmn.wrap(model, processor)
    print(f"measured in {time.perf_counter() - started:.1f} s", flush=True)
    started = time.perf_counter()
    found = diagnose(vlm)
    print(f"diagnosed in {time.perf_counter() - started:.0f} s", flush=True)
    for part, seconds in found.seconds.items():
        print(f"  {part}: {seconds:.1f} s", flush=True)
    for line in found.lines():
        print(f"    {line}")


if __name__ == "__main__":
    main()
