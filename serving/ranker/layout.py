"""What the network reads, laid out from rows of the item table by compiled loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["hide", "lay_out", "warm_up"]

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """numba.njit without the interpreter lock, cached on disk."""
    return cast(F, numba.njit(nogil=True, cache=True)(function))


@kernel
def lay_out(
    recent: Ints, kinds: Ints, times_ms: Longs, rows: Ints, places: Ints, types_of: Longs, history: Longs,
    types: Longs, gaps_s: Floats, candidates: Longs,
) -> int:  # fmt: skip
    """Places of what each user used and of the candidates; returns the longest history.

    recent int32[B, L] newest first, with the codes of their event types and their times int64[B, L], and rows
    int32[B, C], all -1 padded; places int32[item rows] leads from a row to its place, types_of int64[codes]
    from a code to the network's event type. history, types int64[B, H] and gaps_s float32[B, H] get the
    newest H, oldest first with 0 on the left; candidates int64[B, C] gets 0 for padding. The oldest item's
    gap is 0, whatever `recent` holds behind it: workers keep no more than they need, and training counts on
    it.
    """
    longest, room = 0, history.shape[1]
    for user in range(recent.shape[0]):
        left = room
        newer_ms = np.int64(-1)
        for position in range(recent.shape[1]):
            row = recent[user, position]
            if row < 0 or row >= places.shape[0]:
                continue
            if left == 0:
                break
            time_ms = times_ms[user, position]
            if left < room and time_ms >= 0 and newer_ms > time_ms:
                gaps_s[user, left] = np.float32((newer_ms - time_ms) / 1000.0)
            left -= 1
            history[user, left] = places[row]
            code = kinds[user, position]
            types[user, left] = types_of[code] if 0 <= code < types_of.shape[0] else 0
            gaps_s[user, left] = np.float32(0.0)
            newer_ms = time_ms
        history[user, :left] = 0
        types[user, :left] = 0
        gaps_s[user, :left] = np.float32(0.0)
        longest = max(longest, room - left)
        for column in range(rows.shape[1]):
            row = rows[user, column]
            candidates[user, column] = places[row] if 0 <= row < places.shape[0] else 0
    return longest


@kernel
def hide(scores: Floats, candidates: Longs, unseen: int) -> int:
    """Put NaN where a candidate is padding (0) or stands at the place `unseen`; returns how many others'
    scores are not finite."""
    bad = 0
    for user in range(scores.shape[0]):
        for column in range(scores.shape[1]):
            if candidates[user, column] == 0 or candidates[user, column] == unseen:
                scores[user, column] = np.float32(np.nan)
            elif not np.isfinite(scores[user, column]):
                bad += 1
    return bad


def warm_up() -> None:
    """Compile the kernels, or load them from numba's cache, before the first ranker comes."""
    rows, places = np.zeros((1, 1), dtype=np.int32), np.zeros((1, 1), dtype=np.int64)
    gaps = np.zeros((1, 1), dtype=np.float32)
    lay_out(rows, rows, places, rows, rows[0], places[0], places, places, gaps, places)
    hide(np.zeros((1, 1), dtype=np.float32), places, 2)
