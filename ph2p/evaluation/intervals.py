"""How sure a mean or a median over images is."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, bootstrap

Values = Sequence[float] | NDArray[np.float64]
Statistic = Callable[..., np.floating | float]


def confidence_interval(
    values: Values, statistic: Statistic = np.mean, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval of a statistic (Efron's percentile method, 5,000 resamples)."""
    if len(values) < 2 or np.ptp(values) == 0:
        return float(statistic(values)), float(statistic(values))
    result = bootstrap(
        (np.asarray(values),),
        statistic,
        confidence_level=level,
        n_resamples=5_000,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def proportion_interval(hits: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion, which has a width at 0 and 1 too (Wilson, JASA 22, 1927)."""
    found = binomtest(hits, count).proportion_ci(level, method="wilson")
    return float(found.low), float(found.high)
