# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload, operator"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""Compiled kernels of counts in a window of event time: a ring of buckets.

They call no kernel of another file: numba's disk cache would not notice a change there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from online_models.kernels import GONE, kernel

__all__ = ["window_learn"]

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]


@kernel
def window_learn(
    changes: Ints, item: Ints, weight: Floats, time_ms: Longs, width_ms: int, sign: float, counts: Doubles,
    bucket: Longs,
) -> None:  # fmt: skip
    """Add events to the buckets of their times; counts float64[items, ring], bucket int64[ring]: which bucket
    each place holds (-1 = none yet). A bucket that a newer one has taken the place of is gone for good.
    """
    changed = 0
    for event in range(item.shape[0]):
        while changed < changes.shape[0] and changes[changed, 0] == event:
            if changes[changed, 1] == GONE:
                counts[changes[changed, 2]] = 0.0
            changed += 1
        number = time_ms[event] // width_ms
        place = number % bucket.shape[0]
        if number > bucket[place] and sign > 0.0:
            counts[:, place] = 0.0
            bucket[place] = number
        if number == bucket[place]:
            counts[item[event], place] += sign * np.float64(weight[event])
