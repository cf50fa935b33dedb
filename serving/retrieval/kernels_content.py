# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload, operator"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""Compiled kernels of the content source: what a user's recent items are like, and which new items are like
that.

One user after the other, so that a list does not depend on what else is in its batch. All stand in this file,
because numba's disk cache watches only the file of the kernel called.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.kernels import kernel

__all__ = ["USERS", "Known", "Pool", "content_reasons", "nearest_new"]

Bools = NDArray[np.bool_]
Bytes = NDArray[np.uint8]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


USERS = 8
"""Users whose products are taken in one pass over the new items."""
_TILE = 64
"""New items of that pass at a time: with texts 100 KB, what fits in the second-level cache."""


class Known(NamedTuple):
    """Content of items by row of the item table."""

    place: Ints
    """int32[>= rows]: an item's row of `table`, 0 where it has none."""
    table: Floats
    """float32[places, E]: blocks of the modalities, then a mask for each; `ContentVectors.table`."""
    starts: Longs
    """int64[M + 1]: where each modality's block starts, and the masks."""
    mean: Floats
    """float32[E - M]: of each block, over the items that have it."""
    decay: Doubles
    """float64[L]: weight of the newest, the second newest, ... recent item."""


class Pool(NamedTuple):
    """New items that have content."""

    rows: Ints
    """int32[m]: their rows of the item table."""
    vectors: Floats
    """float32[m, E], contiguous."""
    used: Doubles
    """float64[>= rows]: positive events by row of the item table."""
    most_used: float
    """With so many, an item is no longer new."""


@kernel
def _query(recent: Ints, known: Known, query: Floats, totals: Floats) -> None:
    """The centred mean of the recent items' content: query float32[E], with each block's -<query, mean> in
    the place of its mask, so that its product with an item's row is that with the item centred. totals
    float32[M]: what each block's weights sum to."""
    starts, mean, table = known.starts, known.mean, known.table
    masks = starts[totals.shape[0]]
    query[:], totals[:] = np.float32(0.0), np.float32(0.0)
    for position in range(min(recent.shape[0], known.decay.shape[0])):
        row = recent[position]
        at = known.place[row] if 0 <= row < known.place.shape[0] else 0
        part = np.float32(known.decay[position])
        for block in range(totals.shape[0]):
            if at > 0 and table[at, masks + block] > 0.0:
                totals[block] += part
                for k in range(starts[block], starts[block + 1]):
                    query[k] += part * table[at, k]
    for block in range(totals.shape[0]):
        if totals[block] > 0.0:
            moved = np.float32(0.0)
            for k in range(starts[block], starts[block + 1]):
                query[k] = query[k] / totals[block] - mean[k]
                moved += query[k] * mean[k]
            query[masks + block] = -moved


@kernel
def _is_better(score: float, row: int, other_score: float, other_row: int) -> bool:
    return score > other_score or (score == other_score and row < other_row)


@kernel
def _insert(score: float, row: int, rows: Ints, scores: Floats) -> None:
    """Keep the best, by falling score, then row; -1 behind the last."""
    at = rows.shape[0] - 1
    while at > 0 and (rows[at - 1] < 0 or _is_better(score, row, scores[at - 1], rows[at - 1])):
        rows[at], scores[at] = rows[at - 1], scores[at - 1]
        at -= 1
    rows[at], scores[at] = row, score


@kernel
def _products(queries: Floats, vectors: Floats, out: Floats) -> None:
    """out[u, :m] = vectors float32[m, E] times each of queries float32[u, E], a tile of vectors at a time for
    all users, in the same order of sums whoever else is asked for."""
    for start in range(0, vectors.shape[0], _TILE):
        stop = min(start + _TILE, vectors.shape[0])
        for user in range(queries.shape[0]):
            for at in range(start, stop):
                total = np.float32(0.0)
                for k in range(queries.shape[1]):
                    total += queries[user, k] * vectors[np.uint64(at), np.uint64(k)]
                out[user, at] = total


@kernel
def _mark(marks: Bools, rows: Ints, value: bool) -> None:
    for at in range(rows.shape[0]):
        if rows[at] >= 0:
            marks[rows[at]] = value


@kernel
def _choose(products: Floats, pool: Pool, may: Bools, marks: Bools, rows: Ints, scores: Floats) -> None:
    """The best of the pool, by products float32[m], that are above 0, may be served and are not marked."""
    last = rows.shape[0] - 1
    for at in range(pool.rows.shape[0]):
        score, row = products[at], pool.rows[at]
        good = score > 0.0 and may[row] and not marks[row] and pool.used[row] < pool.most_used
        if good and (rows[last] < 0 or _is_better(score, row, scores[last], rows[last])):
            _insert(score, row, rows, scores)


@kernel
def nearest_new(
    recent: Ints, known: Known, pool: Pool, masks: Bools, mask: Ints, by_name: Bools, blocked: Ints,
    blocked_end: Ints, marks: Bools, rows: Ints, scores: Floats,
) -> None:  # fmt: skip
    """The k new items most like what each user had, best first: rows int32[n, k], -1 padded, scores float32
    [n, k], above 0, which is what the mean item has.

    recent int32[n, L], newest first; masks bool[m, rows], of which mask int32[n] says each user's; by_name
    bool[n]: gets none; blocked and blocked_end as in `serving.kernels.Wanted`; marks bool[>= rows], all
    False, is left so.
    """
    n, first = rows.shape[0], 0
    queries = np.empty((USERS, known.table.shape[1]), np.float32)
    products = np.empty((USERS, pool.rows.shape[0]), np.float32)
    totals = np.empty(known.starts.shape[0] - 1, np.float32)
    rows[:], scores[:] = -1, np.float32(0.0)
    for start in range(0, n, USERS):
        stop = min(start + USERS, n)
        for user in range(start, stop):
            _query(recent[user], known, queries[user - start], totals)
        _products(queries[: stop - start], pool.vectors, products)
        for user in range(start, stop):
            mine = blocked[first : blocked_end[user]]
            first = blocked_end[user]
            if not by_name[user]:
                _mark(marks, mine, True)
                _choose(products[user - start], pool, masks[mask[user]], marks, rows[user], scores[user])
                _mark(marks, mine, False)


@kernel
def _share(at: int, item: int, known: Known, totals: Floats) -> float:
    """What one recent item, at its place in the table, gives to an item's product, before its decay."""
    starts, mean, table = known.starts, known.mean, known.table
    masks, total = starts[totals.shape[0]], np.float32(0.0)
    for block in range(totals.shape[0]):
        if table[at, masks + block] > 0.0 and table[item, masks + block] > 0.0:
            part = np.float32(0.0)
            for k in range(starts[block], starts[block + 1]):
                part += (table[at, k] - mean[k]) * (table[item, k] - mean[k])
            total += part / totals[block]
    return total


@kernel
def content_reasons(recent: Ints, chosen: Ints, kinds: Bytes, kind: int, known: Known, because: Ints) -> None:
    """because int32[n, K, B] of the chosen rows int32[n, K] whose kind is `kind`: the recent items that gave
    most of their products, best first, each once; -1 padded."""
    query = np.empty(known.table.shape[1], np.float32)
    totals = np.empty(known.starts.shape[0] - 1, np.float32)
    shares = np.empty(because.shape[2], np.float32)
    for user in range(chosen.shape[0]):
        if not (kinds[user] == kind).any():
            continue
        _query(recent[user], known, query, totals)
        for column in range(chosen.shape[1]):
            if chosen[user, column] < 0 or kinds[user, column] != kind:
                continue
            reasons = because[user, column]
            reasons[:], shares[:] = -1, np.float32(0.0)
            item = known.place[chosen[user, column]]
            for position in range(min(recent.shape[1], known.decay.shape[0])):
                row = recent[user, position]
                at = known.place[row] if 0 <= row < known.place.shape[0] else 0
                if at > 0 and not (reasons == row).any():
                    share = np.float32(known.decay[position]) * _share(at, item, known, totals)
                    if share > shares[-1]:
                        _insert(share, row, reasons, shares)
