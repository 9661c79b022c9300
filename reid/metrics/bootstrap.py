"""Bootstrap over the queries: intervals of one run's metrics and of the difference between two runs.

A metric is a mean over queries. Resampling the queries with replacement, many times, shows how far the mean would move
with other queries of the same kind, for the same model, gallery and protocol; it says nothing about another training
seed. Percentile bootstrap (Efron 1979).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 2000
DRAWS = 1 << 20  # draws held at a time: 8 MiB of indices and as much of values


@dataclass(frozen=True)
class Difference:
    """The mean of a - b, the ends of its interval, and the two-sided p of `no difference`."""

    mean: float
    low: float
    high: float
    p: float


def intervals(values: np.ndarray, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Return (F, 2) the intervals of F metrics over the same queries, values (V, F), from one set of draws."""
    return _quantiles(_resampled_means(values, resamples, seed), level)


def paired(a: ArrayLike, b: ArrayLike, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0) -> Difference:
    """Compare two runs on the same queries, a (V,) and b (V,) in the same order.

    A query that is hard for one run is hard for the other, so their difference moves less than either mean: this test
    detects differences that lie inside both runs' intervals. p is twice the share of resampled differences on the far
    side of 0, with one more draw counted on either side, so it is at least 2 / (resamples + 1).
    """
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    for name, values in (("a", first), ("b", second)):
        if values.ndim != 1 or not len(values):
            raise ValueError(f"{name} have shape {values.shape}; give one value per query, at least one")
        if not np.isfinite(values).all():
            raise ValueError(f"{name}: value {int((~np.isfinite(values)).argmax())} is not finite")
    if len(first) != len(second):
        raise ValueError(f"a has {len(first)} values, b {len(second)}; give both runs' values of the same queries")
    differences = first - second
    means = _resampled_means(differences[:, None], resamples, seed)
    ((low, high),) = _quantiles(means, level)
    beyond = min((means <= 0).sum(), (means >= 0).sum())
    return Difference(float(differences.mean()), float(low), float(high), min(1.0, 2 * (beyond + 1) / (resamples + 1)))


def _resampled_means(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Return (resamples, F) means of V rows drawn with replacement from values (V, F)."""
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; give at least 1")
    generator = np.random.default_rng(seed)
    columns = np.ascontiguousarray(values.T)
    means = np.empty((resamples, len(columns)))
    step = max(1, DRAWS // len(values))
    for start in range(0, resamples, step):
        # Each resample is drawn completely before the next, so the step does not change the draws.
        rows = generator.integers(len(values), size=(min(step, resamples - start), len(values)))
        means[start : start + step] = np.stack([column[rows].mean(axis=1) for column in columns], axis=1)
    return means


def _quantiles(means: np.ndarray, level: float) -> np.ndarray:
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; give a share between 0 and 1, such as 0.95")
    return np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0).T
