"""Which run's prompts people prefer, and which metrics say the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ph2p.evaluation.intervals import confidence_interval
from ph2p.evaluation.metrics import TABLE
from ph2p.study.agreement import RESAMPLES, UNKNOWN, Estimate, middle
from ph2p.study.key import Key
from ph2p.study.ratings import Rater

Table = NDArray[np.float64]  # (pictures, runs), nan where nothing is known
FEWEST = 3  # pairs of values that a correlation needs


@dataclass(frozen=True)
class Pair:
    """Two runs on the same pictures: the mean of one - other, and a Wilcoxon test, as it is and after Holm."""

    question: str
    one: str
    other: str
    difference: Estimate
    p: float
    p_holm: float


def mean_ratings(raters: Sequence[Rater], key: Key, question: str) -> Table:
    """Each run's mean rating of each picture, over raters. Equal prompts of several runs count for each of them."""
    given: dict[str, list[int]] = {}
    for rater in raters:
        for (item, asked), value in rater.answers.items():
            if asked == question:
                given.setdefault(item, []).append(value)
    means = {item: float(np.mean(values)) for item, values in given.items()}
    return _table(key, {item: dict.fromkeys(key.items[item].runs, mean) for item, mean in means.items()})


def metric_values(key: Key, metric: str) -> Table:
    """Each run's value of a metric for each picture."""
    values = {
        name: {label: known for label, row in item.runs.items() if (known := row.get(metric)) is not None}
        for name, item in key.items.items()
    }
    return _table(key, values)


def _table(key: Key, values: dict[str, dict[str, float]]) -> Table:
    rows = {picture: row for row, picture in enumerate(key.pictures)}
    columns = {label: column for column, label in enumerate(key.runs)}
    table = np.full((len(rows), len(columns)), np.nan)
    for item, found in values.items():
        for label, value in found.items():
            table[rows[key.items[item].picture], columns[label]] = value
    return table


def mean_of(values: Table, seed: int = 0) -> Estimate:
    """The mean over pictures (P), with a bootstrap interval over them."""
    known = values[~np.isnan(values)]
    if not len(known):
        return UNKNOWN
    return Estimate(float(known.mean()), *confidence_interval(known, seed=seed), len(known))


def pairs_of(tables: dict[str, Table], labels: Sequence[str], seed: int = 0) -> list[Pair]:
    """Compare every two runs for every question; Holm's correction is over all these tests together."""
    found = []
    for question, table in tables.items():
        for one, other in combinations(range(len(labels)), 2):
            differences = table[:, one] - table[:, other]
            found.append((question, labels[one], labels[other], mean_of(differences, seed), wilcoxon(differences)))
    corrected = holm([row[-1] for row in found])
    return [Pair(*row, p_holm) for row, p_holm in zip(found, corrected, strict=True)]


def wilcoxon(differences: Table) -> float:
    """The two-sided p of Wilcoxon's signed-rank test; zeros have their rank (Pratt 1959); nan without any value."""
    known = differences[~np.isnan(differences)]
    if not len(known):
        return float("nan")
    if not known.any():
        return 1.0
    return float(stats.wilcoxon(np.round(known, 9), zero_method="pratt").pvalue)


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979), in their order; one that is nan is no test and stays nan."""
    corrected, largest = [float("nan")] * len(values), 0.0
    order = sorted((k for k, value in enumerate(values) if not np.isnan(value)), key=lambda k: values[k])
    for rank, k in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * values[k]))
        corrected[k] = largest
    return corrected


def correlations(ratings: Table, key: Key, seed: int = 0) -> dict[str, Estimate]:
    """Spearman's correlation of mean ratings with each metric of the table, over pictures and runs.

    Intervals are a bootstrap over pictures. A metric that is not known, or is the same everywhere, is left out.
    """
    found = {metric.key: spearman(ratings, metric_values(key, metric.key), seed) for metric in TABLE}
    return {name: estimate for name, estimate in found.items() if estimate.count}


def spearman(ratings: Table, values: Table, seed: int = 0) -> Estimate:
    """Spearman's correlation of two (pictures, runs) tables where both are known."""
    value, count = _rho(ratings, values)
    if np.isnan(value):
        return UNKNOWN
    picks = np.random.default_rng(seed).integers(len(ratings), size=(RESAMPLES, len(ratings)))
    found = np.array([_rho(ratings[pick], values[pick])[0] for pick in picks])
    return Estimate(value, *middle(found), count)


def _rho(ratings: Table, values: Table) -> tuple[float, int]:
    both = ~(np.isnan(ratings) | np.isnan(values))
    one, other = ratings[both], values[both]
    if len(one) < FEWEST or not np.ptp(one) or not np.ptp(other):
        return float("nan"), 0
    return float(np.corrcoef(stats.rankdata(one), stats.rankdata(other))[0, 1]), len(one)
