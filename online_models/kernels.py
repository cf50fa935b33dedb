# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload, operator"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""Every compiled kernel of the package: sequential, in log order, without the interpreter lock.

No fastmath, no parallel loop and no BLAS where state changes: the same log must give the same bits on every
replica. All kernels stand in this one file because numba's disk cache watches only the file of the kernel
that is called: a helper changed in another file would leave stale machine code behind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "GONE_COUNT",
    "KERNEL_VERSION",
    "RESCALE_HALF_LIVES",
    "SMALLEST_BLOCK",
    "RowPool",
    "covisitation_learn",
    "covisitation_retrieve",
    "covisitation_score",
    "isgd_apply",
    "isgd_learn_users",
    "isgd_retrieve",
    "isgd_score",
    "isgd_step",
    "popularity_learn",
    "rebuild_index",
    "resolve_mentions",
]

KERNEL_VERSION = 1
"""Raised whenever a kernel gives other bits for the same input; part of the settings digest."""

SMALLEST_BLOCK = 8
GONE_COUNT = 1e-12
"""A count that has faded below this is 0: its inverse powers would overflow float32."""
RESCALE_HALF_LIVES = 20
"""Forward-decayed weights reach 2**20 times their size before the landmark moves: far from overflow."""
MAX_COMPONENT = np.float32(10.0)
MAX_ERROR = np.float32(10.0)
"""Bounds on a factor's component and on an error: with both, no stream reaches an infinity or NaN."""

MAX_RATE = 0.5
"""A step this long already overshoots: at 0.7 the hit rate on ML-100K falls to a third of that at 0.3."""

F = TypeVar("F", bound=Callable[..., Any])
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]


def kernel(function: F) -> F:
    """Compile without the interpreter lock; division by zero follows IEEE instead of raising."""
    return cast(F, numba.njit(nogil=True, cache=True, error_model="numpy")(function))


class RowPool(NamedTuple):
    """Sparse rows in one pool. Row r owns slots start[r] to start[r] + capacity[r] of keys and values,
    filled in order of first use, and twice as many of `slots`, an open-addressing table from key to position
    (-1 = empty).
    """

    start: Longs  # int64[rows]
    length: Ints  # int32[rows], slots in use
    capacity: Ints  # int32[rows], 0 = no block yet, else SMALLEST_BLOCK * 2**class
    keys: Ints  # int32[slots]
    values: Floats  # float32[slots]
    slots: NDArray[np.int16]  # int16[2 * slots]
    free: Longs  # int64[classes]: first returned block of each size, -1 = none; keys[block] leads to the next
    top: Longs  # int64[1]: first slot never used


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
def _hash_slot(key: int, mask: int) -> int:
    mixed = np.uint64(key) * np.uint64(
        0x9E3779B97F4A7C15
    )  # Fibonacci hashing: the high bits are the good ones
    return np.int64(mixed >> np.uint64(33)) & mask


@kernel
def _find(pool: RowPool, row: int, key: int) -> int:
    """Position of key in the row's block, or -1 - (index slot where it belongs). Needs capacity > 0."""
    base = 2 * pool.start[row]
    mask = 2 * np.int64(pool.capacity[row]) - 1
    slot = _hash_slot(key, mask)
    while True:
        position = np.int64(pool.slots[base + slot])
        if position < 0:
            return -1 - slot
        if pool.keys[pool.start[row] + position] == key:
            return position
        slot = (slot + 1) & mask


@kernel
def _reindex(pool: RowPool, row: int) -> None:
    start, capacity = pool.start[row], np.int64(pool.capacity[row])
    for slot in range(2 * start, 2 * (start + capacity)):
        pool.slots[slot] = -1
    for position in range(pool.length[row]):
        slot = -1 - _find(pool, row, pool.keys[start + position])
        pool.slots[2 * start + slot] = position


@kernel
def _grow(pool: RowPool, row: int) -> None:
    """Move the row to a block twice as large and return its old block to the free list."""
    old_start, old_capacity = pool.start[row], np.int64(pool.capacity[row])
    capacity = max(2 * old_capacity, SMALLEST_BLOCK)
    size_class = 0
    while SMALLEST_BLOCK << size_class < capacity:
        size_class += 1
    start = pool.free[size_class]
    if start >= 0:
        following = np.int64(pool.keys[start])
        pool.free[size_class] = following * SMALLEST_BLOCK if following >= 0 else -1
    else:
        start = pool.top[0]
        pool.top[0] += capacity
    for position in range(pool.length[row]):
        pool.keys[start + position] = pool.keys[old_start + position]
        pool.values[start + position] = pool.values[old_start + position]
    pool.start[row], pool.capacity[row] = start, capacity
    _reindex(pool, row)
    if old_capacity > 0:
        head = pool.free[size_class - 1]
        pool.keys[old_start] = head // SMALLEST_BLOCK if head >= 0 else -1
        pool.free[size_class - 1] = old_start


@kernel
def _prune(pool: RowPool, row: int) -> None:
    """Keep the heavier half of a full row, in its order; among equals the older entries stay."""
    start, length = pool.start[row], np.int64(pool.length[row])
    values, positions = np.empty(length // 2, dtype=np.float32), np.empty(length // 2, dtype=np.int32)
    size = 0
    for position in range(length):
        size = _push(values, positions, size, pool.values[start + position], position)
    stays = np.zeros(length, dtype=np.uint8)
    for best in range(size):
        stays[positions[best]] = 1
    kept = 0
    for position in range(length):
        if stays[position]:
            pool.keys[start + kept] = pool.keys[start + position]
            pool.values[start + kept] = pool.values[start + position]
            kept += 1
    pool.length[row] = kept
    _reindex(pool, row)


@kernel
def _add(pool: RowPool, row: int, key: int, amount: float, row_capacity: int) -> None:
    if pool.capacity[row] == 0:
        _grow(pool, row)
    found = _find(pool, row, key)
    if found < 0 and pool.length[row] == pool.capacity[row]:
        if pool.capacity[row] < row_capacity:
            _grow(pool, row)
        else:
            _prune(pool, row)
        found = _find(pool, row, key)
    start = pool.start[row]
    if found >= 0:
        pool.values[start + found] += np.float32(amount)
        return
    position = pool.length[row]
    pool.slots[2 * start + (-1 - found)] = position
    pool.keys[start + position] = key
    pool.values[start + position] = np.float32(amount)
    pool.length[row] = position + 1


@kernel
def rebuild_index(pool: RowPool, rows: int) -> None:
    """Make `index` from keys, for rows restored from a snapshot."""
    for row in range(rows):
        if pool.capacity[row] > 0:
            _reindex(pool, row)


@kernel
def _growth(time_ms: int, clock: Longs, half_life_ms: float) -> float:
    """Forward-decay factor 2**((t - landmark) / half-life); 1 without decay. Moves `newest` on."""
    clock[0] = time_ms if clock[0] < 0 else clock[0]
    clock[1] = max(clock[1], time_ms)
    return 2.0 ** ((time_ms - clock[0]) / half_life_ms) if half_life_ms > 0.0 else 1.0


@kernel
def _rescale_due(time_ms: int, clock: Longs, half_life_ms: float) -> bool:
    return half_life_ms > 0.0 and clock[0] >= 0 and time_ms - clock[0] >= RESCALE_HALF_LIVES * half_life_ms


@kernel
def covisitation_learn(
    first: int, item: Ints, recent: Ints, weight: Floats, time_ms: Longs,
    pool: RowPool, count: Doubles, source_norm: Floats, target_norm: Floats, clock: Longs,
    window: int, gap_decay: float, backward_weight: float, source_exponent: float, target_exponent: float,
    shrinkage: float, half_life_ms: float, row_capacity: int,
) -> int:  # fmt: skip
    """Learn events from `first` on; returns the next one: n, or earlier when pool or clock need service."""
    window = min(window, recent.shape[1])
    for event in range(first, item.shape[0]):
        time = time_ms[event]
        if pool.top[0] + (window + 2) * row_capacity > pool.keys.shape[0] or _rescale_due(
            time, clock, half_life_ms
        ):
            return event
        growth = _growth(time, clock, half_life_ms)
        target, amount = item[event], weight[event] * growth
        for gap in range(window):
            source = recent[event, gap]
            if source >= 0 and source != target:
                _add(pool, source, target, amount, row_capacity)
                if backward_weight > 0.0:
                    _add(pool, target, source, amount * backward_weight, row_capacity)
            amount *= gap_decay
        count[target] += abs(weight[event]) * growth
        mass = count[target] + shrinkage * growth
        if mass >= GONE_COUNT:
            source_norm[target] = mass ** (-source_exponent)
            target_norm[target] = mass ** (-target_exponent)
    return item.shape[0]


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
def covisitation_score(
    recent: Ints, candidates: Ints, pool: RowPool, source_norm: Floats, target_norm: Floats, scale: float,
    query_length: int, query_decay: float, out: Floats,
) -> None:  # fmt: skip
    """Scores of given rows, the same arithmetic in the same order as `covisitation_retrieve`."""
    for user in range(recent.shape[0]):
        decay = 1.0
        for position in range(min(query_length, recent.shape[1])):
            source = recent[user, position]
            if source >= 0 and source < source_norm.shape[0] and pool.length[source] > 0:
                part = np.float32(decay) * source_norm[source]
                for column in range(candidates.shape[1]):
                    found = _find(pool, source, candidates[user, column])
                    if found >= 0:
                        out[user, column] += part * pool.values[pool.start[source] + found]
            decay *= query_decay
        for column in range(candidates.shape[1]):
            key = candidates[user, column]
            if out[user, column] != 0.0:
                out[user, column] = out[user, column] * target_norm[key] * np.float32(scale)


@kernel
def resolve_mentions(
    column: Ints, row_of_index: Ints, known_from: Ints, given: Longs, epochs: Longs, out: Ints
) -> None:
    """Rows of a column int32[n, w] of a learning batch, -1 = unknown; see `LearningBatch`.

    row_of_index int32[ids]; known_from int32[ids]: first event at which the id has its row; given
    int64[rows]: row assignments made before this row's; epochs int64[n]. A row that is named counts when it
    had been given by the writer's epoch.
    """
    for event in range(column.shape[0]):
        for position in range(column.shape[1]):
            value, row = column[event, position], -1
            if value >= 0:
                row = row_of_index[value] if known_from[value] <= event else -1
            elif value <= -2 and -value - 2 < given.shape[0] and given[-value - 2] < epochs[event]:
                row = -value - 2
            out[event, position] = row


@kernel
def _is_above(values: Doubles, row: int, other: int) -> bool:
    return values[row] > values[other] or (values[row] == values[other] and row < other)


@kernel
def _raise_in_top(values: Doubles, top: Ints, position_of: Ints, length: int, row: int) -> int:
    """Restore order after values[row] grew; returns the list's new length."""
    position = position_of[row]
    if position < 0:
        if length < top.shape[0]:
            position = length
            length += 1
        elif _is_above(values, row, top[length - 1]):
            position = length - 1
            position_of[top[position]] = -1
        else:
            return length
    while position > 0 and _is_above(values, row, top[position - 1]):
        top[position] = top[position - 1]
        position_of[top[position]] = position
        position -= 1
    top[position], position_of[row] = row, position
    return length


@kernel
def _lower_in_top(values: Doubles, top: Ints, position_of: Ints, length: int, row: int) -> None:
    """Restore order within the list after values[row] fell."""
    position = position_of[row]
    if position < 0:
        return
    while position + 1 < length and _is_above(values, top[position + 1], row):
        top[position] = top[position + 1]
        position_of[top[position]] = position
        position += 1
    top[position], position_of[row] = row, position


@kernel
def popularity_learn(
    first: int, item: Ints, weight: Floats, time_ms: Longs, half_life_ms: float,
    decayed: Doubles, plain: Doubles, clock: Longs, counters: Longs,
    top: Ints, top_position: Ints, top_plain: Ints, top_plain_position: Ints,
) -> int:  # fmt: skip
    """Learn events from `first` on; returns the next one: n, or earlier when clock or list need service.

    counters int64[4]: rows seen, length of top, length of top_plain, decrements since top was rebuilt.
    """
    for event in range(first, item.shape[0]):
        if _rescale_due(time_ms[event], clock, half_life_ms):
            return event
        row, gain = item[event], weight[event] * _growth(time_ms[event], clock, half_life_ms)
        counters[0] = max(counters[0], row + 1)
        decayed[row] += gain
        counters[1] = _raise_in_top(decayed, top, top_position, counters[1], row)
        if gain > 0.0:
            plain[row] += 1.0
            counters[2] = _raise_in_top(plain, top_plain, top_plain_position, counters[2], row)
        elif gain < 0.0:
            _lower_in_top(decayed, top, top_position, counters[1], row)
            counters[3] += counters[0] > top.shape[0]  # a shorter list holds every row and stays exact
            if counters[3] >= max(1024, counters[0] // 8):
                return event + 1
    return item.shape[0]


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
def _rate(weight: float, learning_rate: float) -> float:
    return min(abs(weight) * learning_rate, MAX_RATE)


@kernel
def isgd_step(
    row: int, vector: Floats, weight: float, event_hash: int, item_factors: Floats,
    learning_rate: float, regularization: float, factor_inout: Floats, drawn_out: Ints,
) -> None:  # fmt: skip
    """The owner's half of one event, for use within other kernels too: moves the user's factor, draws rows.

    row of the event's item (-1 = it has none yet), vector float32[d] its factor or start vector, event_hash
    uint64, item_factors float32[items, d] (not changed), factor_inout float32[d] the user's factor, drawn_out
    int32[m] the rows of the negatives, -1 where none was drawn.
    """
    rate = _rate(weight, learning_rate)
    known = np.uint64(item_factors.shape[0])
    _sgd_step(factor_inout, vector, 1.0 if weight > 0.0 else 0.0, rate, regularization)
    for draw in range(drawn_out.shape[0]):
        drawn_out[draw] = -1
        if known > 0 and weight > 0.0:
            mixed = np.uint64(event_hash) + np.uint64(draw + 1) * np.uint64(0x9E3779B97F4A7C15)  # SplitMix64
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            drawn = np.int64((mixed ^ (mixed >> np.uint64(31))) % known)
            if drawn != row:
                drawn_out[draw] = drawn
                _sgd_step(factor_inout, item_factors[drawn], 0.0, rate, regularization)


@kernel
def isgd_learn_users(
    item_rows: Ints, item_vectors: Floats, weight: Floats, event_hash: NDArray[np.uint64], factors: Floats,
    learning_rate: float, regularization: float, users: Floats, negatives: Ints,
) -> None:  # fmt: skip
    """`isgd_step` for n events of different users: users float32[n, d], negatives int32[n, m]."""
    for event in range(users.shape[0]):
        isgd_step(
            item_rows[event], item_vectors[event], weight[event], event_hash[event], factors,
            learning_rate, regularization, users[event], negatives[event],
        )  # fmt: skip


@kernel
def isgd_apply(
    item: Ints, negatives: Ints, weight: Floats, users: Floats, factors: Floats,
    learning_rate: float, regularization: float,
) -> None:  # fmt: skip
    """Every replica's half: moves item factors in place, from the users' factors before their own step."""
    for event in range(item.shape[0]):
        rate = _rate(weight[event], learning_rate)
        target = 1.0 if weight[event] > 0.0 else 0.0
        _sgd_step(factors[item[event]], users[event], target, rate, regularization)
        for draw in range(negatives.shape[1]):
            if negatives[event, draw] >= 0:
                _sgd_step(factors[negatives[event, draw]], users[event], 0.0, rate, regularization)


@kernel
def isgd_retrieve(
    users: Floats, exclude: Ints, factors: Floats, mask: Floats, out_rows: Ints, out_scores: Floats
) -> None:
    """Best rows of each user by inner product. `mask` float32[items] is all zero before and after."""
    for user in range(users.shape[0]):
        for position in range(exclude.shape[1]):
            if exclude[user, position] >= 0:
                mask[exclude[user, position]] = 1.0
        size = 0
        for row in range(factors.shape[0]):
            if mask[row] == 0.0:
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
