# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload, operator"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""Compiled kernels of a list: gather a user's candidates from all sources, blend their scores, take the best.

Sequential, without fastmath, one user after the other on scratch memory of their own: a list does not depend
on what else is in its batch. All stand in this file, because numba's disk cache watches only the file of the
kernel called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from online_models.kernels import RowPool

__all__ = ["ONLINE", "RANKER", "REQUEST", "Found", "Learned", "Scratch", "Wanted", "best", "blend"]
__all__ += ["explain", "gather"]

COVISITATION, POPULARITY, FACTORS, REQUEST, RANKER = 1, 2, 4, 8, 16
"""Bits of `Found.sources`: who proposed a candidate, or (the ranker) had an opinion on it."""
ONLINE = 3
"""Online sources: columns of `Found.scores`, in the order of their bits."""

Bools = NDArray[np.bool_]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """numba.njit without the interpreter lock, cached on disk; division by zero gives inf instead of
    raising."""
    return cast(F, numba.njit(nogil=True, cache=True, error_model="numpy")(function))


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


class Scratch(NamedTuple):
    """Memory of one pipeline, by row of the item table; between users all `total` are 0 and all `place`
    -1."""

    total: Floats
    place: Ints
    blocked: NDArray[np.bool_]
    touched: Ints


class Found(NamedTuple):
    """Candidates of n users, C at most."""

    length: Ints
    """int32[n]: candidates of each user."""
    rows: Ints
    """int32[n, C]: their rows; -1 behind a user's last."""
    sources: NDArray[np.uint8]
    """uint8[n, C]: bits of those who proposed it."""
    scores: Floats
    """float32[n, C, ONLINE]: co-visitation, popularity, factors, each on its own scale."""


@kernel
def _is_better(score: float, row: int, other_score: float, other_row: int) -> bool:
    return score > other_score or (score == other_score and row < other_row)


@kernel
def _sink(scores: Floats, rows: Ints, size: int, score: float, row: int) -> None:
    """Replace the top (the worst) of a heap by (score, row)."""
    parent = 0
    while True:
        child = 2 * parent + 1
        if child >= size:
            break
        if child + 1 < size and _is_better(scores[child], rows[child], scores[child + 1], rows[child + 1]):
            child += 1
        if not _is_better(score, row, scores[child], rows[child]):
            break
        scores[parent], rows[parent] = scores[child], rows[child]
        parent = child
    scores[parent], rows[parent] = score, row


@kernel
def _offer(scores: Floats, rows: Ints, size: int, score: float, row: int) -> int:
    """Offer (score, row) to a heap of the best k = len(rows); returns its size. Equal scores: lower row
    wins."""
    if size < rows.shape[0]:
        child = size
        while child > 0:
            parent = (child - 1) // 2
            if not _is_better(scores[parent], rows[parent], score, row):
                break
            scores[child], rows[child] = scores[parent], rows[parent]
            child = parent
        scores[child], rows[child] = score, row
        return size + 1
    if size > 0 and _is_better(score, row, scores[0], rows[0]):
        _sink(scores, rows, size, score, row)
    return size


@kernel
def _sort_best_first(scores: Floats, rows: Ints, size: int) -> None:
    for last in range(size - 1, 0, -1):
        score, row = scores[last], rows[last]
        scores[last], rows[last] = scores[0], rows[0]
        _sink(scores, rows, last, score, row)


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def _similarity(vector: Floats, factors: Floats, row: int) -> float:
    """vector · factors[row], summed in whatever order fills the vector registers: a third of the time in
    order.

    Takes the row by its number, because a view made for every row would cost as much as the sum.
    """
    total = np.float32(0.0)
    for k in range(vector.shape[0]):
        total += vector[k] * factors[np.uint64(row), np.uint64(k)]
    return total


@kernel
def _propose(found: Found, user: int, place: Ints, row: int, source: int) -> None:
    """Put a row among the user's candidates, or add the source to one that is there."""
    at = place[row]
    if at < 0:
        at = found.length[user]
        if at == found.rows.shape[1]:
            return
        found.length[user] = at + 1
        found.rows[user, at] = row
        place[row] = at
    found.sources[user, at] |= np.uint8(source)


@kernel
def _relate(recent: Ints, learned: Learned, total: Floats, touched: Ints) -> int:
    """total[i] = Σ_r d_r T[h_r, i] / norm of h_r; returns how many rows were touched (some may be listed
    twice)."""
    n = 0
    for position in range(min(recent.shape[0], learned.decay.shape[0])):
        source = recent[position]
        if source < 0 or source >= learned.source_norm.shape[0]:
            continue
        part = np.float32(learned.decay[position]) * learned.source_norm[source]
        start = learned.pool.start[source]
        for slot in range(start, start + learned.pool.length[source]):
            key = np.uint32(learned.pool.keys[slot])  # unsigned: no test for a negative index in this loop
            touched[n] = key
            n += total[key] == 0.0
            total[key] += part * learned.pool.values[slot]
    return n


@kernel
def _propose_related(
    n_touched: int, learned: Learned, servable: Bools, scratch: Scratch, found: Found, user: int,
    scores: Floats, rows: Ints,
) -> None:  # fmt: skip
    size = 0
    for position in range(n_touched):
        row = np.int64(scratch.touched[position])
        score = scratch.total[row] * learned.target_norm[row]
        if score > 0.0 and servable[row] and not scratch.blocked[row]:
            size = _offer(scores, rows, size, score, row)
    for position in range(size):
        _propose(found, user, scratch.place, rows[position], COVISITATION)


@kernel
def _propose_similar(
    vector: Floats, learned: Learned, servable: Bools, scratch: Scratch, found: Found, user: int,
    scores: Floats, rows: Ints,
) -> None:  # fmt: skip
    size = 0
    for row in range(learned.factors.shape[0] if rows.shape[0] > 0 else 0):
        if servable[row] and not scratch.blocked[row]:
            size = _offer(scores, rows, size, _similarity(vector, learned.factors, row), row)
    for position in range(size):
        _propose(found, user, scratch.place, rows[position], FACTORS)


@kernel
def _propose_popular(
    quota: int, count: int, learned: Learned, servable: Bools, scratch: Scratch, found: Found, user: int
) -> None:
    """The `quota` most popular; then, while there are fewer than `count` candidates, what is beyond the top
    list, newest row first."""
    for place in range(learned.top.shape[0]):
        row = learned.top[place]
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
def _score_candidates(vector: Floats, learned: Learned, total: Floats, found: Found, user: int) -> None:
    for column in range(found.length[user]):
        row = found.rows[user, column]
        found.scores[user, column, 0] = total[row] * learned.target_norm[row]
        found.scores[user, column, 1] = learned.popularity[row]
        found.scores[user, column, 2] = _similarity(vector, learned.factors, row)


@kernel
def gather(
    wanted: Wanted, learned: Learned, masks: Bools, quotas: Longs, scratch: Scratch, found: Found
) -> None:
    """Fill `found`, which is empty: what each source proposes to each user, and every source's score of all
    of it.

    masks bool[m, rows]: what may be served; quotas int64[ONLINE]: candidates of each source at most. Nothing
    that is blocked or masked takes a place in a source's quota.
    """
    related_scores, related_rows = np.empty(quotas[0], np.float32), np.empty(quotas[0], np.int32)
    similar_scores, similar_rows = np.empty(quotas[2], np.float32), np.empty(quotas[2], np.int32)
    blocked_from = asked_from = 0
    for user in range(wanted.recent.shape[0]):
        servable, vector = masks[wanted.mask[user]], wanted.users[user]
        blocked = wanted.blocked[blocked_from : wanted.blocked_end[user]]
        asked = wanted.asked[asked_from : wanted.asked_end[user]]
        blocked_from, asked_from = wanted.blocked_end[user], wanted.asked_end[user]
        _mark(scratch.blocked, blocked, True)
        n_touched = _relate(wanted.recent[user], learned, scratch.total, scratch.touched)
        if wanted.by_name[user]:
            for row in asked:
                if row >= 0 and servable[row] and not scratch.blocked[row]:
                    _propose(found, user, scratch.place, row, REQUEST)
        else:
            _propose_related(n_touched, learned, servable, scratch, found, user, related_scores, related_rows)
            _propose_similar(vector, learned, servable, scratch, found, user, similar_scores, similar_rows)
            _propose_popular(
                max(quotas[1], wanted.count[user]),
                wanted.count[user],
                learned,
                servable,
                scratch,
                found,
                user,
            )
        _score_candidates(vector, learned, scratch.total, found, user)
        for position in range(n_touched):
            scratch.total[scratch.touched[position]] = 0.0
        _mark(scratch.blocked, blocked, False)
        for column in range(found.length[user]):
            scratch.place[found.rows[user, column]] = -1


@kernel
def _mark(marks: Bools, rows: Ints, value: bool) -> None:
    for row in rows:
        if row >= 0:
            marks[row] = value


@kernel
def _add_log_share(scores: Floats, weight: float, floor: float, out: Doubles) -> None:
    """out += weight log p, p the scores' shares with a floor, all 1/n when there is none above 0."""
    total = 0.0
    for column in range(scores.shape[0]):
        total += max(np.float64(scores[column]), 0.0)
    if total <= 0.0:
        return
    least = floor * total / scores.shape[0]
    whole = np.log(total * (1.0 + floor))
    for column in range(scores.shape[0]):
        out[column] += weight * (np.log(max(np.float64(scores[column]), 0.0) + least) - whole)


@kernel
def _add_log_softmax(logits: Floats, weight: float, out: Doubles) -> None:
    """out += weight log softmax(logits)."""
    highest, total = -np.inf, 0.0
    for logit in logits:
        highest = max(highest, np.float64(logit))
    for logit in logits:
        total += np.exp(np.float64(logit) - highest)
    whole = highest + np.log(total)
    for column in range(logits.shape[0]):
        out[column] += weight * (np.float64(logits[column]) - whole)


@kernel
def _add_ranker(logits: Floats, weight: float, out: Doubles) -> None:
    """out += weight log softmax over the known (not NaN); an unknown item gets its own standing in `out`,
    moved and scaled to the ranker's mean and spread on the known ones."""
    known, highest, total = 0, -np.inf, 0.0
    for logit in logits:
        if not np.isnan(logit):
            known += 1
            highest = max(highest, np.float64(logit))
    if known == 0:
        return
    mean = mean_out = spread = spread_out = 0.0
    for column in range(logits.shape[0]):
        if not np.isnan(logits[column]):
            total += np.exp(np.float64(logits[column]) - highest)
            mean += np.float64(logits[column]) / known
            mean_out += out[column] / known
    for column in range(logits.shape[0]):
        if not np.isnan(logits[column]):
            spread += (np.float64(logits[column]) - mean) ** 2
            spread_out += (out[column] - mean_out) ** 2
    whole = highest + np.log(total)
    ratio = np.sqrt(spread / spread_out) if spread_out > 0.0 else 0.0
    for column in range(logits.shape[0]):
        opinion = np.float64(logits[column])
        if np.isnan(opinion):
            opinion = mean + ratio * (out[column] - mean_out)
        out[column] += weight * (opinion - whole)


@kernel
def blend(
    found: Found, logits: Floats, experience: Doubles, weights: tuple[float, float, float, float], floor:
    float, out: Floats,
) -> None:  # fmt: skip
    """One score a candidate, out float32[n, C], -inf behind a user's last: the equation of `serving.scoring`.

    logits float32[n, C], or [n, 0] without a ranker; experience float64[n] scales the factors' weight;
    weights: of co-visitation, popularity, factors, ranker.
    """
    for user in range(out.shape[0]):
        n = found.length[user]
        scores, blended = found.scores[user, :n], np.zeros(n, np.float64)
        out[user, n:] = -np.inf
        if n == 0:
            continue
        _add_log_share(scores[:, 0], weights[0], floor, blended)
        _add_log_share(scores[:, 1], weights[1], floor, blended)
        if experience[user] > 0.0:
            _add_log_softmax(scores[:, 2], weights[2] * experience[user], blended)
        if logits.shape[1] > 0:
            _add_ranker(logits[user, :n], weights[3], blended)
        for column in range(n):
            out[user, column] = blended[column]


@kernel
def best(found: Found, blended: Floats, count: Ints, columns: Ints, tied: Bools) -> None:
    """The `count` best of each user, best first: columns int32[n, K], -1 padded. tied bool[n]: equal scores
    stand among them or at the cut, where the earlier candidate went first and the caller has the say."""
    scores = np.empty(columns.shape[1], np.float32)
    for user in range(columns.shape[0]):
        k, size = min(count[user], found.length[user]), 0
        chosen = columns[user, :k]
        columns[user, k:] = -1
        for column in range(found.length[user]):
            size = _offer(scores[:k], chosen, size, blended[user, column], column)
        reached = 0
        for column in range(found.length[user] if k > 0 else 0):
            reached += blended[user, column] >= scores[0]
        _sort_best_first(scores, chosen, k)
        tied[user] = reached > k
        for place in range(k - 1):
            tied[user] |= scores[place] == scores[place + 1]


@kernel
def explain(recent: Ints, chosen: Ints, learned: Learned, place: Ints, because: Ints) -> None:
    """because int32[n, K, B]: the recent rows that gave most of each chosen row's co-visitation score, best
    first.

    recent int32[n, L], chosen int32[n, K] (distinct rows), both -1 padded; an item that is recent twice
    counts once.
    """
    shares = np.empty((chosen.shape[1], because.shape[2]), np.float32)
    for user in range(recent.shape[0]):
        shares[:] = 0.0
        because[user] = -1
        for column in range(chosen.shape[1]):
            if chosen[user, column] >= 0:
                place[chosen[user, column]] = column
        for position in range(min(recent.shape[1], learned.decay.shape[0])):
            source = recent[user, position]
            if source < 0 or source >= learned.source_norm.shape[0]:
                continue
            part = np.float32(learned.decay[position]) * learned.source_norm[source]
            start = learned.pool.start[source]
            for slot in range(start, start + learned.pool.length[source]):
                column = place[learned.pool.keys[slot]]
                if column >= 0:
                    share = part * learned.pool.values[slot]
                    _insert(shares[column], because[user, column], share, source)
        for column in range(chosen.shape[1]):
            if chosen[user, column] >= 0:
                place[chosen[user, column]] = -1


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
