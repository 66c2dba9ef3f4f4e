"""What a prompt is judged by: losses of shape (B,), one a row, never a mean over images.

Symbols: B images, M prompt tokens, D embedding width, N noise draws, K candidates, C, h, w latent.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ph2p.data import Draws
from ph2p.errors import UserError
from ph2p.generators import Generator
from ph2p.scorer import Scorer
from ph2p.vocabulary import Vocabulary

DENOISER_ROWS = 128  # samples that go through the denoiser at once when no gradient is kept


def denoising_loss(generator: Generator, latents: Tensor, conditioning: dict[str, Tensor], draws: Draws) -> Tensor:
    """Mean squared denoising error of each image under its conditioning (PH2P, arXiv 2312.12416, eq. 3).

    loss_b = mean_n || target(z0_b, eps_n, t_n) - model(z_t_n, t_n, text_b) ||^2 / (C h w)

    `latents` (B, C, h, w), `conditioning` batch-first with B rows, `draws` of B x N -> (B,).
    """
    count = draws.timesteps.shape[1]  # N
    timesteps, noise = draws.timesteps.flatten(0, 1), draws.noise.flatten(0, 1)  # (B N,), (B N, C, h, w)
    clean = latents.repeat_interleave(count, 0)
    repeated = {name: value.repeat_interleave(count, 0) for name, value in conditioning.items()}
    predicted = generator.predict(generator.add_noise(clean, noise, timesteps), timesteps, repeated)
    error = (generator.target(clean, noise, timesteps) - predicted).square()
    return error.flatten(1).mean(1).view(-1, count).mean(1)


class DenoisingObjective:
    """The denoising loss of prompts for fixed target latents; calling it costs N denoiser samples a row."""

    needs_denoiser = True

    def __init__(self, generator: Generator):
        self.generator = generator

    def __call__(self, prompt: Tensor, token_ids: Tensor, latents: Tensor, draws: Draws) -> Tensor:
        """Losses (B,) of prompt embeddings (B, M, D) that stand in the places of `token_ids` (B, M)."""
        return denoising_loss(self.generator, latents, self.generator.condition(token_ids, prompt), draws)


class ClipObjective:
    """One minus the CLIP similarity of prompt and picture (PEZ, arXiv 2302.03668, eq. 3); ignores the draws."""

    needs_denoiser = False

    def __init__(self, scorer: Scorer, images: Tensor, vocabulary: Vocabulary):
        """`images` is (B, 3, H, W) in [0, 1]; the prompts are made of tokens of `vocabulary`.

        Raises:
            UserError: the scorer's text tower reads other tokens, or embeds them in another width.
        """
        same_tokens = scorer.tokenizer.get_vocab() == vocabulary.tokenizer.get_vocab()
        if not same_tokens or scorer.embeddings.shape != vocabulary.embeddings.shape:
            raise UserError(
                "method.objective=clip: the scorer has another token table than the generator; give as scorer.path "
                "the CLIP model that the generator's text encoder comes from, or method.objective=denoising"
            )
        self.scorer, self.features = scorer, scorer.image_features(images)  # (B, E)

    def __call__(self, prompt: Tensor, token_ids: Tensor, latents: Tensor, draws: Draws) -> Tensor:
        """Losses (B,) in [0, 2]."""
        return 1 - (self.scorer.text_features_from(token_ids, prompt) * self.features).sum(-1)


@torch.no_grad()
def candidate_losses(generator: Generator, latents: Tensor, candidates: Tensor, draws: Draws) -> Tensor:
    """Denoising losses (B, K) of K hard prompts an image, `candidates` (B, K, M), on the image's N draws.

    Costs K N forward samples an image; at most `DENOISER_ROWS` go through the denoiser at once.
    """
    batch, number, _ = candidates.shape
    count = draws.timesteps.shape[1]
    image = torch.arange(batch, device=latents.device).repeat_interleave(number)
    token_ids = candidates.flatten(0, 1)  # (B K, M)
    losses = [
        denoising_loss(
            generator,
            latents[image[rows]],
            generator.condition(token_ids[rows]),
            draws[image[rows]],
        )
        for rows in _chunks(len(token_ids), max(1, DENOISER_ROWS // count))
    ]
    return torch.cat(losses).view(batch, number)


def _chunks(total: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, total, size))
