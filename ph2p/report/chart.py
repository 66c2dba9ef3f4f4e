"""The losses of one image as the points of a small drawing: a panel for each set of draws, side by side.

Losses on different draws cannot be compared to the last digit, so no line joins two panels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ph2p.evaluation.formatting import decimal, finite, loss

WIDTH, HEIGHT = 560, 190
LEFT, RIGHT, TOP, FLOOR = 44, 556, 12, 148  # the panels' box in the picture
LEVELS = 150  # wide is the last panel, with room for names
GAP, LINE = 14, 13  # between two panels, and between two lines of text

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """Losses on one set of draws: what they are of, which draws, and (place, loss) of each."""

    name: str
    draws: str
    values: Sequence[tuple[float, object]]
    joined: bool = True


@dataclass
class Panel:
    """A part of the drawing, from x0 to x1, with the dots of a series and the line that joins them."""

    name: str
    draws: str
    x0: float
    x1: float
    dots: list[Point] = field(default_factory=list)
    line: str = ""


@dataclass(frozen=True)
class Level:
    """One loss on the evaluation draws: its height, its name, and where the name stands."""

    kind: str
    text: str
    y: float
    text_y: float


@dataclass(frozen=True)
class Chart:
    """All that the template needs to draw."""

    panels: list[Panel]
    levels: list[Level]
    ticks: list[tuple[float, str]]
    about: str
    width: int = WIDTH
    height: int = HEIGHT
    top: int = TOP
    floor: int = FLOOR
    left: int = LEFT


def place(series: Sequence[Series], levels: Sequence[tuple[str, str, float | None]]) -> Chart | None:
    """Place series side by side and the levels (kind, name, loss) right of them, all on one scale.

    What is not finite is left out, and so is a series without any value; None when nothing is left.
    """
    kept = [(s, [(x, known) for x, value in s.values if (known := finite(value)) is not None]) for s in series]
    kept = [(s, values) for s, values in kept if values]
    heights = [(kind, name, value) for kind, name, value in levels if value is not None]
    every = [y for _, values in kept for _, y in values] + [value for *_, value in heights]
    if not kept:
        return None
    low, high = _span(every)

    def y(value: float) -> float:
        return round(FLOOR - (FLOOR - TOP) * (value - low) / (high - low), 1)

    panels = _panels([s for s, _ in kept], bool(heights))
    for panel, (one, values) in zip(panels, kept, strict=False):
        xs = _spread([x for x, _ in values], panel)
        panel.dots = [(x, y(value)) for x, (_, value) in zip(xs, values, strict=True)]
        panel.line = " ".join(f"{x:g},{height:g}" for x, height in panel.dots) if one.joined else ""
    ticks = [(y(value) + 4, decimal(value)) for value in sorted({min(every), max(every)})]
    about = "; ".join(f"{s.name} ({s.draws}): {loss(v[0][1])} to {loss(min(v for _, v in v))}" for s, v in kept)
    return Chart(panels, _levels(heights, [y(value) for *_, value in heights]), ticks, about)


def _span(values: Sequence[float]) -> Point:
    """Return the range of the values with a margin; never an empty one."""
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _panels(series: Sequence[Series], levels: bool) -> list[Panel]:
    """Divide the width: equal panels for the series, one of LEVELS for the levels."""
    room = RIGHT - LEFT - (LEVELS + GAP if levels else 0)
    width = (room - GAP * (len(series) - 1)) / len(series)
    starts = [LEFT + k * (width + GAP) for k in range(len(series))]
    panels = [Panel(s.name, s.draws, round(x, 1), round(x + width, 1)) for s, x in zip(series, starts, strict=True)]
    return panels + ([Panel("result", "evaluation draws", RIGHT - LEVELS, RIGHT)] if levels else [])


def _spread(places: Sequence[float], panel: Panel) -> list[float]:
    """The places scaled to the panel's width, a little away from its edges; a single one in the middle."""
    low, high, edge = min(places), max(places), 6
    if low == high:
        return [round((panel.x0 + panel.x1) / 2, 1)] * len(places)
    width = panel.x1 - panel.x0 - 2 * edge
    return [round(panel.x0 + edge + width * (x - low) / (high - low), 1) for x in places]


def _levels(heights: Sequence[tuple[str, str, float]], ys: Sequence[float]) -> list[Level]:
    """Write a name beside each level, moved apart where two would stand on each other."""
    order = sorted(range(len(ys)), key=lambda k: ys[k])
    places = [min(ys[k] + 4, FLOOR - LINE * (len(ys) - 1 - rank)) for rank, k in enumerate(order)]
    for rank in range(1, len(places)):
        places[rank] = max(places[rank], places[rank - 1] + LINE)
    return [
        Level(heights[k][0], f"{heights[k][1]} {loss(heights[k][2])}", ys[k], round(place, 1))
        for k, place in zip(order, places, strict=True)
    ]
