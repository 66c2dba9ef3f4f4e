"""What the frozen models share: staying frozen, prompts framed as token ids, and embeddings in their place."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ph2p.errors import UserError


class Frozen(nn.Module):
    """A module whose weights never change and which stays in evaluation mode, whatever its owner does."""

    def freeze(self) -> None:
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        return super().train(False)


def frame_prompt(tokenizer: PreTrainedTokenizerBase, token_ids: Tensor, length: int) -> Tensor:
    """[BOS, prompt, EOS, PAD...]: (B, length) long of (B, M) ids.

    Raises:
        UserError: the prompt does not fit.
    """
    batch, count = token_ids.shape
    if count > length - 2:
        raise UserError(f"prompt: {count} tokens, but this model reads at most {length - 2}; use fewer")
    framed = token_ids.new_full((batch, length), tokenizer.pad_token_id)
    framed[:, 0] = tokenizer.bos_token_id
    framed[:, 1 : count + 1] = token_ids
    framed[:, count + 1] = tokenizer.eos_token_id
    return framed


@contextmanager
def soft_prompt(layer: nn.Module, embeddings: Tensor | None) -> Iterator[None]:
    """While inside, a token-embedding layer yields `embeddings` (B, M, D) at positions 1..M; None: as ever.

    A forward hook, because CLIPTextModel takes no embeddings; the ids stay, which mark the end of text.
    """
    if embeddings is None:
        yield
        return

    def replace(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        end = 1 + embeddings.shape[1]
        return torch.cat([output[:, :1], embeddings.to(output), output[:, end:]], dim=1)

    handle = layer.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def context_length(tokenizer: PreTrainedTokenizerBase, positions: int) -> int:
    """L; a tokenizer that names no limit gets the encoder's, or the pipeline would pad without end."""
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
    return tokenizer.model_max_length


def at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
