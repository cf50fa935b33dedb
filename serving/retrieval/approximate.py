"""The k items of largest inner product, nearly always, out of a catalogue that changes while it is searched.

Items stand in about sqrt(N) lists around centroids. A list keeps of every item what it is off its centroid,
once with one bit a component (after a random rotation; Gao and Long, RaBitQ, SIGMOD 2024, has the idea) and
once with eight. A search takes the lists in the order of what their items can reach and narrows down: lists
whose centroid is too far below the best found so far are left out, of the others all items are estimated
from their bits, the promising ones from their eight-bit codes, and the last few dozen more than k are scored
exactly. What an item can reach is its estimate plus `reach` standard deviations: the number of lists looked
at follows from the query and the data, masks included, and `reach` is set by measuring: the recall of recent
queries against a full scan.

A moved item leaves its old list and is in its new one before `update` returns. Centroids age as items move,
so they are trained anew, in a thread, on another set of lists that takes the old one's place.
"""

from __future__ import annotations

import threading
from typing import Final

import numpy as np
from numpy.typing import NDArray

from serving.retrieval import kernels_lists as kernels
from serving.retrieval.exact import ascending_rows
from serving.retrieval.index_lists import empty_lists, list_count, train, with_room
from serving.retrieval.kernels_exact import scan
from serving.retrieval.kernels_walk import search

__all__ = ["FactorIndex"]

Bools = NDArray[np.bool_]
Ints = NDArray[np.int32]
Floats = NDArray[np.float32]

_PIECE: Final = 256
"""Items changed at a time, so that a search waits for 2 ms at most."""
_BLOCK: Final = 16_384
"""Items given to lists at a time while rebuilding."""
_SAMPLED: Final = 64
"""Queries that `reach` is measured with, 10 ms each against a million items."""
_K: Final = 100
"""Items that recall is measured at."""
_ALL: Final = 1e6
"""Standard deviations that leave nothing out."""
_REACHES: Final = (
    *((reach / 4.0, 3.0) for reach in range(8, 24)),
    *((6.0, 3.5), (7.0, 4.0), (8.0, 4.0), (10.0, 4.5), (13.0, 5.0), (_ALL, 8.0), (_ALL, _ALL)),
)
"""What is tried when `reach` is measured: for lists, for items by their bits."""


class FactorIndex:
    """Approximate search for maximum inner product over rows that come, move and go.

    `recall`: the share of the true 100 best that `rebuild` aims at, on average over recent queries. Answers
    carry exact scores. All methods may be called from any thread; none but `rebuild` takes longer than
    milliseconds (a table that outgrows its memory is copied: 0.1 s at a million items of 64 factors).
    Deterministic: the same calls in the same order give the same answers, where `rebuild` is called and not
    `rebuild_if_due`.

    >>> index = FactorIndex(dimension=2, seed=0)
    >>> index.update(np.array([7, 3], np.int32), np.array([[1, 0], [0, 1]], np.float32))
    >>> rows, scores = index.search(np.array([[1, 2]], np.float32), 2)
    >>> rows.tolist(), scores.tolist(), len(index)
    ([[3, 7]], [[2.0, 1.0]], 2)
    """

    def __init__(
        self, dimension: int, seed: int = 0, recall: float = 0.97, untrained_below: int = 4096
    ) -> None:
        if dimension < 1 or not 0.0 < recall <= 1.0:
            raise ValueError(
                f"dimension is {dimension} and recall {recall}, but >= 1 and in (0, 1] are needed"
            )
        self.dimension, self.seed, self.recall = dimension, seed, recall
        self.untrained_below = untrained_below
        self._lock = threading.Lock()
        self._vectors: Floats = np.zeros((0, dimension), dtype=np.float32)
        self._lists = empty_lists(dimension, seed)
        self._count, self._built_count, self._changes = 0, 0, 0
        self._reach = (_ALL, _ALL)
        self._recent: Floats = np.zeros((_SAMPLED, dimension), dtype=np.float32)
        self._asked, self._is_measured = 0, False
        self._changed: list[Ints] | None = None
        self._failure: BaseException | None = None

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays; while rebuilding, a second set of lists (a third as much again) comes on
        top."""
        return sum(array.nbytes for array in self._lists) + self._vectors.nbytes + self._recent.nbytes

    @property
    def reach(self) -> tuple[float, float]:
        """Standard deviations in force: of lists, of items by their bits."""
        return self._reach

    def update(self, rows: Ints, vectors: Floats) -> None:
        """Insert rows int32[m] with vectors float32[m, d], or move them there; of equal rows the last counts.

        Done when it returns. Raises ValueError when shapes don't fit, a row is negative or a value is not
        finite; then nothing has changed.
        """
        rows, vectors = np.asarray(rows, dtype=np.int32), np.asarray(vectors, dtype=np.float32)
        if rows.ndim != 1 or vectors.shape != (len(rows), self.dimension):
            shapes = f"{list(rows.shape)} and {list(vectors.shape)}"
            raise ValueError(
                f"rows and vectors have shapes {shapes}, but [m] and [m, {self.dimension}] are needed"
            )
        if len(rows) and rows.min() < 0:
            raise ValueError(f"row {rows.min()} is negative: rows are places in the item table")
        if not np.isfinite(vectors).all():
            bad = rows[~np.isfinite(vectors).all(axis=1)]
            raise ValueError(
                f"{len(bad)} of {len(rows)} vectors are not finite, the first that of row {bad[0]}"
            )
        for first in range(0, len(rows), _PIECE):
            some = rows[first : first + _PIECE]
            with self._lock:
                self._make_room(int(some.max()) + 1)
                self._vectors[some] = vectors[first : first + _PIECE]
                self._count += kernels.move(self._lists, some, self._vectors)
                self._note(some)

    def remove(self, rows: Ints) -> None:
        """Take rows out; those that are not there count for nothing."""
        rows = np.asarray(rows, dtype=np.int32)
        for first in range(0, len(rows), _PIECE):
            some = rows[first : first + _PIECE]
            with self._lock:
                some = some[(some >= 0) & (some < len(self._vectors))]
                self._count -= kernels.remove(self._lists, some)
                self._note(some)

    def search(
        self,
        queries: Floats,
        k: int,
        mask: Bools | None = None,
        exclude: Ints | None = None,
        everything: bool = False,
    ) -> tuple[Ints, Floats]:
        """The k best rows found for each query, by (-score, row): rows int32[n, k], scores float32[n, k].

        queries float32[n, d]; mask bool[N], true where a row may be had (rows beyond it may not); exclude
        int32[n, E]. Where fewer than k are found, row -1 with score -inf. With `everything` no list and no
        item is left out, and the answer is that of a full scan. Raises ValueError when shapes don't fit.
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dimension or k < 0:
            raise ValueError(
                f"queries have shape {list(queries.shape)} and k is {k}, "
                f"but [n, {self.dimension}] and at least 0 are needed"
            )
        n = len(queries)
        if exclude is not None and (exclude.ndim != 2 or len(exclude) != n):
            raise ValueError(f"exclude has shape {list(exclude.shape)}, but [{n}, E] is needed")
        rows, scores = np.full((n, k), -1, dtype=np.int32), np.full((n, k), -np.inf, dtype=np.float32)
        if k == 0 or (mask is not None and len(mask) == 0):
            return rows, scores
        may = np.empty(0, dtype=np.bool_) if mask is None else np.ascontiguousarray(mask, dtype=np.bool_)
        barred = ascending_rows(n, exclude)
        for q in range(n):
            with self._lock:
                self._recent[self._asked % _SAMPLED] = queries[q]
                self._asked += 1
                reach = (_ALL, _ALL) if everything else self._reach
                self._search(
                    queries[q : q + 1], reach, everything, may, barred[q : q + 1], rows[q:], scores[q:]
                )
        return rows, scores

    def __call__(self, users: Floats, k: int, mask: Bools) -> Ints:
        """Rows int32[n, k] alone: what `serving.retrieval.FactorCandidates` asks for."""
        return self.search(users, k, mask)[0]

    def rebuild_if_due(self) -> bool:
        """Start to train the lists anew, in a thread, when the items are twice as many or have all moved
        since; or to measure `reach` anew, when it was measured before there were queries. Returns whether it
        did.

        Searches and updates go on. What went wrong in an earlier thread is raised here.
        """
        with self._lock:
            failure, self._failure = self._failure, None
            if failure is not None:
                raise failure
            has_grown = self._count >= max(2 * self._built_count, self.untrained_below)
            due = has_grown or self._changes >= max(self._count, self.untrained_below)
            unmeasured = not self._is_measured and self._asked >= _SAMPLED and len(self._lists.offset) > 1
            if self._changed is not None or not (due or unmeasured):
                return False
            self._changed = []
        threading.Thread(target=self._rebuild_aside, args=(due,), name="factor-index", daemon=True).start()
        return True

    def rebuild(self) -> None:
        """Train the lists anew and measure `reach`, now; does nothing while a thread is at it.

        At a million items of 64 factors 7 to 10 s of one core, with the lock held for milliseconds at a
        time.
        """
        with self._lock:
            if self._changed is not None:
                return
            self._changed = []
        try:
            self._replace_lists()
            self._measure_reach()
        finally:
            self._changed = None

    def _rebuild_aside(self, due: bool) -> None:
        try:
            if due:
                self._replace_lists()
            self._measure_reach()
        except Exception as failure:  # noqa: BLE001 - handed to the next caller of rebuild_if_due
            self._failure = failure
        finally:
            self._changed = None

    def _replace_lists(self) -> None:
        """Fill a new set of lists from the vectors, then with what has changed meanwhile, and take it.

        A vector may be changed while it is read here; then its row is among those that are read again.
        """
        with self._lock:
            vectors, count = self._vectors, self._count
            rows = np.flatnonzero(self._lists.place >= 0).astype(np.int32)
        fresh = train(vectors, rows, list_count(len(rows), self.untrained_below), self.seed)
        owners = np.empty(len(rows), dtype=np.int32)
        for first in range(0, len(rows), _BLOCK):
            kernels.nearest(fresh, rows[first : first + _BLOCK], vectors, owners[first : first + _BLOCK])
        order = np.argsort(owners, kind="stable")
        for first in range(0, len(rows), _BLOCK):
            some = order[first : first + _BLOCK]
            kernels.place_all(fresh, rows[some], owners[some], vectors)
        for _ in range(16):
            fresh, is_small = self._catch_up(fresh)
            if is_small:
                break
        with self._lock:
            fresh = self._apply(fresh, self._taken())
            self._lists, self._built_count, self._changes = fresh, count, 0

    def _catch_up(self, fresh: kernels.Lists) -> tuple[kernels.Lists, bool]:
        """Read the rows again that have changed; returns whether they were few."""
        with self._lock:
            changed = self._taken()
        for first in range(0, len(changed), _PIECE):
            with self._lock:
                fresh = self._apply(fresh, changed[first : first + _PIECE])
        return fresh, len(changed) <= _PIECE

    def _apply(self, fresh: kernels.Lists, changed: Ints) -> kernels.Lists:
        fresh = with_room(fresh, len(self._vectors), len(changed))
        is_there = self._lists.place[changed] >= 0
        kernels.remove(fresh, changed[~is_there])
        kernels.move(fresh, changed[is_there], self._vectors)
        return fresh

    def _taken(self) -> Ints:
        changed, self._changed = self._changed or [], []
        return np.unique(np.concatenate([np.empty(0, dtype=np.int32), *changed]))

    def _note(self, rows: Ints) -> None:
        self._changes += len(rows)
        if self._changed is not None:
            self._changed.append(rows.copy())

    def _make_room(self, rows: int) -> None:
        if rows > len(self._vectors):
            capacity = max(rows, 1024, len(self._vectors) + len(self._vectors) // 4)
            vectors = np.zeros((capacity, self.dimension), dtype=np.float32)
            vectors[: len(self._vectors)] = self._vectors
            self._vectors = vectors
        self._lists = with_room(self._lists, len(self._vectors), _PIECE)

    def _search(
        self, query: Floats, reach: tuple[float, float], everything: bool, may: Bools, barred: Ints,
        rows: Ints, scores: Floats,
    ) -> None:  # fmt: skip
        k = rows.shape[1]
        kept = max(k, self._count) if everything else k + max(32, k // 4)
        search(self._lists, self._vectors, query, *reach, kept, may, barred, rows, scores)

    def _measure_reach(self) -> None:
        """Set `reach` to the least that gives the recall aimed at."""
        k = min(_K, self._count // 10)
        if k == 0 or len(self._lists.offset) == 1:
            self._reach = (_ALL, _ALL)
            return
        with self._lock:
            is_there, vectors = self._lists.place >= 0, self._vectors
            is_measured, recent = self._asked >= _SAMPLED, self._recent.copy()
        queries = recent if is_measured else self._invented(np.flatnonzero(is_there), vectors)
        wanted, none = np.empty((_SAMPLED, k), dtype=np.int32), np.empty((1, 0), dtype=np.int32)
        scores = np.empty((_SAMPLED, k), dtype=np.float32)
        for q in range(_SAMPLED):
            scan(queries[q], vectors, is_there, none[0], wanted[q], scores[q])
        for reach in _REACHES:
            if self._recall_at(reach, queries, wanted) >= self.recall:
                break
        self._reach, self._is_measured = reach, is_measured

    def _invented(self, rows: NDArray[np.int64], vectors: Floats) -> Floats:
        """Queries for want of real ones, float32[_SAMPLED, d]: means of five items."""
        drawn = np.random.default_rng(self.seed).choice(rows, (_SAMPLED, 5))
        return np.ascontiguousarray(vectors[drawn].mean(axis=1))

    def _recall_at(self, reach: tuple[float, float], queries: Floats, wanted: Ints) -> float:
        """Share of the rows wanted int32[n, k] that a search with that reach finds."""
        none, found = np.empty((1, 0), dtype=np.int32), np.empty_like(wanted)
        scores = np.empty(wanted.shape, dtype=np.float32)
        for q in range(len(queries)):
            with self._lock:
                self._search(queries[q : q + 1], reach, False, none[0] > 0, none, found[q:], scores[q:])
        hits = sum(len(np.intersect1d(one, other)) for one, other in zip(wanted, found, strict=True))
        return hits / wanted.size
