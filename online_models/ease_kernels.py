# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload, operator"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""Compiled kernels of `ease.RecencyEASE`: pair counts, and scores by the weights.

They call no kernel of another file: numba's disk cache would not notice a change there.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from online_models.kernels import GONE, kernel

__all__ = ["EVENTS", "NEXT", "SLOTS", "Gram", "ease_forget", "ease_learn", "ease_score", "ease_unlearn"]

EVENTS, NEXT, SLOTS, UNUSED = range(4)
"""Places in `Gram.marks`: events so far, events at the next refresh, slots ever used, of these without an
item."""

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]


class Gram(NamedTuple):
    """Counts of pairs, by slot: pair (s, t), s >= t, stands at s (s + 1) / 2 + t."""

    pairs: Floats  # float32[slots (slots + 1) / 2]
    row_of: Ints  # int32[max_items]: item in the slot, -1 = none
    uses: Longs  # int64[max_items]: events of the slot's item
    stamp: Longs  # int64[max_items + 1]: the last step that looked at the slot, and steps so far; scratch
    stale: NDArray[np.uint8]  # uint8[max_items]: 1 = another item has the slot since the last sweep began
    slot_of: Ints  # int32[rows]: -1 = none
    waiting: Ints  # int32[rows]: events of an item without a slot
    marks: Longs  # int64[4]


@kernel
def _at(slot: int, other: int) -> int:
    high, low = np.int64(max(slot, other)), np.int64(min(slot, other))
    return high * (high + 1) // 2 + low


@kernel
def _clear(gram: Gram, slot: int, weights: Floats) -> None:
    """Forget all that is known of a slot's item."""
    row = gram.row_of[slot]
    gram.slot_of[row], gram.waiting[row] = -1, 0
    gram.row_of[slot], gram.stale[slot] = -1, 1
    for other in range(gram.marks[SLOTS]):
        gram.pairs[_at(slot, other)] = 0.0
    if slot < weights.shape[0]:
        weights[slot, :] = 0.0
        weights[:, slot] = 0.0


@kernel
def _admit(gram: Gram, row: int, weights: Floats, max_items: int) -> int:
    """A slot for an item that has none: an unused one, else that of the least used item if it is used less;
    -1 = none."""
    slots, slot = gram.marks[SLOTS], np.int64(-1)
    if gram.marks[UNUSED] > 0:
        slot = np.int64(0)
        while gram.row_of[slot] >= 0:
            slot += 1
        gram.marks[UNUSED] -= 1
    elif slots < max_items:
        slot = slots
        gram.marks[SLOTS] += 1
    else:
        least = np.argmin(gram.uses[:slots])
        if gram.uses[least] >= gram.waiting[row]:
            return slot
        slot = least
        _clear(gram, slot, weights)
    gram.row_of[slot], gram.slot_of[row] = row, slot
    gram.uses[slot], gram.waiting[row] = gram.waiting[row], 0
    return slot


@kernel
def _count_pairs(
    gram: Gram, recent: Ints, window: int, slot: int, place: int, sign: float, gap_weight: Floats
) -> None:
    """Add (or take back) a slot's pairs with the recent items. It stands at `place` among them, -1 = newer
    than all; of an item that is there twice, the newer place counts."""
    pairs = gram.pairs
    gram.stamp[-1] += 1
    now = gram.stamp[-1]
    pairs[_at(slot, slot)] = max(pairs[_at(slot, slot)] + np.float32(sign), np.float32(0.0))
    gram.stamp[slot] = now
    for position in range(window):
        row = recent[position]
        other = gram.slot_of[row] if row >= 0 else np.int32(-1)
        if other >= 0 and gram.stamp[other] != now:
            gram.stamp[other] = now
            pair = _at(slot, other)
            amount = np.float32(sign) * gap_weight[abs(position - place)]
            pairs[pair] = max(pairs[pair] + amount, np.float32(0.0))


@kernel
def _forget(gram: Gram, row: int, weights: Floats) -> None:
    """Forget an item."""
    gram.waiting[row] = 0
    slot = gram.slot_of[row]
    if slot >= 0:
        gram.uses[slot] = 0
        gram.marks[UNUSED] += 1
        _clear(gram, slot, weights)


@kernel
def _place_among(recent: Ints, window: int, row: int) -> int:
    """Place of an item among the recent ones, -1 = it is not."""
    for position in range(window):
        if recent[position] == row:
            return position
    return -1


@kernel
def ease_learn(
    event: int, last: int, until: int, changes: Ints, changed: int, item: Ints, recent: Ints, weight: Floats,
    gram: Gram, weights: Floats, gap_weight: Floats, max_items: int,
) -> tuple[int, int]:  # fmt: skip
    """Learn events from `event` and table changes from `changed` on; returns the next ones: `last`, or
    earlier, when there have been `until` events in all."""
    window = min(gap_weight.shape[0] - 1, recent.shape[1])
    while event < last and gram.marks[EVENTS] < until:
        while changed < changes.shape[0] and changes[changed, 0] == event:
            if changes[changed, 1] == GONE:
                _forget(gram, changes[changed, 2], weights)
            changed += 1
        gram.marks[EVENTS] += 1
        row, place = item[event], _place_among(recent[event], window, item[event])
        slot = np.int64(gram.slot_of[row])
        if weight[event] > 0.0:
            if slot >= 0:
                gram.uses[slot] += 1
            else:
                gram.waiting[row] += 1
                slot = _admit(gram, row, weights, max_items)
            if slot >= 0 and place < 0:
                _count_pairs(gram, recent[event], window, slot, -1, 1.0, gap_weight)
        elif weight[event] < 0.0 and slot >= 0 and place >= 0:
            _count_pairs(gram, recent[event], window, slot, place, -1.0, gap_weight)
        event += 1
    return event, changed


@kernel
def ease_unlearn(item: Ints, recent: Ints, weight: Floats, gram: Gram, gap_weight: Floats) -> None:
    """Take events back, newest first."""
    window = min(gap_weight.shape[0] - 1, recent.shape[1])
    for event in range(item.shape[0]):
        gram.marks[EVENTS] = max(gram.marks[EVENTS] - 1, 0)
        row, place = item[event], _place_among(recent[event], window, item[event])
        slot = np.int64(gram.slot_of[row])
        if weight[event] > 0.0:
            if slot >= 0:
                gram.uses[slot] = max(gram.uses[slot] - 1, 0)
            else:
                gram.waiting[row] = max(gram.waiting[row] - 1, 0)
            if slot >= 0 and place < 0:
                _count_pairs(gram, recent[event], window, slot, -1, -1.0, gap_weight)
        elif weight[event] < 0.0 and slot >= 0 and place >= 0:
            _count_pairs(gram, recent[event], window, slot, place, 1.0, gap_weight)


@kernel
def ease_forget(rows: Ints, gram: Gram, weights: Floats) -> None:
    """Forget items."""
    for row in rows:
        _forget(gram, row, weights)


@kernel
def ease_score(
    recent: Ints, candidates: Ints, slot_of: Ints, weights: Floats, query_length: int, query_decay: float,
    total: Floats, out: Floats,
) -> None:  # fmt: skip
    """Scores of given rows; total float32[slots of the weights] is scratch."""
    slots, rows = weights.shape[0], slot_of.shape[0]
    for query in range(recent.shape[0]):
        total[:] = 0.0
        decay = 1.0
        for position in range(min(query_length, recent.shape[1])):
            row = recent[query, position]
            source = slot_of[row] if 0 <= row < rows else np.int32(-1)
            if 0 <= source < slots:
                part, line = np.float32(decay), weights[source]
                for slot in range(slots):
                    total[slot] += part * line[slot]
            decay *= query_decay
        for column in range(candidates.shape[1]):
            row = candidates[query, column]
            target = slot_of[row] if 0 <= row < rows else np.int32(-1)
            if 0 <= target < slots:
                out[query, column] = total[target]
