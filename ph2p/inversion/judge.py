"""Fixed draws by which the hard prompts of an optimisation are compared."""

from typing import Any

import torch
from torch import Tensor

from ph2p.inversion.draws import Draws
from ph2p.inversion.objectives import candidate_losses
from ph2p.models.generators import Generator


class Judge:
    """Gives the losses of hard prompts on draws that stay the same; the same tokens are scored once a row.

    `latents` (B, C, h, w) and `draws` (B, N) hold a row for each prompt that is optimised.
    """

    def __init__(self, generator: Generator, latents: Tensor, draws: Draws) -> None:
        self.generator, self.latents, self.draws = generator, latents, draws
        self.known: list[dict[tuple[int, ...], float]] = [{} for _ in latents]  # a row's losses by tokens
        self.samples = [0] * len(latents)  # what each row has cost, forward

    def __call__(self, prompts: Tensor) -> Tensor:
        """Losses (B, K) of prompts (B, K, M); inf where one is not finite."""
        return torch.stack([self._row(row, some) for row, some in enumerate(prompts)])

    def _row(self, row: int, prompts: Tensor) -> Tensor:
        """Losses (K,) of one row's prompts (K, M)."""
        keys = [tuple(ids) for ids in prompts.tolist()]
        known, one = self.known[row], slice(row, row + 1)
        if new := [key for key in dict.fromkeys(keys) if key not in known]:
            ids = torch.tensor([new], device=prompts.device)  # (1, K', M)
            before = self.generator.counter.forward
            losses = candidate_losses(self.generator, self.latents[one], ids, self.draws[one])
            self.samples[row] += self.generator.counter.forward - before
            known.update(zip(new, losses[0].tolist(), strict=True))
        return self.latents.new_tensor([known[key] for key in keys])

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: what was scored, and what it has cost."""
        return {"known": self.known, "samples": self.samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.known = [dict(losses) for losses in state["known"]]
        self.samples = list(state["samples"])
