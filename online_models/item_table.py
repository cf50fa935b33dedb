"""Item ids to dense rows, given in the order of first use; the idlest items make room for new ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from online_models import table_kernels as kernels
from online_models.learning_batch import BatchRows, LearningBatch

__all__ = ["UNLIMITED", "ItemTable", "grown"]

UNKNOWN = -1
UNLIMITED = 2**30
SMALL_ROWS = 1 << 16
"""Tables of more rows than this take address space for all that they may ever hold: memory comes with use,
and no event has to wait while millions of rows are copied."""


class ItemTable:
    """Maps item ids to rows 0, 1, 2, ... in the order of first use, so one log gives one table.

    At most `limit` rows, of which limit // 32 are kept for the turnover: a new item then takes a row from the
    item whose last event is longest ago. A freed row has the id "" until another item gets it.

    >>> table = ItemTable()
    >>> table.ensure(["milk", "bread", "milk"]).tolist()
    [0, 1, 0]
    >>> table.row("tea"), len(table)
    (-1, 2)
    """

    __slots__ = ("_by_id", "_changed", "_index_of_row", "_lists", "_row_of", "ids", "limit")

    def __init__(self, ids: Iterable[str] = (), limit: int = UNLIMITED) -> None:
        self.ids: list[str] = []
        self.limit = limit
        self._row_of: dict[str, int] = {}
        marks = np.full(kernels.MARKS, -1, dtype=np.int64)
        marks[[kernels.ROWS, kernels.LIVE, kernels.EPOCH, kernels.EVICTIONS]] = 0
        marks[kernels.LIMIT] = limit
        empty = np.zeros(0, dtype=np.int32)
        self._lists = kernels.RowLists(np.zeros(0, dtype=np.int64), empty, empty, marks)
        self._index_of_row = empty
        self._changed: list[NDArray[np.int32]] = []
        self._by_id = ((0, 0), empty)
        self.ensure(ids)

    def __len__(self) -> int:
        """Rows that are or were in use."""
        return len(self.ids)

    @property
    def epoch(self) -> int:
        """Row assignments made so far."""
        return int(self._lists.marks[kernels.EPOCH])

    @property
    def evictions(self) -> int:
        """Items that lost their row so far."""
        return int(self._lists.marks[kernels.EVICTIONS])

    @property
    def given(self) -> NDArray[np.int64]:
        """int64[>= rows]: the epoch before each row's assignment, `table_kernels.FREED` where it has no
        item; a view."""
        return self._lists.given

    def row(self, item_id: str) -> int:
        """Row of an item, -1 when it is unknown. Never inserts."""
        return self._row_of.get(item_id, UNKNOWN)

    def rows(self, item_ids: Iterable[str]) -> NDArray[np.int32]:
        """Rows int32[n] of items, -1 where unknown. Never inserts."""
        get = self._row_of.get
        return np.array([get(item_id, UNKNOWN) for item_id in item_ids], dtype=np.int32)

    def rows_by_id(self) -> NDArray[np.int32]:
        """Rows int32[n] of all items that have one, in the order of their ids; sorted anew after a change."""
        state = (self.epoch, self.evictions)
        if self._by_id[0] != state:
            self._by_id = (state, np.array([row for _, row in sorted(self._row_of.items())], dtype=np.int32))
        return self._by_id[1]

    def ensure(self, item_ids: Iterable[str]) -> NDArray[np.int32]:
        """Rows int32[n] of items, with a new row for each that had none. Raises ValueError in a full table,
        where only an event of the log may take an idle item's row."""
        return np.array([self._ensure_one(item_id) for item_id in item_ids], dtype=np.int32)

    def resolve(self, batch: LearningBatch) -> BatchRows:
        """Give the events' items rows, in order, and translate the batch's columns into rows.

        A recent item or a negative counts only if it has a row at the time of its event (an item that gets
        one later in the same batch is still unknown), so that cutting the log into other batches changes
        nothing. Raises ValueError when rows are named by a state of the table that is still to come.
        """
        epochs, get = batch.epochs(), self._row_of.get
        self._require_past(batch.table_epoch, epochs)
        found = [get(item_id, UNKNOWN) for item_id in batch.item_ids]
        row_of_index, new = np.array(found, dtype=np.int32), 0
        if UNKNOWN in found:
            new = int(np.count_nonzero(row_of_index[batch.item] < 0))
            new = len(batch) if new and self._is_nearly_full(len(batch)) else new
        if new:
            self._reserve(min(self.limit, len(self.ids) + new))
            self._index_of_row[row_of_index[row_of_index >= 0]] = np.flatnonzero(row_of_index >= 0)
        rows = BatchRows(
            item=np.empty(batch.item.shape, dtype=np.int32),
            recent=np.empty(batch.recent.shape, dtype=np.int32),
            negatives=np.empty(batch.negatives.shape, dtype=np.int32),
            changes=np.empty((5 * new, 4), dtype=np.int32),
        )
        n = kernels.resolve(
            batch.item, batch.recent, batch.negatives, epochs, row_of_index, self._index_of_row, self._lists,
            rows.item, rows.recent, rows.negatives, rows.changes,
        )  # fmt: skip
        if new:
            self._index_of_row[row_of_index[row_of_index >= 0]] = UNKNOWN
            rows.changes = rows.changes[:n].copy()
            self._take_in(rows.changes, batch.item_ids)
        return rows

    def find(
        self, batch: LearningBatch, unused: NDArray[np.bool_] | None = None
    ) -> tuple[LearningBatch, BatchRows]:
        """The events of a batch whose items have rows, and the rows of their columns. Changes nothing: what
        withdraws an interaction gives no item a row, and does not count as a use. unused bool[rows]: rows
        that count as none."""
        index = self.rows(batch.item_ids)
        if unused is not None:
            index[(index >= 0) & unused[index]] = UNKNOWN
        kept = batch.take(np.flatnonzero(index[batch.item] >= 0))
        return kept, self.look_up(kept, index)

    def look_up(self, batch: LearningBatch, index: NDArray[np.int32] | None = None) -> BatchRows:
        """The rows that a batch's columns name as things stand now, -1 where there is none. Changes nothing.
        `index` is `rows(batch.item_ids)`, where the caller has it."""
        index = np.append(self.rows(batch.item_ids) if index is None else index, np.int32(UNKNOWN))
        given, epochs = self.given[: len(self.ids)], batch.epochs()[:, None]

        def rows_of(column: NDArray[np.int32]) -> NDArray[np.int32]:
            if not (column < UNKNOWN).any():
                return index[column]  # -1, none, leads to the last
            row = np.where(column <= -2, -column - 2, UNKNOWN)
            past = (row >= 0) & (row < len(given))
            past[past] = given[row[past]] < np.broadcast_to(epochs, row.shape)[past]
            return np.where(
                column >= 0, index[np.maximum(column, UNKNOWN)], np.where(past, row, UNKNOWN)
            ).astype(np.int32)

        return BatchRows(index[batch.item], rows_of(batch.recent), rows_of(batch.negatives))

    @property
    def room(self) -> int:
        """Rows that can be given without taking one from an item."""
        marks = self._lists.marks
        return int(max(0, self.limit - self.limit // kernels.SPARE - marks[kernels.LIVE]))

    def introduce(self, item_ids: Iterable[str]) -> NDArray[np.int32]:
        """Give rows to items before their first use, in order, while there is `room`; whoever has one keeps
        it. Such a row counts as idle longest. Returns what changed, int32[c, 4] as `BatchRows.changes`."""
        noted = []
        for item_id in item_ids:
            if item_id and item_id not in self._row_of and self.room:
                self._reserve(min(self.limit, len(self.ids) + 1))
                changes = np.empty((5, 4), dtype=np.int32)
                n = kernels.take_row(self._lists, self._index_of_row, self._index_of_row, 0, changes, 0)
                row = int(self._lists.marks[kernels.NEWEST])
                changes[n] = 0, kernels.GIVEN, row, 0
                self._take_in(changes[n : n + 1], [item_id])
                self._put_first(row)
                noted.append(changes[: n + 1])
        return np.concatenate([np.empty((0, 4), dtype=np.int32), *noted])

    def free(self, item_id: str) -> int:
        """Take an item's row away, as if it had been idle longest; returns the row, -1 where it has none."""
        row = self._row_of.get(item_id, UNKNOWN)
        if row >= 0:
            kernels.free_row(self._lists, row)
            self._take_in(np.array([[0, kernels.GONE, row, 0]], dtype=np.int32), ())
        return row

    def take_changes(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Rows whose meaning changed since the last call: (int32[a] those that have a new item now, int32[b]
        those that have none now), each in rising order. At first, and after a restore, all rows in use."""
        if not self._changed:
            return np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int32)
        rows = np.unique(np.concatenate(self._changed))
        self._changed = []
        has_item = self.given[rows] != kernels.FREED
        return rows[has_item], rows[~has_item]

    def nbytes(self) -> int:
        """Bytes of the arrays for the rows in use, without the ids' strings."""
        return (8 + 4 + 4 + 4) * len(self.ids) + self._lists.marks.nbytes

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """`items.ids` uint8[bytes] (UTF-8, joined) and `items.lengths` int32[n] (bytes of each id, 0 for a
        freed row); `items.given` int64[n]; the rows of each list int32 in its order; `items.marks` int64."""
        marks = self._lists.marks
        lists = {
            f"items.{name}": self._listed(int(marks[place])).astype(np.int32)
            for name, place in _LISTS.items()
        }
        kept = marks[[kernels.CURSOR, kernels.EPOCH, kernels.EVICTIONS]]
        given = self.given[: len(self.ids)].copy()
        return {**pack_ids("items", self.ids), "items.given": given, **lists, "items.marks": kept}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], limit: int = UNLIMITED) -> ItemTable:
        """Table of `to_arrays`, with the same limit."""
        table, ids = cls(limit=limit), unpack_ids("items", arrays)
        table._reserve(len(ids))
        table.ids = ids
        table._row_of = {item_id: row for row, item_id in enumerate(ids) if item_id}
        lists, marks = table._lists, table._lists.marks
        lists.given[: len(ids)] = arrays["items.given"]
        marks[kernels.ROWS], marks[kernels.LIVE] = len(ids), len(table._row_of)
        marks[[kernels.CURSOR, kernels.EPOCH, kernels.EVICTIONS]] = arrays["items.marks"]
        for row in arrays["items.used"].tolist():
            kernels.append_row(lists, row)
        for name, first in _LISTS.items():
            rows = arrays[f"items.{name}"]
            if name != "used" and len(rows):
                marks[first], lists.newer[rows] = rows[0], np.append(rows[1:], UNKNOWN)
                if first != kernels.FREE:
                    marks[first + 1] = rows[-1]  # the mark behind a list's first row is its last
        table._changed = [np.arange(len(ids), dtype=np.int32)]
        return table

    def _put_first(self, row: int) -> None:
        """Have the row that was used last stand as the one that was idle longest."""
        older, newer, marks = self._lists.older, self._lists.newer, self._lists.marks
        before, first = int(older[row]), int(marks[kernels.OLDEST])
        if before >= 0:
            marks[kernels.NEWEST], newer[before] = before, UNKNOWN
            marks[kernels.OLDEST], older[first] = row, row
            older[row], newer[row] = UNKNOWN, first

    def _require_past(self, named: int | NDArray[np.int64], epochs: NDArray[np.int64]) -> None:
        """Raises ValueError for an epoch that can't have been reached: an event gives one row at most."""
        if isinstance(named, int) and named <= self.epoch:
            return
        early = np.flatnonzero(epochs > np.arange(self.epoch, self.epoch + len(epochs)))
        if len(early):
            raise ValueError(
                f"table_epoch is {epochs[early[0]]} at event {early[0]}, but only {self.epoch} rows had been "
                "given before the batch: it names rows of another log's table, or records were left out"
            )

    def _listed(self, first: int) -> NDArray[np.int32]:
        out = np.empty(len(self.ids), dtype=np.int32)
        return out[: kernels.list_rows(first, self._lists.newer, out)]

    def _take_in(self, changes: NDArray[np.int32], item_ids: Sequence[str]) -> None:
        """Move ids and their rows on by the changes of one batch."""
        ids, row_of = self.ids, self._row_of
        for _, kind, row, index in changes.tolist():
            if kind == kernels.GIVEN:
                if row == len(ids):
                    ids.append(item_ids[index])
                else:
                    ids[row] = item_ids[index]
                row_of[item_ids[index]] = row
            elif kind == kernels.GONE:
                del row_of[ids[row]]
                ids[row] = ""
        self._note(changes[changes[:, 1] != kernels.SWEEP, 2])

    def _note(self, rows: NDArray[np.int32]) -> None:
        self._changed.append(rows)
        if len(self._changed) > 1024:  # nobody may be asking
            self._changed = [np.unique(np.concatenate(self._changed))]

    def _is_nearly_full(self, events: int) -> bool:
        return int(self._lists.marks[kernels.LIVE]) + events > self.limit - self.limit // kernels.SPARE

    def _reserve(self, rows: int) -> None:
        if rows > len(self._index_of_row):
            lists = self._lists
            self._lists = kernels.RowLists(
                given=grown(lists.given, rows, self.limit),
                newer=grown(lists.newer, rows, self.limit),
                older=grown(lists.older, rows, self.limit),
                marks=lists.marks,
            )
            self._index_of_row = np.full(len(self._lists.given), UNKNOWN, dtype=np.int32)

    def _ensure_one(self, item_id: str) -> int:
        row = self._row_of.get(item_id)
        if row is None:
            if self._is_nearly_full(1):
                raise ValueError(
                    f"{len(self._row_of)} items fill a table of {self.limit}: only an event of the log may "
                    "take an idle item's row; raise models.max_items"
                )
            row = len(self.ids)
            self._reserve(row + 1)
            scratch = np.empty((5, 4), dtype=np.int32)
            kernels.take_row(self._lists, self._index_of_row, self._index_of_row, 0, scratch, 0)
            row = int(self._lists.marks[kernels.NEWEST])
            self._take_in(np.array([[0, kernels.GIVEN, row, 0]], dtype=np.int32), [item_id])
        return row


_LISTS = {
    "used": kernels.OLDEST,
    "free": kernels.FREE,
    "swept": kernels.SWEPT,
    "waiting": kernels.WAITING,
}


def grown(array: NDArray[Any], rows: int, limit: int, fill: float = 0) -> NDArray[Any]:
    """The array with room for at least `rows` rows, new ones `fill`ed: itself while there is room."""
    have = len(array)
    if rows <= have:
        return array
    wanted = max(rows, 2 * have, 64)
    if wanted > SMALL_ROWS and limit < UNLIMITED:
        wanted = limit
    larger = np.zeros((max(wanted, rows), *array.shape[1:]), dtype=array.dtype)
    if fill:
        larger[have:] = fill
    larger[:have] = array
    return larger


def pack_ids(name: str, ids: Sequence[str]) -> dict[str, NDArray[np.generic]]:
    """Strings as two arrays: `{name}.ids` uint8[bytes] and `{name}.lengths` int32[n]."""
    encoded = [item_id.encode() for item_id in ids]
    return {
        f"{name}.ids": np.frombuffer(b"".join(encoded), dtype=np.uint8).copy(),
        f"{name}.lengths": np.array([len(text) for text in encoded], dtype=np.int32),
    }


def unpack_ids(name: str, arrays: Mapping[str, NDArray[np.generic]]) -> list[str]:
    """The strings that `pack_ids` packed."""
    joined = arrays[f"{name}.ids"].tobytes()
    ends = np.cumsum(arrays[f"{name}.lengths"].astype(np.int64))
    starts = np.concatenate(([0], ends[:-1])) if len(ends) else ends
    return [joined[start:end].decode() for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
