# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload, operator"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""Co-visitation's scores of many rows at once: the recent items' entries are added up by row, then looked up.

Asking for each candidate in each recent item's row, as `covisitation_score` does, costs a search apiece; here
an entry is read once, whatever the number of candidates. It calls no kernel of another file: numba's disk
cache would not notice a change there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from online_models.kernels import RowPool, kernel

__all__ = ["MANY", "covisitation_scan"]

MANY = 128
"""From so many candidates on, reading all entries is faster than a search for each."""

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


@kernel
def _clear(recent: Ints, used: int, pool: RowPool, query_length: int, total: Floats) -> None:
    """Set what was added to back to 0: all of `total`, or only the entries' rows where these are fewer."""
    if used >= total.shape[0]:
        total[:] = 0.0
        return
    start, length, keys = pool.start, pool.length, pool.keys
    for position in range(min(query_length, recent.shape[0])):
        source = recent[position]
        if 0 <= source < total.shape[0]:
            for slot in range(start[source], start[source] + length[source]):
                total[np.uint32(keys[slot])] = 0.0


@kernel
def covisitation_scan(
    recent: Ints, candidates: Ints, pool: RowPool, source_norm: Floats, target_norm: Floats, scale: float,
    query_length: int, query_decay: float, total: Floats, out: Floats,
) -> None:  # fmt: skip
    """Scores of given rows, bit for bit those of `covisitation_score`: the same sums in the same order.
    `total` float32[rows] is 0 before and after."""
    start, length, keys, values = pool.start, pool.length, pool.keys, pool.values
    for user in range(recent.shape[0]):
        decay, used = 1.0, 0
        for position in range(min(query_length, recent.shape[1])):
            source = recent[user, position]
            if 0 <= source < source_norm.shape[0]:
                part, first = np.float32(decay) * source_norm[source], start[source]
                used += length[source]
                for slot in range(first, first + length[source]):
                    total[np.uint32(keys[slot])] += part * values[slot]
            decay *= query_decay
        for column in range(candidates.shape[1]):
            key = candidates[user, column]
            out[user, column] = 0.0
            if 0 <= key < total.shape[0] and total[key] != 0.0:
                out[user, column] = total[key] * target_norm[key] * np.float32(scale)
        _clear(recent[user], used, pool, query_length, total)
