"""The k items of largest inner product, exactly: one pass over all factors.

A single query is bound by the memory's bandwidth, so its pass does everything at once: inner product,
comparison, heap. A batch is bound by arithmetic, so BLAS multiplies it block by block, and only what could
be among the best is looked at again. Both give the same bits: whatever BLAS lets through is scored by the
kernel of the single query.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from serving.retrieval import kernels_exact as kernels
from serving.retrieval.kernels_vector import CHUNK

__all__ = ["ascending_rows", "top_k"]

_ROWS = 2048
"""Rows of one block: at 64 factors and 64 queries, rows and products (512 KB each) fit the second-level
cache."""
_SINGLY = 6
"""Fewer queries than this take less time one after the other than as one batch of 64 columns."""

Bools = NDArray[np.bool_]
Ints = NDArray[np.int32]
Floats = NDArray[np.float32]


def top_k(
    queries: Floats, factors: Floats, k: int, mask: Bools | None = None, exclude: Ints | None = None
) -> tuple[Ints, Floats]:
    """The k rows of largest q·v for each query, by (-score, row): rows int32[n, k], scores float32[n, k].

    queries float32[n, d]; factors float32[N, d], finite; mask bool[N], true where a row may be had by all;
    exclude int32[n, E], rows that one query may not get (what is no row, such as -1, counts for nothing).
    Where fewer than k are left, row -1 with score -inf. The same scores to the bit, whatever else is in the
    batch.

    Raises ValueError when shapes don't fit each other.

    >>> factors = np.array([[1, 0], [0, 1], [2, 2], [2, 2]], dtype=np.float32)
    >>> rows, scores = top_k(np.array([[1, 3]], dtype=np.float32), factors, 3)
    >>> rows.tolist(), scores.tolist()
    ([[2, 3, 1]], [[8.0, 8.0, 3.0]])
    """
    queries, factors = np.ascontiguousarray(queries, np.float32), np.ascontiguousarray(factors, np.float32)
    _check(queries, factors, k, mask, exclude)
    n = len(queries)
    may = np.empty(0, dtype=np.bool_) if mask is None else np.ascontiguousarray(mask)
    barred = ascending_rows(n, exclude)
    rows, scores = np.full((n, k), -1, dtype=np.int32), np.full((n, k), -np.inf, dtype=np.float32)
    if k == 0 or n == 0:
        return rows, scores
    for first in range(0, n, CHUNK):
        some = slice(first, min(first + CHUNK, n))
        if some.stop - some.start < _SINGLY:
            for q in range(some.start, some.stop):
                kernels.scan(queries[q], factors, may, barred[q], rows[q], scores[q])
        else:
            _top_k_of_batch(queries[some], factors, may, barred[some], rows[some], scores[some])
    return rows, scores


def ascending_rows(n: int, exclude: Ints | None) -> Ints:
    """int32[n, E], each query's excluded rows in ascending order, as the kernels look them up."""
    if exclude is None:
        return np.empty((n, 0), dtype=np.int32)
    return np.sort(exclude.astype(np.int32, copy=False), axis=1)


def _check(queries: Floats, factors: Floats, k: int, mask: Bools | None, exclude: Ints | None) -> None:
    if queries.ndim != 2 or factors.ndim != 2 or queries.shape[1] != factors.shape[1]:
        shapes = f"{list(queries.shape)} and {list(factors.shape)}"
        raise ValueError(f"queries and factors have shapes {shapes}, but [n, d] and [N, d] are needed")
    if k < 0:
        raise ValueError(f"k is {k}, but must be at least 0")
    if mask is not None and (mask.shape != (len(factors),) or mask.dtype != np.bool_):
        raise ValueError(f"mask is {mask.dtype}{list(mask.shape)}, but bool[{len(factors)}] is needed")
    if exclude is not None and (exclude.ndim != 2 or len(exclude) != len(queries)):
        raise ValueError(f"exclude has shape {list(exclude.shape)}, but [{len(queries)}, E] is needed")


def _top_k_of_batch(
    queries: Floats, factors: Floats, may: Bools, barred: Ints, rows: Ints, scores: Floats
) -> None:
    """Up to CHUNK queries: BLAS finds who may be among the best, `dot` says who is.

    Any order of summing d products of float32 is within d 2⁻²⁴ Σ|q_j v_j| of the true sum (Higham, Accuracy
    and Stability of Numerical Algorithms, 2002, section 3.1), to first order. So two orders differ by less
    than 1.01 d 2⁻²³ Σ_j|q_j| max|v|, and what BLAS puts further below the k-th best is not among them.
    """
    n, d = queries.shape
    columns = np.zeros((d, CHUNK), dtype=np.float32)
    columns[:, :n] = queries.T
    error = (1.01 * d * 2.0**-23 * np.abs(queries).sum(axis=1)).astype(np.float32)
    threshold = np.full(CHUNK, np.inf, dtype=np.float32)
    size, bits = np.zeros(n, dtype=np.int64), factors.reshape(-1).view(np.uint32)
    products = np.empty((_ROWS, CHUNK), dtype=np.float32)
    for first in range(0, len(factors), _ROWS):
        block = factors[first : first + _ROWS]
        out = np.matmul(block, columns, out=products[: len(block)])
        kernels.select(out, queries, factors, bits, first, may, barred, error, threshold, size, rows, scores)
    kernels.finish(size, rows, scores)
