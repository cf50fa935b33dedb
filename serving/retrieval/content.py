"""Candidates by content: new items that are like what the user had, whoever has used them or not.

For a user with recent items r, newest first, of weights d_r, and modalities b with mean vector μ_b over the
catalogue and masks m_b,

    q_b = Σ_r d_r m_b(r) (v_b(r) - μ_b) / Σ_r d_r m_b(r)        score(i) = Σ_b m_b(i) <q_b, v_b(i) - μ_b>

The weights are co-visitation's. Centring tells what is special about an item from what all have in common:
vectors of texts all point one way. The exact best by this score of the items with content and fewer than
`content_new_events` positive events are proposed, where the score is above 0, the mean item's.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from online_models.item_state import ItemState
from serving import kernels
from serving.content.vectors import ContentVectors
from serving.explain_kernels import CONTENT_KIND
from serving.query import RankedBatch
from serving.retrieval.kernels_content import Known, Pool, content_reasons, nearest_new
from serving.retrieval.learned import activity_arrays, learned_arrays
from serving.settings import ServingSettings

__all__ = ["ContentCandidates", "Proposed"]

MEAN_ROWS = 4096
"""Items of a larger catalogue by which its mean vector is known well enough: to a 60th of their spread. All
100,000 texts would take 180 ms, while lists wait."""

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]


class Proposed(NamedTuple):
    """Rows int32[n, k] of new items, best first, -1 padded, and how like they are, float32[n, k]."""

    rows: Int32
    scores: Float32

    @classmethod
    def nothing(cls, n: int) -> Proposed:
        return cls(np.empty((n, 0), dtype=np.int32), np.empty((n, 0), dtype=np.float32))


class ContentCandidates:
    """Keeps the content of items by row of the item table, and that of new ones beside each other.

    `rows_changed` must be told of rows that were given to other items, and of items whose content changed.
    """

    def __init__(self, items: ItemState, contents: ContentVectors, settings: ServingSettings) -> None:
        self._items = items
        self._contents = contents
        self._settings = settings
        self._starts = np.cumsum([0, *(dim for _, dim in contents.spec)], dtype=np.int64)
        self._place = np.zeros(0, dtype=np.int32)
        self._slot = np.zeros(0, dtype=np.int32)
        self._known = 0
        self._rows = np.zeros(64, dtype=np.int32)
        self._vectors = np.zeros((64, contents.width), dtype=np.float32)
        self._size = 0
        self._mean = np.zeros(int(self._starts[-1]), dtype=np.float32)
        self._mean_due = 0

    def __len__(self) -> int:
        """New items that are compared."""
        return self._size

    def rows_changed(self, rows: Int32) -> None:
        """Look anew at rows int32[m] of the item table."""
        self._look_at(rows[rows < self._known])

    def find(
        self, wanted: kernels.Wanted, masks: Bool, marks: Bool, decay: npt.NDArray[np.float64]
    ) -> Proposed:
        """What each user of `wanted` is proposed, of what masks bool[m, rows] let through and nobody blocks;
        marks bool[>= rows], all False, is left so."""
        self._follow()
        n, k = len(wanted.count), self._settings.content_candidates
        if not self._size:
            return Proposed.nothing(n)
        found = Proposed(np.empty((n, k), dtype=np.int32), np.empty((n, k), dtype=np.float32))
        nearest_new(
            wanted.recent, self._of_items(decay), self._pool(), masks, wanted.mask, wanted.by_name,
            wanted.blocked, wanted.blocked_end, marks, *found,
        )  # fmt: skip
        return found

    def explain(self, recent: Int32, ranked: RankedBatch, decay: npt.NDArray[np.float64]) -> None:
        """Put in which recent items int32[n, L] speak for what content alone proposed."""
        if (ranked.kinds == CONTENT_KIND).any():
            known = self._of_items(decay)
            content_reasons(recent, ranked.rows, ranked.kinds, CONTENT_KIND, known, ranked.because)

    def warm_up(self) -> None:
        """Compile the kernels, or load them from numba's cache."""
        one, none = np.zeros((1, 1), dtype=np.int32), np.zeros(0, dtype=np.int32)
        known = self._of_items(learned_arrays(self._items).decay)
        ends, named = np.zeros(1, dtype=np.int32), np.zeros(1, dtype=np.bool_)
        masks = np.zeros((1, 1), dtype=np.bool_)
        found = Proposed(one.copy(), np.zeros((1, 1), dtype=np.float32))
        nearest_new(one - 1, known, self._pool(), masks, ends, named, none, ends, masks[0].copy(), *found)
        content_reasons(one - 1, one - 1, one.astype(np.uint8), CONTENT_KIND, known, one[:, :, None].copy())

    def _of_items(self, decay: npt.NDArray[np.float64]) -> Known:
        return Known(self._place, self._contents.table, self._starts, self._mean, decay)

    def _pool(self) -> Pool:
        used = activity_arrays(self._items).plain
        size, most = self._size, float(self._settings.content_new_events)
        return Pool(self._rows[:size], self._vectors[:size], used, most)

    def _follow(self) -> None:
        """Take in rows that are new, the mean when the catalogue has moved, and leave used items out."""
        rows = len(self._items.items)
        if rows > self._known:
            if rows > len(self._place):
                more = max(rows, 2 * len(self._place), 1024) - len(self._place)
                self._place = np.append(self._place, np.zeros(more, dtype=np.int32))
                self._slot = np.append(self._slot, np.full(more, -1, dtype=np.int32))
            first, self._known = self._known, rows
            self._look_at(np.arange(first, rows, dtype=np.int32))
        if self._contents.changes >= self._mean_due:
            self._mean = _mean_of(self._contents.table, self._starts)
            self._mean_due = self._contents.changes + 1 + len(self._contents) // 10
        rows_in = self._rows[: self._size]
        used = rows_in[activity_arrays(self._items).plain[rows_in] >= self._settings.content_new_events]
        if 4 * len(used) > self._size:
            self._drop(used)

    def _look_at(self, rows: Int32) -> None:
        if not len(rows):
            return
        ids, plain = self._items.items.ids, activity_arrays(self._items).plain
        self._place[rows] = places = self._contents.rows_of([ids[row] for row in rows.tolist()])
        has_content = self._contents.table[places, self._starts[-1] :].any(axis=1)
        is_new = has_content & (plain[rows] < self._settings.content_new_events)
        self._drop(rows[~is_new])
        rows, places = rows[is_new], places[is_new]
        kept = self._make_room(rows)
        for row, place in zip(rows[kept].tolist(), places[kept].tolist(), strict=True):
            self._put(row, self._contents.table[place])

    def _make_room(self, rows: Int32) -> Bool:
        """bool[m]: which of the different rows int32[m] are among those that got theirs last, together with
        the ones that are compared already; of these, the others go."""
        held = self._rows[: self._size]
        both = np.concatenate((held, rows[self._slot[rows] < 0]))
        surplus = len(both) - self._settings.content_scan_items
        if surplus <= 0:
            return np.ones(len(rows), dtype=np.bool_)
        gone = both[np.argpartition(self._items.items.given[both], surplus - 1)[:surplus]]
        self._drop(gone)
        return np.isin(rows, gone, invert=True)

    def _put(self, row: int, vector: Float32) -> None:
        slot = int(self._slot[row])
        if slot < 0:
            if self._size == len(self._rows):
                self._rows = np.append(self._rows, np.zeros(self._size, dtype=np.int32))
                self._vectors = np.concatenate((self._vectors, np.zeros_like(self._vectors)))
            slot, self._slot[row], self._rows[self._size] = self._size, self._size, row
            self._size += 1
        self._vectors[slot] = vector

    def _drop(self, rows: Int32) -> None:
        for row in rows[self._slot[rows] >= 0].tolist():
            slot, last = int(self._slot[row]), self._size - 1
            self._rows[slot], self._vectors[slot] = self._rows[last], self._vectors[last]
            self._slot[self._rows[slot]], self._slot[row] = slot, -1
            self._size = last


def _mean_of(table: Float32, starts: npt.NDArray[np.int64]) -> Float32:
    """float32[E - M]: mean of each modality's block over the rows that have it, zeros where none has; of at
    most `MEAN_ROWS` rows, evenly."""
    table = table[:: -(-len(table) // MEAN_ROWS)]
    masks = table[:, int(starts[-1]) :].sum(axis=0, dtype=np.float64)
    sums = table[:, : int(starts[-1])].sum(axis=0, dtype=np.float64)
    mean: Float32 = (sums / np.repeat(np.maximum(masks, 1.0), np.diff(starts))).astype(np.float32)
    return mean
