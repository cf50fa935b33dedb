# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload, operator"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""Compiled kernels of the popularity by the user's stage: learning, taking back, and scores.

They call no kernel of another file: numba's disk cache would not notice a change there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from online_models.kernels import GONE, kernel

__all__ = ["STAGES", "stage_add", "stage_learn", "stage_of", "stage_score"]

STAGES = 6
"""Histories of 0, 1 to 2, 3 to 6, 7 to 14, 15 to 30, and 31 or more items: each twice as long as the last."""

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int32]


@kernel
def stage_of(history: int) -> int:
    """Stage of a user with so many items behind him: floor(log2(1 + history)), the last at most."""
    stage, left = 0, history + 1
    while left > 1 and stage < STAGES - 1:
        left >>= 1
        stage += 1
    return stage


@kernel
def stage_add(item: Ints, recent: Ints, amount: Doubles, table: Doubles) -> None:
    """Add each event's amount float64[n] where its user's stage says; recent int32[n, R], -1 = none."""
    for event in range(item.shape[0]):
        history = 0
        for position in range(recent.shape[1]):
            history += recent[event, position] != -1
        table[item[event], stage_of(history)] += amount[event]


@kernel
def stage_learn(
    first: int, last: int, changes: Ints, changed: int, item: Ints, recent: Ints, weight: Floats,
    growth: Doubles, table: Doubles,
) -> int:  # fmt: skip
    """Learn events first to last - 1 and table changes from `changed` on; returns the next of these."""
    for event in range(first, last):
        while changed < changes.shape[0] and changes[changed, 0] == event:
            if changes[changed, 1] == GONE:
                table[changes[changed, 2]] = 0.0
            changed += 1
        history = 0
        for position in range(recent.shape[1]):
            history += recent[event, position] != -1
        table[item[event], stage_of(history)] += weight[event] * growth[event]
    return changed


@kernel
def stage_score(history: int, leak: float, scale: float, rows: Ints, table: Doubles, out: Floats) -> None:
    """Scores of rows, 0 for -1: the stage's sum, and its neighbours' by leak to the power of the distance."""
    stage, share = stage_of(history), np.empty(STAGES)
    for other in range(STAGES):
        share[other] = scale * leak ** abs(other - stage)
    for column in range(rows.shape[0]):
        row, total = rows[column], 0.0
        if 0 <= row < table.shape[0]:
            for other in range(STAGES):
                total += share[other] * table[row, other]
        out[column] = total
