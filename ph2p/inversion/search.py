"""Discrete search over tokens: swaps ranked by the gradient and evaluated exactly on the denoising loss.

The gradient at a hard prompt says, to first order, what a swap of the token in place i for token v changes:
g_i . (E_v - E_i) (HotFlip, arXiv 1712.06751; GCG, arXiv 2307.15043). The first order is a poor guide over the
distance between two tokens, so it only picks what is then evaluated with the true loss.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ph2p.inversion.draws import Draws
from ph2p.inversion.objectives import candidate_losses, losses_and_gradients
from ph2p.models.generators import Generator
from ph2p.models.vocabulary import Vocabulary


@dataclass
class Progress:
    """Where a search stands after some of its rounds: with it the rest goes on as if it had never stopped."""

    prompts: Tensor  # (B, 1 + rounds, M), the start first
    losses: Tensor  # (B, 1 + rounds)
    tried: Tensor  # (B, M, A) bool, swaps that were tried from the last prompt

    def state(self) -> dict[str, Tensor]:
        """A few KB: of `tried`, of which hardly any is true, the places."""
        return {"prompts": self.prompts, "losses": self.losses, "tried": self.tried.nonzero().int()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave, on this search's device."""
        device = self.prompts.device
        self.prompts, self.losses = state["prompts"].to(device), state["losses"].to(device)
        self.tried.zero_()[tuple(state["tried"].long().T.to(device))] = True


def greedy_swaps(
    generator: Generator,
    latents: Tensor,
    token_ids: Tensor,
    draws: Draws,
    rounds: int,
    swaps: int,
    report: Callable[[float], None] = lambda share: None,
    save: Callable[[dict[str, Tensor]], None] = lambda state: None,
    state: dict[str, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Improve hard prompts by the best of `swaps` single-token swaps a round; rows are independent.

    `latents` (B, C, h, w), `token_ids` (B, M), `draws` of B x N stay fixed, so the loss only falls. A round
    costs N forward and N backward samples for the gradient and `swaps` N forward samples. A swap that was
    tried from the same prompt is not tried again, so a row at a local minimum moves on down its ranking.
    Returns the prompts of all rounds (B, 1 + rounds, M) and their losses (B, 1 + rounds), the start first.
    `save` gets the state at the start and after each round; a later call continues from it, given the same other
    arguments.
    """
    allowed = len(generator.vocabulary.allowed_ids)
    tried = torch.zeros(*token_ids.shape, allowed, dtype=torch.bool, device=token_ids.device)
    progress = Progress(token_ids[:, None], candidate_losses(generator, latents, token_ids[:, None], draws), tried)
    if state:
        progress.restore(state)
    else:
        save(progress.state())
    for done in range(progress.losses.shape[1], rounds + 1):
        _swap(generator, latents, draws, swaps, progress)
        save(progress.state())
        report(done / rounds)
    return progress.prompts, progress.losses


def _swap(generator: Generator, latents: Tensor, draws: Draws, swaps: int, progress: Progress) -> None:
    """One round: evaluate the most promising swaps of each row and keep the best where it is an improvement."""
    best, loss, tried = progress.prompts[:, -1], progress.losses[:, -1], progress.tried
    ranking = swap_scores(generator, latents, best, draws).masked_fill(tried, torch.inf)  # (B, M, A)
    candidates, chosen = _best_swaps(best, ranking, generator.vocabulary, swaps)
    found, index = candidate_losses(generator, latents, candidates, draws).min(1)  # (B,)
    better = found < loss
    rows = torch.arange(len(best), device=best.device)
    best = torch.where(better[:, None], candidates[rows, index], best)
    progress.tried = torch.where(better[:, None, None], False, tried | chosen)
    progress.prompts = torch.cat([progress.prompts, best[:, None]], 1)
    progress.losses = torch.cat([progress.losses, torch.where(better, found, loss)[:, None]], 1)


def swap_scores(generator: Generator, latents: Tensor, token_ids: Tensor, draws: Draws) -> Tensor:
    """First-order change of the loss (B, M, A) for every place and every allowed token; inf where unchanged."""
    vocabulary = generator.vocabulary
    prompt = vocabulary.embed(token_ids)
    _, gradient = losses_and_gradients(generator, prompt, token_ids, latents, draws)  # (B, M, D)
    allowed = vocabulary.embed(vocabulary.allowed_ids)  # (A, D)
    change = gradient @ allowed.T - (gradient * prompt).sum(-1, keepdim=True)
    return change.masked_fill(token_ids[..., None] == vocabulary.allowed_ids, torch.inf)


def _best_swaps(token_ids: Tensor, ranking: Tensor, vocabulary: Vocabulary, swaps: int) -> tuple[Tensor, Tensor]:
    """The `swaps` lowest of `ranking` (B, M, A) as prompts (B, K, M), and where in the ranking they stand."""
    flat = ranking.flatten(1)
    index = flat.topk(min(swaps, flat.shape[1]), largest=False).indices  # (B, K)
    chosen = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, index, True).view_as(ranking)
    place, token = index // ranking.shape[2], vocabulary.allowed_ids[index % ranking.shape[2]]
    prompts = token_ids[:, None].repeat(1, index.shape[1], 1)  # (B, K, M)
    return prompts.scatter(2, place[..., None], token[..., None]), chosen
