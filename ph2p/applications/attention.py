"""Where in a picture the words of a prompt are seen: attention maps, and the segmentation that they give.

DAAM (Tang et al., What the DAAM, arXiv 2210.04885) adds up the cross-attention of a picture that is being painted. Here
the picture is given, so it is noised instead, and the denoiser is asked once for each draw (teacher forcing).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ph2p.applications.recording import recording
from ph2p.applications.settings import AttentionSettings, require_timesteps
from ph2p.data import Target
from ph2p.errors import UserError
from ph2p.inversion.draws import make_draws
from ph2p.models.frozen import prompt_start
from ph2p.models.generators import Generator
from ph2p.models.vocabulary import Vocabulary

AT_ONCE = 8  # noisy copies that go through the denoiser
NOWHERE = -1  # in a picture of labels: a place that belongs to no word


@dataclass(frozen=True)
class AttentionMaps:
    """Of each of M words, tokens of a prompt or several together: how much a place looks at it, (M, H, W) in [0, 1]."""

    words: tuple[str, ...]
    maps: Tensor

    def relative(self) -> Tensor:
        """The maps (M, H, W) as parts of their own maxima, in [0, 1]."""
        return self.maps / self.maps.amax((1, 2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)

    def masks(self, threshold: float) -> Tensor:
        """What belongs to each word, (M, H, W) bool: where its map exceeds that part of its maximum (DAAM, eq. 7)."""
        return self.relative() > threshold

    def labels(self, threshold: float) -> Tensor:
        """The word that each place belongs to, (H, W) long: of those whose masks hold it the one with the largest
        relative map; `NOWHERE` where no mask does."""
        value, word = self.relative().max(0)
        return torch.where(value > threshold, word, NOWHERE)


@torch.no_grad()
def attention_maps(
    generator: Generator, target: Target, prompt: str, settings: AttentionSettings, seed: int = 0
) -> AttentionMaps:
    """The maps of each token of a prompt on a picture, means over N draws of (t, eps), layers and heads.

    Costs N forward samples. The draws depend on the picture and the seed alone.

    Raises:
        UserError: the prompt is empty or too long, a timestep is none of the model's, or the family's attention
            cannot be recorded (`recording`).
    """
    token_ids = generator.vocabulary.encode(prompt)
    window = require_timesteps(settings.timesteps, generator.num_timesteps)
    latent = generator.encode_images(target.image[None].to(generator.device))  # (1, C, h, w)
    shape = latent.shape[1:]
    draws = make_draws(seed, [target.key], ("attention",), settings.draws, window, shape).to(latent.device)
    conditioning = generator.condition(torch.tensor([token_ids], device=latent.device))

    def evaluate(size: int) -> Tensor:
        total = torch.zeros((), device=latent.device)
        for timesteps, noise in zip(draws.timesteps[0].split(size), draws.noise[0].split(size), strict=True):
            rows = len(timesteps)
            noisy = generator.add_noise(latent.expand(rows, *shape), noise, timesteps)
            repeated = {key: value.expand(rows, *value.shape[1:]) for key, value in conditioning.items()}
            with recording(generator) as recorder:
                generator.predict(noisy, timesteps, repeated)
            total = total + recorder.mean().sum(0)  # (L, H, W)
        return total / settings.draws

    maps = generator.microbatch.run("attention", min(AT_ONCE, settings.draws), evaluate)
    start = prompt_start(generator.vocabulary.tokenizer)
    words = tuple(generator.vocabulary.decode([token]) for token in token_ids)
    return AttentionMaps(words, maps[start : start + len(token_ids)].cpu())


def word_maps(maps: AttentionMaps, vocabulary: Vocabulary, words: Sequence[str]) -> AttentionMaps:
    """The maps of words of the prompt, each the mean over its tokens wherever they stand.

    `maps` has every token of the prompt. Raises UserError for a word that the prompt does not hold.
    """
    found = []
    for word in words:
        pieces = tuple(vocabulary.decode([token]) for token in vocabulary.encode(word))
        starts = [k for k in range(len(maps.words)) if maps.words[k : k + len(pieces)] == pieces]
        if not starts:
            raise UserError(f"application.words: {word} is not in the prompt, which has {' '.join(maps.words)}")
        places = sorted({k + step for k in starts for step in range(len(pieces))})
        found.append(maps.maps[places].mean(0))
    return AttentionMaps(tuple(words), torch.stack(found))


def intersection_over_union(mask: Tensor, truth: Tensor) -> float:
    """|mask and truth| / |mask or truth| of two bool masks (H, W), in [0, 1]; nan where both are empty."""
    union = int((mask | truth).sum())
    return int((mask & truth).sum()) / union if union else float("nan")
