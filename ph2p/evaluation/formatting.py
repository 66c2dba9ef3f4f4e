"""Numbers and foreign text as people read them: a dash where a number is not known."""

import math
from collections.abc import Callable
from unicodedata import category

NOTHING = "–"  # noqa: RUF001 - an en dash
STEERING = ("Cc", "Cf", "Cs", "Zl", "Zp")  # Unicode categories: controls, formats, half characters, line ends
Show = Callable[[float | None], str]


def finite(value: object) -> float | None:
    """A finite number, or None for everything else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def fixed(digits: int) -> Show:
    """A function that writes a number with so many digits after the point."""
    return lambda value: NOTHING if value is None else f"{value:.{digits}f}"


loss = fixed(4)
decimal = fixed(3)


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


def visible(text: object) -> str:
    """A text in one line without characters that steer a terminal or turn text around: they are written as escapes."""
    return "".join(c.encode("unicode_escape").decode() if category(c) in STEERING else c for c in str(text))
