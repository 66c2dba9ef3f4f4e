"""Renderings of prompts."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ph2p.config.schema import GeneratorConfig
from ph2p.models.generators import Generator

RENDERINGS_AT_ONCE = 32


def guidance_options(generator: GeneratorConfig) -> dict[str, float]:
    """The arguments of `paint` that the configuration of a generator gives."""
    return {"guidance_scale": generator.guidance_scale, "guidance_rescale": generator.guidance_rescale}


def paint(
    generator: Generator, prompts: list[str], seeds: list[int], steps: int, guidance: Mapping[str, Any]
) -> Tensor:
    """The renderings of prompts, each by its own seed, a few at once: (K, 3, H, W) in [0, 1].

    `guidance` are further arguments of `Generator.sample`.
    """

    def some(rows: int) -> Tensor:
        step = max(1, rows // 2)  # guidance takes two rows a rendering
        starts = range(0, len(prompts), step)
        return torch.cat(
            [generator.sample(prompts[i : i + step], seeds[i : i + step], steps, **guidance) for i in starts]
        )

    return generator.microbatch.run("pictures", 2 * min(RENDERINGS_AT_ONCE, len(prompts)), some)
