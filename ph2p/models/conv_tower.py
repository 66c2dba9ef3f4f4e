"""The image tower of the embedded model's CLIP: a small convolutional network, as transformers loads one."""

from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

WIDTHS = (32, 64, 128, 256)  # of the stages, each of which halves the picture


class ConvTowerConfig(PreTrainedConfig):
    """The widths of the stages and the side of the pictures in pixels."""

    model_type = "ph2p_conv_tower"
    widths: tuple[int, ...] = WIDTHS
    image_size: int = 64

    @property
    def hidden_size(self) -> int:
        """The width of a pooled picture, by the name under which a dual encoder looks for it."""
        return self.widths[-1]


class ConvTower(PreTrainedModel):
    """Pictures (B, 3, side, side) to a map (B, C, side / 16, side / 16) and, pooled, (B, C)."""

    config_class = ConvTowerConfig
    main_input_name = "pixel_values"

    def __init__(self, config: ConvTowerConfig):
        super().__init__(config)
        self.stages = stages(config.widths)
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        seen = self.stages(pixel_values)
        return BaseModelOutputWithPooling(last_hidden_state=seen, pooler_output=pooled(seen))


def stages(widths: tuple[int, ...]) -> nn.Sequential:
    """Layers that turn a picture (B, 3, H, W) into a map (B, widths[-1], H / 2**S, W / 2**S) after S stages."""
    return nn.Sequential(*(_Stage(a, b) for a, b in pairwise((3, *widths))))


def pooled(seen: Tensor) -> Tensor:
    """A map (B, C, H, W) as (B, C): its mean, and its maximum, which finds a small thing on a plain ground."""
    return seen.mean((2, 3)) + seen.amax((2, 3))


class _Stage(nn.Module):
    """Halve the picture, then one residual branch."""

    def __init__(self, inside: int, outside: int):
        super().__init__()
        self.down = nn.Conv2d(inside, outside, 3, stride=2, padding=1)
        self.norms = nn.ModuleList(nn.GroupNorm(8, outside) for _ in range(2))
        self.branch = nn.Conv2d(outside, outside, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        images = F.silu(self.norms[0](self.down(images)))
        return images + F.silu(self.norms[1](self.branch(images)))


AutoConfig.register(ConvTowerConfig.model_type, ConvTowerConfig)
AutoModel.register(ConvTowerConfig, ConvTower)
