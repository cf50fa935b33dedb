# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload, operator"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""Compiled kernels of `ease.RecencyEASE`: pair counts, and the inverse of their matrix.

They call no kernel of another file: numba's disk cache would not notice a change there. The inverse is
computed here, in one fixed order, and not by LAPACK, whose bits depend on the number of threads: weights are
part of what replicas must agree on.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from online_models.kernels import GONE, kernel

__all__ = ["EVENTS", "NEXT", "SLOTS", "Gram", "ease_learn", "ease_score", "ease_weights"]

EVENTS, NEXT, SLOTS, UNUSED = range(4)
"""Places in `Gram.marks`: events so far, events at the next refresh, slots ever used, of these without an
item."""
BLOCK, STEP = 32, 8
"""Pivots of the inverse taken at once, so that the matrix passes through memory a 32nd as often; and such as
one inner loop takes."""
MAX_WEIGHT = 100.0
"""Bounds a weight between items: what no counts of real use come near."""

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]


class Gram(NamedTuple):
    """Counts of pairs, by slot: pair (s, t), s >= t, stands at s (s + 1) / 2 + t."""

    pairs: Floats  # float32[slots (slots + 1) / 2]
    row_of: Ints  # int32[max_items]: item in the slot, -1 = none
    uses: Longs  # int64[max_items]: events of the slot's item
    stamp: Longs  # int64[max_items]: the last event that looked at the slot; scratch
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
    gram.row_of[slot] = -1
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
    now, pairs = gram.marks[EVENTS], gram.pairs
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
def ease_learn(
    event: int, changes: Ints, changed: int, item: Ints, recent: Ints, weight: Floats, gram: Gram,
    weights: Floats, gap_weight: Floats, max_items: int,
) -> tuple[int, int]:  # fmt: skip
    """Learn events from `event` and table changes from `changed` on; returns the next ones, earlier than the
    end when the weights must be computed anew before them."""
    window = min(gap_weight.shape[0] - 1, recent.shape[1])
    while event < item.shape[0] and gram.marks[EVENTS] < gram.marks[NEXT]:
        while changed < changes.shape[0] and changes[changed, 0] == event:
            if changes[changed, 1] == GONE:
                gone = changes[changed, 2]
                gram.waiting[gone] = 0
                if gram.slot_of[gone] >= 0:
                    gram.uses[gram.slot_of[gone]] = 0
                    gram.marks[UNUSED] += 1
                    _clear(gram, gram.slot_of[gone], weights)
            changed += 1
        gram.marks[EVENTS] += 1
        row, place = item[event], -1
        for position in range(window - 1, -1, -1):
            place = position if recent[event, position] == row else place
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
def _invert_block(block: Doubles, floor: float) -> bool:
    """The inverse of a small symmetric matrix, in place; False when a pivot is below `floor`."""
    n = block.shape[0]
    for k in range(n):
        if not block[k, k] >= floor:
            return False
        scale = 1.0 / block[k, k]
        for i in range(n):
            if i != k:
                step = block[i, k] * scale
                for j in range(n):
                    if j != k:
                        block[i, j] -= step * block[k, j]
        for i in range(n):
            block[i, k] *= scale
            block[k, i] = block[i, k]
        block[k, k] = -scale
    for i in range(n):
        for j in range(n):
            block[i, j] = -block[i, j]
    return True


@kernel
def _subtract(row: Doubles, panel: Doubles, by: Doubles) -> None:
    """row -= by panel, over the row's length, for by float64[STEP] and panel float64[STEP, n]."""
    p0, p1, p2, p3, p4, p5, p6, p7 = (
        panel[0], panel[1], panel[2], panel[3], panel[4], panel[5], panel[6], panel[7],
    )  # fmt: skip
    b0, b1, b2, b3, b4, b5, b6, b7 = by[0], by[1], by[2], by[3], by[4], by[5], by[6], by[7]
    for j in range(row.shape[0]):
        row[j] -= (
            b0 * p0[j] + b1 * p1[j] + b2 * p2[j] + b3 * p3[j]
            + b4 * p4[j] + b5 * p5[j] + b6 * p6[j] + b7 * p7[j]
        )  # fmt: skip


@kernel
def _sweep(a: Doubles, floor: float) -> bool:
    """Make the lower triangle of a symmetric matrix that of minus its inverse; False, and the matrix is
    spent, when a pivot is below `floor`.

    The sweep operator, BLOCK pivots at once: with D the inverse of the pivots' block,
    A_ij -= A_iK D A_Kj, A_iK = A_iK D, A_KK = -D.
    """
    n = a.shape[0]
    panel, scaled = np.zeros((BLOCK, n)), np.zeros((n, BLOCK))
    for first in range(0, n, BLOCK):
        size = min(BLOCK, n - first)
        panel[size:] = 0.0
        scaled[:, size:] = 0.0
        for q in range(size):
            k = first + q
            for j in range(n):
                panel[q, j] = a[k, j] if j <= k else a[j, k]
        inverse = panel[:size, first : first + size].copy()
        if not _invert_block(inverse, floor):
            return False
        for i in range(n):
            for q in range(size):
                total = 0.0
                for p in range(size):
                    total += inverse[q, p] * panel[p, i]
                scaled[i, q] = total
        for i in range(n):
            for q in range(0, size, STEP):
                _subtract(a[i, : i + 1], panel[q : q + STEP], scaled[i, q : q + STEP])
        for q in range(size):
            k = first + q
            for j in range(n):
                value = -inverse[q, j - first] if first <= j < first + size else scaled[j, q]
                if j <= k:
                    a[k, j] = value
                else:
                    a[j, k] = value
    return True


@kernel
def _load(pairs: Floats, ridge: float, work: Doubles) -> None:
    for i in range(work.shape[0]):
        for j in range(i + 1):
            work[i, j] = pairs[i * (i + 1) // 2 + j]
        work[i, i] += ridge


@kernel
def ease_weights(pairs: Floats, regularization: float, work: Doubles, weights: Floats) -> None:
    """weights float32[n, n] of `ease.RecencyEASE`'s B from the counts; work float64[n, n] is scratch.

    Counts of windows are positive semidefinite: then no pivot is below the regularization. Where bounds at 0
    broke that, the regularization is doubled until none is below half of it.
    """
    n, ridge = weights.shape[0], regularization
    _load(pairs, ridge, work)
    while not _sweep(work, 0.5 * ridge):
        ridge *= 2.0
        _load(pairs, ridge, work)
    for i in range(n):
        for j in range(i):
            both = -work[i, j]
            weights[i, j] = min(max(both / work[j, j], -MAX_WEIGHT), MAX_WEIGHT)
            weights[j, i] = min(max(both / work[i, i], -MAX_WEIGHT), MAX_WEIGHT)
        weights[i, i] = 0.0


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
