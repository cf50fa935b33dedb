# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload, operator"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""Compiled kernels of an item's newest event and its exposures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from online_models.kernels import GONE, kernel

__all__ = ["activity_expose", "activity_learn"]

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]


@kernel
def activity_learn(
    changes: Ints, item: Ints, weight: Floats, time_ms: Longs, last_ms: Longs, exposures: Longs
) -> None:
    """Take in events: of positive weight, when; of weight 0, that the item was shown.

    changes int32[c, 4] of the item table, each before its event; last_ms, exposures int64[>= rows]. An item
    that loses its row is forgotten.
    """
    changed = 0
    for event in range(item.shape[0]):
        while changed < changes.shape[0] and changes[changed, 0] == event:
            if changes[changed, 1] == GONE:
                last_ms[changes[changed, 2]], exposures[changes[changed, 2]] = -1, 0
            changed += 1
        row = item[event]
        if weight[event] > 0.0:
            last_ms[row] = max(last_ms[row], time_ms[event])
        elif weight[event] == 0.0:
            exposures[row] += 1
    for rest in range(changed, changes.shape[0]):
        if changes[rest, 1] == GONE:
            last_ms[changes[rest, 2]], exposures[changes[rest, 2]] = -1, 0


@kernel
def activity_expose(rows: Ints, exposures: Longs) -> None:
    """Count one exposure for each of rows int32[n]; -1 is none."""
    for at in range(rows.shape[0]):
        if rows[at] >= 0:
            exposures[rows[at]] += 1
