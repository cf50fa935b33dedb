"""Popularity by stage: what people take who have come as far as you."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from online_models import kernels, stage_popularity_kernels
from online_models.base import PAIRS, Arrays, OnlineRanker, contiguous_rows
from online_models.forward_decay import half_lives_since, halvings_due, new_clock, require_half_life
from online_models.item_table import grown
from online_models.learning_batch import BatchRows, LearningBatch
from online_models.stage_popularity_kernels import STAGES

__all__ = ["StagePopularity"]


class StagePopularity(OnlineRanker):
    r"""Decayed popularity among users with as many items behind them: newcomers take other things than the
    experienced, and a count over all events shows what the busiest do.

    An event of weight w at time t on item i, of a user with h recent items, counts at his stage,

    $$p_{i,s}(T) = \sum_{e \text{ on } i,\; s(h_e) = s} w_e\, 2^{-(T - t_e)/H}, \qquad
      s(h) = \min(\lfloor \log_2(1 + h) \rfloor,\; 5)$$

    $$\mathrm{score}(u, i) = \sum_{s'} g^{|s' - s(h_u)|}\, p_{i,s'}(T)$$

    so stages are 0, 1 to 2, 3 to 6, 7 to 14, 15 to 30, and 31 or more items; T is the newest event time, H
    the half-life. With g = 1 this is decayed popularity, with g = 0 no stage knows of another. Learning
    touches one number an event. A withdrawn event is subtracted, and T goes back where it was the newest (of
    the last eight times). State: float64[items, 6].

    Parameters: half_life_s H (seconds of event time; 0 = no decay), leak g from 0 to 1, seed (unused).

    Reference: Ji, Sun, Zhang and Li, A Re-visit of the Popularity Baseline in Recommender Systems, SIGIR 2020
    (popularity by time; here also by the user's own).

    >>> model = StagePopularity()
    >>> for user in ("ann", "bob", "cid"):
    ...     for item in ("welcome", "film", "film 2"):
    ...         model.learn_one(user, item)
    >>> model.predict_one("new", "welcome"), model.predict_one("new", "film"), model.predict_one("new", "odd")
    (3.0, 0.75, 0.0)
    >>> model.rank("new", ["film", "welcome"]), model.rank("ann", ["film", "welcome"])
    (['welcome', 'film'], ['film', 'welcome'])
    """

    learns = PAIRS

    def __init__(self, half_life_s: float = 8 * 86_400.0, leak: float = 0.25, seed: int = 0) -> None:
        super().__init__(seed=seed)
        require_half_life(half_life_s)
        if not 0.0 <= leak <= 1.0:
            raise ValueError(f"leak is {leak}, but 0 to 1 is needed")
        self.half_life_s = half_life_s
        self.leak = leak
        self._clear()

    def apply(self, batch: LearningBatch, rows: BatchRows) -> None:
        self._reserve(len(self.items))
        growth = np.empty(len(batch), dtype=np.float64)
        event, changed, n = 0, 0, len(batch)
        while event < n:
            self._rescale(int(batch.time_ms[event]))
            last = kernels.forward_growth(
                event, batch.time_ms, self._clock, self.half_life_s * 1000.0, growth
            )
            changed = stage_popularity_kernels.stage_learn(
                event, last, rows.changes, changed, rows.item, batch.recent, batch.weight, growth, self._table
            )
            event = last

    def unlearn(self, batch: LearningBatch, rows: BatchRows) -> None:
        growth = np.empty(len(batch), dtype=np.float64)
        kernels.past_growth(batch.time_ms, self._clock, self.half_life_s * 1000.0, growth)
        stage_popularity_kernels.stage_add(rows.item, batch.recent, -batch.weight * growth, self._table)

    def forget_rows(self, rows: NDArray[np.int32]) -> None:
        self._table[rows[rows < len(self._table)]] = 0.0

    def score(self, history: int, candidate_rows: NDArray[np.int32]) -> NDArray[np.float32]:
        """Scores float32[C] of candidate_rows int32[C] (or -1) for a user with so many items behind him."""
        out = np.empty(len(candidate_rows), dtype=np.float32)
        scale = 2.0 ** -half_lives_since(self._clock, self.half_life_s)
        stage_popularity_kernels.stage_score(
            history, self.leak, scale, contiguous_rows(candidate_rows), self._table, out
        )
        return out

    def score_record(
        self, record: LearningBatch, rows: BatchRows, candidate_rows: NDArray[np.int32]
    ) -> NDArray[np.float32]:
        """Scores float32[C] for the user of a record of one event, as he was before it."""
        return self.score(int((record.recent[0] != -1).sum()), candidate_rows)

    def score_rows(self, user: str, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        return self.score(len(self._recent.get(user, ())), rows)

    def item_arrays(self) -> Arrays:
        n = len(self.items)
        self._reserve(n)
        return {
            "stage_popularity.table": self._table[:n].copy(),
            "stage_popularity.clock": self._clock.copy(),
        }

    def load_item_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        self._clear()
        self._reserve(len(self.items))
        self._table[: len(self.items)] = arrays["stage_popularity.table"]
        self._clock[:] = arrays["stage_popularity.clock"]

    def nbytes(self) -> int:
        """Bytes of the table for the rows in use."""
        return 8 * STAGES * len(self.items)

    def _clear(self) -> None:
        self._table = np.zeros((0, STAGES), dtype=np.float64)
        self._clock = new_clock()

    def _reserve(self, n: int) -> None:
        self._table = grown(self._table, n, self.items.limit)

    def _rescale(self, time_ms: int) -> None:
        """Move the landmark on by whole half-lives: each sum is multiplied by an exact power of two."""
        halvings = halvings_due(time_ms, self._clock, self.half_life_s)
        if halvings:
            self._table *= 2.0**-halvings
            self._clock[0] += round(halvings * self.half_life_s * 1000.0)
