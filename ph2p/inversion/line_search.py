"""The line search of many independent rays at once, and the choice between rows that it is built on.

Every evaluation takes each row at its own trial step; `advance` then moves every row's search forward, whatever
phase it is in. Shapes: B rows of n numbers.

Source: J. Nocedal and S. J. Wright, Numerical Optimization, 2nd ed., 2006 ("N&W"), algorithms 3.5 and 3.6.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

Rowwise = Any  # a tensor (B, ...) or a named tuple of them


def where_rows(rows: Tensor, chosen: Rowwise, otherwise: Rowwise) -> Rowwise:
    """Takes `chosen` in the rows that are True in `rows` (B,), and `otherwise` in the rest.

    Selection, not multiplication by a mask: NaN in a row that was not chosen never gets out.
    """
    if isinstance(chosen, Tensor):
        return torch.where(rows.reshape(-1, *[1] * (chosen.dim() - 1)), chosen, otherwise)
    return type(chosen)(*(where_rows(rows, a, b) for a, b in zip(chosen, otherwise, strict=True)))


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products along the last dimension, (..., n) x (..., n) -> (...)."""
    return (a * b).sum(-1)


class Point(NamedTuple):
    """A point on the ray that each row searches."""

    step: Tensor  # (B,) how far along the ray
    loss: Tensor  # (B,)
    slope: Tensor  # (B,) derivative of the loss along the ray
    gradient: Tensor  # (B, n)

    def finite(self) -> Tensor:
        """The rows (B,) whose loss and gradient are free of NaN and infinity."""
        return torch.isfinite(self.loss) & torch.isfinite(self.gradient).all(-1)


class Search(NamedTuple):
    """The line search of each row: where it began, the interval that is left, and the step to try next.

    `low` is the best point so far: the start or a point of sufficient decrease. `high` is the interval's
    other end, on either side of `low`, and lies at infinity until a minimiser is bracketed. So the bracketing
    of N&W, algorithm 3.5, is the zoom of algorithm 3.6 with an open end, and rows in either phase advance by
    one rule.
    """

    start: Point
    low: Point
    high: Point
    trial: Tensor  # (B,) the next step
    trials: Tensor  # (B,) how many steps were tried


def start_search(start: Point, trial: Tensor) -> Search:
    """A search from `start` (step 0) whose first trial is the step `trial` (B,)."""
    infinite = torch.full_like(trial, math.inf)
    return Search(start, start, start._replace(step=infinite), trial, torch.zeros_like(trial))


def advance(search: Search, point: Point, c1: float, c2: float) -> tuple[Search, Tensor]:
    """Takes in the point found at the trial step; returns the search and the rows (B,) that may accept it.

    Acceptable is a point of sufficient decrease (N&W 3.6a) where |slope| <= c2 |slope at the start| (3.7b);
    with an infinite c2 only the first remains, which is backtracking. A point that is not finite has no
    decrease.
    """
    start, previous, high, _, trials = search
    decreased = point.finite() & (point.loss <= start.loss + c1 * point.step * start.slope)
    better = decreased & ((point.loss < previous.loss) | (previous.step == 0))
    passed = (point.slope >= 0) == (high.step > previous.step)  # from the point the loss rises towards `high`
    low = where_rows(better, point, previous)
    high = where_rows(better, where_rows(passed, previous, high), point)
    trial = torch.where(torch.isinf(high.step), extrapolate(previous, low), interpolate(low, high))
    return Search(start, low, high, trial, trials + 1), better & (point.slope.abs() <= -c2 * start.slope)


def cubic_minimiser(a: Point, b: Point) -> Tensor:
    """The step (B,) that minimises the cubic through two points (N&W 3.59); not finite if there is none."""
    d1 = a.slope + b.slope - 3 * (a.loss - b.loss) / (a.step - b.step)
    d2 = torch.sign(b.step - a.step) * (d1.square() - a.slope * b.slope).sqrt()
    return b.step - (b.step - a.step) * (b.slope + d2 - d1) / (b.slope - a.slope + 2 * d2)


def extrapolate(previous: Point, last: Point) -> Tensor:
    """The next step (B,) while the loss falls: the cubic's minimiser within 1.1 to 10 steps, otherwise 10."""
    step = cubic_minimiser(previous, last)
    return torch.where(torch.isfinite(step), step.clamp(1.1 * last.step, 10 * last.step), 10 * last.step)


def interpolate(low: Point, high: Point) -> Tensor:
    """The next step (B,) in the interval: the cubic's minimiser, at least a hundredth off its ends.

    Where there is no cubic, for `high` is not finite, the middle; a tenth while no step has succeeded yet, as
    the scale is then unknown.
    """
    width = high.step - low.step
    fraction = ((cubic_minimiser(low, high) - low.step) / width).clamp(0.01, 0.99)
    blind = torch.full_like(width, 0.5).masked_fill(low.step == 0, 0.1)
    return low.step + torch.where(torch.isfinite(fraction) & high.finite(), fraction, blind) * width
