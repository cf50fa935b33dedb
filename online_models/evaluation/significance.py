"""Whether two models that were judged on the same events differ by more than chance."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["mcnemar", "paired_bootstrap"]

EXACT_UP_TO = 1000
"""Discordant pairs up to which the binomial is summed; beyond, the normal approximation is as good."""
BLOCK = 1 << 21
"""Numbers drawn at once: 16 MiB."""


def mcnemar(only_one: int, only_other: int) -> float:
    r"""Two-sided p value of McNemar's test; b and c are the events that only one of two models hit.

    Up to 1,000 discordant events exact, $p = \min(1, 2 \sum_{k=0}^{\min(b, c)} \binom{b + c}{k} 2^{-(b+c)})$,
    else by $\chi^2_1 = (|b - c| - 1)^2 / (b + c)$, with continuity correction. It takes events for
    independent; one user's are not quite, so look at the bootstrap's interval too.

    Reference: McNemar, Note on the sampling error of the difference between correlated proportions or
    percentages, Psychometrika 12, 1947.

    >>> mcnemar(1, 9), mcnemar(4, 4), mcnemar(0, 0)
    (0.021484375, 1.0, 1.0)
    """
    n = only_one + only_other
    if n == 0:
        return 1.0
    if n > EXACT_UP_TO:
        squared = max(abs(only_one - only_other) - 1, 0) ** 2 / n
        return math.erfc(math.sqrt(squared / 2.0))
    total, term = 0, 1
    for k in range(min(only_one, only_other) + 1):
        total += term
        term = term * (n - k) // (k + 1)
    return min(1.0, float(2 * total / (1 << n)))


def paired_bootstrap(
    difference: NDArray[np.float64], user: NDArray[np.integer], samples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95% interval of the mean difference, by the percentiles of resampled means.

    difference float64[n] is one model's figure less the other's, of each judged event; user int[n] whose
    event it is. Users are drawn with all their events, for events of one user are alike; with an event a
    user that is the plain paired bootstrap. 0 to 0 where nothing was judged.

    Reference: Efron and Tibshirani, An Introduction to the Bootstrap, Chapman and Hall 1993.

    >>> paired_bootstrap(np.array([0.5, 0.5, 0.5]), np.array([0, 1, 2]))
    (0.5, 0.5)
    """
    if not len(difference):
        return 0.0, 0.0
    _, code = np.unique(user, return_inverse=True)
    sums, counts = np.bincount(code, weights=difference), np.bincount(code)
    rng, n = np.random.default_rng(seed), len(sums)
    means = []
    for start in range(0, samples, max(BLOCK // n, 1)):
        size = min(max(BLOCK // n, 1), samples - start)
        drawn = rng.integers(0, n, (size, n))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)
