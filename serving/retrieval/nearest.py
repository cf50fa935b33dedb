"""The factors' candidates in catalogues too large to scan for every list: an index that follows the state."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from online_models.item_state import ItemState
from serving.retrieval.approximate import FactorIndex

__all__ = ["NearestItems"]

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

BACKLOG_ROWS = 512
"""Rows that were there before the index was and come into it at every call of `follow`: a few ms, so that no
micro-batch waits for a million items at once."""


class NearestItems:
    """A `FactorCandidates` for `Pipeline(nearest=...)`: finds items by inner product with users' factors.

    Whoever applies the learning log calls `follow` with the rows that moved: those of events' items and of
    negatives, and those that changed hands. Searching is approximate; a moved row is found at its new place
    as soon as `follow` returns, one that was there before the index after so many calls.

    Measured on one core (docs/decisions/0007): a search among a million items of 64 factors takes a fraction
    of a millisecond, many times what the rest of a list does. One thread at a time.
    """

    def __init__(self, items: ItemState, seed: int = 0) -> None:
        self._items = items
        self._index = FactorIndex(items.factors.dimension, seed)
        self._table = items.items
        self._entered = 0

    def __len__(self) -> int:
        return len(self._index)

    @property
    def backlog(self) -> int:
        """Rows that have not come into the index yet."""
        return len(self._items.items) - self._entered

    def follow(self, rows: Int32) -> None:
        """Take the present vectors of rows int32[m] that moved, and some of the backlog."""
        if self._table is not self._items.items:  # another state was loaded
            self._index = FactorIndex(self._index.dimension, self._index.seed)
            self._table, self._entered = self._items.items, 0
        fresh = np.arange(self._entered, min(self._entered + BACKLOG_ROWS, len(self._table)), dtype=np.int32)
        moved = np.unique(np.concatenate((rows[rows >= 0], fresh))).astype(np.int32)
        moved = moved[moved < self._entered + len(fresh)]  # the others come with the backlog
        self._entered += len(fresh)
        has_item = np.array([self._table.ids[row] != "" for row in moved.tolist()], dtype=np.bool_)
        gone, there = moved[~has_item], moved[has_item]
        self._index.remove(gone)
        self._index.update(there, self._items.factors.factors.rows[there])
        self._index.rebuild_if_due()

    def __call__(self, users: Float32, k: int, mask: Bool) -> Int32:
        """Rows int32[n, k] of those that mask bool[rows] lets through, best first, -1 padded."""
        rows, _ = self._index.search(users, k, mask)
        return rows
