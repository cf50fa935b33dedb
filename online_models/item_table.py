"""Item ids to dense rows, given in the order of first use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

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

    __slots__ = ("_row_of", "ids")

    def __init__(self, ids: Iterable[str] = ()) -> None:
        self.ids: list[str] = []
        self._row_of: dict[str, int] = {}
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
        nothing.
        """
        ids = batch.item_ids
        known = np.empty(len(batch), dtype=np.int32)
        for position, index in enumerate(batch.item.tolist()):
            self._ensure_one(ids[index])
            known[position] = len(self.ids)
        row_of_index = np.append(self.rows(ids), np.int32(UNKNOWN))  # index -1 reads the last: unknown
        recent, negatives = row_of_index[batch.recent], row_of_index[batch.negatives]
        return BatchRows(
            item=row_of_index[batch.item],
            recent=np.where(recent < known[:, None], recent, np.int32(UNKNOWN)),
            negatives=np.where(negatives < known[:, None], negatives, np.int32(UNKNOWN)),
        )

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
