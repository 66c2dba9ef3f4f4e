"""How far raters agree: Krippendorff's alpha with an interval over pictures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ph2p.study.key import Key
from ph2p.study.ratings import Rater

Level = Literal["ordinal", "interval"]
LEVELS: tuple[Level, ...] = ("ordinal", "interval")
RESAMPLES = 1_000
Counts = NDArray[np.int64]
Alpha = Callable[..., float]


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval, from `count` of something; nan where it is not known."""

    value: float
    low: float
    high: float
    count: int


UNKNOWN = Estimate(np.nan, np.nan, np.nan, 0)


def counts_of(raters: Sequence[Rater], key: Key, question: str, points: int) -> Mapping[str, Counts]:
    """How often each item got each rating, gathered by picture: (items of the picture, points)."""
    counts = {name: np.zeros(points, np.int64) for name in key.items}
    for rater in raters:
        for (name, asked), value in rater.answers.items():
            if asked == question:
                counts[name][value - 1] += 1
    rows: dict[str, list[Counts]] = {}
    for name, item in key.items.items():
        rows.setdefault(item.picture, []).append(counts[name])
    return {picture: np.stack(items) for picture, items in rows.items()}


def agreement(counts: Mapping[str, Counts], level: Level, seed: int = 0) -> Estimate:
    """Krippendorff's alpha (2011) over items, with the percentile interval of a bootstrap over pictures.

    alpha = 1 - observed / expected disagreement: 1 is perfect, 0 what chance gives, below 0 systematic disagreement.
    Items with fewer than two ratings say nothing. `count` are the items that do. Where all ratings are the same, or
    no item has two, alpha is not defined and nan.
    """
    blocks = list(counts.values())
    value = alpha(np.concatenate(blocks), level)
    if np.isnan(value):
        return UNKNOWN
    draw = np.random.default_rng(seed)
    picks = draw.integers(len(blocks), size=(RESAMPLES, len(blocks)))
    found = np.array([alpha(np.concatenate([blocks[k] for k in pick]), level) for pick in picks])
    rated = sum(int((block.sum(1) > 1).sum()) for block in blocks)
    return Estimate(value, *middle(found), rated)


def middle(found: NDArray[np.float64]) -> tuple[float, float]:
    """The bounds of the middle 95 % of the resamples whose value is defined."""
    known = found[~np.isnan(found)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
    return float(low), float(high)


def alpha(counts: Counts, level: Level) -> float:
    """Alpha of (items, points) counts; nan where it is not defined."""
    import krippendorff  # the extra ph2p[study]

    paired = counts[counts.sum(1) > 1]
    if not len(paired) or (paired.sum(0) > 0).sum() < 2:
        return float("nan")
    return float(krippendorff.alpha(value_counts=paired, level_of_measurement=level))
