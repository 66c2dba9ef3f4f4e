"""Losses of texts that were not found but written."""

from bisect import bisect_right
from collections.abc import Sequence

import torch
from torch import Tensor

from ph2p.errors import UserError
from ph2p.inversion.draws import Draws
from ph2p.inversion.objectives import candidate_losses
from ph2p.models.generators import Generator


def readable(generator: Generator, text: str) -> tuple[str, str]:
    """As much of a text as the model can read, and a word on what it cannot: empty when it reads all.

    A text beyond the model's context is cut after the last whole word that fits, or within the first one where not
    even that fits. Of a text with characters that the vocabulary lacks nothing is left.
    """
    vocabulary, room = generator.vocabulary, generator.max_prompt_length
    try:
        length = len(vocabulary.encode(text))
    except UserError:
        return "", "not measured: it holds what this vocabulary lacks"
    if length <= room:
        return text, ""
    for parts, space in ((text.split(), " "), (list(text), "")):
        lengths = range(1, len(parts) + 1)
        count = bisect_right(lengths, room, key=lambda k: len(vocabulary.encode(space.join(parts[:k]))))
        if count:
            break
    return space.join(parts[:count]), f"cut for its loss: of {length} tokens this model reads {room}"


def text_losses(generator: Generator, latents: Tensor, texts: Sequence[str], draws: Draws) -> list[float]:
    """Denoising losses (B) of one text an image, of any length and "" too; N forward samples each."""
    losses = []
    for row, text in enumerate(texts):
        ids = generator.vocabulary.encode(text) if text else []
        token_ids = torch.tensor([ids], dtype=torch.long, device=latents.device)  # (1, M)
        one = slice(row, row + 1)
        losses.append(float(candidate_losses(generator, latents[one], token_ids[:, None], draws[one])))
    return losses
