# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload, operator"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""Compiled kernels that follow users' chains of events through the ring of `serving.training.pasts`.

A chain ends at -1, or at the first place before `oldest`: there the ring holds other events now.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from online_models.kernels import kernel

__all__ = ["take_back", "walk"]

Bools = NDArray[np.bool_]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]


@kernel
def walk(
    newest: Longs, wanted: Ints, oldest: int, items: Ints, previous: Longs, times_ms: Longs, stamps: Longs,
    stamp: int, most: int, row_of: Ints, blocked: Ints, ends: Ints, seen_count: Ints, newest_ms: Longs,
    newest_at: Longs, is_repeat: Bools,
) -> None:  # fmt: skip
    """Fill the columns of `Before` for n chains; stamps int64[>= codes], none above `stamp` before."""
    room, size = items.shape[0], 0
    for event in range(newest.shape[0]):
        mark, first, place = stamp + event + 1, size, newest[event]
        newest_ms[event], newest_at[event], is_repeat[event] = -1, -1, False
        while place >= oldest and size - first < most:
            at = place % room
            code = items[at]
            if code >= 0:
                if newest_ms[event] < 0 and times_ms[at] >= 0:
                    newest_ms[event], newest_at[event] = times_ms[at], at
                if stamps[code] != mark:
                    stamps[code] = mark
                    blocked[size] = row_of[code]
                    size += 1
                    is_repeat[event] |= code == wanted[event]
            place = previous[at]
        seen_count[event] = size - first
        if is_repeat[event]:
            size = first
        ends[event] = size


@kernel
def take_back(
    newest: Longs, wanted: Ints, wanted_ms: Longs, oldest: int, items: Ints, previous: Longs, times_ms: Longs
) -> None:
    """Unname the newest event of each chain that has the wanted item and time (-1 is any)."""
    for event in range(newest.shape[0]):
        place = newest[event]
        while place >= oldest and place >= 0:
            at = place % items.shape[0]
            if items[at] == wanted[event] and (times_ms[at] == wanted_ms[event] or times_ms[at] < 0):
                items[at] = -1
                break
            place = previous[at]
