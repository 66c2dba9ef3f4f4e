"""Races: many candidates on few draws, few on many, all on common random numbers.

Successive halving (Jamieson and Talwalkar, arXiv 1502.07943): a stage scores the survivors of the last one on draws of
its own, and the means over all draws so far decide who goes on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ph2p.inversion.draws import Draws
from ph2p.inversion.objectives import finite_or_infinite
from ph2p.inversion.prompts import prompt_losses
from ph2p.models.generators import Generator


@dataclass(frozen=True)
class Stage:
    """At most `candidates` of every image on `draws` draws that no stage before had."""

    candidates: int
    draws: int


@dataclass(frozen=True)
class Outcome:
    """Of every image: who has won (B,), and the mean losses (B,) of the winner and of the first one on all draws."""

    winner: Tensor
    loss: Tensor
    first_loss: Tensor


def race(
    generator: Generator, latents: Tensor, prompts: Tensor, draws: Draws, stages: Sequence[Stage], charge: Tensor
) -> Outcome:
    """Race padded prompts (B, K, L) on draws (B, N), N those of all `stages` together.

    What counts is loss + `charge` (B, K). The first prompt of every image takes part in every stage, so that the winner
    is compared with it on all draws. A prompt without a finite loss never wins against
    one that has one.
    """
    charge = charge.to(latents)
    alive = torch.arange(prompts.shape[1], device=prompts.device).expand(len(prompts), -1)  # (B, K')
    total, seen = torch.zeros_like(charge), 0
    for number, stage in enumerate(stages):
        if number:
            score = finite_or_infinite((total / seen + charge).gather(1, alive)).masked_fill(alive == 0, -torch.inf)
            kept = score.topk(min(stage.candidates, alive.shape[1]), largest=False).indices
            alive = alive.gather(1, kept.sort(1).values)
        some = prompts.gather(1, alive[..., None].expand(-1, -1, prompts.shape[2]))
        losses = prompt_losses(generator, latents, some, draws[:, seen : seen + stage.draws])  # (B, K')
        total, seen = total.scatter_add(1, alive, losses * stage.draws), seen + stage.draws
    mean = (total / seen).gather(1, alive)
    place = finite_or_infinite(mean + charge.gather(1, alive)).argmin(1, keepdim=True)
    return Outcome(alive.gather(1, place)[:, 0], mean.gather(1, place)[:, 0], mean[:, 0])
