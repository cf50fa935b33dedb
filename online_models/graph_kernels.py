# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload, operator"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""Compiled kernels of the item graph: a walk with restart, pushed forward from the recent items."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from online_models.kernels import RowPool, kernel

__all__ = ["Walk", "Work", "retrieve", "score"]

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int32]


class Walk(NamedTuple):
    """What a query obeys."""

    query_length: int
    query_decay: float
    keep: float
    """1 - restart: what goes on of a node's mass."""
    hops: int
    pushes: int
    """Nodes pushed at each hop after the first."""
    scale: float
    """What brings a stored score to its present value."""


class Work(NamedTuple):
    """Scratch of a query, each of [items]: int32 are lists of rows, the others 0 before and after."""

    total: Floats
    is_seen: NDArray[np.uint8]
    mass: Floats
    ahead: Floats
    seen: Ints
    at: Ints
    next_at: Ints


@kernel
def _score(row: int, amount: float, work: Work, n: int) -> int:
    """Add to a row's total; returns how many rows are seen."""
    if work.is_seen[row] == 0:
        work.is_seen[row] = 1
        work.seen[n] = row
        n += 1
    work.total[row] += np.float32(amount)
    return n


@kernel
def _give(row: int, amount: float, mass: Floats, listed: Ints, n: int) -> int:
    """Add a positive amount to a row's mass; returns how many rows have any."""
    if mass[row] == 0.0:
        listed[n] = row
        n += 1
    mass[row] += np.float32(amount)
    return n


@kernel
def _clear(work: Work, n_seen: int) -> None:
    for position in range(n_seen):
        work.total[work.seen[position]] = 0.0
        work.is_seen[work.seen[position]] = 0


@kernel
def _first_hop(
    recent: Ints, pool: RowPool, source_norm: Floats, walk: Walk, work: Work
) -> tuple[int, int]:  # fmt: skip
    """One step along all edges of the recent items: what co-visitation sums. Negative edges take from the
    total; none walks on along them. Returns the rows seen, and those to walk on from."""
    n_seen, n_at, decay = 0, 0, 1.0
    for position in range(min(walk.query_length, recent.shape[0])):
        source = recent[position]
        if source >= 0 and source < source_norm.shape[0]:
            part, start = np.float32(decay) * source_norm[source], pool.start[source]
            for slot in range(start, start + pool.length[source]):
                amount = part * pool.values[slot]
                if amount != 0.0:
                    n_seen = _score(pool.keys[slot], amount, work, n_seen)
                if amount > 0.0:
                    n_at = _give(pool.keys[slot], amount, work.mass, work.at, n_at)
        decay *= walk.query_decay
    return n_seen, n_at


@kernel
def _threshold(mass: Floats, at: Ints, n: int, pushes: int) -> tuple[float, int]:
    """The least mass among the `pushes` heaviest, and how many of just that mass are among them."""
    if n <= pushes or pushes == 0:
        return 0.0 if pushes > 0 else np.inf, 0
    values = np.empty(n, dtype=np.float32)
    for position in range(n):
        values[position] = mass[at[position]]
    least = np.partition(values, n - pushes)[n - pushes]
    return least, pushes - (values > least).sum()


@kernel
def _push(
    row: int, amount: float, pool: RowPool, count: Doubles, work: Work, n_seen: int, n_ahead: int
) -> tuple[int, int]:
    """Spread `amount` over a row's positive edges in proportion to their weight. Where they weigh less than
    the item's events, only that share walks on: few edges carry little."""
    start, weight = pool.start[row], 0.0
    end = start + pool.length[row]
    for slot in range(start, end):
        weight += max(pool.values[slot], np.float32(0.0))
    share = np.float32(amount / max(weight, count[row])) if weight > 0.0 else np.float32(0.0)
    for slot in range(start, end):
        given = share * pool.values[slot]
        if given > 0.0:
            n_seen = _score(pool.keys[slot], given, work, n_seen)
            n_ahead = _give(pool.keys[slot], given, work.ahead, work.next_at, n_ahead)
    return n_seen, n_ahead


@kernel
def _walk(recent: Ints, pool: RowPool, count: Doubles, source_norm: Floats, walk: Walk, work: Work) -> int:
    """Fill work.total with the mass of all walks of 1 to `hops` steps; returns the rows seen."""
    n_seen, n_at = _first_hop(recent, pool, source_norm, walk, work)
    mass, at, ahead, next_at = work.mass, work.at, work.ahead, work.next_at
    for _ in range(1, walk.hops):
        here = Work(work.total, work.is_seen, mass, ahead, work.seen, at, next_at)
        least, equals = _threshold(mass, at, n_at, walk.pushes)
        n_ahead = 0
        for position in range(n_at):
            row = at[position]
            amount = mass[row]
            mass[row] = 0.0
            if amount > least or (amount == least and equals > 0):
                equals -= amount == least
                n_seen, n_ahead = _push(row, walk.keep * amount, pool, count, here, n_seen, n_ahead)
        mass, ahead, at, next_at, n_at = ahead, mass, next_at, at, n_ahead
    for position in range(n_at):
        mass[at[position]] = 0.0
    return n_seen


@kernel
def score(
    recent: Ints, candidates: Ints, pool: RowPool, count: Doubles, source_norm: Floats, target_norm: Floats,
    walk: Walk, work: Work, out: Floats,
) -> None:  # fmt: skip
    """Scores out float32[n, C] of candidates int32[n, C] (-1 = none) for recent int32[n, L]."""
    for user in range(recent.shape[0]):
        n_seen = _walk(recent[user], pool, count, source_norm, walk, work)
        for column in range(candidates.shape[1]):
            row = candidates[user, column]
            if row >= 0 and row < target_norm.shape[0] and work.total[row] != 0.0:
                out[user, column] = work.total[row] * target_norm[row] * np.float32(walk.scale)
        _clear(work, n_seen)


@kernel
def retrieve(
    recent: Ints, pool: RowPool, count: Doubles, source_norm: Floats, target_norm: Floats, walk: Walk,
    work: Work, rows: Ints, scores: Floats,
) -> int:  # fmt: skip
    """All rows of positive score for recent int32[L], and the scores: their number; rows int32[items] and
    scores float32[items] are filled from the front, in order of first touch."""
    n_seen, n = _walk(recent, pool, count, source_norm, walk, work), 0
    for position in range(n_seen):
        row = work.seen[position]
        value = work.total[row] * target_norm[row] * np.float32(walk.scale)
        if value > 0.0:
            rows[n], scores[n] = row, value
            n += 1
    _clear(work, n_seen)
    return n
