"""The delayed projection: at the end of each epoch the prompts are projected onto the vocabulary."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import lightning as L
import torch
from torch import Tensor

from ph2p.inversion.module import PromptInversion
from ph2p.inversion.objectives import finite_or_infinite


class PromptJudge(Protocol):
    """Losses (B, K) of hard prompts (B, K, M) on draws that stay the same, and what it knows, for a checkpoint."""

    def __call__(self, prompts: Tensor) -> Tensor: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class Forgetful(Protocol):
    """An optimiser that learns an objective's shape, and can forget it where another one follows."""

    def reset(self) -> None: ...


class DelayedProjection(L.Callback):
    """Project the prompts onto the vocabulary at the end of each epoch (PH2P, arXiv 2312.12416, algorithm 1).

    token_i = argmin_v || P_i - E_v ||^2 over the allowed vocabulary. With `snap` the next epoch starts from
    the tokens' embeddings, without from the continuous prompt. An optimiser with a `reset`, such as L-BFGS, forgets
    its curvature, since the next epoch has other draws and so another objective.

    A projection may lose what the epoch has won. With a `judge` the epoch's move P - S from its start S is projected
    at several lengths, nearest(S + scale (P - S)) for each of `scales`: a small one changes only the tokens that have
    moved most. The judge takes the best of them, and the next epoch starts from the best prompt that its row has
    visited.
    """

    def __init__(self, snap: bool, judge: PromptJudge | None = None, scales: Sequence[float] = (1.0,)) -> None:
        self.snap, self.judge, self.scales = snap, judge, list(scales)
        self.best: dict[str, Tensor] = {}  # token_ids (B, M) and losses (B,) of the rows' best prompts

    def on_train_start(self, trainer: L.Trainer, module: PromptInversion) -> None:
        if self.judge and not self.best:  # otherwise the fit goes on from a checkpoint
            self.best = {"token_ids": module.token_ids.clone(), "losses": module.token_losses.clone()}

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: L.Trainer, module: PromptInversion) -> None:
        if module.straight_through:
            return  # projected at every evaluation
        prompt = module.prompt  # (B, M, D)
        finite = prompt.isfinite().flatten(1).all(1)[:, None]  # (B, 1); a diverged row keeps its tokens
        projected = self._judged(module, self.judge, finite) if self.judge else module.vocabulary.nearest(prompt)
        module.token_ids = torch.where(finite, projected, module.token_ids)
        if self.snap:
            module.move_to(module.vocabulary.embed(self.best["token_ids"] if self.judge else module.token_ids))
        for optimizer in trainer.optimizers:
            if isinstance(optimizer, Forgetful):
                optimizer.reset()

    def _judged(self, module: PromptInversion, judge: PromptJudge, finite: Tensor) -> Tensor:
        """The tokens (B, M) of the best projection; notes their losses, and both where they are the best so far.

        Rows that are not `finite` (B, 1) have no projection, and so no loss.
        """
        best = {name: value.to(module.device) for name, value in self.best.items()}
        start = module.vocabulary.embed(best["token_ids"])  # (B, M, D)
        ahead = torch.stack([start + scale * (module.prompt - start) for scale in self.scales], 1)  # (B, K, M, D)
        candidates = module.vocabulary.nearest(ahead)  # (B, K, M)
        # A row that was dropped stays at its best prompt, which the judge knows and does not score again.
        candidates = torch.where(module.alive[:, None, None], candidates, best["token_ids"][:, None])
        losses, index = finite_or_infinite(judge(candidates)).masked_fill(~finite, torch.inf).min(1)  # (B,)
        token_ids = candidates[torch.arange(len(index), device=index.device), index]
        better = losses < best["losses"]
        module.token_losses = losses
        self.best = {
            "token_ids": torch.where(better[:, None], token_ids, best["token_ids"]),
            "losses": torch.where(better, losses, best["losses"]),
        }
        return token_ids

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: the best prompts so far, and what the judge knows."""
        return {"best": self.best, "judge": self.judge.state_dict() if self.judge else {}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.best = dict(state["best"])
        if self.judge:
            self.judge.load_state_dict(state["judge"])
