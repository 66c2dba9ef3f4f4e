"""Stable Diffusion 1.x and 2.x."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ph2p.models.frozen import context_length, frame_prompt, soft_prompt
from ph2p.models.generators.base import Generator
from ph2p.models.generators.schedules import Diffusion
from ph2p.models.vocabulary import Vocabulary


class StableDiffusion(Generator):
    """Stable Diffusion 1.x and 2.x: one CLIP text encoder, its last hidden states, a U-Net."""

    pipeline_class = "StableDiffusionPipeline"
    absent = ("safety_checker", "feature_extractor", "image_encoder")

    def __init__(self, pipeline: Any, *, words: Mapping[str, Any], **options: Any) -> None:
        tokenizer, encoder = pipeline.tokenizer, pipeline.text_encoder
        table = encoder.get_input_embeddings().weight
        super().__init__(
            pipeline,
            Vocabulary(tokenizer, table, **words),
            Diffusion(pipeline.scheduler),
            context_length=context_length(tokenizer, encoder.config.max_position_embeddings),
            framing=2,
            **options,
        )
        if self.clip_skip is not None and not hasattr(encoder, "text_model"):
            # The pipeline's clip_skip asks for it, and newer text encoders of transformers have it no more.
            object.__setattr__(encoder, "text_model", encoder)

    def _condition(self, token_ids: Tensor, embeddings: Tensor | None) -> dict[str, Tensor]:
        encoder = self.pipeline.text_encoder
        ids = frame_prompt(self.vocabulary.tokenizer, token_ids, self.context_length)  # (B, L)
        mask = None
        if getattr(encoder.config, "use_attention_mask", False):  # as in the pipeline's encode_prompt
            text = torch.arange(self.context_length, device=self.device) < token_ids.shape[1] + 2
            mask = text.long().expand_as(ids)
        with soft_prompt(encoder.get_input_embeddings(), embeddings):
            output = encoder(ids, attention_mask=mask, output_hidden_states=self.clip_skip is not None)
        states = output[0]
        if self.clip_skip is not None:
            states = encoder.text_model.final_layer_norm(output.hidden_states[-1 - self.clip_skip])
        return {"encoder_hidden_states": states}  # (B, L, E)

    def _denoise(self, noisy: Tensor, times: Tensor, conditioning: dict[str, Tensor]) -> Tensor:
        output: Tensor = self.pipeline.unet(noisy, times, **conditioning).sample
        return output
