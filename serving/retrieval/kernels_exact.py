# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload, operator"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""Compiled kernels of the exact search: one pass for one query, the selection from a batch's products."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from serving.retrieval.kernels_vector import (
    CHUNK,
    above,
    dot,
    kernel,
    lowest_bit,
    offer,
    servable,
    sort_best_first,
)

__all__ = ["VECTOR_DIGEST", "finish", "scan", "select"]

VECTOR_DIGEST = "fd066b8f516dba64"
"""Of kernels_vector.py: changes with it, so that numba compiles this file's kernels anew."""

Bools = NDArray[np.bool_]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Floats = NDArray[np.float32]


@kernel
def scan(query: Floats, factors: Floats, mask: Bools, excluded: Ints, rows: Ints, scores: Floats) -> None:
    """One pass over factors float32[N, d]: the k = len(rows) best by (-score, row).

    `mask` bool[N], or [0] when all may be had; `excluded` int32[E], ascending.
    """
    size, k, d, lowest = 0, rows.shape[0], query.shape[0], np.float32(-np.inf)
    for row in range(factors.shape[0]):
        score = dot(factors, row * d, query, 0, d)
        if score > lowest and servable(row, mask, excluded):
            size = offer(scores, rows, size, score, row)
            if size == k:
                lowest = scores[0]
    sort_best_first(scores, rows, size)


@kernel
def _largest(magnitudes: NDArray[np.uint32], start: int, end: int) -> int:
    """max |x| of float32 given as bits, as bits: without its sign, a float is ordered as an integer."""
    found = np.uint32(0)
    for j in range(start, end):
        found = max(found, np.uint32(magnitudes[np.uint64(j)] & np.uint32(0x7FFFFFFF)))
    return found


@kernel
def select(
    products: Floats, queries: Floats, factors: Floats, bits: NDArray[np.uint32], first: int, mask: Bools,
    excluded: Ints, error: Floats, threshold: Floats, size: Longs, rows: Ints, scores: Floats,
) -> None:  # fmt: skip
    """Offer rows first, first + 1, ... of `factors` float32[N, d] to each query's heap by products float32[b,
    CHUNK].

    Products differ from `dot` by less than error float32[n] times the block's largest |x|. Only one that
    could beat the heap's worst is computed anew, so the heaps hold exact scores. `bits` uint32[N d] are
    those of the factors; `threshold` float32[CHUNK] is scratch memory, inf beyond the last query.
    """
    k, (n, d) = rows.shape[1], queries.shape
    one = np.empty(1, np.uint32)
    one[0] = _largest(bits, first * d, (first + products.shape[0]) * d)
    largest = one.view(np.float32)[0]
    for q in range(n):
        threshold[q] = scores[q, 0] - error[q] * largest if size[q] == k else np.float32(-np.inf)
    for position in range(products.shape[0]):
        row = first + position
        found = above(products, position * CHUNK, threshold)
        while found != 0:
            q = np.int64(lowest_bit(found))
            found &= found - np.uint64(1)
            if servable(row, mask, excluded[q]):
                score = dot(factors, row * d, queries, q * d, d)
                size[q] = offer(scores[q], rows[q], size[q], score, row)
                if size[q] == k:
                    threshold[q] = scores[q, 0] - error[q] * largest


@kernel
def finish(size: Longs, rows: Ints, scores: Floats) -> None:
    """Sort every query's heap best first."""
    for q in range(rows.shape[0]):
        sort_best_first(scores[q], rows[q], size[q])
