# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload, operator"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""Compiled kernels of the reasons: which of the user's recent items speak most for what was chosen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from online_models.kernels import RowPool
from serving.kernels import CONTENT, FACTORS, RANKER, REQUEST, Learned, kernel

__all__ = ["CONTENT_KIND", "explain"]

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int32]
Floats = NDArray[np.float32]

_RANKER_KIND = 4
CONTENT_KIND = 5
"""Its reasons are `serving.retrieval.kernels_content`'s."""


@kernel
def explain(
    recent: Ints, chosen: Ints, sources: Bytes, learned: Learned, place: Ints, because: Ints, kinds: Bytes
) -> None:
    """because int32[n, K, B]: the recent rows that gave most of each chosen row's co-visitation score, best
    first; kinds uint8[n, K]: the strongest reason's place in KINDS.

    recent int32[n, L], chosen int32[n, K] (distinct rows), both -1 padded; an item that is recent twice
    counts once. The ranker reads the whole history and gives no parts: its reason names the newest item.
    """
    shares = np.empty((chosen.shape[1], because.shape[2]), np.float32)
    for user in range(chosen.shape[0]):
        rows, reasons, newest = chosen[user], because[user], -1
        shares[:], reasons[:] = 0.0, -1
        for column in range(rows.shape[0]):
            if rows[column] >= 0:
                place[rows[column]] = column
        for position in range(recent.shape[1]):
            source = recent[user, position]
            newest = source if newest < 0 else newest
            if position < learned.decay.shape[0] and 0 <= source < learned.source_norm.shape[0]:
                part = np.float32(learned.decay[position]) * learned.source_norm[source]
                _add_shares(source, part, learned.pool, place, shares, reasons)
        for column in range(rows.shape[0]):
            kinds[user, column] = 0
            if rows[column] >= 0:
                place[rows[column]] = -1
                kind = 0 if reasons[column, 0] >= 0 else _kind_without_neighbours(sources[user, column])
                kinds[user, column] = kind
                if kind == _RANKER_KIND:
                    reasons[column, 0] = newest


@kernel
def _add_shares(source: int, part: float, pool: RowPool, place: Ints, shares: Floats, reasons: Ints) -> None:
    start = pool.start[source]
    stop = start + pool.length[source]
    keys, values = pool.keys[start:stop], pool.values[start:stop]
    for at in range(keys.shape[0]):
        column = place[np.uint32(keys[at])]
        if column >= 0:
            _insert(shares[column], reasons[column], part * values[at], source)


@kernel
def _kind_without_neighbours(sources: int) -> int:
    if sources & REQUEST:
        return 3
    if sources & CONTENT:
        return CONTENT_KIND
    if sources & RANKER:
        return _RANKER_KIND
    return 2 if sources & FACTORS else 1


@kernel
def _insert(shares: Floats, rows: Ints, share: float, row: int) -> None:
    """Keep the largest positive shares in falling order, each row once: shares of one row come in falling
    order."""
    for position in range(shares.shape[0]):
        if rows[position] == row and shares[position] >= share:
            return
        if share > shares[position]:
            for later in range(shares.shape[0] - 1, position, -1):
                shares[later], rows[later] = shares[later - 1], rows[later - 1]
            shares[position], rows[position] = share, row
            return
