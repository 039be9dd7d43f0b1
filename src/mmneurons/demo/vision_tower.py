"""EfficientNet-Lite0 as a vision tower: a picture of 224 x 224 becomes 7 x 7 tokens of 1280 numbers.

The network is that of Tan & Le, "EfficientNet" (2019), eq. 3 with all scaling at one, in the "Lite" variant: ReLU6
for swish, no squeeze-and-excitation. Behind its last convolution stand two things of ours: a LayerNorm, and a vector
per position, because a language model can hardly tell from the order of 49 tokens where in the picture they lie.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

__all__ = ["BLOCKS", "EfficientNetLiteConfig", "EfficientNetLiteModel", "register"]


class Stage(NamedTuple):
    """One row of EfficientNet's table: `repeats` blocks, the first with `stride`."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


BLOCKS = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class EfficientNetLiteConfig(PreTrainedConfig):
    """Sizes of the tower. `image_size` must be a multiple of 32, the network's stride."""

    model_type = "efficientnet_lite"

    def __init__(self, image_size: int = 224, hidden_size: int = 1280, layer_norm_eps: float = 1e-5, **kwargs) -> None:
        self.image_size = image_size
        self.hidden_size = hidden_size
        self.layer_norm_eps = layer_norm_eps
        self.patch_size = 32
        self.num_channels = 3
        super().__init__(**kwargs)


class SamePadConv2d(nn.Conv2d):
    """Convolution padded as TensorFlow does ("same"): with stride 2 the odd pixel goes to the right and below."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pads = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(x, pads))


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class Block(nn.Module):
    """Inverted residual: widen, filter each channel, narrow; parameter names are those of the published weights."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.expands = expansion != 1
        if self.expands:
            self._expand_conv = nn.Conv2d(inputs, width, 1, bias=False)
            self._bn0 = norm(width)
        self._depthwise_conv = SamePadConv2d(width, width, kernel, stride, groups=width, bias=False)
        self._bn1 = norm(width)
        self._project_conv = nn.Conv2d(width, outputs, 1, bias=False)
        self._bn2 = norm(outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


class EfficientNetLiteModel(PreTrainedModel):
    """The tower. Batch normalization always uses its stored statistics, also in training mode."""

    config_class = EfficientNetLiteConfig
    base_model_prefix = "vision_tower"
    main_input_name = "pixel_values"
    input_modalities = "image"

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self._conv_stem = SamePadConv2d(config.num_channels, 32, 3, 2, bias=False)
        self._bn0 = norm(32)
        blocks, inputs = [], 32
        for stage in BLOCKS:
            for k in range(stage.repeats):
                stride = stage.stride if k == 0 else 1
                blocks.append(Block(inputs, stage.channels, stage.kernel, stride, stage.expansion))
                inputs = stage.channels
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = nn.Conv2d(inputs, config.hidden_size, 1, bias=False)
        self._bn1 = norm(config.hidden_size)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.position_embedding = nn.Parameter(
            torch.zeros((config.image_size // config.patch_size) ** 2, config.hidden_size)
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, EfficientNetLiteModel):
            nn.init.zeros_(module.position_embedding)
        else:
            super()._init_weights(module)

    def train(self, mode: bool = True) -> "EfficientNetLiteModel":
        """Training mode, batch normalization excepted."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def extract_features(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """Feature maps (batch, channels, rows, columns): after the stem, after every block, and of the last layer."""
        x = F.relu6(self._bn0(self._conv_stem(pixel_values)))
        maps = [x]
        for block in self._blocks:
            x = block(x)
            maps.append(x)
        maps.append(F.relu6(self._bn1(self._conv_head(x))))
        return maps

    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | int | list[int] | None = None,
        return_dict: bool | None = None,
        **kwargs: object,
    ) -> BaseModelOutput | tuple:
        """Encodes pictures.

        Args:
            pixel_values: (batch, 3, image_size, image_size), normalized.
            output_hidden_states: Anything true, or a layer's index, adds `hidden_states`: one tensor, the tokens.
                Earlier layers have other numbers of tokens and cannot stand in for a feature layer.
            return_dict: False for a plain tuple.
            kwargs: What else transformers passes to every vision tower; of no effect.

        Returns:
            `last_hidden_state` (batch, 49, 1280): LayerNorm of the last features, plus the positions.
        """
        expected = (self.config.num_channels, self.config.image_size, self.config.image_size)
        if tuple(pixel_values.shape[1:]) != expected:
            raise ValueError(f"pictures must come as (batch, {expected}), not {tuple(pixel_values.shape)}")
        features = self.extract_features(pixel_values.to(self._conv_stem.weight.dtype))[-1]
        tokens = self.post_layernorm(features.flatten(2).transpose(1, 2)) + self.position_embedding
        wanted = output_hidden_states is not None and output_hidden_states is not False
        states = (tokens,) if wanted else None
        if return_dict is False:
            return (tokens,) if states is None else (tokens, states)
        return BaseModelOutput(last_hidden_state=tokens, hidden_states=states)


def register() -> None:
    """Makes AutoConfig and AutoModel know the tower; calling it again does nothing."""
    AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig, exist_ok=True)
    AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteModel, exist_ok=True)
