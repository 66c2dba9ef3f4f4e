"""Discrete search over tokens: swaps ranked by the gradient and evaluated exactly on the denoising loss.

The gradient at a hard prompt says, to first order, what a swap of the token in place i for token v changes:
g_i . (E_v - E_i) (HotFlip, arXiv 1712.06751; GCG, arXiv 2307.15043). The first order is a poor guide over the
distance between two tokens, so it only picks what is then evaluated with the true loss.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ph2p.data import Draws
from ph2p.generators import Generator
from ph2p.objectives import DenoisingObjective, candidate_losses
from ph2p.vocabulary import Vocabulary


def greedy_swaps(
    generator: Generator,
    latents: Tensor,
    token_ids: Tensor,
    draws: Draws,
    rounds: int,
    swaps: int,
    report: Callable[[float], None] = lambda share: None,
) -> tuple[Tensor, Tensor]:
    """Improve hard prompts by the best of `swaps` single-token swaps a round; rows are independent.

    `latents` (B, C, h, w), `token_ids` (B, M), `draws` of B x N stay fixed, so the loss only falls. A round
    costs N forward and N backward samples for the gradient and `swaps` N forward samples. A swap that was
    tried from the same prompt is not tried again, so a row at a local minimum moves on down its ranking.
    Returns the prompts of all rounds (B, 1 + rounds, M) and their losses (B, 1 + rounds), the start first.
    """
    best = token_ids.clone()
    loss = candidate_losses(generator, latents, best[:, None], draws)[:, 0]  # (B,)
    tried = torch.zeros(*best.shape, len(generator.vocabulary.allowed_ids), dtype=torch.bool, device=best.device)
    visited, losses = [best], [loss]
    for done in range(rounds):
        ranking = swap_scores(generator, latents, best, draws).masked_fill(tried, torch.inf)  # (B, M, A)
        candidates, chosen = _best_swaps(best, ranking, generator.vocabulary, swaps)
        found, index = candidate_losses(generator, latents, candidates, draws).min(1)  # (B,)
        better = found < loss
        rows = torch.arange(len(best), device=best.device)
        tried = torch.where(better[:, None, None], False, tried | chosen)
        best = torch.where(better[:, None], candidates[rows, index], best)
        loss = torch.where(better, found, loss)
        visited.append(best)
        losses.append(loss)
        report((done + 1) / rounds)
    return torch.stack(visited, 1), torch.stack(losses, 1)


def swap_scores(generator: Generator, latents: Tensor, token_ids: Tensor, draws: Draws) -> Tensor:
    """First-order change of the loss (B, M, A) for every place and every allowed token; inf where unchanged."""
    vocabulary = generator.vocabulary
    prompt = vocabulary.embed(token_ids).clone().requires_grad_()
    losses = DenoisingObjective(generator)(prompt, token_ids, latents, draws)
    (gradient,) = torch.autograd.grad(losses.sum(), prompt)  # (B, M, D)
    allowed = vocabulary.embed(vocabulary.allowed_ids)  # (A, D)
    change = gradient @ allowed.T - (gradient * prompt).sum(-1, keepdim=True)
    return change.detach().masked_fill(token_ids[..., None] == vocabulary.allowed_ids, torch.inf)


def _best_swaps(token_ids: Tensor, ranking: Tensor, vocabulary: Vocabulary, swaps: int) -> tuple[Tensor, Tensor]:
    """The `swaps` lowest of `ranking` (B, M, A) as prompts (B, K, M), and where in the ranking they stand."""
    flat = ranking.flatten(1)
    index = flat.topk(min(swaps, flat.shape[1]), largest=False).indices  # (B, K)
    chosen = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, index, True).view_as(ranking)
    place, token = index // ranking.shape[2], vocabulary.allowed_ids[index % ranking.shape[2]]
    prompts = token_ids[:, None].repeat(1, index.shape[1], 1)  # (B, K, M)
    return prompts.scatter(2, place[..., None], token[..., None]), chosen
