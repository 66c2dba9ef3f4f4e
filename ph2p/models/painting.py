"""Renderings of prompts."""

import torch
from torch import Tensor

from ph2p.config.schema import GeneratorConfig
from ph2p.models.generators import Generator

PICTURES_AT_ONCE = 32


def guidance_options(generator: GeneratorConfig) -> dict[str, float]:
    """The arguments of `paint` that the configuration of a generator gives."""
    return {"guidance_scale": generator.guidance_scale, "guidance_rescale": generator.guidance_rescale}


def paint(generator: Generator, prompts: list[str], seeds: list[int], steps: int, guidance: dict[str, float]) -> Tensor:
    """Paint a picture for every prompt and seed, a few at once: (K, 3, H, W) in [0, 1]."""

    def some(rows: int) -> Tensor:
        step = max(1, rows // 2)  # guidance takes two rows a picture
        starts = range(0, len(prompts), step)
        return torch.cat(
            [generator.sample(prompts[i : i + step], seeds[i : i + step], steps, **guidance) for i in starts]
        )

    return generator.microbatch.run("pictures", 2 * min(PICTURES_AT_ONCE, len(prompts)), some)
