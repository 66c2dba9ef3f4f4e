"""Many descents by L-BFGS side by side: the direction of each row, and how it moves.

From top to bottom: what may be chosen (`LBFGSOptions`), the direction (`History`), a descent made of it and a line
search (`Descent`; `line_search.py`). Shapes: B rows of n numbers, H pairs of history.

Sources: J. Nocedal and S. J. Wright, Numerical Optimization, 2nd ed., 2006 ("N&W"); D. C. Liu and J. Nocedal,
On the limited memory BFGS method for large scale optimization, Mathematical Programming 45, 1989.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ph2p.inversion.line_search import Point, Search, advance, dot, start_search, where_rows

LINE_SEARCHES = ("strong_wolfe", "armijo")


@dataclass(frozen=True)
class LBFGSOptions:
    """What may be chosen of a descent; raises ValueError for a value out of range. "N&W" is Nocedal and Wright."""

    lr: float = 1.0  # first trial of each line search, in quasi-Newton steps (N&W, section 7.2: try 1 first)
    max_eval: int = 20  # evaluations in one `step`
    history_size: int = 10  # curvature pairs that a row keeps (N&W, section 7.2: 3 to 20)
    line_search: str = "strong_wolfe"  # N&W, algorithms 3.5 and 3.6; or "armijo": backtracking, algorithm 3.1
    first_step: float = 1.0  # root mean square of the numbers of a row's first trial move without history, times `lr`
    tolerance_grad: float = 1e-7  # bound on the largest entry of a row's gradient (as torch.optim.LBFGS)
    tolerance_change: float = 1e-9  # bound on a row's largest move and on the change of its loss (as torch.optim.LBFGS)
    c1: float = 1e-4  # of sufficient decrease (N&W 3.6a), 0 < c1 < c2 < 1
    c2: float = 0.9  # of curvature (N&W 3.7b, and its value for quasi-Newton methods)
    max_line_search: int = 25  # trials along one direction (as torch.optim.LBFGS)

    def __post_init__(self) -> None:
        for name in ("lr", "max_eval", "history_size", "first_step", "max_line_search"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if self.line_search not in LINE_SEARCHES:
            raise ValueError(f"line_search must be one of {', '.join(LINE_SEARCHES)}, not {self.line_search!r}")
        if not 0 < self.c1 < self.c2 < 1:
            raise ValueError(f"c1 and c2 must satisfy 0 < c1 < c2 < 1, not {self.c1} and {self.c2}")


class History(NamedTuple):
    """Each row's last steps s and changes y of the gradient (B, H, n), newest last, unused places zero."""

    s: Tensor
    y: Tensor

    def filled(self) -> Tensor:
        """The rows (B,) that hold at least one pair."""
        return dot(self.s[:, -1], self.y[:, -1]) > 0

    def push(self, rows: Tensor, s: Tensor, y: Tensor) -> "History":
        """Appends the pair (B, n), (B, n) in those `rows` where s.y is safely positive; the oldest pair goes.

        The bound is on the angle between s and y, whatever the scale of loss and parameter.
        """
        bound = torch.finfo(s.dtype).eps * s.norm(dim=-1) * y.norm(dim=-1)
        shifted = (torch.cat([old[:, 1:], new[:, None]], 1) for old, new in zip(self, (s, y), strict=True))
        return where_rows(rows & (dot(s, y) > bound) & torch.isfinite(bound), History(*shifted), self)

    def clear(self, rows: Tensor) -> "History":
        """Forgets all pairs of `rows` (B,)."""
        return where_rows(rows, History(torch.zeros_like(self.s), torch.zeros_like(self.y)), self)

    def inverse_hessian_product(self, gradient: Tensor) -> Tensor:
        """The two-loop recursion: the approximate inverse Hessian times the gradient (B, n) -> (B, n).

        N&W, algorithm 7.4, scaled by (7.20). An unused place has rho = 0 and changes nothing, so that a row
        without pairs gets its gradient back.
        """
        curvature = dot(self.s, self.y)
        rho = torch.where(curvature > 0, 1 / curvature, 0)
        gamma = torch.where(curvature[:, -1] > 0, curvature[:, -1] / dot(self.y[:, -1], self.y[:, -1]), 1)
        q, alpha = gradient, torch.zeros_like(rho)
        for i in reversed(range(rho.shape[1])):
            alpha[:, i] = rho[:, i] * dot(self.s[:, i], q)
            q = q - alpha[:, i, None] * self.y[:, i]
        r = gamma[:, None] * q
        for i in range(rho.shape[1]):
            beta = rho[:, i] * dot(self.y[:, i], r)
            r = r + (alpha[:, i] - beta)[:, None] * self.s[:, i]
        return r


@dataclass
class Descent:
    """B descents side by side: where each row stands, where it searches, and whether it has stopped."""

    options: LBFGSOptions
    history: History
    position: Tensor  # (B, n) the last iterate
    direction: Tensor  # (B, n)
    search: Search
    stopped: Tensor  # (B,) bool
    iterations: Tensor  # (B,) iterates accepted

    @classmethod
    def at(cls, position: Tensor, loss: Tensor, gradient: Tensor, history: History, options: LBFGSOptions) -> "Descent":
        """Rows at `position` (B, n) with their first direction; stopped if stationary or not finite."""
        zeros = torch.zeros_like(loss)
        here = Point(zeros, loss, zeros, gradient)
        stopped = ~here.finite() | (gradient.abs().amax(-1) <= options.tolerance_grad)
        nowhere = torch.zeros_like(position)
        descent = cls(options, history, position, nowhere, start_search(here, zeros), stopped, zeros)
        descent.turn(~stopped)
        return descent

    def trial_position(self) -> Tensor:
        """Where each row is to be evaluated next (B, n); a row that has stopped stays where it is."""
        trial = self.position + self.search.trial[:, None] * self.direction
        return where_rows(self.stopped, self.position, trial)

    def observe(self, loss: Tensor, gradient: Tensor) -> None:
        """Takes in losses (B,) and gradients (B, n) at the trial position and moves every row forward."""
        point = Point(self.search.trial, loss, dot(gradient, self.direction), gradient)
        c2 = self.options.c2 if self.options.line_search == "strong_wolfe" else math.inf
        search, accepted = advance(self.search, point, self.options.c1, c2)
        self.search = where_rows(self.stopped, self.search, search)
        ended = ~self.stopped & (accepted | self.exhausted())
        self.finish(ended)
        self.turn(ended & ~self.stopped)

    def exhausted(self) -> Tensor:
        """The rows (B,) whose search has used up its trials or its interval."""
        width = (self.search.high.step - self.search.low.step).abs() * self.direction.abs().amax(-1)
        tried_all = self.search.trials >= self.options.max_line_search
        return tried_all | (width <= self.options.tolerance_change)

    def finish(self, rows: Tensor) -> None:
        """Ends the searches of `rows`: moves to the best point, or drops the history if nothing was better.

        A row with no history to drop has failed along steepest descent itself and stops.
        """
        start, low = self.search.start, self.search.low
        moved, failed = rows & (low.step > 0), rows & (low.step == 0)
        displacement = low.step[:, None] * self.direction
        done = (moved & self.converged(displacement)) | (failed & ~self.history.filled())
        self.stopped = self.stopped | done
        self.history = self.history.push(moved, displacement, low.gradient - start.gradient).clear(failed)
        self.position = where_rows(moved, self.position + displacement, self.position)
        self.iterations = self.iterations + moved

    def converged(self, displacement: Tensor) -> Tensor:
        """The rows (B,) where `low`, `displacement` (B, n) away, is flat or hardly differs from the start."""
        start, low, change = self.search.start, self.search.low, self.options.tolerance_change
        flat = low.gradient.abs().amax(-1) <= self.options.tolerance_grad
        return flat | (displacement.abs().amax(-1) <= change) | ((low.loss - start.loss).abs() < change)

    def turn(self, rows: Tensor) -> None:
        """Gives `rows`, which stand at their `low`, a new direction and begins to search along it.

        The first trial is `lr` quasi-Newton steps. Without history the root mean square of its numbers is
        `lr * first_step`, whatever their count and the scale of the loss; Liu and Nocedal take length 1. A direction
        that does not descend costs the history.
        """
        low = self.search.low
        direction = -self.history.inverse_hessian_product(low.gradient)
        descends = dot(direction, low.gradient) < 0
        direction = where_rows(descends, direction, -low.gradient)
        self.history = self.history.clear(rows & ~descends)
        mean = (low.gradient.norm(dim=-1) / direction.shape[-1] ** 0.5).clamp(min=torch.finfo(direction.dtype).tiny)
        trial = self.options.lr * torch.where(self.history.filled(), 1, self.options.first_step / mean)
        start = low._replace(step=torch.zeros_like(trial), slope=dot(direction, low.gradient))
        self.direction = where_rows(rows, direction, self.direction)
        self.search = where_rows(rows, start_search(start, trial), self.search)
