"""What a prompt is judged by: losses of shape (B,), one a row, never a mean over images.

A new objective is a class and a line in `OBJECTIVES`.

Symbols: B images, M prompt tokens, D embedding width, N noise draws, K candidates, C, h, w latent.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

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
    B x N -> (B,). Of sets of pictures, `latents` (B, P, C, h, w), each draw has its own picture z0 and its weight.
    """
    count = draws.timesteps.shape[1]  # N
    timesteps, noise = draws.timesteps.flatten(0, 1), draws.noise.flatten(0, 1)  # (B N,), (B N, C, h, w)
    clean = draws.clean(latents)  # (B N, C, h, w)
    repeated = {name: value.repeat_interleave(len(clean) // len(value), 0) for name, value in conditioning.items()}
    predicted = generator.predict(generator.add_noise(clean, noise, timesteps), timesteps, repeated)
    error = (generator.target(clean, noise, timesteps) - predicted).square()
    errors = error.flatten(1).mean(1).view(-1, count)  # (B, N)
    return (errors if draws.weights is None else errors * draws.weights.to(errors)).mean(1)


class Objective(ABC):
    """What an optimisation makes small: a loss for each row's prompt. A new one also needs a line in `OBJECTIVES`.

    Its constructor checks what it needs of model and scorer, and raises UserError where they do not fit.
    """

    @abstractmethod
    def goals(self, latents: Tensor, features: Tensor) -> Tensor:
        """What prompts are compared with: the targets' latents, (B, C, h, w) or of sets (B, P, C, h, w), or their CLIP
        features (B, E)."""

    @abstractmethod
    def __call__(self, prompt: Tensor, token_ids: Tensor, goals: Tensor, draws: Draws) -> Tensor:
        """Losses (B,) of prompt embeddings (B, M, D) that stand in the places of `token_ids` (B, M)."""


class DenoisingObjective(Objective):
    """The denoising loss of prompts for fixed target latents; calling it costs N denoiser samples a row.

    Where the draws have shifts it is smoothed: each draw sees the prompt with its own shift (Duchi, Bartlett and
    Wainwright, Randomized smoothing for stochastic optimization, arXiv 1103.4296). Such a loss is low where all prompts
    around are good, the next hard one among them.
    """

    def __init__(self, generator: Generator):
        self.generator = generator

    def goals(self, latents: Tensor, features: Tensor) -> Tensor:
        return latents

    def __call__(self, prompt: Tensor, token_ids: Tensor, goals: Tensor, draws: Draws) -> Tensor:
        if draws.shifts is not None:
            token_ids = token_ids.repeat_interleave(draws.shifts.shape[1], 0)  # (B N, M)
            prompt = (prompt[:, None] + draws.shifts).flatten(0, 1)  # (B N, M, D)
        return denoising_loss(self.generator, goals, self.generator.condition(token_ids, prompt), draws)


class ClipObjective(Objective):
    """One minus the CLIP similarity of prompt and picture (PEZ, arXiv 2302.03668, eq. 3), in [0, 2]; takes no draws."""

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

    def goals(self, latents: Tensor, features: Tensor) -> Tensor:
        return features

    def __call__(self, prompt: Tensor, token_ids: Tensor, goals: Tensor, draws: Draws) -> Tensor:
        return 1 - (self.scorer.text_features_from(token_ids, prompt) * goals).sum(-1)


# What `method.objective` may be.
OBJECTIVES: dict[str, Callable[[Generator, Scorer], Objective]] = {
    "denoising": lambda generator, scorer: DenoisingObjective(generator),
    "clip": lambda generator, scorer: ClipObjective(scorer, generator.vocabulary),
}


def make_objective(name: str, generator: Generator, scorer: Scorer) -> Objective:
    """The objective that `method.objective` names; raises UserError for an unknown one and where it does not fit."""
    if name not in OBJECTIVES:
        raise UserError(f"method.objective={name}: choose one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name](generator, scorer)


def finite_or_infinite(losses: Tensor) -> Tensor:
    """The losses with inf for whatever is not finite, so that the lowest is always of a real one."""
    return torch.where(losses.isfinite(), losses, torch.inf)


def rows_of_gradient(timesteps: Tensor) -> int:
    """The most samples that should go through the denoiser at once for a gradient on draws (B, N).

    All; on a CPU the N of one row, so that its arithmetic does not depend on how many rows there are.
    """
    return timesteps.shape[1] if timesteps.device.type == "cpu" else timesteps.numel()


@torch.no_grad()
def candidate_losses(generator: Generator, latents: Tensor, candidates: Tensor, draws: Draws) -> Tensor:
    """Denoising losses (B, K) of K hard prompts an image, `candidates` (B, K, M), on the image's N draws.

    Inf where a loss is not finite. Costs K N forward samples an image; at most `DENOISER_ROWS` go through the denoiser
    at once, on a CPU of one image: then its losses do not depend on the others, to the last bit.
    """
    batch, number, _ = candidates.shape
    if latents.device.type == "cpu" and batch > 1:
        ones = [slice(row, row + 1) for row in range(batch)]
        return torch.cat([candidate_losses(generator, latents[i], candidates[i], draws[i]) for i in ones])
    image = torch.arange(batch, device=latents.device).repeat_interleave(number)
    token_ids = candidates.flatten(0, 1)  # (B K, M)

    def evaluate(size: int) -> Tensor:
        losses = latents.new_zeros(len(token_ids))
        for rows, columns, weight in parts(len(token_ids), draws.timesteps.shape[1], size):
            conditioning = generator.condition(token_ids[rows])
            some = draws[image[rows], columns]
            losses[rows] += weight * denoising_loss(generator, latents[image[rows]], conditioning, some)
        return losses

    generator.prepare(token_ids)
    # A whole row's draws at once where they fit into no chunk, as long as memory lasts.
    count = draws.timesteps.shape[1]
    most = min(max(DENOISER_ROWS, count), len(token_ids) * count)
    return finite_or_infinite(generator.microbatch.run("forward", most, evaluate)).view(batch, number)


def losses_and_gradients(
    generator: Generator, prompt: Tensor, token_ids: Tensor, latents: Tensor, draws: Draws
) -> tuple[Tensor, Tensor]:
    """Denoising losses (B,) of prompts (B, M, D) and their gradients (B, M, D); N samples each way a row."""
    objective = DenoisingObjective(generator)

    def evaluate(size: int) -> tuple[Tensor, Tensor]:
        losses, gradients = latents.new_zeros(len(prompt)), torch.zeros_like(prompt)
        for rows, columns, weight in parts(len(prompt), draws.timesteps.shape[1], size):
            some = prompt[rows].detach().requires_grad_()
            loss = weight * objective(some, token_ids[rows], latents[rows], draws[rows, columns])
            gradients[rows] += torch.autograd.grad(loss.sum(), some)[0]
            losses[rows] += loss.detach()
        return losses, gradients

    return generator.microbatch.run("gradient", rows_of_gradient(draws.timesteps), evaluate)
