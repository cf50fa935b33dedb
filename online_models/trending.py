"""What is used more than it used to be, and what was used most in the last hours."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from online_models.base import COUNTS, Arrays, OnlineRanker
from online_models.decayed_counts import DecayedCounts, NewestTimes
from online_models.forward_decay import require_half_life
from online_models.item_table import grown
from online_models.learning_batch import BatchRows, LearningBatch
from online_models.trending_kernels import window_learn

__all__ = ["Trending"]

MODES = ("z_score", "window")
NOTHING = 1e-9
"""A sum of counts below this is what rounding left of none."""


class Trending(OnlineRanker):
    r"""How far an item's use of late stands above its own past, in standard deviations.

    Two decayed counts of each item, S_i of the short half-life and L_i of the long one, and their sums S and
    L over all items. Had the item kept its long-run share of all events, S_i would be E_i; if events come
    independently, a decayed count of mean E has the variance E / 2 (its weights' squares fade twice as fast):

    $$E_i = \max(L_i, 0)\,\frac{S}{L}, \qquad z_i = \frac{S_i - E_i}{\sqrt{E_i / 2 + \kappa}}$$

    Shares, not rates: a busy evening makes no trend. The shrinkage κ keeps a new item's first event from
    outdoing all else. An item never used has z = 0, one that has cooled less. In mode "window" the score is
    the sum of weights in the newest `buckets` buckets of `bucket_s` seconds of event time, that of the newest
    event included. Twice as many are kept: withdrawn events leave what was there without them, unless one of
    them was later than all others by more than a window.

    Parameters: mode ("z_score" or "window"), short_half_life_s, long_half_life_s, shrinkage κ (events),
    bucket_s, buckets, seed (unused). An event costs the same whatever the number of items.

    Reference: Kleinberg, Bursty and Hierarchical Structure in Streams, KDD 2002 (a burst is a rate raised
    against the stream's own base rate).

    >>> model = Trending(short_half_life_s=3600.0, long_half_life_s=36000.0)
    >>> for hour in range(20):
    ...     for item in ["evergreen"] * 4 + ["rising"] * (hour >= 18):
    ...         model.learn_one("ann", item, x={"timestamp": hour * 3_600_000})
    >>> [round(model.predict_one("bob", item), 3) for item in ("evergreen", "rising", "unknown")]
    [-0.47, 1.012, 0.0]
    >>> window = Trending(mode="window", bucket_s=3600.0, buckets=2)
    >>> for hour, item in enumerate("aabbb"):
    ...     window.learn_one("ann", item, x={"timestamp": hour * 3_600_000})
    >>> window.predict_one("bob", "b"), window.predict_one("bob", "a")
    (2.0, 0.0)
    """

    learns = COUNTS

    def __init__(
        self,
        mode: str = "z_score",
        short_half_life_s: float = 86_400.0,
        long_half_life_s: float = 30 * 86_400.0,
        shrinkage: float = 1.0,
        bucket_s: float = 3600.0,
        buckets: int = 24,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}, but one of {', '.join(MODES)} is needed")
        _require_half_lives(short_half_life_s, long_half_life_s)
        if not (math.isfinite(shrinkage) and shrinkage > 0.0):
            raise ValueError(f"shrinkage is {shrinkage}, but a finite number above 0 is needed")
        if not 1.0 <= bucket_s <= 1e9 or not 1 <= buckets <= 10_000:
            raise ValueError(
                f"bucket_s is {bucket_s} and buckets {buckets}; 1 to 1e9 s and 1 to 10000 are needed"
            )
        self.mode = mode
        self.short_half_life_s = short_half_life_s
        self.long_half_life_s = long_half_life_s
        self.shrinkage = shrinkage
        self.bucket_s = bucket_s
        self.buckets = buckets
        self._counts = (DecayedCounts(short_half_life_s), DecayedCounts(long_half_life_s))
        self._clear_window()

    def apply(self, batch: LearningBatch, rows: BatchRows) -> None:
        if self.mode == "window":
            self._learn_window(batch, rows, 1.0)
            self._newest.add(batch.time_ms)
            return
        column = np.zeros(len(batch), dtype=np.int32)
        for counts in self._counts:
            counts.learn(batch, rows, column, self.items)

    def unlearn(self, batch: LearningBatch, rows: BatchRows) -> None:
        if self.mode == "window":
            self._learn_window(batch, rows, -1.0)
            self._newest.remove(batch.time_ms)
            return
        column = np.zeros(len(batch), dtype=np.int32)
        for counts in self._counts:
            counts.unlearn(batch, rows, column)

    def forget_rows(self, rows: NDArray[np.int32]) -> None:
        self._window[rows[rows < len(self._window)]] = 0.0
        for counts in self._counts:
            counts.forget_rows(rows)

    def score(self, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        """Scores float32[n] of rows int32[n], the same for every user; 0 for -1."""
        if self.mode == "window":
            return self._score_window(rows).astype(np.float32)
        recent, long = self._counts
        share = min(recent.total() / long.total(), 1.0) if long.total() > NOTHING else 0.0
        expected = np.maximum(long.of(rows), 0.0) * share
        deviation = np.sqrt(expected / 2.0 + self.shrinkage)
        scores: NDArray[np.float32] = ((recent.of(rows) - expected) / deviation).astype(np.float32)
        return scores

    def score_rows(self, user: str, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        return self.score(rows)

    def item_arrays(self) -> Arrays:
        if self.mode == "window":
            self._reserve_window()
            return {
                "trending.window": self._window[: len(self.items)].copy(),
                "trending.bucket": self._bucket.copy(),
                "trending.newest": self._newest.times.copy(),
            }
        recent, long = self._counts
        return {
            **recent.to_arrays("trending.short", self.items),
            **long.to_arrays("trending.long", self.items),
        }

    def load_item_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        if self.mode == "window":
            self._clear_window()
            self._reserve_window()
            self._window[: len(self.items)] = arrays["trending.window"]
            self._bucket[:] = arrays["trending.bucket"]
            self._newest.times = np.array(arrays["trending.newest"], dtype=np.int64)
            return
        for name, counts in zip(("short", "long"), self._counts, strict=True):
            counts.load(f"trending.{name}", arrays, self.items)

    def nbytes(self) -> int:
        """Bytes of the counts of the items in use."""
        if self.mode == "window":
            return int(8 * len(self._bucket) * (len(self.items) + 1))
        return sum(counts.nbytes(len(self.items)) for counts in self._counts)

    def _learn_window(self, batch: LearningBatch, rows: BatchRows, sign: float) -> None:
        self._reserve_window()
        window_learn(
            rows.changes, rows.item, batch.weight, batch.time_ms, round(1000.0 * self.bucket_s), sign,
            self._window, self._bucket,
        )  # fmt: skip

    def _score_window(self, rows: NDArray[np.int32]) -> NDArray[np.float64]:
        newest = self._newest.now // round(1000.0 * self.bucket_s)
        open_places = np.flatnonzero((self._bucket > newest - self.buckets) & (self._bucket <= newest))
        known = (rows >= 0) & (rows < len(self._window))
        scores = np.zeros(len(rows), dtype=np.float64)
        for place in open_places[np.argsort(self._bucket[open_places])]:
            scores[known] += self._window[rows[known], place]
        return scores

    def _clear_window(self) -> None:
        ring = 2 * self.buckets if self.mode == "window" else 0
        self._window = np.zeros((0, ring), dtype=np.float64)
        self._bucket = np.full(ring, -1, dtype=np.int64)
        self._newest = NewestTimes()

    def _reserve_window(self) -> None:
        self._window = grown(self._window, len(self.items), self.items.limit)


def _require_half_lives(short_half_life_s: float, long_half_life_s: float) -> None:
    for half_life_s in (short_half_life_s, long_half_life_s):
        require_half_life(half_life_s)
    if not 0.0 < short_half_life_s < (long_half_life_s or math.inf):
        raise ValueError(
            f"short_half_life_s is {short_half_life_s} and long_half_life_s {long_half_life_s}; the short "
            "one must be above 0 and below the long one (0 = the past never fades)"
        )
