"""When an item was last used, and how often it was shown."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from online_models import item_activity_kernels as kernels
from online_models.arrays import Arrays
from online_models.item_table import ItemTable, grown
from online_models.learning_batch import BatchRows, LearningBatch

__all__ = ["ItemActivity"]


class ItemActivity:
    r"""Newest event and exposures of every item.

    $$t_i = \max\{t_e : e \text{ on } i,\ w_e > 0\}, \qquad x_i = \#\{e \text{ on } i : w_e = 0\}$$

    It ranks nothing: it is what networks read of an item beside the models' scores (`serving.features`).
    Exposures are plain counts, because with the plain count of uses they tell how often an item is taken when
    it is shown; both see an item's whole life. Taking an event back leaves t_i where it is: which event was
    the newest before is not kept.

    >>> state, batch = ItemActivity(), LearningBatch(
    ...     item_ids=["tea"], item=np.zeros(2, np.int32), recent=np.zeros((2, 0), np.int32),
    ...     time_ms=np.array([7, 9]), weight=np.array([1, 0], np.float32), event_type=np.zeros(2, np.uint8),
    ...     user_before=np.zeros((2, 0), np.float32), user_after=np.zeros((2, 0), np.float32),
    ...     negatives=np.zeros((2, 0), np.int32))
    >>> state.apply(batch, state.items.resolve(batch))
    >>> state.last_ms.tolist()[:1], state.exposures.tolist()[:1]
    ([7], [1])
    """

    def __init__(self) -> None:
        self.items = ItemTable()
        self._last_ms = np.zeros(0, dtype=np.int64)
        self._exposures = np.zeros(0, dtype=np.int64)

    @property
    def last_ms(self) -> NDArray[np.int64]:
        """int64[>= rows]: time of each row's newest positive event, ms, -1 where there is none; a view."""
        return self._last_ms

    @property
    def exposures(self) -> NDArray[np.int64]:
        """int64[>= rows]; a view."""
        return self._exposures

    def apply(self, batch: LearningBatch, rows: BatchRows) -> None:
        """Learn a batch of the log; `rows` are its items, resolved in `self.items`."""
        self.reserve()
        kernels.activity_learn(
            rows.changes, rows.item, batch.weight, batch.time_ms, self._last_ms, self._exposures
        )

    def expose(self, rows: NDArray[np.int32]) -> None:
        """Count one exposure for each of rows int32[n]; -1, an item without a row, counts for nothing."""
        self.reserve()
        kernels.activity_expose(rows, self._exposures)

    def correct(self, batch: LearningBatch, rows: BatchRows) -> None:
        """Nothing: a time that was the newest stays, and what was shown was shown."""

    def forget_users(self, tokens: NDArray[np.uint64]) -> None:
        """Nothing: no user's name is kept here."""

    def give_rows(self, changes: NDArray[np.int32]) -> None:
        """Take in rows that were given to items which nobody has used yet."""
        self.reserve()

    def forget_rows(self, rows: NDArray[np.int32]) -> None:
        """Forget the items that had these rows."""
        self.reserve()
        self._last_ms[rows], self._exposures[rows] = -1, 0

    def item_arrays(self) -> Arrays:
        """`activity.last_ms` and `activity.exposures`, int64[rows]."""
        self.reserve()
        n = len(self.items)
        return {
            "activity.last_ms": self._last_ms[:n].copy(),
            "activity.exposures": self._exposures[:n].copy(),
        }

    def load_item_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Replace all by what `item_arrays` gave. `self.items` is in place already."""
        n, limit = len(self.items), self.items.limit
        nothing = np.zeros(0, dtype=np.int64)
        self._last_ms, self._exposures = grown(nothing, n, limit, fill=-1), grown(nothing, n, limit)
        self._last_ms[:n] = arrays["activity.last_ms"]
        self._exposures[:n] = arrays["activity.exposures"]

    def nbytes(self) -> int:
        """Bytes of the arrays for the rows in use."""
        return (8 + 8) * len(self.items)

    def reserve(self) -> None:
        """Room for the table's rows."""
        n, limit = len(self.items), self.items.limit
        self._last_ms = grown(self._last_ms, n, limit, fill=-1)
        self._exposures = grown(self._exposures, n, limit)
