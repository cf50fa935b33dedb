# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload, operator"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""Compiled kernels that search an index: the walk through its lists, most promising first."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.retrieval.kernels_lists import Lists
from serving.retrieval.kernels_vector import (
    CHUNK,
    CODE_STEP,
    above,
    dot,
    dot_integers,
    kernel,
    lowest_bit,
    offer,
    ones,
    prefetch,
    servable,
    sort_best_first,
)

__all__ = ["PLANES", "VECTOR_DIGEST", "Walk", "search"]

VECTOR_DIGEST = "fd066b8f516dba64"
"""Of kernels_vector.py: changes with it, so that numba compiles this file's kernels anew."""
PLANES = 4
"""Bits of a query's weights against one-bit codes; the fourth adds 1% of error to the codes' own 36%."""
_QUEUE = 64
"""Items whose codes are on their way to the cache while others are looked at."""

Bools = NDArray[np.bool_]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Words = NDArray[np.uint64]
Floats = NDArray[np.float32]


class Walk(NamedTuple):
    """A query in rotated axes, and scratch memory for its walk through the lists."""

    rotated: Floats
    """float32[d]."""
    planes: Words
    """uint64[words, PLANES]: its components in coarse steps, two's complement, one bit of all in a word."""
    weights: NDArray[np.int16]
    """int16[d]: its components in fine steps."""
    product: Floats
    """float32[C]: with each centroid."""
    upper: Floats
    """float32[C]: what a list's items hardly ever exceed."""
    order: Ints
    """int32[C]: lists, the most promising first."""
    estimate: Floats
    """float32[CHUNK]: of a chunk's items."""
    threshold: Floats
    """float32[CHUNK]: CHUNK times what an estimate must reach."""


@kernel
def _steps(walk: Walk) -> tuple[float, float]:
    """Fill planes and weights from `rotated`; returns the steps of both."""
    d, highest = walk.rotated.shape[0], np.float32(0.0)
    for j in range(d):
        highest = max(highest, abs(walk.rotated[j]))
    if highest == 0.0:
        highest = np.float32(1.0)
    levels = np.float32(min(32_767, 2**31 // (128 * d)))  # sums of d products stay within 32 bits
    fine, coarse = highest / levels, highest / np.float32(7.5)
    walk.planes[:] = 0
    for j in range(d):
        walk.weights[j] = np.int16(np.rint(walk.rotated[j] / fine))
        level = np.uint64(np.int64(max(-8.0, min(7.0, np.rint(walk.rotated[j] / coarse)))))
        for bit in range(PLANES):
            walk.planes[j >> 6, bit] |= ((level >> np.uint64(bit)) & np.uint64(1)) << np.uint64(j & 63)
    return fine, coarse


@kernel
def _rank_lists(lists: Lists, walk: Walk, reach: float) -> None:
    """Order the lists by their centroid's product plus `reach` standard deviations of their residuals'."""
    d, n = walk.rotated.shape[0], walk.order.shape[0]
    variance, low, high = np.float32(0.0), np.float32(np.inf), np.float32(-np.inf)
    for j in range(d):
        variance += walk.rotated[j] * dot(lists.spread, j * d, walk.rotated, 0, d)
    walk.product[0] = 0.0
    for c in range(1, n):
        product, length = dot(lists.centroids, c * d, walk.rotated, 0, d), max(1, lists.length[c])
        along = min(variance, product * product / (2.0 * lists.offset[c])) if lists.offset[c] > 0.0 else 0.0
        across = (lists.squares[c] - lists.radial[c]) * (variance - along) / max(1, d - 1)
        spread = max(0.0, (lists.radial[c] * along + across) / length)
        walk.product[c], walk.upper[c] = product, product + reach * np.sqrt(spread)
        low, high = min(low, walk.upper[c]), max(high, walk.upper[c])
    if n == 1:
        low, high = np.float32(0.0), np.float32(0.0)
    walk.upper[0] = low  # last, when much has been found: far from all centroids, estimates are wide
    start = np.zeros(257, np.int32)
    scale = np.float32(255.0) / (high - low) if high > low else np.float32(0.0)
    for c in range(n):
        start[1 + np.int64((high - walk.upper[c]) * scale)] += 1
    for bucket in range(256):
        start[bucket + 1] += start[bucket]
    for c in range(n):
        bucket = np.int64((high - walk.upper[c]) * scale)
        walk.order[start[bucket]] = c
        start[bucket] += 1


@kernel
def _estimate(lists: Lists, walk: Walk, chunk: int, shift: float) -> None:
    """estimate[i] = scale_i (Σ_j [r_ij > 0] q_j + shift) in coarse steps, of a chunk's items."""
    at, move_by = np.uint64(chunk), np.float32(shift)
    for word in range(lists.signs.shape[1]):
        w = np.uint64(word)
        p0, p1, p2, p3 = walk.planes[w, 0], walk.planes[w, 1], walk.planes[w, 2], walk.planes[w, 3]
        for slot in range(CHUNK):
            s = np.uint64(slot)
            signs = lists.signs[at, w, s]
            total = ones(signs & p0) + (ones(signs & p1) << np.uint64(1))
            total += (ones(signs & p2) << np.uint64(2)) - (ones(signs & p3) << np.uint64(3))
            part = np.float32(np.int32(total))
            walk.estimate[s] = part if word == 0 else walk.estimate[s] + part
    for slot in range(CHUNK):
        s = np.uint64(slot)
        walk.estimate[s] = lists.scales[at, s] * (walk.estimate[s] + move_by)


@kernel
def _drain(
    lists: Lists, walk: Walk, fine: float, queue: Longs, bases: Floats, waiting: int, mask: Bools,
    excluded: Ints, scores: Floats, rows: Ints, size: int,
) -> int:  # fmt: skip
    """Offer what waits in the queue to the heap, by its codes of eight bits; returns the heap's size."""
    d, step = walk.weights.shape[0], np.float32(CODE_STEP) * np.float32(fine)
    for position in range(waiting):
        place = queue[position]
        chunk, slot = place // CHUNK, place % CHUNK
        sum_ = np.float32(dot_integers(lists.codes, place * d, walk.weights, 0, d))
        score, row = bases[position] + lists.scales[chunk, slot] * step * sum_, lists.rows[chunk, slot]
        if (size < rows.shape[0] or score > scores[0]) and servable(row, mask, excluded):
            size = offer(scores, rows, size, score, row)
    return size


@kernel
def _fetch(lists: Lists, chunk: int) -> None:
    """Have a chunk's bits and scales brought to the cache."""
    if chunk >= 0:
        words = lists.signs.shape[1] * CHUNK
        for at in range(0, words, 8):
            prefetch(lists.signs, np.int64(chunk) * words + at)
        for at in range(0, CHUNK, 16):
            prefetch(lists.scales, np.int64(chunk) * CHUNK + at)


@kernel
def _fill(values: Floats, value: float) -> None:
    for at in range(CHUNK):
        values[np.uint64(at)] = value


@kernel
def _walk_lists(
    lists: Lists, walk: Walk, reach: float, sign_reach: float, mask: Bools, excluded: Ints,
    scores: Floats, rows: Ints,
) -> int:  # fmt: skip
    """Fill the heap (scores, rows) with those of the largest estimates; returns its size.

    A list is left out when `reach` standard deviations above its centroid would not do, an item when
    `sign_reach` above its estimate from signs.
    """
    d, size, lowest = walk.rotated.shape[0], 0, np.float32(-np.inf)
    fine, coarse = _steps(walk)
    _rank_lists(lists, walk, reach)
    total = np.float32(0.0)
    for j in range(d):
        total += walk.rotated[j]
    norm = np.sqrt(dot(walk.rotated, 0, walk.rotated, 0, d))
    # a Gaussian residual's signs leave a standard deviation of 0.75 of its mean magnitude
    shift = (np.float32(sign_reach * 0.75) * norm - total) / (np.float32(2.0) * coarse)
    queue, bases, waiting = np.empty(_QUEUE + CHUNK, np.int64), np.empty(_QUEUE + CHUNK, np.float32), 0
    before = np.float32(-np.inf)
    for place in range(walk.order.shape[0]):
        c = walk.order[place]
        if place + 1 < walk.order.shape[0]:
            _fetch(lists, lists.head[walk.order[place + 1]])
        if walk.upper[c] < lowest and c > 0:
            continue
        chunk, left = np.int64(lists.head[c]), np.int64(lists.length[c])
        here, base = (left - 1) % CHUNK + 1, walk.product[c]
        _fill(walk.threshold, (lowest - base) / (np.float32(2.0) * coarse))
        while left > 0:
            _fetch(lists, lists.following[chunk])
            if lowest > before:
                _fill(walk.threshold, (lowest - base) / (np.float32(2.0) * coarse))
                before = lowest
            _estimate(lists, walk, chunk, shift)
            bits = above(walk.estimate, 0, walk.threshold)
            if here < CHUNK:
                bits &= (np.uint64(1) << np.uint64(here)) - np.uint64(1)
            while bits != 0:
                place = chunk * CHUNK + np.int64(lowest_bit(bits))
                bits &= bits - np.uint64(1)
                prefetch(lists.codes, place * d)
                queue[waiting], bases[waiting] = place, base
                waiting += 1
            if waiting >= _QUEUE:
                size = _drain(lists, walk, fine, queue, bases, waiting, mask, excluded, scores, rows, size)
                waiting = 0
                if size == rows.shape[0]:
                    lowest = scores[0]
            left -= here
            here, chunk = CHUNK, np.int64(lists.following[chunk])
    return _drain(lists, walk, fine, queue, bases, waiting, mask, excluded, scores, rows, size)


@kernel
def search(
    lists: Lists, vectors: Floats, queries: Floats, reach: float, sign_reach: float, kept: int, mask: Bools,
    excluded: Ints, rows: Ints, scores: Floats,
) -> None:  # fmt: skip
    """Each query's k best of the index into rows, scores [n, k]: `kept` by estimates, then by `dot`."""
    d, n, words = queries.shape[1], lists.offset.shape[0], lists.signs.shape[1]
    walk = Walk(
        np.empty(d, np.float32), np.empty((words, PLANES), np.uint64), np.empty(d, np.int16),
        np.empty(n, np.float32), np.empty(n, np.float32), np.empty(n, np.int32),
        np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32),
    )  # fmt: skip
    near, near_rows = np.empty(kept, np.float32), np.empty(kept, np.int32)
    for q in range(queries.shape[0]):
        for j in range(d):
            walk.rotated[j] = dot(lists.rotation, j * d, queries, q * d, d)
        found = _walk_lists(lists, walk, reach, sign_reach, mask, excluded[q], near, near_rows)
        size = 0
        for position in range(found):
            row = near_rows[position]
            size = offer(scores[q], rows[q], size, dot(queries, q * d, vectors, row * d, d), row)
        sort_best_first(scores[q], rows[q], size)
