"""What a range check says, in one form: the key, its value, and what it may be."""

import math
from collections.abc import Collection, Sequence

from ph2p.errors import UserError
from ph2p.files import expand


def require(fits: bool, key: str, value: object, wanted: str) -> None:
    """Raise UserError, one line, unless the value `fits`."""
    if not fits:
        raise UserError(f"{key}={value}: {wanted}")


def require_whole(part: object, prefix: str, names: Sequence[str], least: int = 1) -> None:
    """Raise UserError unless each attribute of `part` is a whole number of at least `least`."""
    for name in names:
        value = getattr(part, name)
        require(is_whole(value, least), f"{prefix}{name}", value, f"give a whole number of at least {least}")


def is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def require_finite(key: str, value: float, least: float = 0) -> None:
    """Raise UserError unless least <= value < infinity."""
    require(least <= value < math.inf, key, value, f"give a number of at least {least}")


def require_choice(key: str, value: str, choices: Collection[str]) -> None:
    require(value in choices, key, value, f"choose one of {', '.join(choices)}")


def require_window(key: str, window: Sequence[int]) -> None:
    """Raise UserError unless `window` is [first, last) with 0 <= first < last."""
    fits = len(window) == 2 and 0 <= window[0] < window[1]
    require(fits, key, window, "give [first, last) with 0 <= first < last")


def expand_paths(part: object, *names: str) -> None:
    """Replace `~` and `$VAR` in those attributes of `part` that name a file or folder, as a shell does."""
    for name in names:
        path = getattr(part, name)
        if path and (path[0] == "~" or "$" in path):
            setattr(part, name, str(expand(path)))


def parse_shard(text: str) -> tuple[int, int]:
    """(i, n) of "i/n"; raises UserError unless 0 <= i < n."""
    index, _, number = text.partition("/")
    if not (index.isdecimal() and number.isdecimal() and int(index) < int(number)):
        raise UserError(f"shard={text}: give i/n with 0 <= i < n, such as 0/4 to 3/4")
    return int(index), int(number)
