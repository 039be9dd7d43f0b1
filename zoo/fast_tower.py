"""The vision tower as it is trained: batch normalization folded into the convolutions, its first blocks frozen.

Both only save time. `unfold` gives back tensors under the names of the published weights.
"""

from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from mmneurons.demo.vision_tower import Block, EfficientNetLiteModel

__all__ = ["FastTower"]


def fold(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> nn.Conv2d:
    """One convolution that does both."""
    mean, variance = cast(torch.Tensor, bn.running_mean), cast(torch.Tensor, bn.running_var)
    scale = bn.weight / torch.sqrt(variance + bn.eps)
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    # with stride 2, `FastTower.convolve` pads unevenly
    padding = kernel // 2 if stride == 1 else 0
    folded = nn.Conv2d(conv.in_channels, conv.out_channels, kernel, stride, padding, groups=conv.groups)
    cast(torch.Tensor, folded.weight).data = (conv.weight * scale[:, None, None, None]).detach().contiguous()
    cast(torch.Tensor, folded.bias).data = (bn.bias - mean * scale).detach().clone()
    return folded


class FastTower(nn.Module):
    """Same outputs as the tower it was made from.

    Args:
        tower: With the weights to start from.
        frozen: How many of the first blocks are not trained.
        low_precision: Whether those run in bfloat16.
    """

    def __init__(self, tower: EfficientNetLiteModel, frozen: int = 3, low_precision: bool = True) -> None:
        super().__init__()
        self.frozen, self.low_precision = frozen, low_precision
        self.convs = nn.ModuleDict()
        self.pairs: dict[str, tuple[str, str]] = {}
        modules: dict[str, nn.Module] = dict(tower.named_modules())
        pairs = [("_conv_stem", "_bn0")]
        for k, block in enumerate(tower._blocks):
            at = f"_blocks.{k}."
            pairs += [(f"{at}_expand_conv", f"{at}_bn0")] if cast(Block, block).expands else []
            pairs += [(f"{at}_depthwise_conv", f"{at}_bn1"), (f"{at}_project_conv", f"{at}_bn2")]
        pairs.append(("_conv_head", "_bn1"))
        for conv, bn in pairs:
            key = conv.replace(".", "/")
            self.pairs[key] = (conv, bn)
            self.convs[key] = fold(cast(nn.Conv2d, modules[conv]), cast(nn.BatchNorm2d, modules[bn]))
        self.residual = [cast(Block, block).residual for block in tower._blocks]
        self.post_layernorm = nn.LayerNorm(tower.config.hidden_size, eps=tower.config.layer_norm_eps)
        self.post_layernorm.load_state_dict(tower.post_layernorm.state_dict())
        self.position_embedding = nn.Parameter(tower.position_embedding.detach().clone())
        for key, conv in self.convs.items():
            if key == "_conv_stem" or (key.startswith("_blocks") and int(key.split("/")[1]) < frozen):
                conv.requires_grad_(False)

    def conv(self, key: str) -> nn.Conv2d:
        """A folded convolution."""
        return cast(nn.Conv2d, self.convs[key])

    def convolve(self, key: str, x: torch.Tensor) -> torch.Tensor:
        """Applies one, padded as TensorFlow does."""
        conv = self.conv(key)
        if conv.stride[0] == 2:
            low, high = (conv.kernel_size[0] - 2) // 2, (conv.kernel_size[0] - 1) // 2
            x = F.pad(x, (low, high, low, high))
        return conv(x)

    def block(self, k: int, x: torch.Tensor) -> torch.Tensor:
        """One inverted residual."""
        at = f"_blocks/{k}/"
        y = F.hardtanh(self.convolve(f"{at}_expand_conv", x), 0.0, 6.0) if f"{at}_expand_conv" in self.convs else x
        y = F.hardtanh(self.convolve(f"{at}_depthwise_conv", y), 0.0, 6.0)
        y = self.convolve(f"{at}_project_conv", y)
        return x + y if self.residual[k] else y

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(batch, 3, 224, 224) -> (batch, 49, 1280)."""
        x = pixel_values.to(memory_format=torch.channels_last)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.low_precision):
            x = F.hardtanh(self.convolve("_conv_stem", x), 0.0, 6.0)
            for k in range(self.frozen):
                x = self.block(k, x)
        x = x.float()
        for k in range(self.frozen, len(self.residual)):
            x = self.block(k, x)
        x = F.hardtanh(self.convolve("_conv_head", x), 0.0, 6.0)
        return self.post_layernorm(x.flatten(2).transpose(1, 2)) + self.position_embedding

    def unfold(self, base: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Trained convolution weights and batch normalization biases under the names of `base`.

        Args:
            base: State dict of the tower this was made from, whose batch normalization scales stay as they are.
        """
        tensors = {}
        for key, (conv, bn) in self.pairs.items():
            if not self.conv(key).weight.requires_grad:
                continue
            scale = base[f"{bn}.weight"] / torch.sqrt(base[f"{bn}.running_var"] + 1e-3)
            tensors[f"{conv}.weight"] = self.conv(key).weight.detach() / scale[:, None, None, None]
            tensors[f"{bn}.bias"] = (
                cast(torch.Tensor, self.conv(key).bias).detach() + base[f"{bn}.running_mean"] * scale
            )
        tensors["post_layernorm.weight"] = self.post_layernorm.weight.detach()
        tensors["post_layernorm.bias"] = self.post_layernorm.bias.detach()
        tensors["position_embedding"] = self.position_embedding.detach()
        return tensors
