# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload, operator"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""Compiled kernels of the item-based neighbours: bounded sparse rows, each a small hash table.

They call no kernel of another file: numba's disk cache would not notice a change there.

Where an entry stands in its row is no part of the state: nothing that is learned or scored depends on it, so
a row may be laid out anew at any time.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from online_models.kernels import GIVEN, GONE, GONE_COUNT, SWEEP, kernel

__all__ = [
    "FORGOTTEN",
    "FREE_LISTS",
    "Neighbourhoods",
    "block_size",
    "item_knn_forget",
    "item_knn_learn",
    "item_knn_probe",
    "item_knn_scan",
    "item_knn_unlearn",
    "read_rows",
    "write_rows",
]

SMALLEST_BLOCK = 8
FORGOTTEN = -1
"""`Neighbourhoods.capacity` of a row whose item is gone; entries that name it are dropped as they are met."""
FREE_LISTS = 20
"""Block sizes that there may be: 8 to 2**22 entries."""

MAX_PAIR = 1e14
"""Bounds an entry, so that no product of what is kept overflows; 100 million uses don't reach it."""
ROUNDING = 1e-6
"""An entry of which less than this share of what is taken back remains is 0: it was nothing else."""
GONE_MASS = 1e-12
"""The same for an item's mass, in float64."""

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]


class Neighbourhoods(NamedTuple):
    """Row r has a block of capacity[r] entries (a power of two, at most 3/4 of it used), found by hashing.

    A block that is no longer used stands in the free list of its size, linked through its first key.
    """

    start: Longs  # int64[rows]
    used: Ints  # int32[rows]: entries in use
    capacity: Ints  # int32[rows]: 0 = no block yet, FORGOTTEN = no item
    keys: Ints  # int32[entries]: the other item's row, -1 = empty
    values: Floats  # float32[entries]: 0 where empty
    marks: Longs  # int64[1 + FREE_LISTS]: entries ever used, then the first free block of each size (-1)


def block_size(entries: int) -> int:
    """Capacity of the block that a row of so many entries has."""
    capacity = SMALLEST_BLOCK
    while 4 * entries > 3 * capacity:
        capacity *= 2
    return capacity


@kernel
def _place(keys: Ints, start: int, capacity: int, key: int) -> int:
    """Where a key stands in a block, or else the empty place where it belongs."""
    mixed = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing: the high bits are good
    offset = np.int64(mixed >> np.uint64(33)) & (capacity - 1)
    while keys[start + offset] != key and keys[start + offset] >= 0:
        offset = (offset + 1) & (capacity - 1)
    return start + offset


@kernel
def _free_list(capacity: int) -> int:
    place = 1
    while capacity > SMALLEST_BLOCK:
        capacity >>= 1
        place += 1
    return place


@kernel
def _release(pool: Neighbourhoods, row: int) -> None:
    """Give a row's block up; as blocks begin at multiples of 8, links are counted in eighths."""
    start, place = pool.start[row], _free_list(np.int64(pool.capacity[row]))
    pool.keys[start] = pool.marks[place] >> 3
    pool.marks[place] = start


@kernel
def _take_block(pool: Neighbourhoods, capacity: int) -> int:
    """An empty block: one that was given up, or the next of the pool."""
    place = _free_list(capacity)
    start = pool.marks[place]
    if start >= 0:
        pool.marks[place] = np.int64(pool.keys[start]) << 3
    else:
        start = pool.marks[0]
        pool.marks[0] += capacity
    for entry in range(start, start + capacity):
        pool.keys[entry], pool.values[entry] = -1, 0.0
    return start


@kernel
def _grow(pool: Neighbourhoods, row: int) -> None:
    """Move a row to a block of twice the size."""
    old = np.int64(pool.capacity[row])
    capacity = max(2 * old, SMALLEST_BLOCK)
    start, first = _take_block(pool, capacity), pool.start[row]
    for entry in range(first, first + old):
        if pool.keys[entry] >= 0:
            place = _place(pool.keys, start, capacity, pool.keys[entry])
            pool.keys[place], pool.values[place] = pool.keys[entry], pool.values[entry]
    if old > 0:
        _release(pool, row)
    pool.start[row], pool.capacity[row] = start, capacity


@kernel
def _keep(pool: Neighbourhoods, row: int, inverse: Floats, most: int) -> None:
    """Keep the `most` nearest neighbours of a row that have an item: of largest |value| / root, and among
    equals those of lower row."""
    start, capacity, n = pool.start[row], np.int64(pool.capacity[row]), 0
    keys, values = np.empty(capacity, dtype=np.int32), np.empty(capacity, dtype=np.float32)
    for entry in range(start, start + capacity):
        if pool.keys[entry] >= 0 and pool.capacity[pool.keys[entry]] != FORGOTTEN:
            keys[n], values[n] = pool.keys[entry], pool.values[entry]
            n += 1
        pool.keys[entry], pool.values[entry] = -1, 0.0
    by_row = np.argsort(keys[:n])
    nearness = np.empty(n, dtype=np.float32)
    for position in range(n):
        nearness[position] = -abs(values[by_row[position]]) * inverse[keys[by_row[position]]]
    best = np.argsort(nearness, kind="mergesort")  # stable: equals stay in the order of rows
    pool.used[row] = min(n, most)
    for position in range(min(n, most)):
        chosen = by_row[best[position]]
        place = _place(pool.keys, start, capacity, keys[chosen])
        pool.keys[place], pool.values[place] = keys[chosen], values[chosen]


@kernel
def _add(pool: Neighbourhoods, row: int, key: int, amount: float, inverse: Floats, neighbours: int) -> None:
    """Add to a row's entry, which may be new; a full row first drops the more distant half."""
    capacity = np.int64(pool.capacity[row])
    if capacity > 0:
        place = _place(pool.keys, pool.start[row], capacity, key)
        if pool.keys[place] == key:
            pool.values[place] = min(max(pool.values[place] + amount, -MAX_PAIR), MAX_PAIR)
            return
    if pool.used[row] >= neighbours:
        _keep(pool, row, inverse, neighbours // 2)
    if 4 * (pool.used[row] + 1) > 3 * capacity:
        _grow(pool, row)
    place = _place(pool.keys, pool.start[row], np.int64(pool.capacity[row]), key)
    pool.keys[place], pool.values[place] = key, min(max(amount, -MAX_PAIR), MAX_PAIR)
    pool.used[row] += 1


@kernel
def _subtract(pool: Neighbourhoods, row: int, key: int, amount: float) -> None:
    """Take an amount from a row's entry, which goes when nothing is left; one that was dropped stays away."""
    capacity, start = np.int64(pool.capacity[row]), pool.start[row]
    if capacity <= 0:
        return
    place = _place(pool.keys, start, capacity, key)
    if pool.keys[place] != key:
        return
    left = min(max(pool.values[place] - amount, -MAX_PAIR), MAX_PAIR)
    if abs(left) > ROUNDING * abs(amount):
        pool.values[place] = left
        return
    pool.used[row] -= 1
    pool.keys[place], pool.values[place] = -1, 0.0
    offset = (place - start + 1) & (capacity - 1)  # those behind it that hashed before it move up
    while pool.keys[start + offset] >= 0:
        moved, value = pool.keys[start + offset], pool.values[start + offset]
        pool.keys[start + offset], pool.values[start + offset] = -1, 0.0
        place = _place(pool.keys, start, capacity, moved)
        pool.keys[place], pool.values[place] = moved, value
        offset = (offset + 1) & (capacity - 1)


@kernel
def _follow(pool: Neighbourhoods, kind: int, row: int, end: int, mass: Doubles, inverse: Floats) -> None:
    """Follow one change of the item table; see `table_kernels`."""
    if kind == GIVEN:
        pool.capacity[row] = 0
    elif kind == SWEEP:
        for swept in range(row, end):
            if pool.capacity[swept] > 0:
                gone, start = 0, pool.start[swept]
                for entry in range(start, start + pool.capacity[swept]):
                    key = pool.keys[entry]
                    gone += key >= 0 and pool.capacity[key] == FORGOTTEN
                if gone > 0:
                    _keep(pool, swept, inverse, np.int64(pool.used[swept]))
    else:
        if pool.capacity[row] > 0:
            _release(pool, row)
        pool.capacity[row], pool.used[row], mass[row], inverse[row] = FORGOTTEN, 0, 0.0, 0.0


@kernel
def item_knn_learn(
    first: int, last: int, changes: Ints, changed: int, item: Ints, others: Ints, amount: Doubles,
    other_values: Floats, valued: bool, gain: Doubles, pool: Neighbourhoods, mass: Doubles, inverse: Floats,
    met: NDArray[np.uint8], normalised: bool, neighbours: int, room: int,
) -> tuple[int, int]:  # fmt: skip
    """Learn events first to last - 1 and table changes from `changed` on; returns the next ones: `last`, or
    earlier when the pool has less than `room` left, which is an event's worst case.

    others int32[n, R]: the user's other items, newest first, -1 = none; only the first mention of each
    counts. A pair's weight is amount float64[n], times other_values float32[n, R] where `valued`; the item's
    mass grows by gain float64[n]. mass float64[rows], inverse float32[rows] (its inverse root, or 1 where
    not `normalised`), met uint8[rows] (0 before and after).
    """
    width = others.shape[1]
    for event in range(first, last):
        if pool.marks[0] + room > pool.keys.shape[0]:
            return event, changed
        while changed < changes.shape[0] and changes[changed, 0] == event:
            _follow(pool, changes[changed, 1], changes[changed, 2], changes[changed, 3], mass, inverse)
            changed += 1
        target = item[event]
        for place in range(width):
            source = others[event, place]
            if source >= 0 and source != target and met[source] == 0:
                met[source] = 1
                pair = amount[event] * (other_values[event, place] if valued else 1.0)
                _add(pool, source, target, pair, inverse, neighbours)
                _add(pool, target, source, pair, inverse, neighbours)
        for place in range(width):
            if others[event, place] >= 0:
                met[others[event, place]] = 0
        mass[target] += gain[event]
        if not normalised:
            inverse[target] = 1.0
        elif mass[target] >= GONE_COUNT:
            inverse[target] = 1.0 / np.sqrt(mass[target])
    return last, changed


@kernel
def item_knn_unlearn(
    item: Ints, others: Ints, amount: Doubles, other_values: Floats, valued: bool, gain: Doubles,
    pool: Neighbourhoods, mass: Doubles, inverse: Floats, met: NDArray[np.uint8], normalised: bool,
) -> None:  # fmt: skip
    """Take events back, whose arguments are those that `item_knn_learn` had; what a full row dropped is not
    missed. An item of which no event is left is as unused."""
    width = others.shape[1]
    for event in range(item.shape[0]):
        target = item[event]
        for place in range(width):
            source = others[event, place]
            if source >= 0 and source != target and met[source] == 0:
                met[source] = 1
                pair = amount[event] * (other_values[event, place] if valued else 1.0)
                _subtract(pool, source, target, pair)
                _subtract(pool, target, source, pair)
        for place in range(width):
            if others[event, place] >= 0:
                met[others[event, place]] = 0
        mass[target] -= gain[event]
        if mass[target] < max(GONE_MASS * gain[event], GONE_COUNT):
            mass[target], inverse[target] = 0.0, 0.0
        elif normalised:
            inverse[target] = 1.0 / np.sqrt(mass[target])


@kernel
def item_knn_forget(rows: Ints, pool: Neighbourhoods, mass: Doubles, inverse: Floats) -> None:
    """Forget items; entries that name them go when they are met."""
    for row in rows:
        _follow(pool, GONE, row, 0, mass, inverse)


@kernel
def _term(part: float, value: float, shrink: float, inverse: float) -> float:
    return part * value / (np.float32(1.0) + shrink * inverse) if shrink > 0.0 else part * value


@kernel
def item_knn_scan(
    recent: Ints, strength: Floats, candidates: Ints, pool: Neighbourhoods, inverse: Floats, shrinkage: float,
    scale: float, total: Floats, out: Floats,
) -> None:  # fmt: skip
    """Scores of many candidates: whole rows of the recent items are added up.

    recent int32[L] with strength float32[L]; candidates int32[C], out float32[C]. total float32[> rows] is 0
    before and after; its last place, which -1 leads to, takes what empty entries add: 0.
    """
    keys, values, capacity = pool.keys, pool.values, pool.capacity
    for position in range(recent.shape[0]):
        source = recent[position]
        if source >= 0 and source < capacity.shape[0] and capacity[source] > 0:
            part, shrink = strength[position] * inverse[source], np.float32(shrinkage) * inverse[source]
            for entry in range(pool.start[source], pool.start[source] + capacity[source]):
                key = keys[entry]
                total[key] += _term(part, values[entry], shrink, inverse[key])
    for column in range(candidates.shape[0]):
        key = candidates[column]
        if key >= 0 and key < capacity.shape[0]:
            out[column] = total[key] * inverse[key] * np.float32(scale)
    for position in range(recent.shape[0]):
        source = recent[position]
        if source >= 0 and source < capacity.shape[0] and capacity[source] > 0:
            for entry in range(pool.start[source], pool.start[source] + capacity[source]):
                total[keys[entry]] = 0.0


@kernel
def item_knn_probe(
    recent: Ints, strength: Floats, candidates: Ints, pool: Neighbourhoods, inverse: Floats, shrinkage: float,
    scale: float, out: Floats,
) -> None:  # fmt: skip
    """Scores of few candidates, each looked up: the same arithmetic in the same order as `item_knn_scan`."""
    for column in range(candidates.shape[0]):
        key, total = candidates[column], np.float32(0.0)
        if key >= 0 and key < pool.capacity.shape[0]:
            for position in range(recent.shape[0]):
                source = recent[position]
                if source >= 0 and source < pool.capacity.shape[0] and pool.capacity[source] > 0:
                    part = strength[position] * inverse[source]
                    shrink = np.float32(shrinkage) * inverse[source]
                    entry = _place(pool.keys, pool.start[source], np.int64(pool.capacity[source]), key)
                    if pool.keys[entry] == key:
                        total += _term(part, pool.values[entry], shrink, inverse[key])
            out[column] = total * inverse[key] * np.float32(scale)


@kernel
def read_rows(pool: Neighbourhoods, rows: int, out_keys: Ints, out_values: Floats) -> None:
    """Write the entries of rows 0 to rows - 1 one row behind the other, each by the other item's row."""
    n = 0
    for row in range(rows):
        if pool.capacity[row] > 0:
            start = pool.start[row]
            keys = pool.keys[start : start + pool.capacity[row]]
            order = np.argsort(keys)
            for place in order:
                if keys[place] >= 0:
                    out_keys[n], out_values[n] = keys[place], pool.values[start + place]
                    n += 1


@kernel
def write_rows(pool: Neighbourhoods, used: Ints, keys: Ints, values: Floats) -> None:
    """Lay the rows of `read_rows` out in the empty pool, which has room for 8/3 of the entries and a block
    a row."""
    n = 0
    for row in range(used.shape[0]):
        if used[row] > 0:
            capacity = np.int64(SMALLEST_BLOCK)
            while 4 * used[row] > 3 * capacity:
                capacity *= 2
            start = _take_block(pool, capacity)
            pool.start[row], pool.capacity[row], pool.used[row] = start, capacity, used[row]
            for entry in range(n, n + used[row]):
                place = _place(pool.keys, start, capacity, keys[entry])
                pool.keys[place], pool.values[place] = keys[entry], values[entry]
            n += used[row]
