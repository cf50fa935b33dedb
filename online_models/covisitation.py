"""Co-visitation: what people used near what you just used."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from online_models import covisitation_kernels, covisitation_scan_kernels, kernels
from online_models.base import PAIRS, Arrays, OnlineRanker, contiguous_rows
from online_models.forward_decay import half_lives_since, halvings_due, new_clock, require_half_life
from online_models.item_table import SMALL_ROWS, UNLIMITED, grown
from online_models.learning_batch import BatchRows, LearningBatch

__all__ = ["CoVisitation"]

_SLOTS_PER_ITEM = 64
"""Address space taken for each item of a large, bounded table; more is taken when it is needed."""
_NO_ROWS = np.empty((1, 0), dtype=np.int32)


class CoVisitation(OnlineRanker):
    r"""Decayed item-to-item co-occurrence, normalised by both items' counts, asked with the recent items.

    When a user with recent items h_0, h_1, ... (newest first) has an event on item i of weight w,

    $$T_{h_r,i} \mathrel{+}= w g^r, \quad T_{i,h_r} \mathrel{+}= w g^r b \quad (r < W)$$

    $$c_i \mathrel{+}= |w|, \quad n_i \mathrel{+}= |w|, \quad m_i = c_i (1 + s / n_i)$$

    $$\mathrm{score}(i) = \sum_{r<L} \frac{d^r\, T_{h_r,i}}{m_{h_r}^\alpha m_i^\beta}$$

    Rows of T are sparse, at most `row_capacity` entries each: a full row drops its lightest eighth. Learning
    touches 2W entries, whatever the size of the catalogue. With a half-life, T and c fade by event time
    (forward decay, Cormode et al. 2009), n does not, and a late event counts with its age; without one,
    m = c + s. A withdrawn event is subtracted from all of them, but for entries that were dropped since; what
    is then back at 0 is as if never used.

    Parameters: window W, gap_decay g, backward_weight b, query_length L, query_decay d, source_exponent
    alpha, target_exponent beta, shrinkage s, row_capacity, half_life_s (seconds of event time; 0 = no
    decay), seed (unused).

    On the first 30,000 events of MovieLens-100K, HR@10 is 0.1824 with rows of 1,024 and with the dense table,
    0.1820 with rows of 256 and 0.1771 with rows of 128.

    References: Huang et al., TencentRec: Real-time Stream Recommendation in Practice, SIGMOD 2015. Ludewig
    and Jannach, Evaluation of session-based recommendation algorithms, UMUAI 2018.

    >>> model = CoVisitation()
    >>> for item in ["bread", "milk", "tea"]:
    ...     model.learn_one("ann", item)
    >>> model.learn_one("bob", "bread")
    >>> round(model.predict_one("bob", "milk"), 6), model.predict_one("bob", "unknown")
    (0.110625, 0.0)
    >>> model.rank("bob", ["tea", "milk", "unknown"])
    ['milk', 'tea', 'unknown']
    """

    learns = PAIRS

    def __init__(
        self,
        window: int = 20,
        gap_decay: float = 0.95,
        backward_weight: float = 1.0,
        query_length: int = 15,
        query_decay: float = 0.85,
        source_exponent: float = 0.5,
        target_exponent: float = 0.4,
        shrinkage: float = 10.0,
        row_capacity: int = 1024,
        half_life_s: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        if not 8 <= row_capacity <= 16_384 or row_capacity & (row_capacity - 1):
            raise ValueError(f"row_capacity is {row_capacity}, but a power of two from 8 to 16384 is needed")
        if not (0.0 <= gap_decay <= 1.0 and 0.0 <= query_decay <= 1.0):
            raise ValueError(f"gap_decay {gap_decay} and query_decay {query_decay} must lie in 0 to 1")
        require_half_life(half_life_s)
        self.window = window
        self.gap_decay = gap_decay
        self.backward_weight = backward_weight
        self.query_length = query_length
        self.query_decay = query_decay
        self.source_exponent = source_exponent
        self.target_exponent = target_exponent
        self.shrinkage = shrinkage
        self.row_capacity = row_capacity
        self.half_life_s = half_life_s
        self._clear()

    def apply(self, batch: LearningBatch, rows: BatchRows) -> None:
        self._reserve_rows(len(self.items))
        growth = np.empty(len(batch), dtype=np.float64)
        event, changed, n = 0, 0, len(batch)
        while event < n:
            self._rescale(int(batch.time_ms[event]))
            last = kernels.forward_growth(
                event, batch.time_ms, self._clock, self.half_life_s * 1000.0, growth
            )
            while event < last:
                self._reserve_slots()
                event, changed = covisitation_kernels.covisitation_learn(
                    event, last, rows.changes, changed, rows.item, rows.recent, batch.weight, growth,
                    self._pool, self._count, self._uses, self._source_norm, self._target_norm,
                    self.window, self.gap_decay, self.backward_weight, self.source_exponent,
                    self.target_exponent, self.shrinkage, self.row_capacity,
                )  # fmt: skip

    def unlearn(self, batch: LearningBatch, rows: BatchRows) -> None:
        self._reserve_rows(len(self.items))
        growth = np.empty(len(batch), dtype=np.float64)
        kernels.past_growth(batch.time_ms, self._clock, self.half_life_s * 1000.0, growth)
        covisitation_kernels.covisitation_unlearn(
            rows.item, rows.recent, batch.weight, growth,
            self._pool, self._count, self._uses, self._source_norm, self._target_norm,
            self.window, self.gap_decay, self.backward_weight, self.source_exponent,
            self.target_exponent, self.shrinkage,
        )  # fmt: skip

    def give_rows(self, changes: NDArray[np.int32]) -> None:
        """Take in rows that were given to items which nobody has used yet (`ItemTable.introduce`)."""
        self._reserve_rows(len(self.items))
        covisitation_kernels.covisitation_give(changes, self._pool)

    def forget_rows(self, rows: NDArray[np.int32]) -> None:
        self._reserve_rows(len(self.items))
        covisitation_kernels.covisitation_forget(
            rows, self._pool, self._count, self._uses, self._source_norm, self._target_norm
        )

    def retrieve(
        self, recent_rows: NDArray[np.int32], k: int, exclude_rows: NDArray[np.int32] | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Best related items of n users at once.

        recent_rows int32[n, L]: recent items, newest first, -1 padded. exclude_rows int32[n, E]: never
        returned, -1 padded. Returns rows int32[n, k] (-1 padded) and scores float32[n, k] (0 padded), by
        falling score, then row; items without a positive score are left out.
        """
        n = len(recent_rows)
        rows, scores = np.full((n, k), -1, dtype=np.int32), np.zeros((n, k), dtype=np.float32)
        exclude = np.broadcast_to(_NO_ROWS, (n, 0)) if exclude_rows is None else exclude_rows
        known = len(self._total)
        kernels.covisitation_retrieve(
            contiguous_rows(recent_rows), contiguous_rows(np.where(exclude < known, exclude, -1)), self._pool,
            self._source_norm, self._target_norm, self._scale(), self.query_length, self.query_decay,
            self._total, self._touched, rows, scores,
        )  # fmt: skip
        return rows, scores

    def score(self, recent_rows: NDArray[np.int32], candidate_rows: NDArray[np.int32]) -> NDArray[np.float32]:
        """Scores float32[n, C] of candidate_rows int32[n, C] (or -1) for recent_rows int32[n, L]; else 0."""
        if candidate_rows.shape[1] >= covisitation_scan_kernels.MANY:
            return self._score_many(contiguous_rows(recent_rows), contiguous_rows(candidate_rows))
        out = np.zeros(candidate_rows.shape, dtype=np.float32)
        covisitation_kernels.covisitation_score(
            contiguous_rows(recent_rows), contiguous_rows(candidate_rows), self._pool,
            self._source_norm, self._target_norm, self._scale(), self.query_length, self.query_decay, out,
        )  # fmt: skip
        return out

    def contributions(self, recent_rows: NDArray[np.int32], item_row: int) -> NDArray[np.float32]:
        """What each recent item, int32[L], newest first, adds to item_row's score: float32[L]."""
        alone = np.full((len(recent_rows), len(recent_rows)), -1, dtype=np.int32)
        np.fill_diagonal(alone, recent_rows)  # each query holds one recent item, at its own position
        return self.score(alone, np.full((len(recent_rows), 1), item_row, dtype=np.int32))[:, 0]

    def score_rows(self, user: str, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        scores: NDArray[np.float32] = self.score(self.recent_rows(user, self.query_length), rows[None, :])[0]
        return scores

    def item_arrays(self) -> Arrays:
        n, pool = len(self.items), self._pool
        self._reserve_rows(n)
        lengths = pool.length[:n].astype(np.int64)
        within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        used = np.repeat(pool.start[:n], lengths) + within
        return {
            "covisitation.lengths": pool.length[:n].copy(),
            "covisitation.keys": pool.keys[used],
            "covisitation.values": pool.values[used],
            "covisitation.count": self._count[:n].copy(),
            "covisitation.uses": self._uses[:n].copy(),
            "covisitation.source_norm": self._source_norm[:n].copy(),
            "covisitation.target_norm": self._target_norm[:n].copy(),
            "covisitation.clock": self._clock.copy(),
        }

    def load_item_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        self._clear()
        n = len(self.items)
        self._reserve_rows(n)
        self._count[:n] = arrays["covisitation.count"]
        self._uses[:n] = arrays["covisitation.uses"]
        self._source_norm[:n] = arrays["covisitation.source_norm"]
        self._target_norm[:n] = arrays["covisitation.target_norm"]
        self._clock[:] = arrays["covisitation.clock"]
        self._load_rows(
            arrays["covisitation.lengths"].astype(np.int64),
            arrays["covisitation.keys"].astype(np.int32),
            arrays["covisitation.values"].astype(np.float32),
        )

    def nbytes(self) -> int:
        """Bytes of the arrays for the rows in use, and of the pool up to its top."""
        return (8 + 4 + 4 + 8 + 8 + 4 + 4 + 4) * len(self.items) + 8 * int(self._pool.marks[0])

    def _score_many(
        self, recent_rows: NDArray[np.int32], candidate_rows: NDArray[np.int32]
    ) -> NDArray[np.float32]:
        out = np.empty(candidate_rows.shape, dtype=np.float32)
        covisitation_scan_kernels.covisitation_scan(
            recent_rows, candidate_rows, self._pool, self._source_norm, self._target_norm, self._scale(),
            self.query_length, self.query_decay, self._total, out,
        )  # fmt: skip
        return out

    def _load_rows(
        self, lengths: NDArray[np.int64], keys: NDArray[np.int32], values: NDArray[np.float32]
    ) -> None:
        """Lay the rows out one behind the other, each in a block that just holds it."""
        n, pool = len(lengths), self._pool
        capacity = np.array(covisitation_kernels.capacities(self.row_capacity), dtype=np.int32)
        blocks = capacity[np.searchsorted(capacity, lengths)]
        gone = self.items.given[:n] == kernels.FREED
        pool.capacity[:n] = np.where(lengths > 0, blocks, np.where(gone, covisitation_kernels.FORGOTTEN, 0))
        pool.length[:n] = lengths
        top = covisitation_kernels.place_blocks(pool, n)
        self._reserve_slots(top)
        covisitation_kernels.fill_blocks(self._pool, n, keys, values)

    def _clear(self) -> None:
        self._pool = kernels.RowPool(
            start=np.zeros(0, dtype=np.int64),
            length=np.zeros(0, dtype=np.int32),
            capacity=np.zeros(0, dtype=np.int32),
            keys=np.zeros(0, dtype=np.int32),
            values=np.zeros(0, dtype=np.float32),
            slots=np.zeros(0, dtype=np.int16),
            marks=np.array([0, 0, -1, 0], dtype=np.int64),
        )
        self._count = np.zeros(0, dtype=np.float64)
        self._uses = np.zeros(0, dtype=np.float64)
        self._source_norm = np.zeros(0, dtype=np.float32)
        self._target_norm = np.zeros(0, dtype=np.float32)
        self._clock = new_clock()
        self._total = np.zeros(0, dtype=np.float32)
        self._touched = np.zeros(self.query_length * self.row_capacity + 1, dtype=np.int32)

    def _reserve_rows(self, n: int) -> None:
        if n <= len(self._count):
            return
        pool, limit = self._pool, self.items.limit
        self._pool = pool._replace(
            start=grown(pool.start, n, limit),
            length=grown(pool.length, n, limit),
            capacity=grown(pool.capacity, n, limit),
        )
        self._count = grown(self._count, n, limit)
        self._uses = grown(self._uses, n, limit)
        self._source_norm = grown(self._source_norm, n, limit)
        self._target_norm = grown(self._target_norm, n, limit)
        self._total = grown(self._total, n, limit)

    def _reserve_slots(self, more: int = 0) -> None:
        """Room for one event's worst case, and `more` slots."""
        pool = self._pool
        worst = covisitation_kernels.most_slots(self.window, self.row_capacity)
        needed, limit = int(pool.marks[0]) + more + worst, self.items.limit
        if needed > len(pool.keys):
            if needed > SMALL_ROWS * _SLOTS_PER_ITEM and limit < UNLIMITED:
                needed = max(needed + needed // 2, _SLOTS_PER_ITEM * limit)
            keys = grown(pool.keys, needed, UNLIMITED)
            values = grown(pool.values, needed, UNLIMITED)
            self._pool = pool._replace(keys=keys, values=values, slots=keys.view(np.int16))

    def _rescale(self, time_ms: int) -> None:
        """Move the landmark on by whole half-lives: each weight is multiplied by an exact power of two."""
        halvings = halvings_due(time_ms, self._clock, self.half_life_s)
        if halvings == 0:
            return
        factor, n = 2.0**-halvings, len(self.items)
        self._pool.values[: int(self._pool.marks[0])] *= np.float32(factor)
        count = self._count[:n]
        count *= factor
        gone = count < kernels.GONE_COUNT
        count[gone] = 0.0
        for norm, exponent in (
            (self._source_norm[:n], self.source_exponent),
            (self._target_norm[:n], self.target_exponent),
        ):
            norm[gone] = 0.0
            norm[~gone] *= np.float32(2.0 ** (min(halvings, 100) * exponent))
        self._clock[0] += round(halvings * self.half_life_s * 1000.0)

    def _scale(self) -> float:
        """What brings a stored score to its present value: 2**(-age (1 - alpha - beta) / half-life)."""
        half_lives = half_lives_since(self._clock, self.half_life_s)
        return float(2.0 ** (-half_lives * (1.0 - self.source_exponent - self.target_exponent)))
