"""Loss curves as the points of a small drawing."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

from ph2p.report.formatting import finite, loss, share

WIDTH, HEIGHT = 560, 170
LEFT, RIGHT, TOP, FLOOR = 44, 556, 14, 148  # the plot's box in the picture

Point = tuple[float, float]


def place_curves(
    epochs: Sequence[object], rounds: Sequence[object] = (), bounds: Sequence[tuple[str, str, float | None]] = ()
) -> dict[str, Any] | None:
    """Place the losses of the epochs, and right of them those of the search's rounds, in WIDTH x HEIGHT.

    `bounds` are level lines (kind, name, loss): "upper" ones are labelled above, others below. What is not finite is
    left out; None without a finite loss. The two curves lie on different draws, so no line joins them.
    """
    values = {step: known for step, value in enumerate([*epochs, *rounds]) if (known := finite(value)) is not None}
    if not values:
        return None
    lines = [(kind, name, height) for kind, name, height in bounds if height is not None]
    low, high = _span([*values.values(), *(height for _, _, height in lines)])
    steps = len(epochs) + len(rounds)

    def x(step: int) -> float:
        return round(LEFT + (RIGHT - LEFT) * (step / (steps - 1) if steps > 1 else 0.5), 1)

    def y(height: float) -> float:
        return round(FLOOR - (FLOOR - TOP) * (height - low) / (high - low), 1)

    dots = {step: (x(step), y(value)) for step, value in values.items()}
    optimised = [dot for step, dot in dots.items() if step < len(epochs)]
    lowest_so_far = list(accumulate((height for _, height in optimised), max))  # y grows downwards
    found = list(values.values())
    return {
        "width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "floor": FLOOR,
        "epochs": len(epochs), "rounds": max(0, len(rounds) - 1), "first": loss(found[0]), "lowest": loss(min(found)),
        "each": _points(optimised), "dots": list(dots.values()),
        "best": _points(_stairs([(dot[0], best) for dot, best in zip(optimised, lowest_so_far, strict=True)])),
        "search": _points([dot for step, dot in dots.items() if step >= len(epochs)]),
        "border": x(len(epochs)) - (RIGHT - LEFT) / (steps - 1) / 2 if epochs and rounds else None,
        "ticks": [{"y": y(value) + 4, "value": share(value)} for value in sorted({min(found), max(found)})],
        "bounds": [
            {"kind": kind, "name": name, "value": loss(height), "y": y(height),
             "text_y": y(height) + (-5 if kind == "upper" else 13)}
            for kind, name, height in lines
        ],
    }  # fmt: skip


def _span(values: Sequence[float]) -> Point:
    """Return the range of the values with a margin; never an empty one."""
    low, high = min(values), max(values)
    margin = 0.12 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _stairs(points: Sequence[Point]) -> list[Point]:
    """Hold every height until the next point: a best so far does not sink between two epochs."""
    corners = [(x, y) for (_, y), (x, _) in pairwise(points)]
    return [*points[:1], *(p for pair in zip(corners, points[1:], strict=True) for p in pair)]


def _points(points: Sequence[Point]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)
