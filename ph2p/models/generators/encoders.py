"""Text encoders as the pipelines of diffusers call them, with prompt embeddings in the place of tokens.

Symbols: B prompts, M prompt tokens, L context length, E width of the encoder's states, D of its embeddings.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ph2p.errors import UserError
from ph2p.models.frozen import context_length, frame_prompt, prompt_start, soft_prompt
from ph2p.models.vocabulary import Vocabulary

REMEMBERED = 64  # texts at least whose encoding is kept


class ClipPair:
    """Two CLIP text encoders that read the same tokens (SDXL, SD 3).

    Their embedding tables stand side by side, D = D_1 + D_2, so one token sequence is found for both: the nearest
    token is nearest in the joint space.

    Args:
        words: further arguments of `Vocabulary`.

    Raises:
        UserError: the tokenizers differ.
    """

    def __init__(self, pipeline: Any, words: Mapping[str, Any]) -> None:
        self.tokenizers = pipeline.tokenizer, pipeline.tokenizer_2
        self.encoders = pipeline.text_encoder, pipeline.text_encoder_2
        if self.tokenizers[0].get_vocab() != self.tokenizers[1].get_vocab():
            raise UserError("tokenizer_2: other tokens than tokenizer; both encoders must read the same vocabulary")
        tables = [encoder.get_input_embeddings().weight for encoder in self.encoders]  # (V, D_1), (V, D_2)
        self.widths = [table.shape[1] for table in tables]
        self.vocabulary = Vocabulary(self.tokenizers[0], torch.cat(tables, 1), **words)
        limits = [
            context_length(tokenizer, encoder.config.max_position_embeddings)
            for tokenizer, encoder in zip(self.tokenizers, self.encoders, strict=True)
        ]
        self.context_length = limits[0]
        if limits[0] != limits[1]:
            raise UserError(f"tokenizer_2: it reads {limits[1]} tokens, tokenizer {limits[0]}; they must agree")

    def __call__(
        self, token_ids: Tensor, embeddings: Tensor | None, clip_skip: int | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Hidden states (B, L, E_1 + E_2) of the penultimate layers, and each encoder's first output."""
        halves = (None, None) if embeddings is None else embeddings.split(self.widths, -1)
        hidden, first = [], []
        for tokenizer, encoder, half in zip(self.tokenizers, self.encoders, halves, strict=True):
            ids = frame_prompt(tokenizer, token_ids, self.context_length)  # (B, L)
            with soft_prompt(encoder.get_input_embeddings(), half):
                output = encoder(ids, output_hidden_states=True)
            hidden.append(output.hidden_states[-2 - (clip_skip or 0)])
            first.append(output[0])
        return torch.cat(hidden, -1), first


class Remembered:
    """What an encoder without a gradient makes of texts, each encoded once: an epoch asks for the same ones again.

    `encode` gets texts (K) and gives tensors (K, ...).
    """

    def __init__(self, encode: Callable[[list[str]], Tensor]) -> None:
        self.encode, self.room = encode, REMEMBERED
        self.known: dict[str, Tensor] = {}  # the texts that were asked for last stand last

    def __call__(self, texts: list[str]) -> Tensor:
        """(K, ...) of texts; as many are kept as were ever asked for at once."""
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        if new:
            self.known.update(zip(new, self.encode(new), strict=True))
        for text in dict.fromkeys(texts):
            self.known[text] = self.known.pop(text)
        result = torch.stack([self.known[text] for text in texts])
        self.room = max(self.room, len(texts))
        self.known = dict(list(self.known.items())[-self.room :])
        return result


def encode_t5(
    encoder: Any,
    tokenizer: PreTrainedTokenizerBase,
    token_ids: Tensor,
    embeddings: Tensor | None,
    length: int,
    masked: bool = False,
) -> tuple[Tensor, Tensor]:
    """Hidden states (B, L, E) of [prompt, EOS, PAD...] and the mask (B, L) of what is not padding.

    `masked`: the encoder itself looks at nothing but the prompt; otherwise it reads its padding too.
    """
    ids = frame_prompt(tokenizer, token_ids, length)
    start = prompt_start(tokenizer)
    text = torch.arange(length, device=ids.device) < start + token_ids.shape[1] + 1
    mask = text.long().expand_as(ids)
    # Not the model's own `get_input_embeddings`: that layer shares the weight, but another one is called.
    with soft_prompt(encoder.encoder.embed_tokens, embeddings, start):
        return encoder(ids, attention_mask=mask if masked else None)[0], mask


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str], length: int, device: torch.device) -> Tensor:
    """Ids (B, length) of texts, padded and cut off as the pipelines do."""
    options = dict(padding="max_length", truncation=True, max_length=length, verbose=False)
    return tokenizer(texts, return_tensors="pt", **options).input_ids.to(device)
