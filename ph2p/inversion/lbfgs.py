"""Limited-memory BFGS on many independent problems at once.

The rows of one parameter (B, ...) are B problems that are evaluated together and know nothing of each other.
Each evaluation takes every row at its own trial point and then moves every row's own line search forward. No
row waits for another: one may be halfway through a search while its neighbour starts its tenth direction.

From top to bottom: the direction (`History`), a descent made of it and a line search (`Descent`, `line_search.py`), the
optimizer around it (`BatchedLBFGS`). Shapes: B rows of n numbers, H pairs of history.

Sources: J. Nocedal and S. J. Wright, Numerical Optimization, 2nd ed., 2006 ("N&W"); D. C. Liu and J. Nocedal,
On the limited memory BFGS method for large scale optimization, Mathematical Programming 45, 1989.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ph2p.inversion.line_search import Point, Search, advance, begin, dot, pick

LINE_SEARCHES = ("strong_wolfe", "armijo")


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
        return pick(rows & (dot(s, y) > bound) & torch.isfinite(bound), History(*shifted), self)

    def clear(self, rows: Tensor) -> "History":
        """Forgets all pairs of `rows` (B,)."""
        return pick(rows, History(torch.zeros_like(self.s), torch.zeros_like(self.y)), self)

    def times(self, gradient: Tensor) -> Tensor:
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

    options: dict[str, Any]
    history: History
    position: Tensor  # (B, n) the last iterate
    direction: Tensor  # (B, n)
    search: Search
    stopped: Tensor  # (B,) bool
    iterations: Tensor  # (B,) iterates accepted

    @classmethod
    def at(
        cls, position: Tensor, loss: Tensor, gradient: Tensor, history: History, options: dict[str, Any]
    ) -> "Descent":
        """Rows at `position` (B, n) with their first direction; stopped if stationary or not finite."""
        zeros = torch.zeros_like(loss)
        here = Point(zeros, loss, zeros, gradient)
        stopped = ~here.finite() | (gradient.abs().amax(-1) <= options["tolerance_grad"])
        nowhere = torch.zeros_like(position)
        descent = cls(options, history, position, nowhere, begin(here, zeros), stopped, zeros)
        descent.head(~stopped)
        return descent

    def trial_position(self) -> Tensor:
        """Where each row is to be evaluated next (B, n); a row that has stopped stays where it is."""
        trial = self.position + self.search.trial[:, None] * self.direction
        return pick(self.stopped, self.position, trial)

    def observe(self, loss: Tensor, gradient: Tensor) -> None:
        """Takes in losses (B,) and gradients (B, n) at the trial position and moves every row forward."""
        point = Point(self.search.trial, loss, dot(gradient, self.direction), gradient)
        c2 = self.options["c2"] if self.options["line_search"] == "strong_wolfe" else math.inf
        search, accepted = advance(self.search, point, self.options["c1"], c2)
        self.search = pick(self.stopped, self.search, search)
        ended = ~self.stopped & (accepted | self.exhausted())
        self.finish(ended)
        self.head(ended & ~self.stopped)

    def exhausted(self) -> Tensor:
        """The rows (B,) whose search has used up its trials or its interval."""
        width = (self.search.high.step - self.search.low.step).abs() * self.direction.abs().amax(-1)
        tired = self.search.trials >= self.options["max_line_search"]
        return tired | (width <= self.options["tolerance_change"])

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
        self.position = pick(moved, self.position + displacement, self.position)
        self.iterations = self.iterations + moved

    def converged(self, displacement: Tensor) -> Tensor:
        """The rows (B,) where `low`, `displacement` (B, n) away, is flat or hardly differs from the start."""
        start, low, change = self.search.start, self.search.low, self.options["tolerance_change"]
        flat = low.gradient.abs().amax(-1) <= self.options["tolerance_grad"]
        return flat | (displacement.abs().amax(-1) <= change) | ((low.loss - start.loss).abs() < change)

    def head(self, rows: Tensor) -> None:
        """Gives `rows`, which stand at their `low`, a new direction and begins to search along it.

        The first trial is `lr` quasi-Newton steps. Without history it is `lr * first_step` long, whatever the
        scale of the loss; Liu and Nocedal take length 1. A direction that does not descend costs the history.
        """
        low = self.search.low
        direction = -self.history.times(low.gradient)
        descends = dot(direction, low.gradient) < 0
        direction = pick(descends, direction, -low.gradient)
        self.history = self.history.clear(rows & ~descends)
        length = low.gradient.norm(dim=-1).clamp(min=torch.finfo(direction.dtype).tiny)
        trial = self.options["lr"] * torch.where(self.history.filled(), 1, self.options["first_step"] / length)
        start = low._replace(step=torch.zeros_like(trial), slope=dot(direction, low.gradient))
        self.direction = pick(rows, direction, self.direction)
        self.search = pick(rows, begin(start, trial), self.search)


class BatchedLBFGS(torch.optim.Optimizer):
    """L-BFGS on the rows of one parameter (B, ...): to each its own history, line search and stop.

    `step(closure)` makes `max_eval` evaluations, of which every row uses each; fewer only when all rows have
    stopped. The first is at the current point. The closure zeroes the gradient, calls `backward()` on the sum
    of the losses and returns the losses (B,). Every row ends at its best accepted point. The next `step`
    evaluates anew, so that parameter and objective may change in between; curvature pairs are kept unless
    `reset`.

    A row stops for the rest of a `step` when its gradient, its last move or its last gain is within
    tolerance, when not even steepest descent finds a decrease, or when its current point is not finite (it
    then stays untouched). A trial that is not finite merely failed. Nothing in a row depends on another row.

    Args:
        params: one parameter, float32 or float64, first dimension B.
        lr: first trial of each line search, in quasi-Newton steps.
        max_eval: evaluations in one `step`.
        history_size: curvature pairs that a row keeps.
        line_search: "strong_wolfe" (N&W, algorithms 3.5 and 3.6) or "armijo" (backtracking).
        first_step: length of the first trial of a row without history (times `lr`).
        tolerance_grad: bound on the largest entry of a row's gradient.
        tolerance_change: bound on the largest entry of a row's move and on the change of its loss.
        c1, c2: constants of sufficient decrease and of curvature, 0 < c1 < c2 < 1.
        max_line_search: trials along one direction.

    Raises ValueError for more than one parameter or group and for options out of range.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1.0,
        max_eval: int = 20,
        history_size: int = 10,
        line_search: str = "strong_wolfe",
        first_step: float = 1.0,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        c1: float = 1e-4,
        c2: float = 0.9,
        max_line_search: int = 25,
    ) -> None:
        positive = {
            "lr": lr,
            "max_eval": max_eval,
            "history_size": history_size,
            "first_step": first_step,
            "max_line_search": max_line_search,
        }
        for name, value in positive.items():
            if not value > 0:
                raise ValueError(f"{name} must be positive, not {value}")
        if line_search not in LINE_SEARCHES:
            raise ValueError(f"line_search must be one of {', '.join(LINE_SEARCHES)}, not {line_search!r}")
        if not 0 < c1 < c2 < 1:
            raise ValueError(f"c1 and c2 must satisfy 0 < c1 < c2 < 1, not {c1} and {c2}")
        tolerances = {"tolerance_grad": tolerance_grad, "tolerance_change": tolerance_change}
        super().__init__(params, {**positive, **tolerances, "line_search": line_search, "c1": c1, "c2": c2})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Takes the only group; ValueError for a second, or if it is not one parameter of float rows."""
        if self.param_groups:
            raise ValueError("BatchedLBFGS takes exactly one parameter group")
        super().add_param_group(param_group)
        if len(self.param_groups[0]["params"]) != 1:
            raise ValueError("BatchedLBFGS takes exactly one parameter, whose rows are the problems")
        if self._parameter.dim() == 0 or self._parameter.dtype not in (torch.float32, torch.float64):
            raise ValueError("the parameter must be float32 or float64 with the problems as its first dimension")

    @property
    def evaluations(self) -> Tensor:
        """Evaluations (B,) int64 that each row has used so far; none are counted after it stopped."""
        return self._memory["evaluations"].long()

    @property
    def iterations(self) -> Tensor:
        """Steps (B,) int64 that each row has accepted so far."""
        return self._memory["iterations"].long()

    def reset(self, rows: Tensor | Sequence[int] | None = None) -> None:
        """Forgets the curvature of `rows`, a mask (B,) or indices, all by default; the counters go on."""
        memory = self._memory
        mask = torch.zeros_like(memory["resume"], dtype=torch.bool)
        mask[slice(None) if rows is None else rows] = True
        memory["s"], memory["y"] = History(memory["s"], memory["y"]).clear(mask)
        memory["resume"] = memory["resume"].masked_fill(mask, 0)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        """Makes `max_eval` evaluations and returns the losses (B,) of the points at which the rows end.

        Raises ValueError when the closure does not return one loss a row or leaves no gradient.
        """
        memory, options = self._memory, self.param_groups[0]
        history, evaluations = History(memory["s"], memory["y"]), memory["evaluations"] + 1
        descent = Descent.at(self._rows.clone(), *self._evaluate(closure), history, options)
        trial = torch.where(memory["resume"] > 0, memory["resume"], descent.search.trial)
        descent.search = descent.search._replace(trial=trial)
        for _ in range(options["max_eval"] - 1):
            if descent.stopped.all():
                break
            evaluations = evaluations + ~descent.stopped
            self._rows.copy_(descent.trial_position())
            descent.observe(*self._evaluate(closure))
        # A search cut short yields its best point. Where it has none yet, the next `step` resumes at its next
        # trial, lest a small `max_eval` repeat the same failing trials for ever.
        search, fruitless = descent.search, descent.search.low.step == 0
        resume = torch.where(~descent.stopped & fruitless & (search.trials > 0), search.trial, 0)
        descent.finish(~descent.stopped & ~fruitless)
        self._rows.copy_(descent.position)
        iterations = memory["iterations"] + descent.iterations
        memory.update(descent.history._asdict(), resume=resume, evaluations=evaluations, iterations=iterations)
        return descent.search.low.loss

    @property
    def _parameter(self) -> Tensor:
        return self.param_groups[0]["params"][0]

    @property
    def _rows(self) -> Tensor:
        """The parameter seen as (B, n)."""
        return self._parameter.detach().view(len(self._parameter), -1)

    @property
    def _memory(self) -> dict[str, Tensor]:
        """What outlives a `step`; all in the parameter's dtype, since loading a state casts to it."""
        memory = self.state[self._parameter]
        if not memory:
            history_size = self.param_groups[0]["history_size"]
            memory["s"] = torch.zeros_like(self._rows)[:, None].repeat(1, history_size, 1)
            memory["y"] = torch.zeros_like(memory["s"])
            for name in ("resume", "evaluations", "iterations"):
                memory[name] = self._rows.new_zeros(len(self._rows))
        return memory

    def _evaluate(self, closure: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """Losses (B,) and gradients (B, n) of all rows where the parameter stands."""
        with torch.enable_grad():
            losses = closure()
        parameter = self._parameter
        if not isinstance(losses, Tensor) or losses.shape != parameter.shape[:1]:
            raise ValueError(f"the closure must return {len(parameter)} losses, one a row")
        if parameter.grad is None:
            raise ValueError("the closure left no gradient: it must call backward() on the sum of the losses")
        return losses.detach().to(parameter.dtype, copy=True), parameter.grad.reshape(self._rows.shape).clone()
