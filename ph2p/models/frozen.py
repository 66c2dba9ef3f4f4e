"""What the frozen models have in common: they stay frozen, frame token ids, and put embeddings in their place."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

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
    """[BOS, prompt, EOS, PAD...]: (B, length) long of (B, M) ids; T5 has no BOS.

    Raises:
        UserError: the prompt does not fit.
    """
    batch, count = token_ids.shape
    start = prompt_start(tokenizer)
    check_length(count, length - start - 1)
    framed = token_ids.new_full((batch, length), tokenizer.pad_token_id)
    if start:
        framed[:, 0] = tokenizer.bos_token_id
    framed[:, start : start + count] = token_ids
    framed[:, start + count] = tokenizer.eos_token_id
    return framed


def check_length(count: int, room: int) -> None:
    """Raise UserError if a prompt of `count` tokens is longer than `room`."""
    if count > room:
        raise UserError(f"prompt: {count} tokens, but this model reads at most {room}; use fewer")


def prompt_start(tokenizer: PreTrainedTokenizerBase) -> int:
    """The position of a prompt's first token: 1 after the begin of text, 0 where there is none (T5)."""
    return 0 if tokenizer.bos_token_id is None else 1


@contextmanager
def soft_prompt(layer: nn.Module, embeddings: Tensor | None, start: int = 1) -> Iterator[None]:
    """While inside, a token-embedding layer yields `embeddings` (B, M, D) from position `start` on; None: as ever.

    A forward hook, because CLIPTextModel takes no embeddings; the ids stay, which mark the end of text.
    """
    if embeddings is None:
        yield
        return

    def replace(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        end = start + embeddings.shape[1]
        return torch.cat([output[:, :start], embeddings.to(output), output[:, end:]], dim=1)

    handle = layer.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def scale_gradient(values: Tensor, factor: float) -> Tensor:
    """The same values with `factor` times their gradient: half precision would lose the small ones."""
    if factor == 1 or not values.requires_grad:
        return values
    values = values.view_as(values)
    values.register_hook(lambda gradient: gradient * factor)
    return values


def context_length(tokenizer: PreTrainedTokenizerBase, positions: int) -> int:
    """L; a tokenizer that names no limit gets the encoder's, or the pipeline would pad without end."""
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
    return tokenizer.model_max_length


def at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
