"""Figures as text: a dash where one is not known."""

import math

NOTHING = "–"  # noqa: RUF001 - an en dash


def finite(value: object) -> float | None:
    """A finite number, or None for everything else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def fixed(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def loss(value: float | None) -> str:
    return fixed(value, 4)


def share(value: float | None) -> str:
    return fixed(value, 3)


def signed(value: float | None) -> str:
    return NOTHING if value is None else f"{value:+.3f}"


def percent(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.0%}"


def count(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    if seconds is None or seconds < 60:
        return NOTHING if seconds is None else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"
