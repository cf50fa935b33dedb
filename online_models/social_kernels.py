# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload, operator"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""Compiled kernels of followed users' tastes, over the arrays of `user_histories_kernels.Histories`.

They call no kernel of another file: numba's disk cache would not notice a change there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from online_models.kernels import kernel
from online_models.user_histories_kernels import Histories

__all__ = ["social_score", "social_used"]

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int32]


@kernel
def social_used(
    slots: Ints, row: int, time_ms: int, length: int, store: Histories, out: NDArray[np.bool_]
) -> None:
    """Which of the users in `slots` int32[F] (-1 = nothing is kept of him) had used an item by a time; a use
    that a newer one of the same item stands for is known by -2 - row."""
    for edge in range(slots.shape[0]):
        out[edge] = False
        if slots[edge] >= 0:
            first = slots[edge] * length
            for node in range(first, first + min(store.uses[slots[edge]], length)):
                here = store.row[node]
                if (here == row or here == -2 - row) and store.time_ms[node] <= time_ms:
                    out[edge] = True
                    break


@kernel
def social_score(
    slots: Ints, trust: Floats, candidates: Ints, newest_ms: int, half_life_ms: float, length: int,
    store: Histories, total: Doubles, out: Floats,
) -> None:  # fmt: skip
    """Scores float32[C] of candidate rows int32[C]: what the users in `slots` int32[F] use, by trust
    float32[F] and age (half_life_ms 0 = all ages count the same). `total` float64[items] is 0 before and
    after."""
    for edge in range(slots.shape[0]):
        if slots[edge] >= 0:
            first = slots[edge] * length
            for node in range(first, first + min(store.uses[slots[edge]], length)):
                if store.row[node] >= 0:
                    age = newest_ms - store.time_ms[node]
                    fade = 2.0 ** (-max(age, 0) / half_life_ms) if half_life_ms > 0.0 else 1.0
                    total[store.row[node]] += np.float64(trust[edge]) * fade
    for column in range(candidates.shape[0]):
        row = candidates[column]
        if row >= 0 and row < total.shape[0]:
            out[column] = total[row]
    for edge in range(slots.shape[0]):
        if slots[edge] >= 0:
            first = slots[edge] * length
            for node in range(first, first + min(store.uses[slots[edge]], length)):
                if store.row[node] >= 0:
                    total[store.row[node]] = 0.0
