"""What a prompt is judged by: losses of shape (B,), one a row, never a mean over images.

Symbols: B images, M prompt tokens, D embedding width, N noise draws, K candidates, C, h, w latent.
"""

import torch
from torch import Tensor

from ph2p.errors import UserError
from ph2p.inversion.draws import Draws
from ph2p.models.generators import Generator
from ph2p.models.microbatch import parts
from ph2p.models.scorer import Scorer
from ph2p.models.vocabulary import Vocabulary

DENOISER_ROWS = 128  # samples that go through the denoiser at once when no gradient is kept


def denoising_loss(generator: Generator, latents: Tensor, conditioning: dict[str, Tensor], draws: Draws) -> Tensor:
    """Mean squared denoising error of each image under its conditioning (PH2P, arXiv 2312.12416, eq. 3).

    loss_b = mean_n || target(z0_b, eps_n, t_n) - model(z_t_n, t_n, text_b) ||^2 / (C h w)

    `latents` (B, C, h, w), `conditioning` batch-first with B rows, or B N where each draw has its own, `draws` of
    B x N -> (B,).
    """
    count = draws.timesteps.shape[1]  # N
    timesteps, noise = draws.timesteps.flatten(0, 1), draws.noise.flatten(0, 1)  # (B N,), (B N, C, h, w)
    clean = latents.repeat_interleave(count, 0)
    repeated = {name: value.repeat_interleave(len(clean) // len(value), 0) for name, value in conditioning.items()}
    predicted = generator.predict(generator.add_noise(clean, noise, timesteps), timesteps, repeated)
    error = (generator.target(clean, noise, timesteps) - predicted).square()
    return error.flatten(1).mean(1).view(-1, count).mean(1)


class DenoisingObjective:
    """The denoising loss of prompts for fixed target latents; calling it costs N denoiser samples a row.

    Where the draws have shifts it is smoothed: each draw sees the prompt with its own shift (Duchi, Bartlett and
    Wainwright, Randomized smoothing for stochastic optimization, arXiv 1103.4296). Such a loss is low where all prompts
    around are good, the next hard one among them.
    """

    needs_denoiser = True

    def __init__(self, generator: Generator):
        self.generator = generator

    def __call__(self, prompt: Tensor, token_ids: Tensor, latents: Tensor, draws: Draws) -> Tensor:
        """Losses (B,) of prompt embeddings (B, M, D) that stand in the places of `token_ids` (B, M)."""
        if draws.shifts is not None:
            token_ids = token_ids.repeat_interleave(draws.shifts.shape[1], 0)  # (B N, M)
            prompt = (prompt[:, None] + draws.shifts).flatten(0, 1)  # (B N, M, D)
        return denoising_loss(self.generator, latents, self.generator.condition(token_ids, prompt), draws)


class ClipObjective:
    """One minus the CLIP similarity of prompt and picture (PEZ, arXiv 2302.03668, eq. 3); ignores the draws."""

    needs_denoiser = False

    def __init__(self, scorer: Scorer, vocabulary: Vocabulary):
        """The prompts are made of tokens of `vocabulary`.

        Raises:
            UserError: the scorer's text tower reads other tokens, or embeds them in another width.
        """
        same_tokens = scorer.tokenizer.get_vocab() == vocabulary.tokenizer.get_vocab()
        if not same_tokens or scorer.embeddings.shape != vocabulary.embeddings.shape:
            raise UserError(
                "method.objective=clip: the scorer has another token table than the generator; give as scorer.path "
                "the CLIP model that the generator's text encoder comes from, or method.objective=denoising"
            )
        self.scorer = scorer

    def __call__(self, prompt: Tensor, token_ids: Tensor, features: Tensor, draws: Draws) -> Tensor:
        """Losses (B,) in [0, 2]; in the place of latents stand the pictures' features (B, E)."""
        return 1 - (self.scorer.text_features_from(token_ids, prompt) * features).sum(-1)


@torch.no_grad()
def candidate_losses(generator: Generator, latents: Tensor, candidates: Tensor, draws: Draws) -> Tensor:
    """Denoising losses (B, K) of K hard prompts an image, `candidates` (B, K, M), on the image's N draws.

    Costs K N forward samples an image; at most `DENOISER_ROWS` go through the denoiser at once.
    """
    batch, number, _ = candidates.shape
    image = torch.arange(batch, device=latents.device).repeat_interleave(number)
    token_ids = candidates.flatten(0, 1)  # (B K, M)

    def evaluate(size: int) -> Tensor:
        losses = latents.new_zeros(len(token_ids))
        for rows, columns, share in parts(len(token_ids), draws.timesteps.shape[1], size):
            conditioning = generator.condition(token_ids[rows])
            some = draws[image[rows], columns]
            losses[rows] += share * denoising_loss(generator, latents[image[rows]], conditioning, some)
        return losses

    generator.prepare(token_ids)
    # A whole row's draws at once where they fit into no chunk, as long as memory lasts.
    most = max(DENOISER_ROWS, draws.timesteps.shape[1])
    return generator.microbatch.run("forward", most, evaluate).view(batch, number)


def losses_and_gradients(
    generator: Generator, prompt: Tensor, token_ids: Tensor, latents: Tensor, draws: Draws
) -> tuple[Tensor, Tensor]:
    """Denoising losses (B,) of prompts (B, M, D) and their gradients (B, M, D); N samples each way a row."""
    objective = DenoisingObjective(generator)

    def evaluate(size: int) -> tuple[Tensor, Tensor]:
        losses, gradients = latents.new_zeros(len(prompt)), torch.zeros_like(prompt)
        for rows, columns, share in parts(*draws.timesteps.shape, size):
            some = prompt[rows].detach().requires_grad_()
            loss = share * objective(some, token_ids[rows], latents[rows], draws[rows, columns])
            gradients[rows] += torch.autograd.grad(loss.sum(), some)[0]
            losses[rows] += loss.detach()
        return losses, gradients

    return generator.microbatch.run("gradient", draws.timesteps.numel(), evaluate)
