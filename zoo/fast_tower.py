"""The vision tower as it is trained: batch normalization folded into the convolutions, its first blocks frozen.

Both only save time. `unfold` gives back tensors under the names of the published weights.
"""

import torch
from torch import nn
from torch.nn import functional as F

from mmneurons.demo.vision_tower import EfficientNetLiteModel

__all__ = ["FastTower"]


def fold(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> nn.Conv2d:
    """One convolution that does both."""
    scale = bn.weight / torch.sqrt(bn.running_var + bn.eps)
    folded = nn.Conv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, "valid", groups=conv.groups, bias=True
    )
    if conv.stride[0] == 1:
        folded.padding = tuple(k // 2 for k in conv.kernel_size)
    folded.weight.data = (conv.weight * scale[:, None, None, None]).detach().contiguous()
    folded.bias.data = (bn.bias - bn.running_mean * scale).detach().clone()
    return folded


class FastTower(nn.Module):
    """Same outputs as the tower it was made from.

    Args:
        tower: With the weights to start from.
        frozen: How many of the first blocks are not trained (and run in bfloat16).
    """

    def __init__(self, tower: EfficientNetLiteModel, frozen: int = 3) -> None:
        super().__init__()
        self.frozen = frozen
        self.convs = nn.ModuleDict()
        self.pairs: dict[str, tuple[str, str]] = {}
        modules = dict(tower.named_modules())
        pairs = [("_conv_stem", "_bn0")]
        for k, block in enumerate(tower._blocks):
            at = f"_blocks.{k}."
            pairs += [(f"{at}_expand_conv", f"{at}_bn0")] if block.expands else []
            pairs += [(f"{at}_depthwise_conv", f"{at}_bn1"), (f"{at}_project_conv", f"{at}_bn2")]
        pairs.append(("_conv_head", "_bn1"))
        for conv, bn in pairs:
            key = conv.replace(".", "/")
            self.pairs[key] = (conv, bn)
            self.convs[key] = fold(modules[conv], modules[bn])
        self.residual = [block.residual for block in tower._blocks]
        self.post_layernorm = nn.LayerNorm(tower.config.hidden_size, eps=tower.config.layer_norm_eps)
        self.post_layernorm.load_state_dict(tower.post_layernorm.state_dict())
        self.position_embedding = nn.Parameter(tower.position_embedding.detach().clone())
        for key, conv in self.convs.items():
            if key == "_conv_stem" or (key.startswith("_blocks") and int(key.split("/")[1]) < frozen):
                conv.requires_grad_(False)

    def conv(self, key: str, x: torch.Tensor) -> torch.Tensor:
        """One folded convolution, padded as TensorFlow does."""
        conv = self.convs[key]
        if conv.stride[0] == 2:
            low, high = (conv.kernel_size[0] - 2) // 2, (conv.kernel_size[0] - 1) // 2
            x = F.pad(x, (low, high, low, high))
        return conv(x)

    def block(self, k: int, x: torch.Tensor) -> torch.Tensor:
        """One inverted residual."""
        at = f"_blocks/{k}/"
        y = F.hardtanh(self.conv(f"{at}_expand_conv", x), 0.0, 6.0) if f"{at}_expand_conv" in self.convs else x
        y = F.hardtanh(self.conv(f"{at}_depthwise_conv", y), 0.0, 6.0)
        y = self.conv(f"{at}_project_conv", y)
        return x + y if self.residual[k] else y

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(batch, 3, 224, 224) -> (batch, 49, 1280)."""
        x = pixel_values.to(memory_format=torch.channels_last)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            x = F.hardtanh(self.conv("_conv_stem", x), 0.0, 6.0)
            for k in range(self.frozen):
                x = self.block(k, x)
        x = x.float()
        for k in range(self.frozen, len(self.residual)):
            x = self.block(k, x)
        x = F.hardtanh(self.conv("_conv_head", x), 0.0, 6.0)
        return self.post_layernorm(x.flatten(2).transpose(1, 2)) + self.position_embedding

    def unfold(self, base: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Trained convolution weights and batch normalization biases under the names of `base`.

        Args:
            base: State dict of the tower this was made from, whose batch normalization scales stay as they are.
        """
        tensors = {}
        for key, (conv, bn) in self.pairs.items():
            if not self.convs[key].weight.requires_grad:
                continue
            scale = base[f"{bn}.weight"] / torch.sqrt(base[f"{bn}.running_var"] + 1e-3)
            tensors[f"{conv}.weight"] = self.convs[key].weight.detach() / scale[:, None, None, None]
            tensors[f"{bn}.bias"] = self.convs[key].bias.detach() + base[f"{bn}.running_mean"] * scale
        tensors["post_layernorm.weight"] = self.post_layernorm.weight.detach()
        tensors["post_layernorm.bias"] = self.post_layernorm.bias.detach()
        tensors["position_embedding"] = self.position_embedding.detach()
        return tensors
