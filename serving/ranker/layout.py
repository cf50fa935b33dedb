"""What the network reads, laid out from rows of the item table by compiled loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["hide_unknown", "lay_out", "warm_up"]

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Floats = NDArray[np.float32]
F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """numba.njit without the interpreter lock, cached on disk."""
    return cast(F, numba.njit(nogil=True, cache=True)(function))


@kernel
def lay_out(recent: Ints, rows: Ints, index: Ints, history: Longs, candidates: Longs) -> int:
    """Vocabulary indices of what each user used and of the candidates; returns the longest history.

    recent int32[B, L] newest first and rows int32[B, C], both -1 padded; index int32[item rows] from a row to
    its place in the vocabulary, 0 where unknown. history int64[B, H] gets the newest H known ones, oldest
    first with 0 on the left; candidates int64[B, C] gets 0 where unknown.
    """
    longest, places = 0, history.shape[1]
    for user in range(recent.shape[0]):
        left = places
        for position in range(min(recent.shape[1], places)):
            row = recent[user, position]
            if 0 <= row < index.shape[0] and index[row] > 0:
                left -= 1
                history[user, left] = index[row]
        history[user, :left] = 0
        longest = max(longest, places - left)
        for column in range(rows.shape[1]):
            row = rows[user, column]
            candidates[user, column] = index[row] if 0 <= row < index.shape[0] else 0
    return longest


@kernel
def hide_unknown(scores: Floats, candidates: Longs) -> int:
    """Put NaN where a candidate is unknown (0); returns how many known ones' scores are not finite."""
    bad = 0
    for user in range(scores.shape[0]):
        for column in range(scores.shape[1]):
            if candidates[user, column] == 0:
                scores[user, column] = np.float32(np.nan)
            elif not np.isfinite(scores[user, column]):
                bad += 1
    return bad


def warm_up() -> None:
    """Compile the kernels, or load them from numba's cache, before the first ranker comes."""
    rows, indices = np.zeros((1, 1), dtype=np.int32), np.zeros((1, 1), dtype=np.int64)
    lay_out(rows, rows, rows[0], indices, indices)
    hide_unknown(np.zeros((1, 1), dtype=np.float32), indices)
