"""Stable Diffusion 3 and 3.5."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ph2p.errors import UserError
from ph2p.models.generators.base import Generator
from ph2p.models.generators.encoders import ClipPair, Remembered, tokenize
from ph2p.models.generators.schedules import Flow

TEXTS_AT_ONCE = 32  # that go through T5


class StableDiffusion3(Generator):
    """Stable Diffusion 3 and 3.5: two CLIP text encoders, T5, a transformer trained by flow matching.

    The CLIP encoders carry the gradient. T5 reads the text of `token_ids`, so it follows the projected prompt;
    without T5 the transformer gets zeros in its place, as in the pipeline.
    """

    pipeline_class = "StableDiffusion3Pipeline"
    absent = ("feature_extractor", "image_encoder")
    optional = ("text_encoder_3", "tokenizer_3")
    offloaded = ("vae", "text_encoder_3")

    def __init__(self, pipeline: Any, *, words: Mapping[str, Any], **options: Any) -> None:
        clips = ClipPair(pipeline, words)
        super().__init__(
            pipeline,
            clips.vocabulary,
            Flow(pipeline.scheduler),
            context_length=clips.context_length,
            framing=2,
            **options,
        )
        self.clips = clips
        self.t5_length: int = inspect.signature(pipeline.encode_prompt).parameters["max_sequence_length"].default
        self._t5_states = Remembered(self._encode_t5)

    def prepare(self, token_ids: Tensor) -> None:
        with self._precision():
            self._t5_states(self._texts(token_ids))

    def _condition(self, token_ids: Tensor, embeddings: Tensor | None) -> dict[str, Tensor]:
        states, pooled = self.clips(token_ids, embeddings, self.clip_skip)
        t5 = self._t5_states(self._texts(token_ids)).to(states)  # (B, L_3, E_3)
        if t5.shape[-1] < states.shape[-1]:
            raise UserError(f"text_encoder_3: its width {t5.shape[-1]} is below the others' {states.shape[-1]}")
        states = F.pad(states, (0, t5.shape[-1] - states.shape[-1]))
        return {
            "encoder_hidden_states": torch.cat([states, t5], 1),  # (B, L + L_3, E_3)
            "pooled_projections": torch.cat(pooled, -1),
        }

    @torch.no_grad()
    def _encode_t5(self, texts: list[str]) -> Tensor:
        encoder = self.pipeline.text_encoder_3
        if encoder is None:
            width = self.pipeline.transformer.config.joint_attention_dim
            return torch.zeros(1, self.t5_length, width, device=self.device).expand(len(texts), -1, -1)
        with self.resident("text_encoder_3"):
            ids = tokenize(self.pipeline.tokenizer_3, texts, self.t5_length, self.device)
            states = self.microbatch.map("texts", TEXTS_AT_ONCE, lambda some: encoder(some)[0], ids)
        return states.cpu() if self.offload else states

    def _denoise(self, noisy: Tensor, times: Tensor, conditioning: dict[str, Tensor]) -> Tensor:
        output: Tensor = self.pipeline.transformer(noisy, timestep=times, **conditioning).sample
        return output
