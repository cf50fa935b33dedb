"""Item-based neighbours: items that the same people use, over their whole histories."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from online_models import item_knn_kernels, kernels
from online_models.base import PAIRS, RECENT_KEPT, Arrays, OnlineRanker, contiguous_rows, user_token
from online_models.forward_decay import half_lives_since, halvings_due, new_clock, require_half_life
from online_models.item_table import UNLIMITED, grown
from online_models.learning_batch import MAX_ABS_WEIGHT, BatchRows, LearningBatch
from online_models.parameters import require
from online_models.user_histories import UserHistories

__all__ = ["ItemKNN"]

_MEASURES = ("cosine", "adjusted_cosine", "count")
_FEW = 32
"""Up to so many candidates are looked up one by one; for more, whole rows are added up."""


class ItemKNN(OnlineRanker):
    r"""Incremental similarity of items over their users' histories, asked with the recent items.

    When a user whose last items were H (`history_length` events at most, each item once) has an event on
    item i, of weight w and rating r,

    $$n_{ij} \mathrel{+}= x_j y_i \quad (j \in H,\ j \ne i), \qquad n_i \mathrel{+}= z_i$$

    $$s(i, j) = \frac{n_{ij}}{\sqrt{n_i}\sqrt{n_j} + \lambda}, \qquad
    \mathrm{score}(i) = \sum_{r<L} d^r\, s(h_r, i)$$

    By `measure`: "cosine" has x = 1, y = w, z = |w|, which is the cosine of the items' sets of users while
    each user uses an item once, with weight 1; "count" has the same x and y, and s = n_ij; "adjusted_cosine"
    has z = y^2 and y = r less the running mean of the user's ratings (r included; the weight where no rating
    is stated), x being what y was when the user rated j, and each term of the score is multiplied by the
    asking user's own x of h_r. It keeps x at the replicas, for the `max_users` users who acted last.

    A row keeps `neighbours` entries at most: a full one drops its more distant half, by |n_ij| / sqrt(n_j)
    (among equals the higher rows). Learning touches history_length + 1 rows, whatever the catalogue. With a
    half-life, n_ij and n_i fade together by event time (forward decay), and a late event counts with its
    age; use some shrinkage then, for items that were hardly used of late.

    Withdrawn events leave the counts that there would be without them, to float32's rounding of the largest
    (fading counts take some shrinkage for that too), except for entries that a full row dropped meanwhile.
    "adjusted_cosine" takes the user's later ratings back and learns them anew against means without the
    withdrawn one, within his last `history_length` ratings; what is older than these stays as it is, and so
    does what later ratings learned from one of negative weight.

    Parameters: measure, shrinkage lambda, neighbours, history_length, query_length L, query_decay d,
    half_life_s (seconds of event time; 0 = no decay), max_users, seed (unused).

    References: Sarwar et al., Item-based Collaborative Filtering Recommendation Algorithms, WWW 2001. Huang
    et al., TencentRec: Real-time Stream Recommendation in Practice, SIGMOD 2015.

    >>> model = ItemKNN(query_decay=1.0, shrinkage=0.0)
    >>> for user, items in [("ann", "ABC"), ("bob", "BCD"), ("eve", "CDE")]:
    ...     model.learn_many([user] * 3, list(items))
    >>> round(model.predict_one("ann", "D"), 6), round(model.predict_one("ann", "E"), 6)
    (1.316497, 0.57735)
    >>> model.predict_one("bob", "A") == model.predict_one("bob", "E"), model.predict_one("bob", "unknown")
    (True, 0.0)
    """

    learns = PAIRS

    def __init__(
        self,
        measure: str = "cosine",
        shrinkage: float = 10.0,
        neighbours: int = 768,
        history_length: int = 20,
        query_length: int = 15,
        query_decay: float = 0.85,
        half_life_s: float = 0.0,
        max_users: int = 100_000,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        if measure not in _MEASURES:
            raise ValueError(f"measure is {measure!r}, but one of {', '.join(_MEASURES)} is needed")
        require("neighbours", neighbours, 1, 16_384)
        require("history_length", history_length, 1, RECENT_KEPT)
        require("query_length", query_length, 1, RECENT_KEPT)
        require("query_decay", query_decay, 0.0, 1.0)
        require("shrinkage", shrinkage, 0.0, 1e9)
        require_half_life(half_life_s)
        self.measure = measure
        self.shrinkage = shrinkage
        self.neighbours = neighbours
        self.history_length = history_length
        self.query_length = query_length
        self.query_decay = query_decay
        self.half_life_s = half_life_s
        self.max_users = max_users
        self._is_rated = measure == "adjusted_cosine"
        self._room = (history_length + 2) * item_knn_kernels.block_size(neighbours)
        self._histories = UserHistories(max_users, history_length)
        self._clear()

    def apply(self, batch: LearningBatch, rows: BatchRows) -> None:
        self._reserve_rows(len(self.items))
        others, own, values, size = self._pairs_of(batch, rows)
        growth = np.ones(len(batch), dtype=np.float64)
        event, changed, n = 0, 0, len(batch)
        while event < n:
            self._rescale(int(batch.time_ms[event]))
            last = kernels.forward_growth(
                event, batch.time_ms, self._clock, self.half_life_s * 1000.0, growth
            )
            amount, gain = own * growth, size * growth
            while event < last:
                self._reserve_entries()
                event, changed = item_knn_kernels.item_knn_learn(
                    event, last, rows.changes, changed, rows.item, others, amount, values,
                    self._is_rated, gain, self._pool, self._mass, self._inverse, self._met,
                    self.measure != "count", self.neighbours, self._room,
                )  # fmt: skip

    def unlearn(self, batch: LearningBatch, rows: BatchRows) -> None:
        self._reserve_rows(len(self.items))
        growth = np.empty(len(batch), dtype=np.float64)
        kernels.past_growth(batch.time_ms, self._clock, self.half_life_s * 1000.0, growth)
        others, own, values, size = self._pairs_of(batch, rows, taken_back=True)
        item_knn_kernels.item_knn_unlearn(
            rows.item, others, own * growth, values, self._is_rated, size * growth, self._pool, self._mass,
            self._inverse, self._met, self.measure != "count",
        )  # fmt: skip

    def forget_rows(self, rows: NDArray[np.int32]) -> None:
        self._reserve_rows(len(self.items))
        item_knn_kernels.item_knn_forget(rows, self._pool, self._mass, self._inverse)
        if self._is_rated:
            self._histories.forget_items(rows)

    def forget_users(self, tokens: NDArray[np.uint64]) -> None:
        self._histories.forget_users(tokens)

    def score(
        self,
        recent_rows: NDArray[np.int32],
        candidate_rows: NDArray[np.int32],
        strength: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Scores float32[C] of candidate_rows int32[C] (-1 scores 0) for one user's recent_rows int32[R],
        newest first, -1 padded; `strength` float32[R] multiplies their terms."""
        recent = contiguous_rows(recent_rows[: self.query_length])
        weight = self._decays[: len(recent)]
        if strength is not None:
            weight = weight * strength[: len(recent)]
        half_lives = half_lives_since(self._clock, self.half_life_s)
        is_count, out = self.measure == "count", np.zeros(len(candidate_rows), dtype=np.float32)
        shrinkage = 0.0 if is_count else self.shrinkage * 2.0**half_lives
        scale = 2.0**-half_lives if is_count else 1.0
        wanted = (
            recent,
            weight,
            contiguous_rows(candidate_rows),
            self._pool,
            self._inverse,
            shrinkage,
            scale,
        )
        if len(candidate_rows) <= _FEW:
            item_knn_kernels.item_knn_probe(*wanted, out)
        else:
            item_knn_kernels.item_knn_scan(*wanted, self._total, out)
        return out

    def score_rows(self, user: str, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        if self._is_rated:
            recent, strength = self._histories.newest_items(user_token(user), self.query_length)
            return self.score(recent, rows, strength)
        return self.score(self.recent_rows(user, self.query_length)[0], rows)

    def item_arrays(self) -> Arrays:
        n = len(self.items)
        self._reserve_rows(n)
        entries = int(self._pool.used[:n].sum())
        keys, values = np.empty(entries, dtype=np.int32), np.empty(entries, dtype=np.float32)
        item_knn_kernels.read_rows(self._pool, n, keys, values)
        histories = self._histories.to_arrays("item_knn.users", n) if self._is_rated else {}
        return {
            **histories,
            "item_knn.used": self._pool.used[:n].copy(),
            "item_knn.keys": keys,
            "item_knn.values": values,
            "item_knn.mass": self._mass[:n].copy(),
            "item_knn.inverse": self._inverse[:n].copy(),
            "item_knn.clock": self._clock.copy(),
        }

    def load_item_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        self._clear()
        n = len(self.items)
        self._reserve_rows(n)
        if self._is_rated:
            self._histories.load("item_knn.users", arrays)
        self._mass[:n] = arrays["item_knn.mass"]
        self._inverse[:n] = arrays["item_knn.inverse"]
        self._clock[:] = arrays["item_knn.clock"]
        keys = arrays["item_knn.keys"].astype(np.int32)
        self._reserve_entries(3 * len(keys) + 8 * n)
        self._pool.capacity[:n][self.items.given[:n] == kernels.FREED] = item_knn_kernels.FORGOTTEN
        item_knn_kernels.write_rows(
            self._pool,
            arrays["item_knn.used"].astype(np.int32),
            keys,
            arrays["item_knn.values"].astype(np.float32),
        )

    def nbytes(self) -> int:
        """Bytes of the rows in use, of the pool up to its top, and of the users' ratings."""
        users = self._histories.nbytes() if self._is_rated else 0
        return (8 + 4 + 4 + 8 + 4 + 4 + 1) * len(self.items) + 8 * int(self._pool.marks[0]) + users

    def _pairs_of(
        self, batch: LearningBatch, rows: BatchRows, taken_back: bool = False
    ) -> tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.float32], NDArray[np.float64]]:
        """Of each event: other items int32[n, R], the item's own value float64[n], the others', float32[n, R]
        (of no columns where they are all 1), and what it adds to the item's mass float64[n]."""
        n = len(batch)
        if not self._is_rated:
            nearest, weight = contiguous_rows(rows.recent[:, : self.history_length]), batch.weight
            own = weight.astype(np.float64)
            return nearest, own, np.zeros((n, 0), dtype=np.float32), np.abs(own)
        rating = np.where(np.isfinite(batch.value), batch.value, batch.weight).astype(np.float32)
        rating = np.clip(rating, -MAX_ABS_WEIGHT, MAX_ABS_WEIGHT)
        others = np.full((n, self.history_length), -1, dtype=np.int32)
        found, values = np.zeros(n, dtype=np.float32), np.zeros(others.shape, dtype=np.float32)
        every, uses = np.ones(n, dtype=np.int8), (found, others, values)
        if taken_back:
            self._histories.unlearn(batch, rows, every, rating, uses)
        else:
            self._histories.reserve(n, len(self.items), self.items.limit)
            self._histories.learn((0, n), batch, rows, 0, every, rating, True, uses)
        own = found.astype(np.float64)
        return others, own, values, own * own

    def _clear(self) -> None:
        marks = np.full(1 + item_knn_kernels.FREE_LISTS, -1, dtype=np.int64)
        marks[0] = 0
        self._pool = item_knn_kernels.Neighbourhoods(
            start=np.zeros(0, dtype=np.int64),
            used=np.zeros(0, dtype=np.int32),
            capacity=np.zeros(0, dtype=np.int32),
            keys=np.zeros(0, dtype=np.int32),
            values=np.zeros(0, dtype=np.float32),
            marks=marks,
        )
        self._mass = np.zeros(0, dtype=np.float64)
        self._inverse = np.zeros(0, dtype=np.float32)
        self._met = np.zeros(0, dtype=np.uint8)
        self._total = np.zeros(1, dtype=np.float32)
        self._clock = new_clock()
        self._decays = (self.query_decay ** np.arange(self.query_length)).astype(np.float32)
        self._histories.clear()

    def _reserve_rows(self, n: int) -> None:
        if n <= len(self._mass):
            return
        pool, limit = self._pool, self.items.limit
        self._pool = pool._replace(
            start=grown(pool.start, n, limit),
            used=grown(pool.used, n, limit),
            capacity=grown(pool.capacity, n, limit),
        )
        self._mass = grown(self._mass, n, limit)
        self._inverse = grown(self._inverse, n, limit)
        self._met = grown(self._met, n, limit)
        self._total = np.zeros(len(self._mass) + 1, dtype=np.float32)

    def _reserve_entries(self, more: int = 0) -> None:
        """Room for one event's worst case, and `more` entries."""
        pool = self._pool
        needed = int(pool.marks[0]) + more + self._room
        if needed > len(pool.keys):
            keys, values = (grown(array, needed, UNLIMITED) for array in (pool.keys, pool.values))
            self._pool = pool._replace(keys=keys, values=values)

    def _rescale(self, time_ms: int) -> None:
        """Move the landmark on by whole half-lives: each weight is multiplied by an exact power of two."""
        halvings = halvings_due(time_ms, self._clock, self.half_life_s)
        if halvings == 0:
            return
        self._pool.values[: int(self._pool.marks[0])] *= np.float32(2.0**-halvings)
        mass = self._mass[: len(self.items)]
        mass *= 2.0**-halvings
        mass[mass < kernels.GONE_COUNT] = 0.0
        if self.measure != "count":
            inverse = self._inverse[: len(self.items)]
            inverse[:] = 0.0
            inverse[mass > 0.0] = 1.0 / np.sqrt(mass[mass > 0.0])
        self._clock[0] += round(halvings * self.half_life_s * 1000.0)
