# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload, operator"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""Compiled kernels of the models: sequential, in log order, without the interpreter lock.

No fastmath, no parallel loop and no BLAS where state changes: the same log must give the same bits on every
replica. Kernels that call each other stand in one file because numba's disk cache watches only the file of
the kernel that is called: a helper changed in another file would leave stale machine code behind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FREED",
    "GIVEN",
    "GONE",
    "GONE_COUNT",
    "KERNEL_VERSION",
    "RESCALE_HALF_LIVES",
    "SWEEP",
    "RowPool",
    "covisitation_retrieve",
    "forward_growth",
    "isgd_apply",
    "isgd_learn_users",
    "isgd_retrieve",
    "isgd_score",
    "isgd_step",
    "isgd_unlearn",
    "isgd_unlearn_users",
    "past_growth",
    "popularity_forget",
    "popularity_learn",
    "popularity_unlearn",
    "rebuild_top",
]

KERNEL_VERSION = 3
"""Raised whenever a kernel gives other bits for the same input; part of the settings digest."""
GIVEN, GONE, SWEEP = 1, 0, 2
"""Kinds of change to the item table: (event, GIVEN, row, index of the id), (event, GONE, row, 0) and (event,
SWEEP, from, to), each before its event is learned."""
FREED = np.iinfo(np.int64).max
"""`given` of a row that no item has: later than any epoch."""
GONE_COUNT = 1e-12
"""A count that has faded below this is 0: its inverse powers would overflow float32."""
RESCALE_HALF_LIVES = 20
"""Forward-decayed weights reach 2**20 times their size before the landmark moves: far from overflow."""
MAX_COMPONENT = np.float32(10.0)
MAX_ERROR = np.float32(10.0)
"""Bounds on a factor's component and on an error: with both, no stream reaches an infinity or NaN."""
MOST_UNDONE = np.float32(0.2)
"""Of a step that took more of the error than this, only so much is undone: its inverse would be unstable."""
UNDO_ROUNDS = 8
MAX_RATE = 0.5
"""A step this long already overshoots: at 0.7 the hit rate on ML-100K falls to a third of that at 0.3."""
F = TypeVar("F", bound=Callable[..., Any])
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]


def kernel(function: F) -> F:
    """Compile without the interpreter lock; division by zero follows IEEE instead of raising."""
    return cast(F, numba.njit(nogil=True, cache=True, error_model="numpy")(function))


class RowPool(NamedTuple):
    """Sparse rows in one pool. Row r owns slots start[r] to start[r] + capacity[r] of keys and values, filled
    in order of first use. The slot before them holds the row's number in keys, or -1 - (slots of the block,
    itself included) when the block is no longer used. Behind a large block, keys hold its index: twice as
    many int16 as it has slots, an open-addressing table from key to position (-1 = empty).

    New blocks go on top. When an eighth of the pool is unused, blocks are moved down, a few at every new
    block, so that no event waits for all of them.
    """

    start: Longs  # int64[rows]
    length: Ints  # int32[rows], slots in use
    capacity: Ints  # int32[rows], 0 = no block yet, -1 = its item is gone
    keys: Ints  # int32[slots]
    values: Floats  # float32[slots]
    slots: NDArray[np.int16]  # int16[2 * slots]: keys seen as halves
    marks: Longs  # int64[4]: first slot never used, slots unused below it, next to move from (-1), and to


@kernel
def _push(scores: Floats, rows: Ints, size: int, score: float, row: int) -> int:
    """Offer (score, row) to a heap of the best k = len(rows), worst on top; equal scores: lower row wins."""
    if size < rows.shape[0]:
        child = size
        size += 1
        while child > 0:
            parent = (child - 1) // 2
            if scores[parent] < score or (scores[parent] == score and rows[parent] > row):
                break
            scores[child], rows[child] = scores[parent], rows[parent]
            child = parent
        scores[child], rows[child] = score, row
    elif size > 0 and (score > scores[0] or (score == scores[0] and row < rows[0])):
        _sink(scores, rows, size, score, row)
    return size


@kernel
def _sink(scores: Floats, rows: Ints, size: int, score: float, row: int) -> None:
    """Replace the heap's top by (score, row)."""
    parent = 0
    while True:
        child = 2 * parent + 1
        if child >= size:
            break
        other = child + 1
        if other < size and (
            scores[other] < scores[child] or (scores[other] == scores[child] and rows[other] > rows[child])
        ):
            child = other
        if scores[child] > score or (scores[child] == score and rows[child] < row):
            break
        scores[parent], rows[parent] = scores[child], rows[child]
        parent = child
    scores[parent], rows[parent] = score, row


@kernel
def _sort_best_first(scores: Floats, rows: Ints, size: int) -> None:
    for last in range(size - 1, 0, -1):
        score, row = scores[last], rows[last]
        scores[last], rows[last] = scores[0], rows[0]
        _sink(scores, rows, last, score, row)


@kernel
def _growth(time_ms: int, clock: Longs, half_life_ms: float) -> float:
    """Forward-decay factor 2**((t - landmark) / half-life); 1 without decay. The clock takes the time in."""
    clock[0] = time_ms if clock[0] < 0 else clock[0]
    place = clock.shape[0] - 1
    if time_ms >= clock[place]:
        while place > 1 and clock[place - 1] < time_ms:
            clock[place] = clock[place - 1]
            place -= 1
        clock[place] = time_ms
    return 2.0 ** ((time_ms - clock[0]) / half_life_ms) if half_life_ms > 0.0 else 1.0


@kernel
def _past_growth(time_ms: int, clock: Longs, half_life_ms: float) -> float:
    """What `_growth` gave, or would give since the landmark moved. Takes the time off the clock, but never
    the last one that the clock knows."""
    for place in range(1, clock.shape[0]):
        if clock[place] == time_ms and clock.shape[0] > 2 and clock[2] >= 0:
            for later in range(place, clock.shape[0] - 1):
                clock[later] = clock[later + 1]
            clock[clock.shape[0] - 1] = -1
            break
    if half_life_ms <= 0.0:
        return 1.0
    return 2.0 ** min((time_ms - clock[0]) / half_life_ms, RESCALE_HALF_LIVES)


@kernel
def past_growth(time_ms: Longs, clock: Longs, half_life_ms: float, out: Doubles) -> None:
    """Growth of events that were learned and are withdrawn now: what `forward_growth` gave, faded since."""
    for event in range(time_ms.shape[0]):
        out[event] = _past_growth(time_ms[event], clock, half_life_ms)


@kernel
def _rescale_due(time_ms: int, clock: Longs, half_life_ms: float) -> bool:
    return half_life_ms > 0.0 and clock[0] >= 0 and time_ms - clock[0] >= RESCALE_HALF_LIVES * half_life_ms


@kernel
def forward_growth(first: int, time_ms: Longs, clock: Longs, half_life_ms: float, out: Doubles) -> int:
    """Growth of events from `first` on; returns the next one: n, or earlier when the clock needs service."""
    for event in range(first, time_ms.shape[0]):
        if _rescale_due(time_ms[event], clock, half_life_ms):
            return event
        out[event] = _growth(time_ms[event], clock, half_life_ms)
    return time_ms.shape[0]


@kernel
def covisitation_retrieve(
    recent: Ints, exclude: Ints, pool: RowPool, source_norm: Floats, target_norm: Floats, scale: float,
    query_length: int, query_decay: float, total: Floats, touched: Ints, out_rows: Ints, out_scores: Floats,
) -> None:  # fmt: skip
    """Best related rows of each user. `total` float32[items] is 0 before and after, `touched` is scratch."""
    for user in range(recent.shape[0]):
        for position in range(exclude.shape[1]):
            if exclude[user, position] >= 0:
                total[exclude[user, position]] = -np.inf
        n_touched, decay = 0, 1.0
        for position in range(min(query_length, recent.shape[1])):
            source = recent[user, position]
            if source >= 0 and source < source_norm.shape[0]:
                part = np.float32(decay) * source_norm[source]
                start = pool.start[source]
                for slot in range(start, start + pool.length[source]):
                    key = np.uint32(
                        pool.keys[slot]
                    )  # unsigned: no test for a negative index in the inner loop
                    touched[n_touched] = key
                    n_touched += (
                        total[key] == 0.0
                    )  # back at exactly 0: listed twice, and the second reads 0 below
                    total[key] += part * pool.values[slot]
            decay *= query_decay
        size, best_scores, best_rows = 0, out_scores[user], out_rows[user]
        for position in range(n_touched):
            key = touched[position]
            score = total[key] * target_norm[key] * np.float32(scale)
            total[key] = 0.0
            if score > 0.0:
                size = _push(best_scores, best_rows, size, score, key)
        _sort_best_first(best_scores, best_rows, size)
        for position in range(exclude.shape[1]):
            if exclude[user, position] >= 0:
                total[exclude[user, position]] = 0.0


@kernel
def _is_above(values: Doubles, row: int, other: int) -> bool:
    return values[row] > values[other] or (values[row] == values[other] and row < other)


@kernel
def _raise_in_top(values: Doubles, top: Ints, position_of: Ints, state: Longs, row: int) -> None:
    """Restore order after values[row] grew. state int64[2]: the list's length, and 1 when rows stand outside
    it: then one comes in only above its last, so that the list stays the exact top of its length."""
    position, length = position_of[row], state[0]
    if position < 0:
        if state[1] != 0 and (length == 0 or not _is_above(values, row, top[length - 1])):
            return
        if length < top.shape[0]:
            position = length
            state[0] = length + 1
        else:
            state[1] = 1
            if not _is_above(values, row, top[length - 1]):
                return
            position = length - 1
            position_of[top[position]] = -1
    while position > 0 and _is_above(values, row, top[position - 1]):
        top[position] = top[position - 1]
        position_of[top[position]] = position
        position -= 1
    top[position], position_of[row] = row, position


@kernel
def _drop_from_top(top: Ints, position_of: Ints, state: Longs, row: int) -> bool:
    """Take a row out of the list; True when the list, no longer all there is, has become too short."""
    position = position_of[row]
    if position >= 0:
        state[0] -= 1
        for later in range(position, state[0]):
            top[later] = top[later + 1]
            position_of[top[later]] = later
        position_of[row] = -1
    return position >= 0 and state[1] != 0 and 2 * state[0] <= top.shape[0]


@kernel
def rebuild_top(values: Doubles, rows: int, top: Ints, position_of: Ints, state: Longs) -> None:
    """Make the list anew of the rows whose value is not 0: one pass over them all. (The item table can't be
    asked which rows have items: it stands at the end of the batch already.)"""
    scores, size, found = np.empty(top.shape[0], dtype=np.float64), 0, 0
    position_of[:rows] = -1
    for row in range(rows):
        if values[row] != 0.0:
            found += 1
            size = _push(scores, top, size, values[row], row)
    _sort_best_first(scores, top, size)
    for position in range(size):
        position_of[top[position]] = position
    state[0], state[1] = size, found > size


@kernel
def _lower_in_top(values: Doubles, top: Ints, position_of: Ints, state: Longs, row: int) -> bool:
    """Restore order after values[row] fell. Where rows stand outside the list, one that falls to its end
    leaves it: another may be above now. True when the list has become too short."""
    position, last = position_of[row], state[0] - 1
    if position < 0:
        return False
    while position < last and _is_above(values, top[position + 1], row):
        top[position] = top[position + 1]
        position_of[top[position]] = position
        position += 1
    top[position], position_of[row] = row, position
    return position == last and state[1] != 0 and _drop_from_top(top, position_of, state, row)


@kernel
def _rebuild_short(
    short: bool, short_plain: bool, decayed: Doubles, plain: Doubles, counters: Longs,
    top: Ints, top_position: Ints, top_plain: Ints, top_plain_position: Ints,
) -> None:  # fmt: skip
    if short:
        rebuild_top(decayed, counters[0], top, top_position, counters[1:3])
    if short_plain:
        rebuild_top(plain, counters[0], top_plain, top_plain_position, counters[3:5])


@kernel
def popularity_learn(
    first: int, changes: Ints, changed: int, item: Ints, weight: Floats, time_ms: Longs,
    half_life_ms: float, decayed: Doubles, plain: Doubles, clock: Longs, counters: Longs,
    top: Ints, top_position: Ints, top_plain: Ints, top_plain_position: Ints,
) -> tuple[int, int]:  # fmt: skip
    """Learn events from `first` and table changes from `changed` on; returns the next ones: the last, or
    earlier when the clock needs service.

    counters int64[5]: rows seen, then `state` of top and of top_plain.
    """
    state, state_plain = counters[1:3], counters[3:5]
    for event in range(first, item.shape[0]):
        if _rescale_due(time_ms[event], clock, half_life_ms):
            return event, changed
        short = short_plain = False
        while changed < changes.shape[0] and changes[changed, 0] == event:
            if changes[changed, 1] == GONE:
                gone = changes[changed, 2]
                decayed[gone] = plain[gone] = 0.0
                short |= _drop_from_top(top, top_position, state, gone)
                short_plain |= _drop_from_top(top_plain, top_plain_position, state_plain, gone)
            changed += 1
        row, gain = item[event], weight[event] * _growth(time_ms[event], clock, half_life_ms)
        counters[0] = max(counters[0], row + 1)
        decayed[row] += gain
        _raise_in_top(decayed, top, top_position, state, row)
        if gain > 0.0:
            plain[row] += 1.0
            _raise_in_top(plain, top_plain, top_plain_position, state_plain, row)
        elif gain < 0.0:
            short |= _lower_in_top(decayed, top, top_position, state, row)
        if short or short_plain:
            _rebuild_short(
                short, short_plain, decayed, plain, counters,
                top, top_position, top_plain, top_plain_position,
            )  # fmt: skip
    return item.shape[0], changed


@kernel
def popularity_unlearn(
    item: Ints, weight: Floats, time_ms: Longs, half_life_ms: float, decayed: Doubles,
    plain: Doubles, clock: Longs, counters: Longs,
    top: Ints, top_position: Ints, top_plain: Ints, top_plain_position: Ints,
) -> None:  # fmt: skip
    """Subtract events. No positive score remains, by rounding, where no positive event does."""
    state, state_plain = counters[1:3], counters[3:5]
    for event in range(item.shape[0]):
        row, short, short_plain, positive = item[event], False, False, weight[event] > 0.0
        plain[row] = max(plain[row] - positive, 0.0)
        decayed[row] -= weight[event] * _past_growth(time_ms[event], clock, half_life_ms)
        if plain[row] == 0.0:
            decayed[row] = min(decayed[row], 0.0)
            short_plain = _drop_from_top(top_plain, top_plain_position, state_plain, row)
        elif positive:
            short_plain = _lower_in_top(plain, top_plain, top_plain_position, state_plain, row)
        if positive:
            short = _lower_in_top(decayed, top, top_position, state, row)
        else:
            _raise_in_top(decayed, top, top_position, state, row)
        _rebuild_short(
            short, short_plain, decayed, plain, counters,
            top, top_position, top_plain, top_plain_position,
        )  # fmt: skip


@kernel
def popularity_forget(
    rows: Ints, decayed: Doubles, plain: Doubles, counters: Longs,
    top: Ints, top_position: Ints, top_plain: Ints, top_plain_position: Ints,
) -> None:  # fmt: skip
    """Forget rows whose items are gone."""
    short = short_plain = False
    for place in range(rows.shape[0]):
        row = rows[place]
        decayed[row] = plain[row] = 0.0
        short |= _drop_from_top(top, top_position, counters[1:3], row)
        short_plain |= _drop_from_top(top_plain, top_plain_position, counters[3:5], row)
    _rebuild_short(
        short, short_plain, decayed, plain, counters, top, top_position, top_plain, top_plain_position
    )


@kernel
def _dot(left: Floats, right: Floats) -> float:
    """Inner product in a fixed order: eight partial sums, which may share one vector register."""
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = np.float32(0.0)
    whole = left.shape[0] // 8 * 8
    for k in range(0, whole, 8):
        s0 += left[k] * right[k]
        s1 += left[k + 1] * right[k + 1]
        s2 += left[k + 2] * right[k + 2]
        s3 += left[k + 3] * right[k + 3]
        s4 += left[k + 4] * right[k + 4]
        s5 += left[k + 5] * right[k + 5]
        s6 += left[k + 6] * right[k + 6]
        s7 += left[k + 7] * right[k + 7]
    total = ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))
    for k in range(whole, left.shape[0]):
        total += left[k] * right[k]
    return total


@kernel
def _sgd_step(moved: Floats, fixed: Floats, target: float, rate: float, regularization: float) -> None:
    """moved += rate ((target - moved . fixed) fixed - regularization moved), error and components bounded."""
    error = np.float32(target) - _dot(moved, fixed)
    error = min(max(error, -MAX_ERROR), MAX_ERROR) * np.float32(rate)
    shrink = np.float32(1.0) - np.float32(rate) * np.float32(regularization)
    for k in range(moved.shape[0]):
        moved[k] = min(max(shrink * moved[k] + error * fixed[k], -MAX_COMPONENT), MAX_COMPONENT)


@kernel
def _sgd_undo(moved: Floats, fixed: Floats, target: float, rate: float) -> None:
    """The inverse of `_sgd_step` with the same other vector; what regularization took stays taken."""
    length = _dot(fixed, fixed)
    rate = min(np.float32(rate), MOST_UNDONE / max(length, np.float32(1e-6)))
    error = (np.float32(target) - _dot(moved, fixed)) / (np.float32(1.0) - rate * length)
    error = min(max(error, -MAX_ERROR), MAX_ERROR) * rate
    for k in range(moved.shape[0]):
        moved[k] = min(max(moved[k] - error * fixed[k], -MAX_COMPONENT), MAX_COMPONENT)


@kernel
def _rate(weight: float, learning_rate: float) -> float:
    return min(abs(weight) * learning_rate, MAX_RATE)


@kernel
def _drawn(event_hash: int, draw: int, known: int, introduced: Bools) -> int:
    """Row of a negative, by SplitMix64 of the event's hash (Steele, Lea and Flood 2014); drawn anew up to 16
    times while nobody has used the item, which says nothing of the user. -1: none was found."""
    for again in range(16):
        mixed = np.uint64(event_hash) + np.uint64(draw + 1 + 4096 * again) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        row = np.int64((mixed ^ (mixed >> np.uint64(31))) % np.uint64(known))
        if not introduced[row]:
            return row
    return -1


@kernel
def isgd_step(
    row: int, vector: Floats, weight: float, event_hash: int, item_factors: Floats, introduced: Bools,
    learning_rate: float, regularization: float, factor_inout: Floats, drawn_out: Ints,
) -> None:  # fmt: skip
    """The owner's half of one event, for use within other kernels too: moves the user's factor, draws rows.

    row of the event's item (-1 = it has none yet), vector float32[d] its factor or start vector, event_hash
    uint64, item_factors float32[items, d] and introduced bool[items] (not changed), factor_inout float32[d]
    the user's factor, drawn_out int32[m] the rows of the negatives, -1 where none was drawn. A freed row is
    all zeros: drawn, it only shrinks the user's factor a little, and the replicas take it for unknown.
    """
    rate, known = _rate(weight, learning_rate), item_factors.shape[0]
    _sgd_step(factor_inout, vector, 1.0 if weight > 0.0 else 0.0, rate, regularization)
    for draw in range(drawn_out.shape[0]):
        drawn_out[draw] = -1
        if known > 0 and weight > 0.0:
            drawn = _drawn(event_hash, draw, known, introduced)
            if drawn >= 0 and drawn != row:
                drawn_out[draw] = drawn
                _sgd_step(factor_inout, item_factors[drawn], 0.0, rate, regularization)


@kernel
def isgd_learn_users(
    item_rows: Ints, item_vectors: Floats, weight: Floats, event_hash: NDArray[np.uint64], factors: Floats,
    introduced: Bools, learning_rate: float, regularization: float, users: Floats, negatives: Ints,
) -> None:  # fmt: skip
    """`isgd_step` for n events of different users: users float32[n, d], negatives int32[n, m]."""
    for event in range(users.shape[0]):
        isgd_step(
            item_rows[event], item_vectors[event], weight[event], event_hash[event], factors, introduced,
            learning_rate, regularization, users[event], negatives[event],
        )  # fmt: skip


@kernel
def _isgd_unlearn_user(
    row: int, vector: Floats, weight: float, event_hash: int, item_factors: Floats,
    introduced: Bools, learning_rate: float, factor_inout: Floats, drawn_out: Ints,
) -> None:  # fmt: skip
    """Inverse of `isgd_step`, with the rows that the same hash draws now. The items have learned the event
    since: what they were before follows from the user before, and the other way round, in a few rounds."""
    rate, m, known = _rate(weight, learning_rate), drawn_out.shape[0], item_factors.shape[0]
    target, now = 1.0 if weight > 0.0 else 0.0, factor_inout.copy()
    items = np.empty((m + 1, vector.shape[0]), dtype=np.float32)
    for draw in range(m):
        drawn = _drawn(event_hash, draw, known, introduced) if known > 0 and weight > 0.0 else row
        drawn_out[draw] = drawn if drawn != row else -1
    for attempt in range(UNDO_ROUNDS):
        for draw in range(m + 1):
            if draw == m or drawn_out[draw] >= 0:
                items[draw] = vector if draw == m else item_factors[drawn_out[draw]]
                if attempt > 0:
                    _sgd_undo(items[draw], factor_inout, target if draw == m else 0.0, rate)
        factor_inout[:] = now
        for draw in range(m - 1, -1, -1):
            if drawn_out[draw] >= 0:
                _sgd_undo(factor_inout, items[draw], 0.0, rate)
        _sgd_undo(factor_inout, items[m], target, rate)


@kernel
def isgd_unlearn_users(
    item_rows: Ints, item_vectors: Floats, weight: Floats, event_hash: NDArray[np.uint64], factors: Floats,
    introduced: Bools, learning_rate: float, users: Floats, negatives: Ints,
) -> None:  # fmt: skip
    """The owner's half of withdrawing: users float32[n, d], all different, go back."""
    for event in range(users.shape[0]):
        _isgd_unlearn_user(
            item_rows[event], item_vectors[event], weight[event], event_hash[event], factors, introduced,
            learning_rate, users[event], negatives[event],
        )  # fmt: skip


@kernel
def isgd_unlearn(
    item: Ints, negatives: Ints, weight: Floats, users: Floats, factors: Floats, learning_rate: float
) -> None:
    """Every replica's half: the inverse of `isgd_apply`, with the users as their owners took them back."""
    for event in range(item.shape[0]):
        rate, target = _rate(weight[event], learning_rate), 1.0 if weight[event] > 0.0 else 0.0
        for draw in range(negatives.shape[1] - 1, -1, -1):
            if negatives[event, draw] >= 0:
                _sgd_undo(factors[negatives[event, draw]], users[event], 0.0, rate)
        _sgd_undo(factors[item[event]], users[event], target, rate)


@kernel
def isgd_apply(
    changes: Ints, vectors: Floats, item: Ints, negatives: Ints, weight: Floats, users: Floats,
    factors: Floats, learning_rate: float, regularization: float,
) -> None:  # fmt: skip
    """Every replica's half: moves item factors in place, from the users' factors before their own step.

    A row that is given to an item gets the next of `vectors` float32[given, d], one that is freed is 0.
    """
    changed, given = 0, 0
    for event in range(item.shape[0]):
        while changed < changes.shape[0] and changes[changed, 0] == event:
            if changes[changed, 1] == GIVEN:
                factors[changes[changed, 2]] = vectors[given]
                given += 1
            elif changes[changed, 1] == GONE:
                factors[changes[changed, 2]] = 0.0
            changed += 1
        rate = _rate(weight[event], learning_rate)
        target = 1.0 if weight[event] > 0.0 else 0.0
        _sgd_step(factors[item[event]], users[event], target, rate, regularization)
        for draw in range(negatives.shape[1]):
            if negatives[event, draw] >= 0:
                _sgd_step(factors[negatives[event, draw]], users[event], 0.0, rate, regularization)


@kernel
def isgd_retrieve(
    users: Floats, exclude: Ints, factors: Floats, given: Longs, mask: Floats,
    out_rows: Ints, out_scores: Floats,
) -> None:  # fmt: skip
    """Best rows of each user by inner product. `mask` float32[items] is all zero before and after."""
    for user in range(users.shape[0]):
        for position in range(exclude.shape[1]):
            if exclude[user, position] >= 0:
                mask[exclude[user, position]] = 1.0
        size = 0
        for row in range(factors.shape[0]):
            if mask[row] == 0.0 and given[row] != FREED:
                size = _push(out_scores[user], out_rows[user], size, _dot(users[user], factors[row]), row)
        _sort_best_first(out_scores[user], out_rows[user], size)
        for position in range(exclude.shape[1]):
            if exclude[user, position] >= 0:
                mask[exclude[user, position]] = 0.0


@kernel
def isgd_score(users: Floats, candidates: Ints, factors: Floats, out: Floats) -> None:
    """Inner products of given rows; 0 where a row is -1 or not in the table."""
    for user in range(users.shape[0]):
        for column in range(candidates.shape[1]):
            row = candidates[user, column]
            if row >= 0 and row < factors.shape[0]:
                out[user, column] = _dot(users[user], factors[row])
