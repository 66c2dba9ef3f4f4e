"""The losses of one image as a small drawing: a panel for each set of draws, side by side.

Losses on different draws cannot be compared to the last digit, so no line joins two sets of draws: neither two panels,
nor two epochs of the optimisation, nor two rounds of the search.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from ph2p.evaluation.formatting import decimal, finite, loss

WIDTH, HEIGHT = 840, 236
LEFT, RIGHT, TOP, FLOOR = 44, 836, 12, 190  # the panels' box in the picture
LEVELS = 150  # wide is the last panel, with room for names
GAP, LINE, EDGE = 14, 13, 7  # between two panels, between two lines of text, between a panel and its first value
POINTS = 240  # of a series at most: more cannot be told apart

T = TypeVar("T")
Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """Losses on one set of draws: what they are of, which draws, and (place, loss) of each.

    `soft` are runs of continuous prompts' losses, each run joined by a line; `hard` are real tokens' losses, a square
    each. `marks` are places of projections. `best` joins the lowest hard losses so far: only where all share draws.
    """

    name: str
    draws: str
    soft: Sequence[Sequence[tuple[float, object]]] = ()
    hard: Sequence[tuple[float, object]] = ()
    marks: Sequence[float] = ()
    best: bool = False
    weight: float = 1.0


@dataclass
class Panel:
    """A part of the drawing, from x0 to x1; the others are what a path's `d` says."""

    name: str
    draws: str
    x0: float
    x1: float
    soft: str = ""
    hard: str = ""
    marks: str = ""
    best: str = ""


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


@dataclass(frozen=True)
class _Scale:
    """Places and losses as points of a panel; what lies beyond the losses that decide is drawn at the edge."""

    xs: Point
    ys: Point
    panel: Panel

    def x(self, place: float) -> float:
        low, high = self.xs
        if low == high:
            return round((self.panel.x0 + self.panel.x1) / 2, 1)
        return round(
            self.panel.x0 + EDGE + (self.panel.x1 - self.panel.x0 - 2 * EDGE) * (place - low) / (high - low), 1
        )

    def y(self, value: float) -> float:
        return _height(value, self.ys)

    def point(self, value: Point) -> str:
        return f"{self.x(value[0]):g} {self.y(value[1]):g}"


@dataclass
class _Known:
    """The finite values of a series."""

    series: Series
    soft: list[list[Point]] = field(init=False)
    hard: list[Point] = field(init=False)

    def __post_init__(self) -> None:
        self.soft = [run for run in map(_finite, self.series.soft) if run]
        self.soft = [_thinned(run, max(2, POINTS // len(self.soft))) for run in _thinned(self.soft, POINTS)]
        self.hard = _thinned(_finite(self.series.hard), POINTS)

    @property
    def telling(self) -> list[float]:
        """The losses that the scale must show: of real tokens, and where a run of continuous prompts ends."""
        return [y for _, y in self.hard] + [run[-1][1] for run in self.soft]

    @property
    def places(self) -> list[float]:
        return [x for run in (*self.soft, self.hard) for x, _ in run] + list(self.series.marks)


def place(series: Sequence[Series], levels: Sequence[tuple[str, str, float | None]]) -> Chart | None:
    """Place series side by side and the levels (kind, name, loss) right of them, all on one scale.

    What is not finite is left out, and so is a series without any value; None when nothing is left.
    """
    kept = [known for known in map(_Known, series) if known.soft or known.hard]
    heights = [(kind, name, value) for kind, name, value in levels if value is not None]
    telling = [y for known in kept for y in known.telling] + [value for *_, value in heights]
    if not kept:
        return None
    ys = _span(telling)
    panels = _panels([known.series for known in kept], bool(heights))
    for panel, known in zip(panels, kept, strict=False):
        _draw(panel, known, ys)
    ticks = [(_height(value, ys) + 4, decimal(value)) for value in sorted({min(telling), max(telling)})]
    about = "; ".join(_said(known) for known in kept)
    return Chart(panels, _levels(heights, [_height(value, ys) for *_, value in heights]), ticks, about)


def _draw(panel: Panel, known: _Known, ys: Point) -> None:
    scale = _Scale((min(known.places), max(known.places)), ys, panel)
    panel.soft = "".join(_path(run, scale) for run in known.soft)
    panel.hard = "".join(
        f"M{x - 2.5:g} {y - 2.5:g}h5v5h-5z" for x, y in ((scale.x(a), scale.y(b)) for a, b in known.hard)
    )
    panel.marks = "".join(f"M{scale.x(mark):g} {TOP}V{FLOOR}" for mark in _thinned(list(known.series.marks), POINTS))
    if known.series.best and len(known.hard) > 1:
        lowest = [(x, min(value for _, value in known.hard[: k + 1])) for k, (x, _) in enumerate(known.hard)]
        (x, y), *rest = lowest
        panel.best = f"M{scale.point((x, y))}" + "".join(f"H{scale.x(a):g}V{scale.y(b):g}" for a, b in rest)


def _path(run: Sequence[Point], scale: _Scale) -> str:
    """A line through a run of points; a single one is a dot, which a round line end makes of no length."""
    first, *rest = run
    return f"M{scale.point(first)}" + ("L" + " ".join(map(scale.point, rest)) if rest else "h0")


def _said(known: _Known) -> str:
    """A series in words, for those who do not see it."""
    parts = [("continuous", [y for run in known.soft for _, y in run]), ("projected", [y for _, y in known.hard])]
    told = [f"{kind} from {loss(ys[0])}, lowest {loss(min(ys))}" for kind, ys in parts if ys]
    return f"{known.series.name} ({known.series.draws}): {', '.join(told)}"


def _finite(values: Iterable[tuple[float, object]]) -> list[Point]:
    return [(x, known) for x, value in values if (known := finite(value)) is not None]


def _thinned(values: list[T], most: int) -> list[T]:
    """About evenly at most so many of the values, the first and the last always among them."""
    if len(values) <= most:
        return values
    return [values[round(k * (len(values) - 1) / (most - 1))] for k in range(most)]


def _height(value: float, ys: Point) -> float:
    low, high = ys
    return round(min(FLOOR, max(TOP, FLOOR - (FLOOR - TOP) * (value - low) / (high - low))), 1)


def _span(values: Sequence[float]) -> Point:
    """Return the range of the values with a margin; never an empty one."""
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _panels(series: Sequence[Series], levels: bool) -> list[Panel]:
    """Divide the width: panels by the weights of the series, one of LEVELS for the levels."""
    room = RIGHT - LEFT - (LEVELS + GAP if levels else 0) - GAP * (len(series) - 1)
    panels, x, whole = [], float(LEFT), sum(one.weight for one in series)
    for one in series:
        width = room * one.weight / whole
        panels.append(Panel(one.name, one.draws, round(x, 1), round(x + width, 1)))
        x += width + GAP
    return panels + ([Panel("result", "evaluation draws", RIGHT - LEVELS, RIGHT)] if levels else [])


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
