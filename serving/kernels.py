# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload, operator"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""Compiled kernels of a list: gather a user's candidates from all sources, blend their scores, take the best.

One user after the other on scratch memory of their own, so that a list does not depend on what else is in its
batch. What is chosen from many (the best k of n scores) is found without a heap: a bisection over the scores'
bit patterns counts how many stand above, sixteen at a time, and ends at the k-th. All stand in this file,
because numba's disk cache watches only the file of the kernel called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from online_models.kernels import RowPool

__all__ = ["CONTENT", "ONLINE", "RANKER", "REQUEST", "Found", "Learned", "Scratch", "Wanted", "best"]
__all__ += ["DENSE", "KINDS", "SCAN_USERS", "gather", "pick"]

COVISITATION, POPULARITY, FACTORS, REQUEST, RANKER, CONTENT = 1, 2, 4, 8, 16, 32
"""Bits of `Found.sources`: who proposed a candidate, or (the ranker) had an opinion on it."""
ONLINE = 4
"""Online sources: rows of `Found.scores`, in the order of their bits."""
KINDS = ("covisitation", "popularity", "factors", "request", "ranker", "content")
"""Kinds of reasons by the number that `explain` gives them."""
SCAN_USERS = 8
"""Users whose inner products with all items are taken in one pass over the items."""

_TILE = 256
"""Items of that pass at a time: with 32 factors, what fits in the first-level cache."""
DENSE = 4
"""Related scores are kept for every row, not in a list of rows, below this many rows an entry read."""
_SELECT = 8
"""Keys of which only the largest is looked at first, where few of many are chosen."""
_LOWEST = np.int32(-(2**31))
"""Sort key of what may not be chosen."""
_MARGIN = 64
"""Beyond twice as many as are wanted, a selection goes on among all."""

Bools = NDArray[np.bool_]
Bytes = NDArray[np.uint8]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """numba.njit without the interpreter lock, cached on disk; division by zero gives inf instead of
    raising. Sums go in whatever order fills the vector registers: the same for the same user."""
    compiled = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract"})
    return cast(F, compiled(function))


class Learned(NamedTuple):
    """The learned item state as arrays: views, good until the next batch of the log is applied."""

    pool: RowPool
    source_norm: Floats
    """float32[>= rows]: what a co-visitation row is multiplied by on the source's side, then on the
    target's."""
    target_norm: Floats
    decay: Doubles
    """float64[query_length]: weight of the newest, the second newest, ... recent item."""
    popularity: Doubles
    """float64[>= rows]: decayed counts, up to one common factor."""
    top: Ints
    """The most popular rows, best first."""
    factors: Floats
    """float32[rows, d]."""


class Wanted(NamedTuple):
    """n users' queries as rows of the item table."""

    recent: Ints
    """int32[n, L], newest first, -1 padded."""
    users: Floats
    """float32[n, d]."""
    blocked: Ints
    """All users' rows that they may not get, one user behind the other; -1 counts for nothing."""
    blocked_end: Ints
    """int32[n]."""
    asked: Ints
    """All users' rows asked for by name, one user behind the other; -1 counts for nothing."""
    asked_end: Ints
    """int32[n]."""
    by_name: Bools
    """bool[n]: only what was asked for by name."""
    count: Ints
    """int32[n]: items wanted."""
    mask: Ints
    """int32[n]: which row of the masks says what may be served."""
    nearest: Ints
    """int32[n, factor candidates], -1 padded, from an index; [n, 0] where all items are scanned, or none."""
    content: Ints
    """int32[n, content candidates], -1 padded: new items like what the user had, none blocked or masked."""
    content_scores: Floats
    """float32[n, content candidates]: how like, above 0."""


class Scratch(NamedTuple):
    """Memory of one pipeline, by row of the item table; between users all `total` are 0, all `place` -1, all
    `blocked` False."""

    total: Floats
    place: Ints
    blocked: Bools
    touched: Ints
    keys: Ints
    """int32[>= rows and touched]: sort keys."""
    similar: Floats
    """float32[SCAN_USERS, >= rows], or [SCAN_USERS, 0] where items are not scanned."""
    transposed: Floats
    """float32[d, >= rows]: the items' factors, or [d, 0]."""


class Found(NamedTuple):
    """Candidates of n users, C at most."""

    length: Ints
    """int32[n]: candidates of each user."""
    rows: Ints
    """int32[n, C]: their rows; -1 behind a user's last."""
    sources: Bytes
    """uint8[n, C]: bits of those who proposed it."""
    scores: Floats
    """float32[n, ONLINE, C]: co-visitation, popularity, factors, content, each on its own scale; nothing
    behind a user's last. Content has a score of what it proposed, and 0 of all else."""


@kernel
def _to_keys(values: Floats, keys: Ints) -> None:
    """int32 keys that sort as the values do."""
    bits = values.view(np.int32)
    for at in range(values.shape[0]):
        keys[at] = bits[at] ^ ((bits[at] >> 31) & 0x7FFFFFFF)


@kernel
def _count_from(keys: Ints, least: int) -> int:
    n, bound = np.int32(0), np.int32(least)
    for at in range(keys.shape[0]):
        n += np.int32(keys[at] >= bound)
    return n


@kernel
def _bisect(keys: Ints, k: int, enough: int, cut: Longs) -> None:
    """Move cut = (low, high, keys from low on, keys from high on) until `enough` at most stand from low on,
    or only equals between low and high: always with k or more from low on, and fewer from high on."""
    while cut[1] - cut[0] > 1 and cut[2] > enough:
        middle = (cut[0] + cut[1]) >> 1
        count = np.int64(_count_from(keys, middle))
        if count >= k:
            cut[0], cut[2] = middle, count
        else:
            cut[1], cut[3] = middle, count


@kernel
def _take_by_tiles(keys: Ints, k: int, tiles: int, chosen: Ints, narrow: Ints) -> tuple[int, bool]:
    """`_take_largest` where there are many more keys than k: the k-th largest of the tiles' largest keys has
    k or more keys from it on, all of them in tiles that reach it, and seldom many more. Chooses -1, that is
    nothing, where it has, or where fewer than k tiles have a key that may be chosen."""
    tops = np.empty(tiles + 1, np.int32)
    highest, reached = _LOWEST, np.int32(0)
    for tile in range(tiles):
        top = _LOWEST
        for at in range(_SELECT):
            top = max(top, keys[np.uint64(tile * _SELECT + at)])
        tops[tile] = top
    tops[tiles] = _LOWEST
    for at in range(tiles * _SELECT, keys.shape[0]):
        tops[tiles] = max(tops[tiles], keys[at])
    for tile in range(tiles + 1):
        highest = max(highest, tops[tile])
        reached += np.int32(tops[tile] > _LOWEST)
    if reached < k:
        return -1, False
    cut = np.array([np.int64(_LOWEST) + 1, np.int64(highest) + 1, np.int64(reached), np.int64(0)])
    _bisect(tops, k, k, cut)
    low, size, room = np.int32(cut[0]), 0, 2 * k + _MARGIN
    for tile in range(tiles + 1):
        if tops[tile] < low:
            continue
        first = tile * _SELECT
        for at in range(first, min(first + _SELECT, keys.shape[0])):
            if size > room:
                return -1, False
            chosen[size], narrow[size] = at, keys[at]
            size += keys[at] >= low
    if size > room:
        return -1, False
    cut[1], cut[2], cut[3] = np.int64(highest) + 1, size, 0
    _bisect(narrow[:size], k, k, cut)
    return _emit(narrow[:size], k, cut, chosen, chosen, True), cut[2] > k


@kernel
def _take_largest(keys: Ints, k: int, chosen: Ints, narrow: Ints) -> tuple[int, bool]:
    """Positions of the k largest keys (fewer where fewer are above _LOWEST), in their order, into `chosen`;
    of equal ones at the cut the first are taken. `chosen` and the scratch `narrow` have room for
    `selection_room(k)`. Returns how many, and whether equals were left out."""
    if k <= 0:
        return 0, False
    tiles = keys.shape[0] // _SELECT
    if tiles >= 4 * k:
        found = _take_by_tiles(keys, k, tiles, chosen, narrow)
        if found[0] >= 0:
            return found
    highest, lowest, n = _LOWEST, np.int32(2**31 - 1), np.int32(0)
    for at in range(keys.shape[0]):
        key = keys[at]
        highest = max(highest, key)
        lowest = min(lowest, key if key > _LOWEST else np.int32(2**31 - 1))
        n += np.int32(key > _LOWEST)
    if n == 0:
        return 0, False
    cut = np.array([np.int64(lowest), np.int64(highest) + 1, np.int64(n), np.int64(0)])
    few = 2 * k + _MARGIN
    _bisect(keys, k, few, cut)
    if cut[2] > few:  # so many equal ones
        return _emit(keys, k, cut, chosen, chosen, False), True
    size, low = 0, np.int32(cut[0])
    for at in range(keys.shape[0]):
        chosen[size], narrow[size] = at, keys[at]
        size += keys[at] >= low
    if size <= k:
        return size, False
    _bisect(narrow[:size], k, k, cut)
    return _emit(narrow[:size], k, cut, chosen, chosen, True), cut[2] > k


@kernel
def _emit(keys: Ints, k: int, cut: Longs, positions: Ints, chosen: Ints, named: bool) -> int:
    """The positions of keys from low on, the first of those at low while there is room for k in all; where
    `named`, what `positions` has in their place."""
    size, low = 0, np.int32(cut[0])
    exact = cut[2] <= k
    spare = k - cut[3]
    for at in range(keys.shape[0]):
        equal = keys[at] == low and not exact
        taken = keys[at] >= low and (not equal or spare > 0)
        chosen[size] = positions[at] if named else at
        size += taken
        spare -= equal and taken
    return size


@kernel
def selection_room(k: int) -> int:
    """What `_take_largest` needs to choose k."""
    return 2 * k + _MARGIN + 1


@kernel
def _similarity(vector: Floats, factors: Floats, row: int) -> float:
    """vector · factors[row]. Takes the row by its number, because a view made for every row would cost as
    much as the sum."""
    total = np.float32(0.0)
    for k in range(vector.shape[0]):
        total += vector[k] * factors[np.uint64(row), np.uint64(k)]
    return total


@kernel
def _transpose(factors: Floats, out: Floats) -> None:
    rows, dimension = factors.shape
    for row in range(0, rows - 7, 8):  # eight columns written side by side: a third of the time of one
        for k in range(dimension):
            out[k, row], out[k, row + 1] = factors[row, k], factors[row + 1, k]
            out[k, row + 2], out[k, row + 3] = factors[row + 2, k], factors[row + 3, k]
            out[k, row + 4], out[k, row + 5] = factors[row + 4, k], factors[row + 5, k]
            out[k, row + 6], out[k, row + 7] = factors[row + 6, k], factors[row + 7, k]
    for row in range(rows - rows % 8, rows):
        for k in range(dimension):
            out[k, row] = factors[row, k]


@kernel
def _inner_products(vectors: Floats, transposed: Floats, rows: int, out: Floats) -> None:
    """out[u, :rows] = vectors[u] · items, a tile of items at a time for all users."""
    dimension = vectors.shape[1]
    for start in range(0, rows, _TILE):
        stop = min(start + _TILE, rows)
        for user in range(vectors.shape[0]):
            vector, sums = vectors[user], out[user, start:stop]
            sums[:] = np.float32(0.0)
            for k in range(0, dimension - 3, 4):
                v0, v1, v2, v3 = vector[k], vector[k + 1], vector[k + 2], vector[k + 3]
                t0, t1 = transposed[k, start:stop], transposed[k + 1, start:stop]
                t2, t3 = transposed[k + 2, start:stop], transposed[k + 3, start:stop]
                for at in range(stop - start):
                    sums[at] += v0 * t0[at] + v1 * t1[at] + v2 * t2[at] + v3 * t3[at]
            for k in range(dimension - dimension % 4, dimension):
                v0, t0 = vector[k], transposed[k, start:stop]
                for at in range(stop - start):
                    sums[at] += v0 * t0[at]


@kernel
def _propose(rows: Ints, sources: Bytes, n: int, place: Ints, row: int, source: int) -> int:
    """Put a row among a user's n candidates, or add the source to one that is there; returns how many."""
    at = place[np.uint32(row)]
    if at >= 0:
        sources[np.uint32(at)] |= np.uint8(source)
        return n
    if n == rows.shape[0]:
        return n
    rows[n], sources[n], place[np.uint32(row)] = row, source, n
    return n + 1


@kernel
def _entries(recent: Ints, learned: Learned) -> int:
    n = np.int64(0)
    for position in range(min(recent.shape[0], learned.decay.shape[0])):
        if 0 <= recent[position] < learned.source_norm.shape[0]:
            n += learned.pool.length[recent[position]]
    return n


@kernel
def _relate(recent: Ints, learned: Learned, total: Floats, touched: Ints, dense: bool) -> int:
    """total[i] = Σ_r d_r T[h_r, i] / norm of h_r; returns how many rows are listed in `touched` (some may be
    twice), none when dense."""
    n = 0
    for position in range(min(recent.shape[0], learned.decay.shape[0])):
        source = recent[position]
        if source < 0 or source >= learned.source_norm.shape[0]:
            continue
        part = np.float32(np.float32(learned.decay[position]) * learned.source_norm[source])
        start = learned.pool.start[source]
        stop = start + learned.pool.length[source]
        keys, values = learned.pool.keys[start:stop], learned.pool.values[start:stop]
        if dense:
            for at in range(keys.shape[0]):
                total[np.uint32(keys[at])] += part * values[at]
        else:
            for at in range(keys.shape[0]):
                key = np.uint32(keys[at])
                touched[n] = key
                n += total[key] == 0.0
                total[key] += part * values[at]
    return n


@kernel
def _related(
    quota: int, dense: bool, total: Floats, norm: Floats, may: Bytes, blocked: Bytes, touched: Ints,
    all_keys: Ints, chosen: Ints, narrow: Ints,
) -> int:  # fmt: skip
    """The best by co-visitation into `chosen`; returns how many."""
    if dense:
        keys = all_keys[: may.shape[0]]
        values = keys.view(np.float32)
        for row in range(keys.shape[0]):
            score = total[row] * norm[row]
            taken = (may[row] > blocked[row]) & (score > 0.0)
            values[row] = score if taken else np.float32(-0.0)  # -0.0 has the bits of _LOWEST
        return _take_largest(keys, quota, chosen, narrow)[0]
    keys, size = all_keys[: touched.shape[0]], 0
    values = keys.view(np.float32)
    for position in range(touched.shape[0]):
        row = np.uint32(touched[position])
        score = total[row] * norm[row]
        touched[size], touched[position] = touched[position], touched[size]
        values[size] = score
        taken = score > 0.0 and may[row] > blocked[row]
        size += taken
        total[row] = -total[row] if taken else total[row]  # listed twice, it is not taken twice
    for position in range(size):
        total[np.uint32(touched[position])] *= np.float32(-1.0)
    n, _ = _take_largest(keys[:size], quota, chosen, narrow)
    for position in range(n):
        chosen[position] = touched[chosen[position]]
    return n


@kernel
def _similar(
    quota: int, similar: Floats, may: Bytes, blocked: Bytes, all_keys: Ints, chosen: Ints, narrow: Ints
) -> int:
    """The best by inner product, all of which stand in `similar`, into `chosen`; returns how many."""
    keys = all_keys[: may.shape[0]]
    _to_keys(similar[: may.shape[0]], keys)
    for row in range(keys.shape[0]):
        keys[row] = keys[row] if may[row] > blocked[row] else _LOWEST
    return _take_largest(keys, quota, chosen, narrow)[0]


@kernel
def _propose_popular(
    quota: int, count: int, top: Ints, popularity: Doubles, may: Bytes, blocked: Bytes, place: Ints,
    rows: Ints, sources: Bytes, n: int,
) -> int:  # fmt: skip
    """The `quota` most popular; then, while there are fewer than `count` candidates, what is beyond the top
    list, newest row first."""
    for at in range(top.shape[0]):
        row = np.uint32(top[at])
        if quota <= 0 or popularity[row] <= 0.0:
            break
        if may[row] > blocked[row]:
            n = _propose(rows, sources, n, place, row, POPULARITY)
            quota -= 1
    if n < count:
        for row in range(may.shape[0] - 1, -1, -1):
            if n >= count:
                break
            if may[row] > blocked[row] and place[row] < 0:
                n = _propose(rows, sources, n, place, row, POPULARITY)
    return n


@kernel
def _score_candidates(
    rows: Ints, scores: Floats, vector: Floats, similar: Floats, scanned: bool, total: Floats, norm: Floats,
    popularity: Doubles, factors: Floats,
) -> None:  # fmt: skip
    for column in range(rows.shape[0]):
        row = np.uint32(rows[column])
        scores[0, column] = total[row] * norm[row]
        scores[1, column] = popularity[row]
    if scanned:
        for column in range(rows.shape[0]):
            scores[2, column] = similar[np.uint32(rows[column])]
    else:
        for column in range(rows.shape[0]):
            scores[2, column] = _similarity(vector, factors, rows[column])


@kernel
def _propose_all(
    user: int, n_touched: int, dense: bool, scanned: bool, similar: Floats, wanted: Wanted, learned: Learned,
    servable: Bools, quotas: Longs, scratch: Scratch, rows: Ints, sources: Bytes, chosen: Ints, narrow: Ints,
) -> int:  # fmt: skip
    """What the online sources propose; returns how many candidates."""
    place, keys, may = scratch.place, scratch.keys, servable.view(np.uint8)
    blocked, touched, n = scratch.blocked.view(np.uint8), scratch.touched[:n_touched], 0
    size = _related(
        quotas[0], dense, scratch.total, learned.target_norm, may, blocked, touched, keys, chosen, narrow
    )
    for at in range(size):
        n = _propose(rows, sources, n, place, chosen[at], COVISITATION)
    if scanned:
        size = _similar(quotas[2], similar, may, blocked, keys, chosen, narrow)
        for at in range(size):
            n = _propose(rows, sources, n, place, chosen[at], FACTORS)
    quota, nearest = quotas[2], wanted.nearest[user]
    for at in range(nearest.shape[0]):
        row = nearest[at]
        if quota > 0 and row >= 0 and may[row] > blocked[row]:
            n = _propose(rows, sources, n, place, row, FACTORS)
            quota -= 1
    for at in range(wanted.content.shape[1]):
        if wanted.content[user, at] >= 0:
            n = _propose(rows, sources, n, place, wanted.content[user, at], CONTENT)
    count = np.int64(wanted.count[user])
    return _propose_popular(
        max(quotas[1], count), count, learned.top, learned.popularity, may, blocked, place, rows, sources, n
    )


@kernel
def _gather_one(
    user: int, blocked: Ints, asked: Ints, similar: Floats, scanned: bool, wanted: Wanted, learned: Learned,
    servable: Bools, quotas: Longs, scratch: Scratch, found: Found, chosen: Ints, narrow: Ints,
) -> None:  # fmt: skip
    place, total, recent, marks = scratch.place, scratch.total, wanted.recent[user], scratch.blocked
    rows, sources, touched = found.rows[user], found.sources[user], scratch.touched
    _mark(marks, blocked, True)
    dense = servable.shape[0] <= DENSE * _entries(recent, learned)
    n_touched, n = _relate(recent, learned, total, touched, dense), 0
    if wanted.by_name[user]:
        for at in range(asked.shape[0]):
            row = asked[at]
            if row >= 0 and servable[row] and not marks[row]:
                n = _propose(rows, sources, n, place, row, REQUEST)
    else:
        n = _propose_all(
            user, n_touched, dense, scanned, similar, wanted, learned, servable, quotas, scratch, rows,
            sources, chosen, narrow,
        )  # fmt: skip
    _score_candidates(
        rows[:n], found.scores[user], wanted.users[user], similar, scanned, total, learned.target_norm,
        learned.popularity, learned.factors,
    )  # fmt: skip
    found.scores[user, 3, :n] = np.float32(0.0)
    for at in range(wanted.content.shape[1] if not wanted.by_name[user] else 0):
        row = wanted.content[user, at]
        if row >= 0 and place[np.uint32(row)] >= 0:
            found.scores[user, 3, place[np.uint32(row)]] = wanted.content_scores[user, at]
    if dense:
        total[: servable.shape[0]] = np.float32(0.0)
    for position in range(n_touched):
        total[np.uint32(touched[position])] = np.float32(0.0)
    _mark(marks, blocked, False)
    for column in range(n):
        place[np.uint32(rows[column])] = -1
    rows[n:], found.length[user] = -1, n


@kernel
def gather(
    wanted: Wanted, learned: Learned, masks: Bools, quotas: Longs, scratch: Scratch, found: Found
) -> None:
    """Fill `found`: what each source proposes to each user, and every source's score of all of it.

    masks bool[m, rows]: what may be served; quotas int64[ONLINE]: candidates of each source at most. Nothing
    that is blocked or masked takes a place in a source's quota. Where `scratch.similar` has room, the
    factors' candidates come from a scan of all items, else from `wanted.nearest`.
    """
    users, rows = wanted.recent.shape[0], masks.shape[1]
    room = selection_room(max(quotas[0], quotas[2]))
    chosen, narrow = np.empty(room, np.int32), np.empty(room, np.int32)
    scanned = quotas[2] > 0 and scratch.similar.shape[1] >= rows and rows <= learned.factors.shape[0]
    if scanned:
        _transpose(learned.factors[:rows], scratch.transposed)
    blocked_from = asked_from = 0
    for first in range(0, users, SCAN_USERS):
        last = min(first + SCAN_USERS, users)
        if scanned:
            _inner_products(wanted.users[first:last], scratch.transposed, rows, scratch.similar)
        for user in range(first, last):
            blocked = wanted.blocked[blocked_from : wanted.blocked_end[user]]
            asked = wanted.asked[asked_from : wanted.asked_end[user]]
            blocked_from, asked_from = wanted.blocked_end[user], wanted.asked_end[user]
            _gather_one(
                user, blocked, asked, scratch.similar[user - first], scanned, wanted, learned,
                masks[wanted.mask[user]], quotas, scratch, found, chosen, narrow,
            )  # fmt: skip


@kernel
def _mark(marks: Bools, rows: Ints, value: bool) -> None:
    for at in range(rows.shape[0]):
        if rows[at] >= 0:
            marks[np.uint32(rows[at])] = value


@kernel
def best(found: Found, blended: Floats, count: Ints, columns: Ints, tied: Bools) -> None:
    """The `count` best of each user, best first: columns int32[n, K], -1 padded. tied bool[n]: equal scores
    stand among them or at the cut, where the earlier candidate went first and the caller has the say."""
    keys = np.empty(found.rows.shape[1], np.int32)
    room = selection_room(columns.shape[1])
    chosen, narrow = np.empty(room, np.int32), np.empty(room, np.int32)
    for user in range(columns.shape[0]):
        n = found.length[user]
        k = np.int64(min(count[user], n))  # one version of what selects
        _to_keys(blended[user, :n], keys[:n])
        size, tied[user] = _take_largest(keys[:n], k, chosen, narrow)
        _sort_best_first(chosen[:size], keys)
        for place in range(size - 1):
            tied[user] |= keys[chosen[place]] == keys[chosen[place + 1]]
        columns[user, :size] = chosen[:size]
        columns[user, size:] = -1


@kernel
def _is_before(keys: Ints, column: int, other: int) -> bool:
    return keys[column] > keys[other] or (keys[column] == keys[other] and column < other)


@kernel
def _sift_down(columns: Ints, keys: Ints, parent: int, size: int) -> None:
    """Put columns[parent] in its place in a heap with the last in the order on top."""
    column = columns[parent]
    while True:
        child = 2 * parent + 1
        if child >= size:
            break
        if child + 1 < size and _is_before(keys, columns[child], columns[child + 1]):
            child += 1
        if not _is_before(keys, column, columns[child]):
            break
        columns[parent] = columns[child]
        parent = child
    columns[parent] = column


@kernel
def _sort_best_first(columns: Ints, keys: Ints) -> None:
    size = columns.shape[0]
    for parent in range(size // 2 - 1, -1, -1):
        _sift_down(columns, keys, parent, size)
    for last in range(size - 1, 0, -1):
        columns[0], columns[last] = columns[last], columns[0]
        _sift_down(columns, keys, 0, last)


@kernel
def pick(
    found: Found, blended: Floats, columns: Ints, rows: Ints, scores: Floats, sources: Bytes, length: Ints
) -> None:
    """Rows, scores and sources of the chosen columns, all [n, K]; length int32[n]."""
    for user in range(columns.shape[0]):
        size = 0
        for place in range(columns.shape[1]):
            column = columns[user, place]
            if column >= 0:
                rows[user, place] = found.rows[user, column]
                scores[user, place] = blended[user, column]
                sources[user, place] = found.sources[user, column]
                size += 1
        length[user] = size
