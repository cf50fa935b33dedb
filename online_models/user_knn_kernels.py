# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload, operator"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""Compiled kernels of the user-based neighbours, over the arrays of `user_histories_kernels.Histories`.

They call no kernel of another file: numba's disk cache would not notice a change there.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from online_models.kernels import kernel
from online_models.user_histories_kernels import Histories

__all__ = ["Scratch", "user_knn_score"]

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


class Scratch(NamedTuple):
    """Memory of one query. `weight`, `total` and `met` are 0 before and after."""

    weight: Floats  # float32[items]: of the asking user's items
    total: Floats  # float32[items]: scores so far
    met: NDArray[np.uint8]  # uint8[slots]: 1 = sampled already
    sampled: Ints  # int32[slots]: those met, in that order
    best: Ints  # int32[neighbours]: positions in `sampled`, a heap and then a list, best first
    closeness: Floats  # float32[neighbours]: their similarities


@kernel
def _is_worse(closeness: Floats, best: Ints, one: int, other: int) -> bool:
    return closeness[one] < closeness[other] or (
        closeness[one] == closeness[other] and best[one] > best[other]
    )


@kernel
def _swap(closeness: Floats, best: Ints, one: int, other: int) -> None:
    closeness[one], closeness[other] = closeness[other], closeness[one]
    best[one], best[other] = best[other], best[one]


@kernel
def _sink(closeness: Floats, best: Ints, size: int) -> None:
    """Restore the heap, worst on top, after its top was replaced."""
    parent, child = 0, 1
    while child < size:
        if child + 1 < size and _is_worse(closeness, best, child + 1, child):
            child += 1
        if not _is_worse(closeness, best, child, parent):
            break
        _swap(closeness, best, parent, child)
        parent, child = child, 2 * child + 1


@kernel
def _offer(closeness: Floats, best: Ints, size: int, similarity: float, position: int) -> int:
    """Offer a neighbour to the heap; among equals, who was met first (acted last) wins."""
    if size < best.shape[0]:
        child = size
        closeness[child], best[child] = similarity, position
        while child > 0 and _is_worse(closeness, best, child, (child - 1) // 2):
            _swap(closeness, best, child, (child - 1) // 2)
            child = (child - 1) // 2
        return size + 1
    if similarity > closeness[0]:  # an equal one was met later
        closeness[0], best[0] = similarity, position
        _sink(closeness, best, size)
    return size


@kernel
def _best_first(closeness: Floats, best: Ints, size: int) -> None:
    for last in range(size - 1, 0, -1):
        _swap(closeness, best, 0, last)
        _sink(closeness, best, last)


@kernel
def _weigh(recent: Ints, query_length: int, query_decay: float, weight: Floats) -> float:
    """Give the asking user's recent items their weights, the newest mention of each; returns their norm."""
    decay, squares = 1.0, 0.0
    for position in range(min(query_length, recent.shape[0])):
        row = recent[position]
        if row >= 0 and row < weight.shape[0] and weight[row] == 0.0:
            weight[row] = decay
            squares += decay * decay
        decay *= query_decay
    return np.sqrt(squares)


@kernel
def _sample(
    recent: Ints, query_length: int, own: int, sample: int, length: int, store: Histories,
    met: NDArray[np.uint8], sampled: Ints,
) -> int:  # fmt: skip
    """Who used one of the recent items, of each item the newest `sample` users; returns how many."""
    n, older = 0, store.older
    for position in range(min(query_length, recent.shape[0])):
        row = recent[position]
        node = store.head[row] if row >= 0 and row < store.head.shape[0] else -1
        for _ in range(sample):
            if node < 0:
                break
            slot = node // length
            if slot != own and met[slot] == 0:
                met[slot] = 1
                sampled[n] = slot
                n += 1
            node = older[node]
    return n


@kernel
def _nearest(
    n: int, norm: float, length: int, rows: Ints, uses: NDArray[np.int64], held: Ints, scratch: Scratch
) -> int:
    """The most similar of n sampled users, best first; returns how many there are."""
    weight, sampled, met, best, closeness = (
        scratch.weight, scratch.sampled, scratch.met, scratch.best, scratch.closeness
    )  # fmt: skip
    size = 0
    for position in range(n):
        slot, dot = sampled[position], np.float32(0.0)
        met[slot] = 0
        first = slot * length
        for node in range(first, first + min(uses[slot], length)):
            row = rows[node]
            dot += weight[row] if row >= 0 else np.float32(0.0)
        similarity = np.float32(dot / (norm * np.sqrt(np.float64(held[slot]))))
        size = _offer(closeness, best, size, similarity, position)
    _best_first(closeness, best, size)
    return size


@kernel
def user_knn_score(
    recent: Ints, own: int, candidates: Ints, query_length: int, query_decay: float, sample: int, length: int,
    faded: bool, scale: float, store: Histories, scratch: Scratch, out: Floats,
) -> int:  # fmt: skip
    """Scores float32[C] of candidate rows int32[C] for one user; returns the number of neighbours, whose
    positions, best first, are left in scratch.best.

    recent int32[R]: his items, newest first, -1 padded; own: his slot, which is no neighbour (-1 = none);
    faded: each use counts with its value, times scale, and with 1 otherwise.
    """
    weight, total, rows, values = scratch.weight, scratch.total, store.row, store.value
    norm = _weigh(recent, query_length, query_decay, weight)
    n = 0
    if norm > 0.0:
        n = _sample(recent, query_length, own, sample, length, store, scratch.met, scratch.sampled)
    size = _nearest(n, norm, length, rows, store.uses, store.held, scratch)
    for back in range(min(query_length, recent.shape[0])):
        if recent[back] >= 0 and recent[back] < weight.shape[0]:
            weight[recent[back]] = 0.0
    for neighbour in range(size):
        slot, similarity = scratch.sampled[scratch.best[neighbour]], scratch.closeness[neighbour]
        for node in range(slot * length, slot * length + min(store.uses[slot], length)):
            if rows[node] >= 0:
                total[rows[node]] += similarity * values[node] if faded else similarity
    for column in range(candidates.shape[0]):
        row = candidates[column]
        if row >= 0 and row < total.shape[0] and total[row] != 0.0:
            out[column] = total[row] * np.float32(scale)
    for neighbour in range(size):
        first = scratch.sampled[scratch.best[neighbour]] * length
        for node in range(first, first + min(store.uses[first // length], length)):
            if rows[node] >= 0:
                total[rows[node]] = 0.0
    return size
