"""What an optimisation passes through: its losses, and the hard prompts that it visits."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from torch import Tensor

from ph2p.config.method import MethodConfig
from ph2p.inversion.module import PromptInversion
from ph2p.inversion.objectives import finite_or_infinite
from ph2p.inversion.selection import Pool
from ph2p.inversion.trail import Hard, Trail

NOTED = ("token_ids", "losses", "curve", "evaluated", "ends")


class CandidateHistory(L.Callback):
    """Keep every hard prompt that was visited, with a loss to rank it by; the starting tokens come first.

    `token_ids` lists (B, M) and `losses` (B,), an entry an epoch; `curve` lists each epoch's last losses (B,),
    `evaluated` the losses (n, B) of each step's n evaluations, and `ends` counts these at each epoch's end.
    Where the projection has a judge (`judged`), a candidate's loss is the judge's. Otherwise, with `snap`, an epoch's
    first evaluation is at the last candidate, so that is its loss; without, it is the loss of the epoch that the
    candidate was projected from; both as the method smooths them. What is not known yet is infinite.
    Must stand after `DelayedProjection` in the trainer's list of callbacks.
    """

    def __init__(self, snap: bool, judged: bool = False) -> None:
        self.snap, self.judged = snap, judged
        self.token_ids: list[Tensor] = []
        self.losses: list[Tensor] = []
        self.curve: list[Tensor] = []
        self.evaluated: list[Tensor] = []
        self.ends: list[int] = []

    def on_train_start(self, trainer: L.Trainer, module: PromptInversion) -> None:
        if not self.token_ids:  # otherwise the fit goes on from a checkpoint
            self._note(module.token_ids, module.token_losses)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: PromptInversion, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        if module.evaluated:
            self.evaluated.append(torch.stack(module.evaluated).cpu())

    def on_train_epoch_end(self, trainer: L.Trainer, module: PromptInversion) -> None:
        if not self.judged and (self.snap or len(self.losses) == 1):
            self.losses[-1] = module.first_losses.to("cpu", copy=True)
        self._note(module.token_ids, module.token_losses if self.snap else module.losses)
        self.curve.append(module.losses.to("cpu", copy=True))
        self.ends.append(sum(map(len, self.evaluated)))

    def _note(self, token_ids: Tensor, losses: Tensor) -> None:
        self.token_ids.append(token_ids.to("cpu", copy=True))
        self.losses.append(losses.to("cpu", copy=True))

    def pool(self, images: int, device: torch.device) -> Pool:
        """What was visited, by image: the restarts of each of the B `images` are rows that follow each other."""
        token_ids, losses = torch.stack(self.token_ids, 1), torch.stack(self.losses, 1)  # (B R, K, M), (B R, K)
        rows, visited = losses.shape
        return Pool(
            token_ids.view(images, -1, token_ids.shape[2]).to(device),
            losses.view(images, -1).to(device),
            torch.arange(visited, device=device).repeat(images, rows // images),
        )

    def best(self) -> Tensor:
        """The visited prompt (B R, M) of every row that has the lowest loss."""
        token_ids, losses = torch.stack(self.token_ids, 1), finite_or_infinite(torch.stack(self.losses, 1))
        return token_ids[torch.arange(len(losses)), losses.argmin(1)]

    def curves(self, rows: Tensor) -> Tensor:
        """The losses (B, epochs) of some rows, as the optimiser saw them."""
        return torch.stack(self.curve, 1)[rows] if self.curve else torch.zeros(len(rows), 0)

    def trails(self, rows: Tensor, words: Callable[[Tensor], list[str]], method: MethodConfig) -> list[Trail]:
        """What some rows have passed through, one of each image; `words` gives the texts of tokens (M,), one each."""
        hard: Hard = "all" if method.straight_through else "first of each epoch" if method.snap else "first"
        return [replace(self._trail(row, words), hard=hard, restarts=method.restarts) for row in rows.tolist()]

    def _trail(self, row: int, words: Callable[[Tensor], list[str]]) -> Trail:
        evaluated = torch.cat(self.evaluated)[:, row].tolist() if self.evaluated else []
        judged = [float(losses[row]) for losses in self.losses] if self.judged else []
        return Trail(evaluated, list(self.ends), [words(ids[row]) for ids in self.token_ids], judged)

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: all that was noted."""
        return {name: getattr(self, name) for name in NOTED}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        for name in NOTED:
            setattr(self, name, list(state.get(name, [])))  # an older program has noted less
