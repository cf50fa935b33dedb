"""Item ids to dense rows, given in the order of first use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from online_models import kernels
from online_models.learning_batch import BatchRows, LearningBatch

__all__ = ["ItemTable"]

UNKNOWN = -1


class ItemTable:
    """Maps item ids to rows 0, 1, 2, ... in the order of the first `ensure`, so one log gives one table.

    >>> table = ItemTable()
    >>> table.ensure(["milk", "bread", "milk"]).tolist()
    [0, 1, 0]
    >>> table.row("tea"), len(table)
    (-1, 2)
    """

    __slots__ = ("_given", "_row_of", "epoch", "ids")

    def __init__(self, ids: Iterable[str] = ()) -> None:
        self.ids: list[str] = []
        self.epoch = 0  # row assignments made so far
        self._row_of: dict[str, int] = {}
        self._given = np.zeros(64, dtype=np.int64)
        self.ensure(ids)

    def __len__(self) -> int:
        return len(self.ids)

    def row(self, item_id: str) -> int:
        """Row of an item, -1 when it is unknown. Never inserts."""
        return self._row_of.get(item_id, UNKNOWN)

    def rows(self, item_ids: Iterable[str]) -> NDArray[np.int32]:
        """Rows int32[n] of items, -1 where unknown. Never inserts."""
        get = self._row_of.get
        return np.array([get(item_id, UNKNOWN) for item_id in item_ids], dtype=np.int32)

    def ensure(self, item_ids: Iterable[str]) -> NDArray[np.int32]:
        """Rows int32[n] of items, with a new row for each that had none."""
        return np.array([self._ensure_one(item_id) for item_id in item_ids], dtype=np.int32)

    def resolve(self, batch: LearningBatch) -> BatchRows:
        """Give the events' items rows, in order, and translate the batch's columns into rows.

        A recent item or a negative counts only if it had a row by the time of its event (an item that gets
        one later in the same batch is still unknown), so that cutting the log into other batches changes
        nothing. Raises ValueError when rows are named by a state of the table that is still to come.
        """
        epochs = batch.epochs()
        if (newest := int(epochs.max(initial=-1))) > self.epoch:
            raise ValueError(
                f"table_epoch is {newest}, but only {self.epoch} rows have been given here: the record names "
                "rows of another log's item table, or records before it were left out"
            )
        row_of_index = self.rows(batch.item_ids)
        known_from = np.where(row_of_index < 0, np.int32(len(batch)), np.int32(0))
        for event in np.flatnonzero(row_of_index[batch.item] < 0).tolist():
            index = int(batch.item[event])
            if row_of_index[index] < 0:
                row_of_index[index] = self._ensure_one(batch.item_ids[index])
                known_from[index] = event
        return BatchRows(
            item=row_of_index[batch.item],
            recent=self._mentions(batch.recent, row_of_index, known_from, epochs),
            negatives=self._mentions(batch.negatives, row_of_index, known_from, epochs),
        )

    def _mentions(
        self,
        column: NDArray[np.int32],
        row_of_index: NDArray[np.int32],
        known_from: NDArray[np.int32],
        epochs: NDArray[np.int64],
    ) -> NDArray[np.int32]:
        rows = np.empty(column.shape, dtype=np.int32)
        kernels.resolve_mentions(
            np.ascontiguousarray(column), row_of_index, known_from, self._given, epochs, rows
        )  # fmt: skip
        return rows

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """`items.ids` uint8[bytes] (UTF-8, joined) and `items.lengths` int32[n] (bytes of each id)."""
        return pack_ids("items", self.ids)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> ItemTable:
        """Table with the ids of `to_arrays`, in their order."""
        return cls(unpack_ids("items", arrays))

    def _ensure_one(self, item_id: str) -> int:
        row = self._row_of.get(item_id)
        if row is None:
            row = self._row_of[item_id] = len(self.ids)
            self.ids.append(item_id)
            if row >= len(self._given):
                self._given = np.concatenate((self._given, np.zeros_like(self._given)))
            self._given[row] = self.epoch
            self.epoch += 1
        return row


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
