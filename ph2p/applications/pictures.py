"""Pictures of an application's page, as data URIs."""

import base64
import io
from collections.abc import Iterable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

SIDE = 192  # pixels at least: what lies over a small picture is drawn finer than its pixels
LARGEST = 512
COLOURS = ((231, 76, 60), (52, 120, 246), (46, 170, 90), (245, 180, 30), (155, 89, 182), (26, 188, 190))


def data_uri(image: Tensor) -> str:
    """A picture (3, H, W) in [0, 1] as a PNG that a page holds itself."""
    levels = (255 * image.clamp(0, 1)).round().byte().permute(1, 2, 0).cpu().numpy()
    picture = Image.fromarray(np.ascontiguousarray(levels))
    picture.thumbnail((LARGEST, LARGEST))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def enlarged(image: Tensor) -> Tensor:
    """A picture (3, H, W) of at least `SIDE` pixels a side, a whole number of times as large."""
    times = max(1, -(-SIDE // min(image.shape[1:])))
    return interpolate(image[None], scale_factor=times, mode="nearest")[0]


def heat(image: Tensor, values: Tensor) -> Tensor:
    """A picture (3, H, W) in grey, with red where the values (H, W) in [0, 1] are high."""
    grey = enlarged(image).mean(0, keepdim=True).expand(3, -1, -1)
    strength = 0.8 * interpolate(values[None, None], grey.shape[1:], mode="bilinear")[0].clamp(0, 1)  # (1, H', W')
    return grey * (1 - strength) + _colour(0) * strength


def outlined(image: Tensor, masks: Iterable[Tensor]) -> Tensor:
    """A picture (3, H, W) with the edge of each mask in a colour of its own; a mask may be smaller than the picture."""
    drawn = enlarged(image)
    for number, mask in enumerate(masks):
        large = interpolate(mask[None, None].float(), drawn.shape[1:], mode="nearest")[0]
        inside = -max_pool2d(-large, 5, 1, 2)  # the mask without its edge
        drawn = torch.where((large - inside).bool(), _colour(number), drawn)
    return drawn


def colour_name(number: int) -> str:
    """The colour of mask `number` for CSS."""
    return "rgb({}, {}, {})".format(*COLOURS[number % len(COLOURS)])


def _colour(number: int) -> Tensor:
    return torch.tensor(COLOURS[number % len(COLOURS)])[:, None, None] / 255
