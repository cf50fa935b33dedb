# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload, operator"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""Compiled kernels that keep an index: which list an item belongs to, putting it there, taking it out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.retrieval.kernels_vector import CHUNK, CODE_STEP, dot, kernel

__all__ = ["VECTOR_DIGEST", "Lists", "move", "nearest", "place_all", "refine", "remove"]

VECTOR_DIGEST = "fd066b8f516dba64"
"""Of kernels_vector.py: changes with it, so that numba compiles this file's kernels anew."""

Bytes = NDArray[np.int8]
Ints = NDArray[np.int32]
Words = NDArray[np.uint64]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


class Lists(NamedTuple):
    """Items in lists around C centroids; a list is a chain of chunks, of which only the first may have
    room."""

    rotation: Floats
    """float32[d, d], orthogonal: codes and centroids are kept in rotated axes."""
    spread: Floats
    """float32[d, d]: covariance of residuals over their mean variance."""
    centroids: Floats
    """float32[C, d]; list 0 has none, but takes what is too far from all: a search always looks at it."""
    offset: Floats
    """float32[C]: |c|²/2; inf for list 0."""
    limit: Floats
    """float32[1]: squared distance to the nearest centroid beyond which an item goes to list 0."""
    squares: Doubles
    """float64[C]: Σ |r|² of a list's residuals."""
    radial: Doubles
    """float64[C]: what of it lies along the centroid, where items of one taste differ by popularity."""
    head: Ints
    """int32[C]: a list's first chunk, or -1."""
    length: Ints
    """int32[C]: items."""
    following: Ints
    """int32[chunks]: the next chunk, of the list or of the free ones; or -1."""
    owner: Ints
    """int32[chunks]: the list."""
    signs: Words
    """uint64[chunks, words, CHUNK]: bit j of a residual's word says that its component j is positive."""
    scales: Floats
    """float32[chunks, CHUNK]: mean of |r_j|, what a sign stands for."""
    codes: Bytes
    """int8[chunks, CHUNK, d]: r_j in steps of CODE_STEP scales."""
    rows: Ints
    """int32[chunks, CHUNK]: whose codes they are."""
    place: Ints
    """int32[N]: chunk * CHUNK + slot of a row, or -1."""
    free: Ints
    """int32[2]: the first free chunk or -1, how many are free."""


@kernel
def _rotate(lists: Lists, vector: Floats, rotated: Floats) -> None:
    d = rotated.shape[0]
    for j in range(d):
        rotated[j] = dot(lists.rotation, j * d, vector, 0, d)


@kernel
def _nearest(centroids: Floats, offset: Floats, rotated: Floats, at: int) -> int:
    """The centroid at the least distance: max x·c - |c|²/2. Equal ones: the first."""
    d, best, highest = centroids.shape[1], 0, np.float32(-np.inf)
    for centroid in range(offset.shape[0]):
        score = dot(centroids, centroid * d, rotated, at * d, d) - offset[centroid]
        if score > highest:
            best, highest = centroid, score
    return best


@kernel
def refine(centroids: Floats, offset: Floats, sample: Floats) -> None:
    """One round of Lloyd's algorithm over sample float32[m, d], in place; a centroid that nothing is near
    takes a point of the sample."""
    n, d = centroids.shape
    sums, counts = np.zeros((n, d), np.float64), np.zeros(n, np.int64)
    for point in range(sample.shape[0]):
        owner = _nearest(centroids, offset, sample, point)
        counts[owner] += 1
        for j in range(d):
            sums[owner, j] += sample[point, j]
    for c in range(n):
        for j in range(d):
            mean = sums[c, j] / counts[c] if counts[c] > 0 else sample[c % sample.shape[0], j]
            centroids[c, j] = np.float32(mean)
        offset[c] = np.float32(0.5) * dot(centroids, c * d, centroids, c * d, d)


@kernel
def _list_of(lists: Lists, rotated: Floats) -> int:
    """The list of the nearest centroid, or list 0 when that is beyond the limit."""
    owner, distance = _nearest(lists.centroids, lists.offset, rotated, 0), np.float32(0.0)
    for j in range(rotated.shape[0]):
        distance += (rotated[j] - lists.centroids[owner, j]) ** 2
    return owner if distance <= lists.limit[0] else 0


@kernel
def nearest(lists: Lists, rows: Ints, vectors: Floats, owners: Ints) -> None:
    """Which list each row of vectors float32[N, d] belongs to, into owners int32[m]."""
    rotated = np.empty(vectors.shape[1], np.float32)
    for position in range(rows.shape[0]):
        _rotate(lists, vectors[rows[position]], rotated)
        owners[position] = _list_of(lists, rotated)


@kernel
def _encode(lists: Lists, chunk: int, slot: int, residual: Floats) -> None:
    """One bit a component for the first look, eight for the second."""
    d, total = residual.shape[0], np.float32(0.0)
    for word in range(lists.signs.shape[1]):
        bits = np.uint64(0)
        for j in range(64 * word, min(64 * word + 64, d)):
            bits |= np.uint64(residual[j] > 0.0) << np.uint64(j & 63)
        lists.signs[chunk, word, slot] = bits
    for j in range(d):
        total += abs(residual[j])
    scale = total / np.float32(d)
    lists.scales[chunk, slot] = scale
    inverse = np.float32(1.0 / CODE_STEP) / scale if scale > 0.0 else np.float32(0.0)
    for j in range(d):
        level = np.rint(residual[j] * inverse)
        lists.codes[chunk, slot, j] = np.int8(max(np.float32(-127.0), min(np.float32(127.0), level)))


@kernel
def _append(lists: Lists, row: int, rotated: Floats, owner: int) -> None:
    """Put a row's codes at the end of a list. Turns `rotated` into the residual."""
    d, slot, chunk = rotated.shape[0], lists.length[owner] % CHUNK, lists.head[owner]
    if slot == 0:
        chunk = lists.free[0]
        lists.free[0] = lists.following[chunk]
        lists.free[1] -= 1
        lists.following[chunk], lists.owner[chunk], lists.head[owner] = lists.head[owner], owner, chunk
    lists.length[owner] += 1
    for j in range(d):
        rotated[j] -= lists.centroids[owner, j]
    lists.squares[owner] += dot(rotated, 0, rotated, 0, d)
    if lists.offset[owner] > 0.0:
        lists.radial[owner] += dot(rotated, 0, lists.centroids, owner * d, d) ** 2 / (
            2.0 * lists.offset[owner]
        )
    _encode(lists, chunk, slot, rotated)
    lists.rows[chunk, slot] = row
    lists.place[row] = chunk * CHUNK + slot


@kernel
def _take_out(lists: Lists, row: int) -> None:
    """Take a row out of its list, whose last item fills the gap."""
    chunk, slot = lists.place[row] // CHUNK, lists.place[row] % CHUNK
    owner = lists.owner[chunk]
    head, last = lists.head[owner], (lists.length[owner] - 1) % CHUNK
    lists.signs[chunk, :, slot] = lists.signs[head, :, last]
    lists.scales[chunk, slot] = lists.scales[head, last]
    lists.codes[chunk, slot] = lists.codes[head, last]
    lists.rows[chunk, slot] = lists.rows[head, last]
    lists.place[lists.rows[head, last]] = chunk * CHUNK + slot
    lists.place[row] = -1
    lists.squares[owner] -= lists.squares[owner] / lists.length[owner]
    lists.radial[owner] -= lists.radial[owner] / lists.length[owner]
    lists.length[owner] -= 1
    if last == 0:
        lists.head[owner] = lists.following[head]
        lists.following[head] = lists.free[0]
        lists.free[0] = head
        lists.free[1] += 1


@kernel
def remove(lists: Lists, rows: Ints) -> int:
    """Take rows out of their lists; returns how many were there."""
    removed = 0
    for row in rows:
        if 0 <= row < lists.place.shape[0] and lists.place[row] >= 0:
            _take_out(lists, row)
            removed += 1
    return removed


@kernel
def move(lists: Lists, rows: Ints, vectors: Floats) -> int:
    """Put each row, new or moved, where vectors float32[N, d] says that it is; returns how many are new.

    Needs len(rows) free chunks.
    """
    rotated, new = np.empty(vectors.shape[1], np.float32), 0
    for row in rows:
        if lists.place[row] >= 0:
            _take_out(lists, row)
        else:
            new += 1
        _rotate(lists, vectors[row], rotated)
        _append(lists, row, rotated, _list_of(lists, rotated))
    return new


@kernel
def place_all(lists: Lists, rows: Ints, owners: Ints, vectors: Floats) -> None:
    """Put rows into lists known beforehand, in the order given."""
    rotated = np.empty(vectors.shape[1], np.float32)
    for position in range(rows.shape[0]):
        _rotate(lists, vectors[rows[position]], rotated)
        _append(lists, rows[position], rotated, owners[position])
