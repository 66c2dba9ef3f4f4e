"""What happens at the end of an epoch: projection, the history of candidates, progress."""

from collections.abc import Callable

import lightning as L
import torch
from torch import Tensor

from ph2p.inversion import PromptInversion
from ph2p.optim import BatchedLBFGS


class DelayedProjection(L.Callback):
    """Project the prompts onto the vocabulary at the end of each epoch (PH2P, arXiv 2312.12416, algorithm 1).

    token_i = argmin_v || P_i - E_v ||^2 over the allowed vocabulary. With `snap` the next epoch starts from
    the tokens' embeddings, without from the continuous prompt. L-BFGS forgets its curvature, since the next
    epoch has other draws and so another objective.
    """

    def __init__(self, snap: bool):
        self.snap = snap

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: L.Trainer, module: PromptInversion) -> None:
        if module.straight_through:
            return  # projected at every evaluation
        finite = module.prompt.isfinite().flatten(1).all(1)[:, None]  # (B, 1); a diverged row keeps its tokens
        module.token_ids = torch.where(finite, module.vocabulary.nearest(module.prompt), module.token_ids)
        if self.snap:
            module.prompt.copy_(module.vocabulary.embed(module.token_ids))
        for optimizer in trainer.optimizers:
            if isinstance(optimizer, BatchedLBFGS):
                optimizer.reset()


class CandidateHistory(L.Callback):
    """Keep every hard prompt that was visited, with a loss to rank it by; the starting tokens come first.

    `token_ids` lists (B, M) and `losses` (B,), an entry an epoch; `curve` lists each epoch's last losses (B,).
    With `snap` an epoch's first evaluation is at the last candidate, so that is its loss; without, it is the
    loss of the epoch that the candidate was projected from. What is not known yet is infinite.
    Must stand after `DelayedProjection` in the trainer's list of callbacks.
    """

    def __init__(self, snap: bool) -> None:
        self.snap = snap
        self.token_ids: list[Tensor] = []
        self.losses: list[Tensor] = []
        self.curve: list[Tensor] = []

    def on_train_start(self, trainer: L.Trainer, module: PromptInversion) -> None:
        self.record_start(module)

    def record_start(self, module: PromptInversion) -> None:
        """Note the tokens that the rows start from; all that there is to note where nothing is optimised."""
        self.token_ids.append(module.token_ids.clone())
        self.losses.append(torch.full_like(module.losses, torch.inf))

    def on_train_epoch_end(self, trainer: L.Trainer, module: PromptInversion) -> None:
        if self.snap or len(self.losses) == 1:
            self.losses[-1] = module.first_losses.clone()
        self.token_ids.append(module.token_ids.clone())
        self.losses.append(torch.full_like(module.losses, torch.inf) if self.snap else module.losses.clone())
        self.curve.append(module.losses.clone())


class EpochProgress(L.Callback):
    """Report the finished share of the epochs, in (0, 1], to a function."""

    def __init__(self, report: Callable[[float], None]):
        self.report = report

    def on_train_epoch_end(self, trainer: L.Trainer, module: PromptInversion) -> None:
        self.report((trainer.current_epoch + 1) / trainer.max_epochs)
