"""Limited-memory BFGS on many independent problems at once.

The rows of one parameter (B, ...) are B problems that are evaluated together and know nothing of each other.
Each evaluation takes every row at its own trial point and then moves every row's own line search forward. No
row waits for another: one may be halfway through a search while its neighbour starts its tenth direction.

Here stands the optimiser; `descent.py` has the mathematics and its sources. Shapes: B rows of n numbers, H pairs of
history.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, fields
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor

from ph2p.inversion.descent import Descent, History, LBFGSOptions


class LBFGSKeywords(TypedDict, total=False):
    """The fields of `LBFGSOptions` as keywords, for type checkers."""

    lr: float
    max_eval: int
    history_size: int
    line_search: str
    first_step: float
    tolerance_grad: float
    tolerance_change: float
    c1: float
    c2: float
    max_line_search: int


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
        options: the fields of `LBFGSOptions`, which has their meaning and defaults.

    Raises ValueError for more than one parameter or group and for options out of range.
    """

    def __init__(self, params: Iterable[Tensor] | Iterable[dict[str, Any]], **options: Unpack[LBFGSKeywords]) -> None:
        super().__init__(params, asdict(LBFGSOptions(**options)))

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
        memory, options = self._memory, self._options
        history, evaluations = History(memory["s"], memory["y"]), memory["evaluations"] + 1
        descent = Descent.at(self._rows.clone(), *self._evaluate(closure), history, options)
        trial = torch.where(memory["resume"] > 0, memory["resume"], descent.search.trial)
        descent.search = descent.search._replace(trial=trial)
        for _ in range(options.max_eval - 1):
            if descent.stopped.all():
                break
            evaluations = evaluations + ~descent.stopped
            self._rows.copy_(descent.trial_position())
            descent.observe(*self._evaluate(closure))
        # A search cut short yields its best point. Where it has none yet, the next `step` resumes at its next
        # trial; otherwise a small `max_eval` would repeat the same failing trials for ever.
        search, fruitless = descent.search, descent.search.low.step == 0
        resume = torch.where(~descent.stopped & fruitless & (search.trials > 0), search.trial, 0)
        descent.finish(~descent.stopped & ~fruitless)
        self._rows.copy_(descent.position)
        iterations = memory["iterations"] + descent.iterations
        memory.update(descent.history._asdict(), resume=resume, evaluations=evaluations, iterations=iterations)
        return descent.search.low.loss

    @property
    def _options(self) -> LBFGSOptions:
        """As they stand in the group, where a scheduler may change them."""
        return LBFGSOptions(**{field.name: self.param_groups[0][field.name] for field in fields(LBFGSOptions)})

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
            memory["s"] = torch.zeros_like(self._rows)[:, None].repeat(1, self._options.history_size, 1)
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
