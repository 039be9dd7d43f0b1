"""First-generation LLaVA checkpoints with random weights, and the pieces that they are made of."""

import json

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from helpers.tiny import tiny_tokenizer

__all__ = ["Pieces"]

SIDE = {"height": 28, "width": 28}


def projector(layers: int) -> nn.Module:
    return nn.Linear(32, 64) if layers == 1 else nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 64))


class Pieces:
    """What a first-generation LLaVA is made of, and the folders that it comes in."""

    def __init__(self, path, layers, stored="safetensors", folder="llava-v1", tower="clip"):
        torch.manual_seed(layers)
        tokenizer = tiny_tokenizer()
        self.clip = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=3,
                num_attention_heads=4,
                image_size=28,
                patch_size=14,
                projection_dim=32,
            )
        ).eval()
        config = LlamaConfig(
            vocab_size=len(tokenizer) - 1,
            hidden_size=64,
            intermediate_size=112,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
        self.llama, self.projector = LlamaForCausalLM(config).eval(), projector(layers)
        for weight in (*self.llama.parameters(), *self.clip.parameters(), *self.projector.parameters()):
            if weight.dim() > 1:
                nn.init.normal_(weight, std=0.15)
        self.folder, self.tower = path / folder, path / tower
        self.folder.mkdir()
        self.clip.save_pretrained(self.tower)
        CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=SIDE).save_pretrained(self.tower)
        self.weights = {name: weight.detach().clone() for name, weight in self.llama.state_dict().items()}
        for name, weight in self.projector.state_dict().items():
            self.weights[f"model.mm_projector.{name}"] = weight.clone()
        self.weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
        flat = {
            **{name: value for name, value in config.to_dict().items() if name not in ("architectures", "dtype")},
            "model_type": "llava",
            "architectures": ["LlavaLlamaForCausalLM"],
            "mm_vision_tower": "openai/clip-vit-large-patch14",
            "mm_hidden_size": 32,
            "mm_vision_select_layer": -2,
            "mm_use_im_start_end": False,
            "torch_dtype": "float32",
        }
        (self.folder / "config.json").write_text(json.dumps(flat))
        tokenizer.save_pretrained(self.folder)
        self.store(stored)

    def store(self, how):
        if how == "safetensors":
            save_file(self.weights, self.folder / "model.safetensors", metadata={"format": "pt"})
            return
        names = sorted(self.weights)
        parts = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
        for file, own in parts.items():
            torch.save({name: self.weights[name] for name in own}, self.folder / file)
        index = {"weight_map": {name: file for file, own in parts.items() for name in own}}
        (self.folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))

    def logits(self, before, pixels, after):
        """As the original model gives them: features of the last layer but one, spliced between two texts."""
        with torch.no_grad():
            features = self.clip(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
            embed = self.llama.get_input_embeddings()
            whole = torch.cat([embed(before), self.projector(features), embed(after)], 1)
            output = self.llama(inputs_embeds=whole, output_hidden_states=True)
            return output.logits, output.hidden_states[-1]
