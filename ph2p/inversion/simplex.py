"""Descent over distributions of tokens: each place of a prompt holds weights of all allowed tokens, not one point.

Sources: S. Geisler et al., Attacking large language models with projected gradient descent, arXiv 2402.09154
("PGD"), algorithms 1 to 3; K. Hu et al., Efficient LLM jailbreak via adaptive dense-to-sparse constrained
optimization, arXiv 2405.09113 ("ADC": the momentum, and the weights that end on one token). Shapes: B rows, M places,
A allowed tokens, D embedding width.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class SimplexDescent(torch.optim.Optimizer):
    """Projected gradient descent on token weights w (B, M, A) whose mixture of embeddings is the prompt, P = w E.

    A step, of the gradient dL/dw = dL/dP E^T less its mean over the tokens:

        m = momentum m + (1 - momentum) dL/dw
        w = sharpened(on_simplex(w - lr m / max |m|), 1 - k / period)        in the step k = 1, ..., period

    so that `lr` is the most that a token's weight changes by in a step, whatever the scale of loss and embeddings; the
    max is over all of a row's places and tokens. A period begins at the tokens nearest to the prompt and ends with one
    token in each place. The rows are separate problems.

    Takes one parameter (B, M, D), and `over` gives the table E (A, D), in the parameter's own units, before the first
    step. Weights and momentum take 8 B M A bytes and a step some four times as much for a moment: 190 MB in all for 8
    prompts of 12 tokens and all 49,408 tokens of CLIP.

    Raises:
        ValueError: a number out of its range.
    """

    def __init__(self, params: Iterable[Any], lr: float = 0.1, momentum: float = 0.9, period: int = 16) -> None:
        if not lr > 0:
            raise ValueError(f"lr must be positive, not {lr}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), not {momentum}")
        if period < 1:
            raise ValueError(f"period must be at least 1, not {period}")
        super().__init__(params, dict(lr=lr, momentum=momentum, period=period))
        self.table: Tensor | None = None  # (A, D), not in `state_dict`: it belongs to the model

    def over(self, table: Tensor) -> None:
        """Take the embeddings (A, D) of the tokens that have weights."""
        self.table = table

    def reset(self) -> None:
        """Begin a new period, at the prompt as it then stands."""
        self.state.clear()

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        """One step; returns the losses (B,) from before it."""
        assert self.table is not None
        with torch.enable_grad():
            losses = closure()
        (group,) = self.param_groups
        (prompt,) = group["params"]  # (B, M, D)
        if prompt not in self.state:
            self.state[prompt] = self._begin(prompt)
        state = self.state[prompt]
        gradient = prompt.grad @ self.table.T  # (B, M, A)
        gradient -= gradient.mean(-1, keepdim=True)
        state["momentum"].lerp_(gradient, 1 - group["momentum"])
        largest = state["momentum"].abs().amax((1, 2), keepdim=True)  # (B, 1, 1)
        change = group["lr"] * state["momentum"] / largest.clamp_min(torch.finfo(largest.dtype).tiny)
        state["step"] += 1
        left = max(0.0, 1 - float(state["step"]) / group["period"])
        state["weights"] = sharpened(on_simplex(state["weights"] - change), left)
        prompt.copy_(state["weights"] @ self.table)
        return losses

    def _begin(self, prompt: Tensor) -> dict[str, Tensor]:
        """All weight on the token nearest to each place."""
        assert self.table is not None
        nearest = (self.table.square().sum(-1) - 2 * prompt @ self.table.T).argmin(-1)  # (B, M)
        weights = torch.zeros(*nearest.shape, len(self.table), dtype=prompt.dtype, device=prompt.device)
        weights.scatter_(-1, nearest[..., None], 1)
        return {"weights": weights, "momentum": torch.zeros_like(weights), "step": torch.zeros((), dtype=torch.long)}


def on_simplex(values: Tensor) -> Tensor:
    """The nearest distributions (..., A) to `values` (..., A): not negative, of sum 1.

    w = max(v - s, 0) with s such that the sum is 1 (Duchi et al., Efficient projections onto the l1-ball for learning
    in high dimensions, ICML 2008, figure 1; PGD, algorithm 2).
    """
    ordered = values.sort(-1, descending=True).values
    number = torch.arange(1, values.shape[-1] + 1, device=values.device, dtype=values.dtype)
    shifts = (ordered.cumsum(-1) - 1) / number  # were so many tokens to keep a weight
    kept = (ordered > shifts).sum(-1, keepdim=True).clamp_min(1)
    return (values - shifts.gather(-1, kept - 1)).clamp_min(0)


def sharpened(weights: Tensor, entropy: float) -> Tensor:
    """Distributions (..., A) with the Gini entropy 1 - sum w^2 brought towards `entropy` where it is larger.

    Away from the centre of the tokens that have a weight, and back onto the simplex (PGD, algorithm 3, whose bound
    holds up to that way back). With an `entropy` of 0 all weight is on the token that had the most.
    """
    if entropy <= 0:
        return torch.zeros_like(weights).scatter_(-1, weights.argmax(-1, keepdim=True), 1)
    held = weights > 0
    count = held.sum(-1, keepdim=True).clamp_min(1)
    away = torch.where(held, weights - 1 / count, 0)
    distance = away.norm(dim=-1, keepdim=True)
    wanted = (1 - entropy - 1 / count).clamp_min(0).sqrt()
    stretched = torch.where(held, 1 / count + away * (wanted / distance.clamp_min(1e-12)), weights)
    return torch.where((distance < wanted) & (distance > 0), on_simplex(stretched), weights)
