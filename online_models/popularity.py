"""Popularity, decayed by event time, and the plain count beside it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from online_models import kernels
from online_models.base import COUNTS, Arrays, OnlineRanker
from online_models.forward_decay import half_lives_since, halvings_due, new_clock, require_half_life
from online_models.item_table import grown
from online_models.learning_batch import BatchRows, LearningBatch

__all__ = ["DecayedPopularity"]


class DecayedPopularity(OnlineRanker):
    r"""How much an item was used of late, and how often ever.

    $$p_i(T) = \sum_{e \text{ on } i} w_e\, 2^{-(T - t_e)/H}, \qquad n_i = \#\{e \text{ on } i : w_e > 0\}$$

    T is the newest event time, H the half-life. The best `top_size` rows by either are kept in order as
    events come and go. Where rows stand outside a list, one that falls to its end or loses its item leaves
    it: the list is then shorter, and exact, until others rise above its last, or half of it is gone and it is
    rebuilt.

    A withdrawn event is subtracted, and T goes back where it was the newest (of the last eight times). Of an
    item without a positive event nothing positive remains.

    Parameters: half_life_s H (seconds of event time; 0 = no decay), top_size, seed (unused).

    >>> model = DecayedPopularity(half_life_s=60.0)
    >>> for second, item in [(0, "old"), (0, "old"), (120, "new")]:
    ...     model.learn_one("ann", item, x={"timestamp": second * 1000})
    >>> model.predict_one("bob", "old"), model.predict_one("bob", "new"), model.predict_one("bob", "unknown")
    (0.5, 1.0, 0.0)
    >>> model.top(2).tolist(), model.top_plain(2).tolist()
    ([1, 0], [0, 1])
    """

    learns = COUNTS

    def __init__(self, half_life_s: float = 20 * 86_400.0, top_size: int = 4096, seed: int = 0) -> None:
        super().__init__(seed=seed)
        require_half_life(half_life_s)
        if top_size < 1:
            raise ValueError(f"top_size is {top_size}, but at least 1 is needed")
        self.half_life_s = half_life_s
        self.top_size = top_size
        self._clear()

    def apply(self, batch: LearningBatch, rows: BatchRows) -> None:
        self._reserve(len(self.items))
        event, changed, n = 0, 0, len(batch)
        while event < n:
            self._rescale(int(batch.time_ms[event]))
            event, changed = kernels.popularity_learn(
                event, rows.changes, changed, rows.item, batch.weight, batch.time_ms,
                self.half_life_s * 1000.0, self._decayed, self._plain, self._clock, self._counters,
                self._top, self._top_position, self._top_plain, self._top_plain_position,
            )  # fmt: skip

    def unlearn(self, batch: LearningBatch, rows: BatchRows) -> None:
        self._reserve(len(self.items))
        kernels.popularity_unlearn(
            rows.item, batch.weight, batch.time_ms, self.half_life_s * 1000.0,
            self._decayed, self._plain, self._clock, self._counters,
            self._top, self._top_position, self._top_plain, self._top_plain_position,
        )  # fmt: skip

    def give_rows(self, changes: NDArray[np.int32]) -> None:
        """Take in rows that were given to items which nobody has used yet: they count 0."""
        self._reserve(len(self.items))

    def forget_rows(self, rows: NDArray[np.int32]) -> None:
        self._reserve(len(self.items))
        kernels.popularity_forget(
            rows, self._decayed, self._plain, self._counters,
            self._top, self._top_position, self._top_plain, self._top_plain_position,
        )  # fmt: skip

    def top(self, k: int) -> NDArray[np.int32]:
        """At most k rows int32 by falling decayed score, then row; only positive scores."""
        best = self._top[: min(k, int(self._counters[1]))]
        positive: NDArray[np.int32] = best[self._decayed[best] > 0.0]
        return positive

    def top_plain(self, k: int) -> NDArray[np.int32]:
        """At most k rows int32 by falling count, then row."""
        return self._top_plain[: min(k, int(self._counters[3]))].copy()

    def plain_places(self) -> NDArray[np.int32]:
        """A view: each row's place by falling count, then row, int32[>= rows], -1 where it has none. Good
        until the next `apply`."""
        return self._top_plain_position

    def score(self, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        """Decayed scores float32, of the shape of rows; 0 for -1."""
        present = 2.0 ** -half_lives_since(self._clock, self.half_life_s)
        scores: NDArray[np.float32] = (_gather(self._decayed, rows) * present).astype(np.float32)
        return scores

    def score_plain(self, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        """Counts float32, of the shape of rows; 0 for -1."""
        return _gather(self._plain, rows).astype(np.float32)

    def score_rows(self, user: str, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        return self.score(rows)

    def item_arrays(self) -> Arrays:
        n = len(self.items)
        self._reserve(n)
        _, length, _, length_plain, _ = self._counters.tolist()
        return {
            "popularity.decayed": self._decayed[:n].copy(),
            "popularity.plain": self._plain[:n].copy(),
            "popularity.clock": self._clock.copy(),
            "popularity.counters": self._counters.copy(),
            "popularity.top": self._top[:length].copy(),
            "popularity.top_plain": self._top_plain[:length_plain].copy(),
        }

    def load_item_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        self._clear()
        n = len(self.items)
        self._reserve(n)
        self._decayed[:n] = arrays["popularity.decayed"]
        self._plain[:n] = arrays["popularity.plain"]
        self._clock[:] = arrays["popularity.clock"]
        self._counters[:] = arrays["popularity.counters"]
        for best, top, position_of in (
            (arrays["popularity.top"], self._top, self._top_position),
            (arrays["popularity.top_plain"], self._top_plain, self._top_plain_position),
        ):
            top[: len(best)] = best
            position_of[top[: len(best)]] = np.arange(len(best), dtype=np.int32)

    def _clear(self) -> None:
        self._decayed = np.zeros(0, dtype=np.float64)
        self._plain = np.zeros(0, dtype=np.float64)
        self._clock = new_clock()
        self._counters = np.zeros(5, dtype=np.int64)  # as in kernels.popularity_learn
        self._top = np.zeros(self.top_size, dtype=np.int32)
        self._top_plain = np.zeros(self.top_size, dtype=np.int32)
        self._top_position = np.zeros(0, dtype=np.int32)
        self._top_plain_position = np.zeros(0, dtype=np.int32)

    def nbytes(self) -> int:
        """Bytes of the arrays for the rows in use, and of the lists."""
        return (8 + 8 + 4 + 4) * len(self.items) + self._top.nbytes + self._top_plain.nbytes

    def _reserve(self, n: int) -> None:
        if n <= len(self._plain):
            return
        limit = self.items.limit
        self._decayed = grown(self._decayed, n, limit)
        self._plain = grown(self._plain, n, limit)
        self._top_position = grown(self._top_position, n, limit, fill=-1)
        self._top_plain_position = grown(self._top_plain_position, n, limit, fill=-1)

    def _rescale(self, time_ms: int) -> None:
        halvings = halvings_due(time_ms, self._clock, self.half_life_s)
        if halvings == 0:
            return
        seen = int(self._counters[0])
        self._decayed[:seen] *= 2.0**-halvings
        self._clock[0] += round(halvings * self.half_life_s * 1000.0)
        kernels.rebuild_top(  # scores that faded to 0 are equal now, and equals go by row
            self._decayed, seen, self._top, self._top_position, self._counters[1:3]
        )


def _gather(values: NDArray[np.float64], rows: NDArray[np.int32]) -> NDArray[np.float64]:
    known = (rows >= 0) & (rows < len(values))
    found: NDArray[np.float64] = np.zeros(rows.shape, dtype=np.float64)
    found[known] = values[rows[known]]
    return found
