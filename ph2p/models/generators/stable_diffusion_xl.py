"""SDXL and SDXL-Turbo."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ph2p.models.generators.base import Generator
from ph2p.models.generators.encoders import ClipPair
from ph2p.models.generators.schedules import Diffusion


class StableDiffusionXL(Generator):
    """SDXL and SDXL-Turbo: two CLIP text encoders over one vocabulary, penultimate states, a U-Net.

    The U-Net also gets the second encoder's pooled output and the picture's size (arXiv 2307.01952, section 2.2):
    painted at `image_size`, not cropped.
    """

    pipeline_class = "StableDiffusionXLPipeline"
    absent = ("feature_extractor", "image_encoder")

    def __init__(self, pipeline: Any, *, words: Mapping[str, Any], **options: Any) -> None:
        clips = ClipPair(pipeline, words)
        super().__init__(
            pipeline,
            clips.vocabulary,
            Diffusion(pipeline.scheduler),
            context_length=clips.context_length,
            framing=2,
            **options,
        )
        self.clips = clips

    def _condition(self, token_ids: Tensor, embeddings: Tensor | None) -> dict[str, Tensor]:
        states, (_, pooled) = self.clips(token_ids, embeddings, self.clip_skip)
        size = self.image_size
        ids = torch.tensor([*size, 0, 0, *size], dtype=states.dtype, device=states.device)  # original, crop, target
        return {"encoder_hidden_states": states, "text_embeds": pooled, "time_ids": ids.expand(len(states), -1)}

    def _denoise(self, noisy: Tensor, times: Tensor, conditioning: dict[str, Tensor]) -> Tensor:
        added = {name: conditioning[name] for name in ("text_embeds", "time_ids")}
        states = conditioning["encoder_hidden_states"]
        output: Tensor = self.pipeline.unet(noisy, times, states, added_cond_kwargs=added).sample
        return output
