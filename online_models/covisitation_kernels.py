# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload, operator"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""Compiled kernels of co-visitation's sparse rows; see `kernels.RowPool` for how they lie in memory.

They call no kernel of another file: numba's disk cache would not notice a change there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from online_models.kernels import GIVEN, GONE_COUNT, SWEEP, RowPool, kernel

__all__ = [
    "FORGOTTEN",
    "SMALLEST_BLOCK",
    "UNINDEXED",
    "capacities",
    "covisitation_forget",
    "covisitation_give",
    "covisitation_learn",
    "covisitation_score",
    "covisitation_unlearn",
    "fill_blocks",
    "most_slots",
    "place_blocks",
]

SMALLEST_BLOCK = 8
UNINDEXED = 128
"""Blocks up to this capacity have no index: comparing all their keys, eight at a time, is as fast."""
ROUNDING = np.float32(2.0**-22)
"""Of a weight that was subtracted: what is no larger is what float32 rounded, not what was counted."""
DROPPED = 8
"""A full row loses one in so many entries: to drop half of them costs hits, and one at a time costs time."""
FORGOTTEN = -1
"""`RowPool.capacity` of a row whose item is gone; entries that name it are dropped as they are met."""

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]


@kernel
def _hash_slot(key: int, mask: int) -> int:
    mixed = np.uint64(key) * np.uint64(
        0x9E3779B97F4A7C15
    )  # Fibonacci hashing: the high bits are the good ones
    return np.int64(mixed >> np.uint64(33)) & mask


@kernel
def _scan(keys: Ints, start: int, length: int, key: int) -> int:
    """Position of key among `length` keys, or -1: the sum of all matching positions, without a branch."""
    found, wanted, first = np.int32(0), np.int32(key), np.uint64(start)
    for position in range(np.int32(length)):
        here = keys[first + np.uint64(position)] == wanted
        found += np.int32(position + 1) if here else np.int32(0)
    return np.int64(found) - 1


@kernel
def _probe(keys: Ints, slots: NDArray[np.int16], start: int, capacity: int, key: int) -> int:
    """Position of key in a block with an index, or -1 - (index slot where it belongs)."""
    base, mask = 2 * (start + capacity), 2 * capacity - 1
    slot = _hash_slot(key, mask)
    while True:
        position = np.int64(slots[base + slot])
        if position < 0:
            return -1 - slot
        if keys[start + position] == key:
            return position
        slot = (slot + 1) & mask


@kernel
def _reindex(pool: RowPool, row: int) -> None:
    start, capacity = pool.start[row], np.int64(pool.capacity[row])
    if capacity <= UNINDEXED:
        return
    keys, slots, base = pool.keys, pool.slots, 2 * (start + capacity)
    for slot in range(base, base + 2 * capacity):
        slots[slot] = -1
    for position in range(pool.length[row]):
        slots[base - 1 - _probe(keys, slots, start, capacity, keys[start + position])] = position


@kernel
def _block_slots(capacity: int) -> int:
    return 1 + (capacity if capacity <= UNINDEXED else 2 * capacity)


@kernel
def _next_capacity(capacity: int, row_capacity: int) -> int:
    """About a quarter more, in steps of multiples of 8; powers of two where there is an index."""
    if capacity == 0:
        return SMALLEST_BLOCK
    grown = capacity + max(8, (capacity >> 2) & ~7) if capacity < UNINDEXED else 2 * capacity
    return min(grown, UNINDEXED if capacity < UNINDEXED else row_capacity, row_capacity)


@kernel
def _release(pool: RowPool, row: int) -> None:
    used = _block_slots(np.int64(pool.capacity[row]))
    pool.keys[pool.start[row] - 1] = -1 - used
    pool.marks[1] += used


@kernel
def _tidy(pool: RowPool, budget: int) -> None:
    """Move blocks down over unused ones, `budget` slots at a time; begins when an eighth is unused."""
    marks, keys, values = pool.marks, pool.keys, pool.values
    if marks[2] < 0:
        if 8 * marks[1] <= marks[0]:
            return
        marks[2] = marks[3] = 0
    source, to = marks[2], marks[3]
    end = min(marks[0], source + budget)
    while source < end:
        row = np.int64(keys[source])
        if row < 0:
            used = -1 - row
            marks[1] -= used
        else:
            used = _block_slots(np.int64(pool.capacity[row]))
            if to < source:
                for slot in range(used):
                    keys[to + slot] = keys[source + slot]
                    values[to + slot] = values[source + slot]
                pool.start[row] = to + 1
            to += used
        source += used
    marks[2], marks[3] = source, to
    if source == marks[0]:
        marks[0], marks[2] = to, -1


@kernel
def _grow(pool: RowPool, row: int, row_capacity: int) -> None:
    """Move the row to a larger block on top of the pool."""
    old_capacity = np.int64(pool.capacity[row])
    capacity = _next_capacity(old_capacity, row_capacity)
    used = _block_slots(capacity)
    _tidy(pool, 16 * used)
    old_start, start = pool.start[row], pool.marks[0] + 1
    pool.marks[0] += used
    pool.keys[start - 1] = row
    for position in range(pool.length[row]):
        pool.keys[start + position] = pool.keys[old_start + position]
        pool.values[start + position] = pool.values[old_start + position]
    if old_capacity > 0:
        _release(pool, row)
    pool.start[row], pool.capacity[row] = start, capacity
    _reindex(pool, row)


@kernel
def _keep(pool: RowPool, row: int, stays: NDArray[np.uint8]) -> None:
    """Drop the entries that don't stay; the others keep their order."""
    start, kept = pool.start[row], 0
    for position in range(stays.shape[0]):
        if stays[position]:
            pool.keys[start + kept] = pool.keys[start + position]
            pool.values[start + kept] = pool.values[start + position]
            kept += 1
    pool.length[row] = kept
    _reindex(pool, row)


@kernel
def _prune(pool: RowPool, row: int) -> None:
    """Drop the lightest eighth of a full row; the others keep their order, among equals the older stay."""
    start, length = pool.start[row], np.int64(pool.length[row])
    keep, values = length - length // DROPPED, pool.values[start : start + length]
    least = np.partition(values, length - keep)[length - keep]
    equals = keep - (values > least).sum()  # of those, so many may stay
    stays = np.zeros(length, dtype=np.uint8)
    for position in range(length):
        stays[position] = values[position] > least or (values[position] == least and equals > 0)
        equals -= values[position] == least
        if pool.capacity[pool.keys[start + position]] == FORGOTTEN:
            stays[position] = 0
    _keep(pool, row, stays)


@kernel
def _make_room(pool: RowPool, row: int, row_capacity: int) -> None:
    if pool.capacity[row] < row_capacity:
        _grow(pool, row, row_capacity)
    else:
        _prune(pool, row)


@kernel
def _add(
    row: int, key: int, amount: float, start: Longs, length: Ints, capacity: Ints, keys: Ints, values: Floats,
    slots: NDArray[np.int16],
) -> bool:  # fmt: skip
    """Add to the weight of a row's key, which may be new; False when it is, and the row is full."""
    first, used, room = start[row], np.int64(length[row]), np.int64(capacity[row])
    if room <= UNINDEXED:
        found = _scan(keys, first, used, key)
    else:
        found = _probe(keys, slots, first, room, key)
    if found >= 0:
        values[first + found] += np.float32(amount)
        return True
    if used == room:
        return False
    if room > UNINDEXED:
        slots[2 * (first + room) - 1 - found] = used
    keys[first + used] = key
    values[first + used] = np.float32(amount)
    length[row] = used + 1
    return True


@kernel
def _find(pool: RowPool, row: int, key: int) -> int:
    """Position of key in a row, negative where it has none."""
    start, capacity = pool.start[row], np.int64(pool.capacity[row])
    if capacity <= 0:
        return -1
    if capacity <= UNINDEXED:
        return _scan(pool.keys, start, np.int64(pool.length[row]), key)
    return _probe(pool.keys, pool.slots, start, capacity, key)


@kernel
def _subtract(pool: RowPool, row: int, key: int, amount: float) -> None:
    """Subtract from the weight of a row's key, if it is there; what only rounding left of it goes."""
    found = _find(pool, row, key)
    if found < 0:
        return
    slot, taken = pool.start[row] + found, np.float32(amount)
    pool.values[slot] -= taken
    if abs(pool.values[slot]) <= ROUNDING * abs(taken):
        stays = np.ones(pool.length[row], dtype=np.uint8)
        stays[found] = 0
        _keep(pool, row, stays)


@kernel
def _forget_mentions(pool: RowPool, first: int, last: int) -> None:
    """Drop the entries of rows first to last - 1 that name a row whose item is gone."""
    for row in range(first, last):
        start, length, gone = pool.start[row], np.int64(pool.length[row]), 0
        for slot in range(start, start + length):
            gone += pool.capacity[pool.keys[slot]] == FORGOTTEN
        if gone > 0:
            stays = np.ones(length, dtype=np.uint8)
            for position in range(length):
                stays[position] = pool.capacity[pool.keys[start + position]] != FORGOTTEN
            _keep(pool, row, stays)


@kernel
def _forget(pool: RowPool, row: int, count: Doubles, total: Doubles, source: Floats, target: Floats) -> None:
    """The row's item is gone: its own entries go now, its mentions as they are swept or met."""
    if pool.capacity[row] > 0:
        _release(pool, row)
    pool.capacity[row], pool.length[row] = FORGOTTEN, 0
    count[row] = total[row] = source[row] = target[row] = 0.0


@kernel
def covisitation_forget(
    rows: Ints, pool: RowPool, count: Doubles, total: Doubles, source_norm: Floats, target_norm: Floats
) -> None:
    """Forget rows whose items are gone."""
    for place in range(rows.shape[0]):
        _forget(pool, rows[place], count, total, source_norm, target_norm)


@kernel
def covisitation_give(changes: Ints, pool: RowPool) -> None:
    """Take in rows given to items without an event, and the sweeps on the way: changes int32[c, 4]."""
    for at in range(changes.shape[0]):
        if changes[at, 1] == SWEEP:
            _forget_mentions(pool, changes[at, 2], changes[at, 3])
        elif changes[at, 1] == GIVEN:
            pool.capacity[changes[at, 2]] = 0


@kernel
def _normalise(
    row: int, count: Doubles, total: Doubles, source_norm: Floats, target_norm: Floats,
    source_exponent: float, target_exponent: float, shrinkage: float,
) -> None:  # fmt: skip
    """The row's norms by its count, which fades, and its total, which doesn't."""
    mass = count[row] * (1.0 + shrinkage / total[row]) if total[row] > 0.0 else 0.0
    known = mass >= GONE_COUNT
    source_norm[row] = mass ** (-source_exponent) if known else 0.0
    target_norm[row] = mass ** (-target_exponent) if known else 0.0


def capacities(row_capacity: int) -> list[int]:
    """Every capacity that a row may have, from 0 on."""
    found = [0]
    while found[-1] < row_capacity:
        found.append(_next_capacity(found[-1], row_capacity))
    return found


@kernel
def place_blocks(pool: RowPool, rows: int) -> int:
    """Start blocks for rows whose capacity is known, one behind the other; returns the slots they take."""
    top = np.int64(0)
    for row in range(rows):
        if pool.capacity[row] > 0:
            pool.start[row] = top + 1
            top += _block_slots(np.int64(pool.capacity[row]))
    return top


@kernel
def fill_blocks(pool: RowPool, rows: int, keys: Ints, values: Floats) -> None:
    """Fill the blocks of `place_blocks` with the rows' entries, one row behind the other."""
    entry = 0
    for row in range(rows):
        if pool.capacity[row] > 0:
            start = pool.start[row]
            pool.keys[start - 1] = row
            for position in range(pool.length[row]):
                pool.keys[start + position], pool.values[start + position] = keys[entry], values[entry]
                entry += 1
            _reindex(pool, row)
            pool.marks[0] = start - 1 + _block_slots(np.int64(pool.capacity[row]))


@kernel
def most_slots(window: int, row_capacity: int) -> int:
    """Slots that one event may need: each row that it touches in a larger block, the item's grown often."""
    return (2 * window + 2) * (2 * row_capacity + 1)


@kernel
def covisitation_learn(
    first: int, last: int, changes: Ints, changed: int, item: Ints, recent: Ints, weight: Floats,
    growth_of: Doubles, pool: RowPool, count: Doubles, total: Doubles, source_norm: Floats,
    target_norm: Floats, window: int, gap_decay: float, backward_weight: float, source_exponent: float,
    target_exponent: float, shrinkage: float, row_capacity: int,
) -> tuple[int, int]:  # fmt: skip
    """Learn events first to last - 1 and table changes from `changed` on; returns the next ones: `last`, or
    earlier when the pool needs room."""
    window = min(window, recent.shape[1])
    needed = most_slots(window, row_capacity)
    start, length, capacity = (
        pool.start,
        pool.length,
        pool.capacity,
    )  # read within the loop, a tuple costs more
    keys, values, slots, marks = pool.keys, pool.values, pool.slots, pool.marks
    for event in range(first, last):
        if marks[0] + needed > keys.shape[0]:
            return event, changed
        while changed < changes.shape[0] and changes[changed, 0] == event:
            kind, row = changes[changed, 1], changes[changed, 2]
            if kind == GIVEN:
                pool.capacity[row] = 0
            elif kind == SWEEP:
                _forget_mentions(pool, row, changes[changed, 3])
            else:
                _forget(pool, row, count, total, source_norm, target_norm)
            changed += 1
        growth = growth_of[event]
        target, amount = item[event], weight[event] * growth
        for gap in range(window):
            source = recent[event, gap]
            if source >= 0 and source != target:
                if not _add(source, target, amount, start, length, capacity, keys, values, slots):
                    _make_room(pool, source, row_capacity)
                    _add(source, target, amount, start, length, capacity, keys, values, slots)
                back = amount * backward_weight
                if backward_weight > 0.0 and not _add(
                    target, source, back, start, length, capacity, keys, values, slots
                ):
                    _make_room(pool, target, row_capacity)
                    _add(target, source, back, start, length, capacity, keys, values, slots)
            amount *= gap_decay
        count[target] += abs(weight[event]) * growth
        total[target] += abs(weight[event])
        _normalise(
            target, count, total, source_norm, target_norm, source_exponent, target_exponent, shrinkage
        )
    return last, changed


@kernel
def covisitation_unlearn(
    item: Ints, recent: Ints, weight: Floats, growth_of: Doubles, pool: RowPool, count: Doubles,
    total: Doubles, source_norm: Floats, target_norm: Floats, window: int, gap_decay: float,
    backward_weight: float, source_exponent: float, target_exponent: float, shrinkage: float,
) -> None:  # fmt: skip
    """Subtract events: what `covisitation_learn` added, but for entries that were pruned since."""
    for event in range(item.shape[0]):
        growth, target, mass = growth_of[event], item[event], np.float64(abs(weight[event]))
        amount = weight[event] * growth
        for gap in range(min(window, recent.shape[1])):
            source = recent[event, gap]
            if source >= 0 and source != target:
                _subtract(pool, source, target, amount)
                _subtract(pool, target, source, amount * backward_weight)
            amount *= gap_decay
        total[target] = total[target] - mass if total[target] > mass * (1.0 + 1e-9) else 0.0
        count[target] = max(count[target] - mass * growth, 0.0) if total[target] > 0.0 else 0.0
        _normalise(
            target, count, total, source_norm, target_norm, source_exponent, target_exponent, shrinkage
        )


@kernel
def covisitation_score(
    recent: Ints, candidates: Ints, pool: RowPool, source_norm: Floats, target_norm: Floats, scale: float,
    query_length: int, query_decay: float, out: Floats,
) -> None:  # fmt: skip
    """Scores of given rows, the same arithmetic in the same order as `covisitation_retrieve`."""
    start, length, capacity = pool.start, pool.length, pool.capacity
    keys, values, slots = pool.keys, pool.values, pool.slots
    for user in range(recent.shape[0]):
        decay = 1.0
        for position in range(min(query_length, recent.shape[1])):
            source = recent[user, position]
            if source >= 0 and source < source_norm.shape[0] and length[source] > 0:
                part, first = np.float32(decay) * source_norm[source], start[source]
                for column in range(candidates.shape[1]):
                    if capacity[source] <= UNINDEXED:
                        found = _scan(keys, first, length[source], candidates[user, column])
                    else:
                        found = _probe(keys, slots, first, capacity[source], candidates[user, column])
                    if found >= 0:
                        out[user, column] += part * values[first + found]
            decay *= query_decay
        for column in range(candidates.shape[1]):
            key = candidates[user, column]
            if out[user, column] != 0.0:
                out[user, column] = out[user, column] * target_norm[key] * np.float32(scale)
