# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload, operator"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""Compiled kernels of decayed counts by item and column.

They call no kernel of another file: numba's disk cache would not notice a change there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from online_models.kernels import GONE, kernel

__all__ = ["counts_forget", "counts_learn"]

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


@kernel
def _add(counts: Doubles, totals: Doubles, row: int, column: int, gain: float) -> None:
    before = counts[row, column]
    counts[row, column] = before + gain
    totals[column] += max(before + gain, 0.0) - max(before, 0.0)


@kernel
def _zero(counts: Doubles, totals: Doubles, row: int) -> None:
    for column in range(counts.shape[1]):
        totals[column] -= max(counts[row, column], 0.0)
        counts[row, column] = 0.0


@kernel
def counts_forget(rows: Ints, counts: Doubles, totals: Doubles) -> None:
    """Set the rows to 0, and take them out of the totals."""
    for row in rows:
        if row < counts.shape[0]:
            _zero(counts, totals, row)


@kernel
def counts_learn(
    first: int, last: int, changes: Ints, changed: int, item: Ints, column: Ints, weight: Floats,
    growth: Doubles, sign: float, counts: Doubles, totals: Doubles,
) -> int:  # fmt: skip
    """Add events first to last - 1, each in column 0 and in its own; returns the first table change left.

    column int32[n], 0 = none of its own; growth float64[n] of forward decay; counts float64[items, columns];
    totals float64[columns]: sums of the counts above 0. An item that loses its row is counted no more.
    """
    for event in range(first, last):
        while changed < changes.shape[0] and changes[changed, 0] == event:
            if changes[changed, 1] == GONE:
                _zero(counts, totals, changes[changed, 2])
            changed += 1
        gain = sign * np.float64(weight[event]) * growth[event]
        _add(counts, totals, item[event], 0, gain)
        if column[event] > 0:
            _add(counts, totals, item[event], column[event], gain)
    return changed
