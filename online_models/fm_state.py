"""What users of a factorisation machine share: the rows of items and buckets, and the items' features."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from online_models.biased_table import BiasedTable
from online_models.factor_table import start_vectors
from online_models.fm_features import Catalogue, Feature
from online_models.fm_kernels import MOMENTS, State
from online_models.item_table import ItemTable, grown
from online_models.kernels import GIVEN
from online_models.learning_batch import LearningBatch

__all__ = ["SharedRows"]


class SharedRows:
    """Replicated state of a factorisation machine of d dimensions; see `fm_kernels` for the rows' layout.

    Items and buckets start at small factors by seed, recent items and w_0 at 0. Of an item at most `width`
    features count.
    """

    __slots__ = ("_amount", "_feature", "_named", "_seed", "buckets", "catalogue", "table", "world")

    def __init__(self, dimension: int, seed: int, scale: float, buckets: int, width: int) -> None:
        self.table = BiasedTable(dimension, seed, scale, moments=1 + dimension + 2 * MOMENTS)
        self.catalogue = Catalogue(width)
        self.world = np.zeros(1 + MOMENTS, dtype=np.float32)
        self._feature = np.zeros((0, width), dtype=np.int32)
        self._amount = np.zeros((0, width), dtype=np.float32)
        self._named: dict[int, str] = {}
        self._seed = seed
        self.buckets = self._start_buckets(buckets)

    def state(self) -> State:
        """Views for the kernels; `reserve` may move them."""
        n = len(self.table)
        return State(self.table.rows, self.buckets, self.world, self._feature[:n], self._amount[:n])

    def block(self, row: int, item: str) -> NDArray[np.float32]:
        """float32[1 + d] of an item (row -1 = it has none yet)."""
        own: NDArray[np.float32] = self.table.row_of(row, item)[: 1 + self.table.factors]
        return own

    def enter(self, item: str, features: list[Feature], row: int) -> None:
        """Take in an item's features; row -1 = it has none yet."""
        self.catalogue.enter(item, features)
        if 0 <= row < len(self.table):
            self._set_features(row, item)

    def given(
        self, batch: LearningBatch, changes: NDArray[np.int32]
    ) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.int32], NDArray[np.float32]]:
        """Changes that the kernel must follow event by event, and start rows and features of the items that
        are given rows. To be called before `reserve`."""
        followed, start = self.table.given_rows(batch, changes)
        items = [batch.item_ids[index] for index in followed[followed[:, 1] == GIVEN, 3].tolist()]
        return followed, start, *self.catalogue.rows(items)

    def reserve(self, items: ItemTable) -> None:
        """A row for every row of the item table, new ones with their items' features."""
        first = len(self.table)
        self.table.ensure(items.ids, items.limit)
        self._feature = grown(self._feature, len(self.table), items.limit)
        self._amount = grown(self._amount, len(self.table), items.limit)
        self.name(np.arange(first, len(self.table)), items)

    def name(self, rows: NDArray[np.integer], items: ItemTable) -> None:
        """Let rows carry the features of the items that have them now."""
        for row in rows.tolist() if len(self.catalogue) else ():
            self._set_features(row, items.ids[row])

    def forget(self, rows: NDArray[np.int32]) -> None:
        """Forget what was learned of the items that had these rows, and their features."""
        for row in rows[rows < len(self.table)].tolist():
            self.table.rows[row], self._feature[row], self._amount[row] = 0.0, 0, 0.0
            self.catalogue.drop(self._named.pop(row, ""))

    def nbytes(self) -> int:
        """Bytes of the rows in use."""
        features = 8 * self.catalogue.width * (len(self.table) + len(self.catalogue))
        return self.table.rows.nbytes + self.buckets.nbytes + self.world.nbytes + features

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """The rows of items, the buckets that have moved, w_0 and the catalogue."""
        moved = np.flatnonzero((self.buckets != self._start_buckets(len(self.buckets))).any(axis=1))
        return {
            **self.table.to_arrays("fm.items"),
            "fm.world": self.world.copy(),
            "fm.buckets.at": moved.astype(np.int32),
            "fm.buckets.rows": self.buckets[moved],
            **self.catalogue.to_arrays("fm.catalogue"),
        }

    def load(self, arrays: Mapping[str, NDArray[np.generic]], items: ItemTable) -> None:
        """Take what `to_arrays` gave, into fresh rows. `items` is in place already."""
        self.table.load("fm.items", arrays)
        self.catalogue.load("fm.catalogue", arrays)
        self.world[:] = arrays["fm.world"]
        self.buckets[arrays["fm.buckets.at"].astype(np.int64)] = arrays["fm.buckets.rows"]
        self.reserve(items)
        self._feature = grown(self._feature, len(self.table), items.limit)
        self._amount = grown(self._amount, len(self.table), items.limit)
        self.name(np.arange(len(self.table)), items)

    def _start_buckets(self, buckets: int) -> NDArray[np.float32]:
        d = self.table.factors
        rows = np.zeros((buckets, 1 + d + MOMENTS), dtype=np.float32)
        drawn = start_vectors(self._seed, ["buckets"], buckets * d, self.table.scale)
        rows[:, 1 : 1 + d] = drawn.reshape(buckets, d)
        return rows

    def _set_features(self, row: int, item: str) -> None:
        [self._feature[row]], [self._amount[row]] = self.catalogue.rows([item])
        self._named.pop(row, None)
        if item in self.catalogue:
            self._named[row] = item
