# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload, operator"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""Compiled kernels of the item table: who has which row, who was idle longest, which rows may be used again.

They call no kernel of another file: numba's disk cache would not notice a change there.

Rows in use stand in one list by last use. When the table is full, each new item takes the row of the idlest
one. A freed row waits until every row has been swept of its mentions (co-visitation names items by row), so
that it can't be mistaken for the item that has it next:

    in use ─► waiting (freed while a sweep runs) ─► swept (its mentions are being removed) ─► free ─► in use

Each new item sweeps `SWEPT_ROWS` rows, whatever the size of the table. A sweep of all N rows thus takes
N / SWEPT_ROWS new items, and 2 N / SWEPT_ROWS = N / SPARE rows are enough to bridge it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from online_models.kernels import FREED, GIVEN, GONE, SWEEP, kernel

__all__ = [
    "CURSOR",
    "EPOCH",
    "EVICTIONS",
    "FREE",
    "FREED",
    "GIVEN",
    "GONE",
    "LIMIT",
    "LIVE",
    "MARKS",
    "NEWEST",
    "OLDEST",
    "ROWS",
    "SPARE",
    "SWEEP",
    "SWEPT",
    "WAITING",
    "RowLists",
    "append_row",
    "batch_in_range",
    "free_row",
    "list_rows",
    "resolve",
    "take_row",
]

SWEPT_ROWS = 64
SPARE = 32
MARKS = 13
ROWS, LIVE, OLDEST, NEWEST, FREE, SWEPT, SWEPT_LAST, WAITING, WAITING_LAST = range(9)
CURSOR, EPOCH, EVICTIONS, LIMIT = range(9, MARKS)
"""Places in `RowLists.marks`: rows ever used, rows in use, heads (and ends) of the lists, the sweep's next
row (-1 = none runs), assignments and evictions so far, rows at most."""

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]


class RowLists(NamedTuple):
    given: Longs  # int64[rows]: assignments made before this row's, FREED where no item has it
    newer: Ints  # int32[rows]: next in the row's list, -1 = last
    older: Ints  # int32[rows]: the one before, among the rows in use
    marks: Longs  # int64[MARKS]


@kernel
def _unlink(lists: RowLists, row: int) -> None:
    older, newer = lists.older[row], lists.newer[row]
    if older >= 0:
        lists.newer[older] = newer
    else:
        lists.marks[OLDEST] = newer
    if newer >= 0:
        lists.older[newer] = older
    else:
        lists.marks[NEWEST] = older


@kernel
def append_row(lists: RowLists, row: int) -> None:
    """Put a row behind those in use: it was used last."""
    newest = lists.marks[NEWEST]
    lists.older[row], lists.newer[row] = newest, -1
    if newest >= 0:
        lists.newer[newest] = row
    else:
        lists.marks[OLDEST] = row
    lists.marks[NEWEST] = row


@kernel
def _note(changes: Ints, n: int, event: int, kind: int, first: int, second: int) -> int:
    changes[n, 0], changes[n, 1], changes[n, 2], changes[n, 3] = event, kind, first, second
    return n + 1


@kernel
def free_row(lists: RowLists, row: int) -> None:
    """Free a row; it waits for the next sweep."""
    marks = lists.marks
    _unlink(lists, row)
    lists.given[row] = FREED
    lists.newer[row] = -1
    if marks[WAITING] < 0:
        marks[WAITING] = row
    else:
        lists.newer[marks[WAITING_LAST]] = row
    marks[WAITING_LAST] = row
    marks[LIVE] -= 1
    marks[EVICTIONS] += 1


@kernel
def _evict(lists: RowLists) -> int:
    """Free the row of the item that was idle longest."""
    row = lists.marks[OLDEST]
    free_row(lists, row)
    return row


@kernel
def _sweep(lists: RowLists, rows: int, event: int, changes: Ints, n: int) -> int:
    """Sweep at most `rows` more; a sweep that is through sets its rows free."""
    marks = lists.marks
    if marks[CURSOR] < 0:
        if marks[WAITING] < 0:
            return n
        marks[SWEPT], marks[SWEPT_LAST], marks[WAITING] = marks[WAITING], marks[WAITING_LAST], -1
        marks[CURSOR] = 0
    end = min(marks[CURSOR] + rows, marks[ROWS])
    n = _note(changes, n, event, SWEEP, marks[CURSOR], end)
    marks[CURSOR] = end
    if end == marks[ROWS]:
        lists.newer[marks[SWEPT_LAST]] = marks[FREE]
        marks[FREE], marks[SWEPT], marks[CURSOR] = marks[SWEPT], -1, -1
    return n


@kernel
def take_row(
    lists: RowLists, index_of_row: Ints, row_of_index: Ints, event: int, changes: Ints, n: int
) -> int:
    """A row for a new item: `marks[NEWEST]`. Returns the number of changes noted, at most 5 more.

    index_of_row int32[rows] leads back to the batch's ids, -1 = none; its evicted ids lose their rows.
    """
    marks = lists.marks
    if marks[LIVE] >= marks[LIMIT] - marks[LIMIT] // SPARE:
        gone = _evict(lists)
        n = _note(changes, n, event, GONE, gone, 0)
        if index_of_row[gone] >= 0:
            row_of_index[index_of_row[gone]] = -1
            index_of_row[gone] = -1
    n = _sweep(lists, SWEPT_ROWS, event, changes, n)
    while marks[FREE] < 0 and marks[ROWS] == marks[LIMIT]:
        n = _sweep(lists, marks[ROWS], event, changes, n)
    row = marks[FREE]
    if row >= 0:
        marks[FREE] = lists.newer[row]
    else:
        row = marks[ROWS]
        marks[ROWS] += 1
    lists.given[row] = marks[EPOCH]
    marks[EPOCH] += 1
    marks[LIVE] += 1
    append_row(lists, row)
    return n


@kernel
def _mention(value: int, row_of_index: Ints, given: Longs, rows: int, epoch: int) -> int:
    if value >= 0:
        return row_of_index[value]
    row = -value - 2
    return row if 0 <= row < rows and given[row] < epoch else -1


@kernel
def resolve(
    item: Ints, recent: Ints, negatives: Ints, epochs: Longs, row_of_index: Ints, index_of_row: Ints,
    lists: RowLists, out_item: Ints, out_recent: Ints, out_negatives: Ints, changes: Ints,
) -> int:  # fmt: skip
    """Rows of a batch's columns, -1 = unknown, and what changes in the table on the way; returns how many
    changes there are.

    row_of_index int32[ids] and index_of_row int32[rows] are moved on with the table. Shapes as in
    `LearningBatch`; changes int32[5 x new items, 4].
    """
    marks, given, n = lists.marks, lists.given, 0  # read within the loops, a tuple costs more
    for event in range(item.shape[0]):
        index, epoch = item[event], epochs[event]
        row = row_of_index[index]
        if row < 0:
            n = take_row(lists, index_of_row, row_of_index, event, changes, n)
            row = marks[NEWEST]
            n = _note(changes, n, event, GIVEN, row, index)
            row_of_index[index] = row
            index_of_row[row] = index
        elif row != marks[NEWEST]:
            _unlink(lists, row)
            append_row(lists, row)
        out_item[event] = row
        rows = marks[ROWS]
        for position in range(recent.shape[1]):
            out_recent[event, position] = _mention(recent[event, position], row_of_index, given, rows, epoch)
        for position in range(negatives.shape[1]):
            out_negatives[event, position] = _mention(
                negatives[event, position], row_of_index, given, rows, epoch
            )
    return n


@kernel
def list_rows(first: int, newer: Ints, out: Ints) -> int:
    """Write a list's rows in order; returns how many there are."""
    n, row = 0, first
    while row >= 0:
        out[n] = row
        n += 1
        row = newer[row]
    return n


@kernel
def batch_in_range(
    item: Ints, recent: Ints, negatives: Ints, time_ms: Longs, weight: NDArray[np.float32],
    before: NDArray[np.float32], after: NDArray[np.float32],
    n_ids: int, lowest: int, max_time: int, max_weight: float,
) -> bool:  # fmt: skip
    """Does every value of a learning batch lie where it may? One pass, for the batches that do."""
    good = True
    for event in range(item.shape[0]):
        good &= 0 <= item[event] < n_ids and 0 <= time_ms[event] <= max_time
        good &= abs(weight[event]) <= max_weight
        for position in range(recent.shape[1]):
            good &= lowest <= recent[event, position] < n_ids
        for position in range(negatives.shape[1]):
            good &= lowest <= negatives[event, position] < n_ids
        total = np.float32(0.0)
        for k in range(before.shape[1]):  # inf - inf and NaN - NaN are NaN, all else is 0
            total += (before[event, k] - before[event, k]) + (after[event, k] - after[event, k])
        good &= total == 0.0
    return good
