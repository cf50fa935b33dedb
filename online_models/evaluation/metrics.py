r"""Figures of rankings, from ranks that count from 0; an item that was not ranked has an infinite one.

With one item to find per judged event, recall@k is the hit rate. Ties have had their half credit before: a
rank is the number of items above plus half the number of those tied (so it may be a half).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["coverage", "faded_mean", "gains", "gini", "hits", "mean_of", "reciprocals", "sliding_means"]

Doubles = NDArray[np.float64]


def hits(ranks: NDArray[np.floating], k: int) -> NDArray[np.bool_]:
    r"""Whether each rank is within the first k: $\mathrm{HR@}k = \mathrm{mean}(r < k)$, bool[n].

    >>> hits(np.array([0.0, 9.5, 10.0, np.inf]), 10).tolist()
    [True, True, False, False]
    """
    return np.asarray(ranks) < k


def gains(ranks: NDArray[np.floating], k: int = 10) -> Doubles:
    r"""Each rank's discounted gain, $\frac{1}{\log_2(r + 2)}$ within the first k, else 0: float64[n].

    Its mean is NDCG@k, for the best that one item to find can gain is 1.

    >>> gains(np.array([0.0, 2.0, 10.0])).tolist()
    [1.0, 0.5, 0.0]
    """
    within = hits(ranks, k)
    return np.where(within, 1.0 / np.log2(np.where(within, ranks, 0.0) + 2.0), 0.0)


def reciprocals(ranks: NDArray[np.floating]) -> Doubles:
    r"""$\frac{1}{r + 1}$, 0 for an infinite rank; the mean is MRR. float64[n].

    >>> reciprocals(np.array([0.0, 1.0, np.inf])).tolist()
    [1.0, 0.5, 0.0]
    """
    return 1.0 / (np.asarray(ranks, dtype=np.float64) + 1.0)


def coverage(shown: NDArray[np.integer]) -> float:
    """Share of the items that were listed at all; shown int[items] counts how often each was.

    >>> coverage(np.array([3, 0, 1, 0]))
    0.5
    """
    return float((shown > 0).mean()) if len(shown) else 0.0


def gini(shown: NDArray[np.integer]) -> float:
    r"""How unequally the items are listed: 0 all alike, (n - 1) / n one item alone.

    $$G = \frac{\sum_{i=1}^n (2i - n - 1)\, x_i}{n \sum_i x_i}, \qquad x_1 \le x_2 \le \dots \le x_n$$

    >>> gini(np.array([5, 5])), gini(np.array([0, 0, 0, 8]))
    (0.0, 0.75)
    """
    n, total = len(shown), float(shown.sum())
    if total == 0.0:
        return 0.0
    places = 2.0 * np.arange(1, n + 1) - n - 1.0
    return float((places * np.sort(shown)).sum() / (n * total))


def sliding_means(values: Doubles, window: int, step: int) -> tuple[NDArray[np.int64], Doubles]:
    """Means over the last `window` values (fewer at the start), after every `step` values and the last.

    >>> ends, means = sliding_means(np.array([1.0, 0.0, 0.0, 1.0, 1.0]), window=2, step=2)
    >>> ends.tolist(), means.tolist()
    ([2, 4, 5], [0.5, 0.5, 1.0])
    """
    n = len(values)
    ends = np.append(np.arange(step, n, step), n) if n else np.zeros(0, dtype=np.int64)
    sums = np.concatenate(([0.0], np.cumsum(values, dtype=np.float64)))
    starts = np.maximum(ends - window, 0)
    return ends, (sums[ends] - sums[starts]) / (ends - starts)


def faded_mean(values: Doubles, fading: float) -> float:
    r"""Mean at the end of the stream with a fading factor $\alpha$ (Gama et al. 2013):

    $$\frac{S_n}{N_n}, \qquad S_i = x_i + \alpha S_{i-1}, \quad N_i = 1 + \alpha N_{i-1}$$

    >>> round(faded_mean(np.array([0.0, 0.0, 1.0]), 0.5), 4)
    0.5714
    """
    if not len(values):
        return 0.0
    age = np.arange(len(values) - 1, -1, -1, dtype=np.float64)
    weights = fading**age
    return float((weights * values).sum() / weights.sum())


def mean_of(values: NDArray[np.generic]) -> float:
    """Mean as a float; 0 of nothing."""
    return float(np.asarray(values, dtype=np.float64).mean()) if len(values) else 0.0
