"""How a worker's item codes and the rows of the replicated item table go together.

Codes are given by the worker to every item that its users or its replica name; rows are given by the learning
log, alike on every replica. An item can have a code before it has a row, when its first event is still on its
way through the log.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from online_models.item_state import ItemState
from streams.id_table import IdTable, resized

__all__ = ["ItemCodes"]

Int32 = npt.NDArray[np.int32]


class ItemCodes:
    """`row_of` int32[>= codes], -1 where an item has no row; `code_of` int32[>= rows]. Good until `follow` or
    `cover` are called again."""

    def __init__(self, items: ItemState, table: IdTable) -> None:
        self._items = items
        self._table = table
        self.row_of: Int32 = np.zeros(0, np.int32)
        self.code_of: Int32 = np.zeros(0, np.int32)
        ids = items.items.ids
        self.follow(
            np.flatnonzero([item_id != "" for item_id in ids]).astype(np.int32), np.zeros(0, np.int32)
        )

    def cover(self) -> None:
        """Make the maps as long as the tables."""
        rows = max(1, len(self._items.items.ids))
        if len(self.row_of) < self._table.capacity:
            resized(self.row_of, self._table.capacity, fill=-1)
        if len(self.code_of) < rows:
            resized(self.code_of, max(rows, len(self.code_of) * 3 // 2), fill=-1)

    def follow(self, given: Int32, freed: Int32) -> None:
        """Take in which rows have a new item, and which have none now (`ItemState.take_changes`)."""
        self.cover()
        changed = np.concatenate((given, freed))
        before = self.code_of[changed]
        self.row_of[before[before >= 0]] = -1
        self.code_of[changed] = -1
        if len(given):
            ids = self._items.items.ids
            codes = self._table.codes_of([ids[row].encode() for row in given.tolist()], ensure=True)
            self.cover()
            self.row_of[codes] = given
            self.code_of[given] = codes

    def forget(self, codes: Int32) -> None:
        """Give codes back that nothing names any more."""
        self.cover()
        self._table.remove(codes)
        self.row_of[codes] = -1

    def named(self) -> Int32:
        """Codes of all items with a row."""
        return self.code_of[self.code_of >= 0]
