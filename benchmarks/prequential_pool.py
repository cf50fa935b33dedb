# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload, operator"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""A pool of opinions whose weights are learned event by event, each judged before it is learned."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from online_models.kernels import kernel

__all__ = ["BUCKETS", "Pool", "bucket_of"]

Doubles = NDArray[np.float64]
Flags = NDArray[np.bool_]

BUCKETS = (0, 1, 5, 10, 20, 50, 100)
"""Histories from which on a user is in the next bucket."""


class Pool:
    r"""Log-linear pool of S sources, score(i) = sum_s (v_s + delta_{b,s}) x_s(i), b the history's bucket.

    The weights take a step of Adagrad (Duchi, Hazan and Singer 2011) down the log loss of the event's item
    against all other candidates, -log softmax(score)[target], for every event after it was judged.

    >>> pool = Pool(2)
    >>> scores, hidden = np.array([[0.0, 1.0, 2.0], [2.0, 0.0, 0.0]]), np.zeros(3, dtype=np.bool_)
    >>> for _ in range(50):
    ...     pool.learn(scores, hidden, 0, 7)
    >>> bool(pool.weights(7)[1] > 0 > pool.weights(7)[0])
    True
    """

    def __init__(self, sources: int, rate: float = 0.05, shrinkage: float = 1e-3) -> None:
        self.rate = rate
        self.shrinkage = shrinkage
        self.events = 0
        self._weights = np.zeros((len(BUCKETS) + 1, sources))
        self._weights[-1, 0] = 1.0
        self._squares = np.zeros_like(self._weights)

    def weights(self, history: int) -> Doubles:
        """float64[S]: the weights in force for a user with so many items behind him."""
        found: Doubles = self._weights[-1] + self._weights[bucket_of(history)]
        return found

    def scores(self, scores: Doubles, history: int) -> Doubles:
        """float64[n] of the sources' float64[S, n]."""
        pooled: Doubles = self.weights(history) @ scores
        return pooled

    def learn(self, scores: Doubles, hidden: Flags, target: int, history: int) -> None:
        """One step for an event on candidate `target`; hidden bool[n] are no candidates."""
        self.events += 1
        gradient = _gradient(scores, self.scores(scores, history), hidden, target)
        bucket = bucket_of(history)
        for row, pulled in ((-1, gradient), (bucket, gradient + self.shrinkage * self._weights[bucket])):
            self._squares[row] += pulled * pulled
            self._weights[row] -= self.rate * pulled / np.sqrt(self._squares[row] + 1e-9)


def bucket_of(history: int) -> int:
    """Place of the last of `BUCKETS` that is not above `history`.

    >>> [bucket_of(n) for n in (0, 1, 4, 5, 1000)]
    [0, 1, 1, 2, 6]
    """
    return int(np.searchsorted(BUCKETS, history, side="right")) - 1


@kernel
def _gradient(scores: Doubles, pooled: Doubles, hidden: Flags, target: int) -> Doubles:
    """float64[S]: gradient in the weights of -log softmax(pooled)[target], hidden ones left out."""
    sources, n = scores.shape
    highest, total = pooled[target], 0.0
    for column in range(n):
        if not hidden[column]:
            highest = max(highest, pooled[column])
    gradient = np.zeros(sources)
    for column in range(n):
        if not hidden[column]:
            share = np.exp(pooled[column] - highest)
            total += share
            for source in range(sources):
                gradient[source] += share * scores[source, column]
    for source in range(sources):
        gradient[source] = gradient[source] / total - scores[source, target]
    return gradient
