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

try:
    from online_models.covisitation_kernels import _find as find_position
except ImportError:
    from online_models.kernels import _find as find_position

__all__ = ["ONLINE", "RANKER", "REQUEST", "Found", "Learned", "Scratch", "Wanted", "best", "blend"]
__all__ += ["DENSE", "KINDS", "SCAN_USERS", "explain", "gather", "pick"]

COVISITATION, POPULARITY, FACTORS, REQUEST, RANKER = 1, 2, 4, 8, 16
"""Bits of `Found.sources`: who proposed a candidate, or (the ranker) had an opinion on it."""
ONLINE = 3
"""Online sources: rows of `Found.scores`, in the order of their bits."""
KINDS = ("covisitation", "popularity", "factors", "request", "ranker")
"""Kinds of reasons by the number that `explain` gives them."""
SCAN_USERS = 8
"""Users whose inner products with all items are taken in one pass over the items."""

_TILE = 256
"""Items of that pass at a time: with 32 factors, what fits in the first-level cache."""
DENSE = 4
"""Related scores are kept for every row, not in a list of rows, below this many rows an entry read."""
_LOWEST = np.int32(-(2**31))
"""Sort key of what may not be chosen."""
_LN2, _LOG2E = 0.6931471805599453, 1.4426950408889634

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
    """float32[n, ONLINE, C]: co-visitation, popularity, factors, each on its own scale; nothing behind a
    user's last."""


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
def _take_largest(keys: Ints, k: int, chosen: Ints) -> tuple[int, bool]:
    """Positions of the k largest keys (fewer where fewer are above _LOWEST), in their order, into `chosen`,
    which has room for one more; of equal ones at the cut the first are taken. Returns how many, and whether
    equals were left out."""
    if k <= 0:
        return 0, False
    highest, lowest, n = _LOWEST, np.int32(2**31 - 1), np.int32(0)
    for at in range(keys.shape[0]):
        key = keys[at]
        highest = max(highest, key)
        lowest = min(lowest, key if key > _LOWEST else np.int32(2**31 - 1))
        n += np.int32(key > _LOWEST)
    low, above, at_low = np.int64(lowest), np.int64(0), np.int64(n)
    if n > k:
        high = np.int64(highest) + 1
        while high - low > 1 and at_low != k:  # count(>= low) = at_low >= k > above = count(>= high)
            middle = (low + high) >> 1
            count = np.int64(_count_from(keys, middle))
            if count >= k:
                low, at_low = middle, count
            else:
                high, above = middle, count
    size, cut = 0, np.int32(low)
    spare = at_low if at_low <= k else k - above  # of those at the cut, when all above are in
    for at in range(keys.shape[0] if n > 0 else 0):
        equal = keys[at] == cut and at_low > k
        taken = keys[at] >= cut and (not equal or spare > 0)
        chosen[size] = at
        size += taken
        spare -= equal and taken
    return size, at_low > k


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
    for start in range(0, factors.shape[0], 16):
        stop = min(start + 16, factors.shape[0])
        for k in range(factors.shape[1]):
            for row in range(start, stop):
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
def _propose(found: Found, user: int, place: Ints, row: int, source: int) -> None:
    """Put a row among the user's candidates, or add the source to one that is there."""
    at = place[np.uint32(row)]
    if at < 0:
        at = found.length[user]
        if at == found.rows.shape[1]:
            return
        found.length[user] = at + 1
        found.rows[user, at] = row
        found.sources[user, at] = 0
        place[np.uint32(row)] = at
    found.sources[user, at] |= np.uint8(source)


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
def _propose_related(
    quota: int, n_touched: int, dense: bool, learned: Learned, servable: Bools, scratch: Scratch,
    found: Found, user: int, chosen: Ints,
) -> None:  # fmt: skip
    total, norm, blocked = scratch.total, learned.target_norm, scratch.blocked
    if dense:
        keys = scratch.keys[: servable.shape[0]]
        values = keys.view(np.float32)
        may, barred = servable.view(np.uint8), blocked.view(np.uint8)
        for row in range(keys.shape[0]):
            score = total[row] * norm[row]
            taken = (may[row] > barred[row]) & (score > 0.0)
            values[row] = score if taken else np.float32(-0.0)  # -0.0 has the bits of _LOWEST
    else:
        keys, size = scratch.keys[:n_touched], 0
        values = keys.view(np.float32)
        for position in range(n_touched):
            row = np.uint32(scratch.touched[position])
            score = total[row] * norm[row]
            scratch.touched[size] = row
            values[size] = score
            taken = score > 0.0 and servable[row] and not blocked[row]
            size += taken
            total[row] = -total[row] if taken else total[row]  # listed twice, it is not taken twice
        keys = keys[:size]
        for position in range(size):
            total[np.uint32(scratch.touched[position])] *= np.float32(-1.0)
    size, _ = _take_largest(keys, quota, chosen)
    for position in range(size):
        row = chosen[position] if dense else scratch.touched[chosen[position]]
        _propose(found, user, scratch.place, row, COVISITATION)


@kernel
def _propose_similar(
    quota: int, similar: Floats, servable: Bools, scratch: Scratch, found: Found, user: int, chosen: Ints
) -> None:
    """The best by inner product, all of which stand in `similar`."""
    rows = servable.shape[0]
    keys, may, barred = scratch.keys[:rows], servable.view(np.uint8), scratch.blocked.view(np.uint8)
    _to_keys(similar[:rows], keys)
    for row in range(rows):
        keys[row] = keys[row] if may[row] > barred[row] else _LOWEST
    size, _ = _take_largest(keys, quota, chosen)
    for position in range(size):
        _propose(found, user, scratch.place, chosen[position], FACTORS)


@kernel
def _propose_popular(
    quota: int, count: int, learned: Learned, servable: Bools, scratch: Scratch, found: Found, user: int
) -> None:
    """The `quota` most popular; then, while there are fewer than `count` candidates, what is beyond the top
    list, newest row first."""
    for place in range(learned.top.shape[0]):
        row = np.uint32(learned.top[place])
        if quota <= 0 or learned.popularity[row] <= 0.0:
            break
        if servable[row] and not scratch.blocked[row]:
            _propose(found, user, scratch.place, row, POPULARITY)
            quota -= 1
    for row in range(servable.shape[0] - 1, -1, -1):
        if found.length[user] >= count:
            break
        if servable[row] and not scratch.blocked[row] and scratch.place[row] < 0:
            _propose(found, user, scratch.place, row, POPULARITY)


@kernel
def _score_candidates(
    vector: Floats, similar: Floats, scanned: bool, learned: Learned, total: Floats, found: Found, user: int
) -> None:
    rows, scores = found.rows[user, : found.length[user]], found.scores[user]
    for column in range(rows.shape[0]):
        row = np.uint32(rows[column])
        scores[0, column] = total[row] * learned.target_norm[row]
        scores[1, column] = learned.popularity[row]
    if scanned:
        for column in range(rows.shape[0]):
            scores[2, column] = similar[np.uint32(rows[column])]
    else:
        for column in range(rows.shape[0]):
            scores[2, column] = _similarity(vector, learned.factors, rows[column])


@kernel
def _gather_one(
    user: int, blocked: Ints, asked: Ints, similar: Floats, scanned: bool, wanted: Wanted, learned: Learned,
    servable: Bools, quotas: Longs, scratch: Scratch, found: Found, chosen: Ints,
) -> None:  # fmt: skip
    place, total, recent = scratch.place, scratch.total, wanted.recent[user]
    found.length[user] = 0
    _mark(scratch.blocked, blocked, True)
    dense = servable.shape[0] <= DENSE * _entries(recent, learned)
    n_touched = _relate(recent, learned, total, scratch.touched, dense)
    if wanted.by_name[user]:
        for row in asked:
            if row >= 0 and servable[row] and not scratch.blocked[row]:
                _propose(found, user, place, row, REQUEST)
    else:
        _propose_related(quotas[0], n_touched, dense, learned, servable, scratch, found, user, chosen)
        if scanned:
            _propose_similar(quotas[2], similar, servable, scratch, found, user, chosen)
        quota = quotas[2]
        for row in wanted.nearest[user]:
            if quota > 0 and row >= 0 and servable[row] and not scratch.blocked[row]:
                _propose(found, user, place, row, FACTORS)
                quota -= 1
        count = wanted.count[user]
        _propose_popular(max(quotas[1], count), count, learned, servable, scratch, found, user)
    _score_candidates(wanted.users[user], similar, scanned, learned, total, found, user)
    if dense:
        total[: servable.shape[0]] = np.float32(0.0)
    for position in range(n_touched):
        total[np.uint32(scratch.touched[position])] = np.float32(0.0)
    _mark(scratch.blocked, blocked, False)
    for column in range(found.length[user]):
        place[np.uint32(found.rows[user, column])] = -1
    found.rows[user, found.length[user] :] = -1


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
    chosen = np.empty(max(quotas[0], quotas[2]) + 1, np.int32)
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
                masks[wanted.mask[user]], quotas, scratch, found, chosen,
            )  # fmt: skip


@kernel
def _mark(marks: Bools, rows: Ints, value: bool) -> None:
    for at in range(rows.shape[0]):
        if rows[at] >= 0:
            marks[np.uint32(rows[at])] = value


@kernel
def _log(values: Doubles, work: Doubles) -> None:
    """values = log values, in place, for normal positive ones: log(2^e m) = e log 2 + 2 artanh((m-1)/(m+1)),
    m in [√½, √2), to 1e-9. A loop of additions and multiplications, which fills the vector registers."""
    bits, mantissas = values.view(np.int64), work.view(np.int64)
    for at in range(values.shape[0]):
        mantissas[at] = (bits[at] & 0x000FFFFFFFFFFFFF) | 0x3FF0000000000000
    for at in range(values.shape[0]):
        m, exponent = work[at], np.float64((bits[at] >> 52) - 1023)
        large = m > 1.4142135623730951
        m = 0.5 * m if large else m
        exponent = exponent + 1.0 if large else exponent
        s = (m - 1.0) / (m + 1.0)
        q = s * s
        series = 2.0 + q * (2.0 / 3 + q * (2.0 / 5 + q * (2.0 / 7 + q * (2.0 / 9))))
        values[at] = exponent * _LN2 + s * series


@kernel
def _exp(values: Doubles, work: Doubles) -> None:
    """values = exp values, in place, for values of at most 0: 2^n e^r, |r| <= log(2) / 2, to 1e-9 of
    itself."""
    powers = work.view(np.int64)
    for at in range(values.shape[0]):
        x = max(values[at], -700.0)
        n = np.floor(x * _LOG2E + 0.5)
        powers[at] = (np.int64(n) + 1023) << 52
        r = x - n * _LN2
        tail = 1.0 / 24 + r * (1.0 / 120 + r * (1.0 / 720 + r * (1.0 / 5040 + r * (1.0 / 40320))))
        values[at] = 1.0 + r * (1.0 + r * (0.5 + r * (1.0 / 6 + r * tail)))
    for at in range(values.shape[0]):
        values[at] *= work[at]


@kernel
def _add_log_share(
    scores: Floats, weight: float, floor: float, out: Doubles, values: Doubles, work: Doubles
) -> None:
    """out += weight log p, p the scores' shares with a floor, all 1/n when there is none above 0."""
    total = 0.0
    for column in range(scores.shape[0]):
        total += max(np.float64(scores[column]), 0.0)
    if total <= 0.0:
        return
    least = floor * total / scores.shape[0]
    for column in range(scores.shape[0]):
        values[column] = max(np.float64(scores[column]), 0.0) + least
    _log(values, work)
    whole = np.log(total * (1.0 + floor))
    for column in range(scores.shape[0]):
        out[column] += weight * (values[column] - whole)


@kernel
def _add_log_softmax(logits: Floats, weight: float, out: Doubles, values: Doubles, work: Doubles) -> None:
    """out += weight log softmax(logits)."""
    highest, total = np.float32(-np.inf), 0.0
    for column in range(logits.shape[0]):
        highest = max(highest, logits[column])
    for column in range(logits.shape[0]):
        values[column] = np.float64(logits[column]) - highest
    _exp(values, work)
    for column in range(logits.shape[0]):
        total += values[column]
    whole = highest + np.log(total)
    for column in range(logits.shape[0]):
        out[column] += weight * (np.float64(logits[column]) - whole)


@kernel
def _add_ranker(logits: Floats, weight: float, out: Doubles, values: Doubles, work: Doubles) -> None:
    """out += weight log softmax over the known (not NaN); an unknown item gets its own standing in `out`,
    moved and scaled to the ranker's mean and spread on the known ones."""
    known, highest, total, mean, mean_out = 0.0, np.float32(-np.inf), 0.0, 0.0, 0.0
    for column in range(logits.shape[0]):
        is_known = logits[column] == logits[column]
        known += 1.0 if is_known else 0.0
        highest = max(highest, logits[column] if is_known else np.float32(-np.inf))
        mean += np.float64(logits[column]) if is_known else 0.0
        mean_out += out[column] if is_known else 0.0
    if known == 0.0:
        return
    mean, mean_out, spread, spread_out = mean / known, mean_out / known, 0.0, 0.0
    for column in range(logits.shape[0]):
        is_known = logits[column] == logits[column]
        values[column] = np.float64(logits[column]) - highest if is_known else -700.0
        spread += (np.float64(logits[column]) - mean) ** 2 if is_known else 0.0
        spread_out += (out[column] - mean_out) ** 2 if is_known else 0.0
    _exp(values, work)
    for column in range(logits.shape[0]):
        total += values[column]
    whole = highest + np.log(total)
    ratio = np.sqrt(spread / spread_out) if spread_out > 0.0 else 0.0
    for column in range(logits.shape[0]):
        is_known = logits[column] == logits[column]
        opinion = np.float64(logits[column]) if is_known else mean + ratio * (out[column] - mean_out)
        out[column] += weight * (opinion - whole)


@kernel
def blend(
    found: Found, logits: Floats, experience: Doubles, weights: tuple[float, float, float, float], floor:
    float, out: Floats,
) -> None:  # fmt: skip
    """One score a candidate, out float32[n, C], -inf behind a user's last: the equation of `serving.scoring`.

    logits float32[n, C], or [n, 0] without a ranker; experience float64[n] scales the factors' weight;
    weights: of co-visitation, popularity, factors, ranker. A ranker that knows a candidate adds its bit to
    the candidate's sources.
    """
    room = found.rows.shape[1]
    sums, parts, scraps = np.empty(room), np.empty(room), np.empty(room)
    for user in range(out.shape[0]):
        n = found.length[user]
        scores, blended, values, work = found.scores[user], sums[:n], parts[:n], scraps[:n]
        out[user, n:] = -np.inf
        if n == 0:
            continue
        blended[:] = 0.0
        _add_log_share(scores[0, :n], weights[0], floor, blended, values, work)
        _add_log_share(scores[1, :n], weights[1], floor, blended, values, work)
        if experience[user] > 0.0:
            _add_log_softmax(scores[2, :n], weights[2] * experience[user], blended, values, work)
        if logits.shape[1] > 0:
            _add_ranker(logits[user, :n], weights[3], blended, values, work)
            for column in range(n):
                if not np.isnan(logits[user, column]):
                    found.sources[user, column] |= np.uint8(RANKER)
        for column in range(n):
            out[user, column] = blended[column]


@kernel
def best(found: Found, blended: Floats, count: Ints, columns: Ints, tied: Bools) -> None:
    """The `count` best of each user, best first: columns int32[n, K], -1 padded. tied bool[n]: equal scores
    stand among them or at the cut, where the earlier candidate went first and the caller has the say."""
    keys = np.empty(found.rows.shape[1], np.int32)
    chosen = np.empty(columns.shape[1] + 1, np.int32)
    for user in range(columns.shape[0]):
        n = found.length[user]
        k = min(count[user], n)
        _to_keys(blended[user, :n], keys[:n])
        size, tied[user] = _take_largest(keys[:n], k, chosen)
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
def explain(
    recent: Ints, chosen: Ints, sources: Bytes, learned: Learned, because: Ints, kinds: Bytes
) -> None:
    """because int32[n, K, B]: the recent rows that gave most of each chosen row's co-visitation score, best
    first; kinds uint8[n, K]: the strongest reason's place in KINDS.

    recent int32[n, L], chosen int32[n, K] (distinct rows), both -1 padded; an item that is recent twice
    counts once. The ranker reads the whole history and gives no parts: its reason names the newest item.
    """
    shares = np.empty(because.shape[2], np.float32)
    window = min(recent.shape[1], learned.decay.shape[0])
    for user in range(chosen.shape[0]):
        newest = -1
        for position in range(recent.shape[1]):
            if newest < 0:
                newest = recent[user, position]
        for column in range(chosen.shape[1]):
            reasons = because[user, column]
            reasons[:] = -1
            if chosen[user, column] < 0:
                kinds[user, column] = 0
                continue
            shares[:] = 0.0
            for position in range(window):
                source = recent[user, position]
                if 0 <= source < learned.source_norm.shape[0] and learned.pool.length[source] > 0:
                    at = find_position(learned.pool, source, chosen[user, column])
                    if at >= 0:
                        part = np.float32(learned.decay[position]) * learned.source_norm[source]
                        share = part * learned.pool.values[learned.pool.start[source] + at]
                        _insert(shares, reasons, share, source)
            kind = 0 if reasons[0] >= 0 else _kind_without_neighbours(sources[user, column])
            kinds[user, column] = kind
            if kind == 4:
                reasons[0] = newest


@kernel
def _kind_without_neighbours(sources: int) -> int:
    if sources & REQUEST:
        return 3
    if sources & RANKER:
        return 4
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
