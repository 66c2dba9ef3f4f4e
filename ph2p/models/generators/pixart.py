"""PixArt-Sigma."""

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from tokenizers.normalizers import Lowercase, Sequence
from torch import Tensor

from ph2p.models.frozen import check_length
from ph2p.models.generators.base import Generator
from ph2p.models.generators.encoders import encode_t5
from ph2p.models.generators.schedules import Diffusion
from ph2p.models.vocabulary import Vocabulary


class PixArtSigma(Generator):
    """PixArt-Sigma: T5's hidden states without their padding, a transformer that also predicts a variance.

    Neither T5 nor the transformer looks at the padding: so there is none here.
    """

    pipeline_class = "PixArtSigmaPipeline"
    # Binning would paint another size than the one asked for; cleaning would depend on which packages are installed.
    sampling = MappingProxyType({"use_resolution_binning": False, "clean_caption": False})

    def __init__(self, pipeline: Any, *, words: Mapping[str, Any], **options: Any) -> None:
        _fold_case(pipeline.tokenizer)
        table = pipeline.text_encoder.get_input_embeddings().weight
        super().__init__(
            pipeline,
            Vocabulary(pipeline.tokenizer, table, **words),
            Diffusion(pipeline.scheduler, same_noise=True),  # its betas are not Stable Diffusion's
            context_length=inspect.signature(pipeline.encode_prompt).parameters["max_sequence_length"].default,
            framing=1,
            **options,
        )

    def _condition(self, token_ids: Tensor, embeddings: Tensor | None) -> dict[str, Tensor]:
        encoder, tokenizer = self.pipeline.text_encoder, self.pipeline.tokenizer
        check_length(token_ids.shape[1], self.max_prompt_length)
        length = token_ids.shape[1] + 1  # the prompt and its end
        states, mask = encode_t5(encoder, tokenizer, token_ids, embeddings, length, masked=True)
        return {"encoder_hidden_states": states, "encoder_attention_mask": mask}

    def _denoise(self, noisy: Tensor, times: Tensor, conditioning: dict[str, Tensor]) -> Tensor:
        sizes = dict(resolution=None, aspect_ratio=None)
        output: Tensor = self.pipeline.transformer(
            noisy, timestep=times, added_cond_kwargs=sizes, **conditioning
        ).sample
        return output[:, : noisy.shape[1]]  # the other half, where there is one, is the variance


def _fold_case(tokenizer: Any) -> None:
    """Let the tokenizer write text in lower case, as the pipeline does first; otherwise capitals would be found."""
    backend = tokenizer.backend_tokenizer
    backend.normalizer = Sequence([Lowercase(), *([backend.normalizer] if backend.normalizer else [])])
