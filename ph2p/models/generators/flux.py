"""FLUX.1."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ph2p.models.generators.base import Generator
from ph2p.models.generators.encoders import Remembered, encode_t5, tokenize
from ph2p.models.generators.schedules import Flow
from ph2p.models.vocabulary import Vocabulary

SCHNELL_LENGTH = 256  # T5 tokens that FLUX.1 schnell was trained with; the pipeline's default is that of dev
UNGUIDED = 1.0  # the guidance of the loss: a guidance-distilled model told 1 predicts what was trained on, unamplified


class Flux(Generator):
    """FLUX.1: T5's hidden states, CLIP's pooled output, a transformer trained by flow matching on packed latents.

    T5's vocabulary carries the gradient. CLIP has another vocabulary: it reads the text of `token_ids`, so it
    follows the projected prompt.
    """

    pipeline_class = "FluxPipeline"
    absent = ("feature_extractor", "image_encoder")
    packing = 2

    def __init__(self, pipeline: Any, *, words: Mapping[str, Any], **options: Any) -> None:
        table = pipeline.text_encoder_2.get_input_embeddings().weight
        length: int = inspect.signature(pipeline.encode_prompt).parameters["max_sequence_length"].default
        if not pipeline.transformer.config.guidance_embeds:  # schnell
            length = SCHNELL_LENGTH
        super().__init__(
            pipeline,
            Vocabulary(pipeline.tokenizer_2, table, **words),
            Flow(pipeline.scheduler),
            context_length=length,
            framing=1,
            **options,
        )
        self.sampling = {"max_sequence_length": length}
        self._pooled = Remembered(self._encode_pooled)

    def prepare(self, token_ids: Tensor) -> None:
        with self._precision():
            self._pooled(self._texts(token_ids))

    def _condition(self, token_ids: Tensor, embeddings: Tensor | None) -> dict[str, Tensor]:
        encoder, tokenizer = self.pipeline.text_encoder_2, self.pipeline.tokenizer_2
        states, _ = encode_t5(encoder, tokenizer, token_ids, embeddings, self.context_length)
        return {"encoder_hidden_states": states, "pooled_projections": self._pooled(self._texts(token_ids))}

    @torch.no_grad()
    def _encode_pooled(self, texts: list[str]) -> Tensor:
        ids = tokenize(self.pipeline.tokenizer, texts, self.pipeline.tokenizer_max_length, self.device)
        pooled: Tensor = self.pipeline.text_encoder(ids).pooler_output
        return pooled

    def _denoise(self, noisy: Tensor, times: Tensor, conditioning: dict[str, Tensor]) -> Tensor:
        pipeline, (rows, channels, height, width) = self.pipeline, noisy.shape
        guidance = None
        if pipeline.transformer.config.guidance_embeds:
            guidance = torch.full((rows,), UNGUIDED, device=noisy.device)
        places = pipeline._prepare_latent_image_ids(rows, height // 2, width // 2, noisy.device, noisy.dtype)
        length = conditioning["encoder_hidden_states"].shape[1]
        output = pipeline.transformer(
            pipeline._pack_latents(noisy, rows, channels, height, width),  # (K, h w / 4, 4 C)
            timestep=times / 1000,  # the transformer multiplies by 1000 itself
            guidance=guidance,
            txt_ids=torch.zeros(length, 3, device=noisy.device, dtype=noisy.dtype),
            img_ids=places,
            **conditioning,
        ).sample
        return self._unpack(output)

    def _unpack(self, latents: Tensor) -> Tensor:
        unpacked: Tensor = self.pipeline._unpack_latents(latents, *self.image_size, self.pipeline.vae_scale_factor)
        return unpacked
