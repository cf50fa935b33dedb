"""Compiled kernels of the learning log: a record's own table of item ids, and ids one behind the other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from online_models.kernels import kernel

__all__ = ["join", "renumber"]

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]


@kernel
def renumber(item: Ints, recent: Ints, place: Longs, stamp: int, table: Ints) -> int:
    """Replace item codes by their index among the codes met, which `table` lists; returns how many. Values
    below 0 stay."""
    n = 0
    for k in range(len(item)):
        if item[k] >= 0:
            code = item[k]
            if place[code] >> 32 != stamp:
                place[code] = (stamp << 32) | n
                table[n] = code
                n += 1
            item[k] = place[code] & 0xFFFFFFFF
        for j in range(recent.shape[1]):
            code = recent[k, j]
            if code >= 0:
                if place[code] >> 32 != stamp:
                    place[code] = (stamp << 32) | n
                    table[n] = code
                    n += 1
                recent[k, j] = place[code] & 0xFFFFFFFF
    return n


@kernel
def join(data: Bytes, starts: Longs, lengths: Longs, out: Bytes) -> None:
    """Copy spans of `data` one behind the other."""
    at = 0
    for k in range(len(starts)):
        for b in range(lengths[k]):
            out[at + b] = data[starts[k] + b]
        at += lengths[k]
