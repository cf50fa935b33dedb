"""Item-to-item weights by ridge regression (EASE), over pairs counted as events come, asked by recency."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from online_models import ease_kernels as kernels
from online_models import ease_sweep_kernels as sweeping
from online_models.base import PAIRS, RECENT_KEPT, Arrays, OnlineRanker, contiguous_rows
from online_models.item_table import grown
from online_models.learning_batch import BatchRows, LearningBatch
from online_models.parameters import require_ranges

__all__ = ["RecencyEASE"]

OPERATIONS = 8_000_000
"""Multiplications for the weights that an event does at most, but for the last step begun: some 2 ms."""
SMALL = 32
"""While G has so many items or fewer, the weights follow every event and every correction."""


class RecencyEASE(OnlineRanker):
    r"""EASE whose rows are windows of a user's history, with a query that weighs recent items more.

    When a user with recent items h_0, h_1, ... (newest first) has an event of positive weight on an item i
    that is not among the first W of them,

    $$G_{ii} \mathrel{+}= 1, \quad
      G_{i,h_r} = G_{h_r,i} \mathrel{+}= \left(1 - \tfrac{r+1}{W+1}\right) g^{r+1} \quad (r < W)$$

    For g = 1 this is X'X / (W + 1), the rows of X being all windows of W + 1 events in a row: positive
    semidefinite, which counts cut off at W are not. With P = (G + lambda I)^-1,

    $$B_{ij} = -P_{ij} / P_{jj} \; (i \ne j), \quad B_{jj} = 0, \qquad
      \mathrm{score}(i) = \sum_{r<L} d^r B_{h_r,i}$$

    B is computed anew, from G in float64, each time the number of events has grown by the share
    `refresh_growth`, and by `refresh_events` at least: a fixed place of the log. It costs items^3 / 2
    operations, of which each event from there on does 8 million at most (1,682 items: 300 events of some 2
    ms), and is part of the state: all replicas, restored ones too, score alike. New items score 0 until then.
    Up to 32 items the weights follow every event.

    What is withdrawn or forgotten leaves G at once, as if it had never been there, and B when it is computed
    anew next (`settle` does that now).

    G has room for `max_items` items, the first that come. When it is full, another item's events are only
    counted; once they exceed those of the least used item in G (the one in the lowest slot, of equals), it
    takes that one's place, whose pairs and count are forgotten. An event of negative weight takes the
    item's pairs back where it is among the user's recent W items; counts stay at 0 or above.

    Parameters: max_items, regularization lambda, window W, gap_decay g, query_length L, query_decay d,
    refresh_growth, refresh_events, seed (unused).

    References: Steck, Embarrassingly Shallow Autoencoders for Sparse Data, WWW 2019. Goodnight, A Tutorial on
    the SWEEP Operator, The American Statistician 1979 (the inverse).

    >>> model = RecencyEASE(regularization=1.0, window=1)
    >>> for user, item in [("ann", "bread"), ("ann", "milk"), ("bob", "bread")]:
    ...     model.learn_one(user, item)
    >>> [round(model.predict_one("bob", item), 6) for item in ("milk", "bread", "unknown")]
    [0.166667, 0.0, 0.0]
    >>> model.rank("bob", ["unknown", "milk"])
    ['milk', 'unknown']
    """

    learns = PAIRS

    def __init__(
        self,
        max_items: int = 2048,
        regularization: float = 400.0,
        window: int = 50,
        gap_decay: float = 1.0,
        query_length: int = 20,
        query_decay: float = 0.8,
        refresh_growth: float = 0.1,
        refresh_events: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        self.max_items = max_items
        self.regularization = regularization
        self.window = window
        self.gap_decay = gap_decay
        self.query_length = query_length
        self.query_decay = query_decay
        self.refresh_growth = refresh_growth
        self.refresh_events = refresh_events
        self._check_parameters()
        gaps = np.arange(window + 1)
        self._gap_weight = ((1.0 - gaps / (window + 1.0)) * gap_decay**gaps).astype(np.float32)
        self._clear()

    def apply(self, batch: LearningBatch, rows: BatchRows) -> None:
        self._reserve(len(self.items))
        event, changed, marks = 0, 0, self._gram.marks
        while event < len(batch):
            under_way = bool(self._sweep.marks[sweeping.SIZE])
            one_by_one = under_way or self._slots() <= SMALL
            event, changed = kernels.ease_learn(
                event, event + 1 if one_by_one else len(batch), _NEVER if one_by_one else marks[kernels.NEXT],
                rows.changes, changed, rows.item, rows.recent, batch.weight, self._gram, self._weights,
                self._gap_weight, self.max_items,
            )  # fmt: skip
            if not under_way and (marks[kernels.EVENTS] >= marks[kernels.NEXT] or self._slots() <= SMALL):
                self._begin_sweep()
            self._go_on(OPERATIONS)

    def unlearn(self, batch: LearningBatch, rows: BatchRows) -> None:
        self._reserve(len(self.items))
        kernels.ease_unlearn(rows.item, rows.recent, batch.weight, self._gram, self._gap_weight)
        self._follow_at_once()

    def forget_rows(self, rows: NDArray[np.int32]) -> None:
        self._reserve(len(self.items))
        kernels.ease_forget(rows, self._gram, self._weights)
        self._follow_at_once()

    def settle(self) -> None:
        """Compute the weights of the present counts now, whatever it takes. It stands in no log: replicas
        must all do it at the same place of theirs."""
        self._begin_sweep()
        self._go_on(_NEVER)

    def score(self, recent_rows: NDArray[np.int32], candidate_rows: NDArray[np.int32]) -> NDArray[np.float32]:
        """Scores float32[n, C] of candidate_rows int32[n, C] (or -1) for recent_rows int32[n, L]; else 0."""
        out = np.zeros(candidate_rows.shape, dtype=np.float32)
        kernels.ease_score(
            contiguous_rows(recent_rows), contiguous_rows(candidate_rows), self._gram.slot_of, self._weights,
            self.query_length, self.query_decay, np.empty(len(self._weights), dtype=np.float32), out,
        )  # fmt: skip
        return out

    def score_rows(self, user: str, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        scores: NDArray[np.float32] = self.score(self.recent_rows(user, self.query_length), rows[None, :])[0]
        return scores

    def item_arrays(self) -> Arrays:
        n, slots = len(self.items), self._slots()
        self._reserve(n)
        return {
            "ease.pairs": self._gram.pairs[: slots * (slots + 1) // 2].copy(),
            "ease.rows": self._gram.row_of[:slots].copy(),
            "ease.uses": self._gram.uses[:slots].copy(),
            "ease.waiting": self._gram.waiting[:n].copy(),
            "ease.marks": self._gram.marks.copy(),
            "ease.weights": self._weights.copy(),
            "ease.stale": self._gram.stale[:slots].copy(),
            **{f"ease.sweep.{name}": array.copy() for name, array in self._sweep._asdict().items()},
        }

    def load_item_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        self._clear()
        n, slots = len(self.items), len(arrays["ease.rows"])
        self._reserve(n)
        gram, pairs = self._gram, arrays["ease.pairs"]
        gram.pairs[: len(pairs)] = pairs
        gram.row_of[:slots] = arrays["ease.rows"]
        gram.uses[:slots] = arrays["ease.uses"]
        gram.waiting[:n] = arrays["ease.waiting"]
        gram.marks[:] = arrays["ease.marks"]
        gram.stale[:slots] = arrays["ease.stale"]
        state = {name: arrays[f"ease.sweep.{name}"].copy() for name in sweeping.Sweep._fields}
        self._sweep = sweeping.Sweep(**state)  # type: ignore[arg-type]  # as item_arrays gave them
        in_use = np.flatnonzero(gram.row_of[:slots] >= 0)
        gram.slot_of[gram.row_of[in_use]] = in_use
        self._weights = np.ascontiguousarray(arrays["ease.weights"], dtype=np.float32)

    def nbytes(self) -> int:
        """Bytes of counts and weights in use, and of the arrays for the rows."""
        slots = self._slots()
        under_way = sum(array.nbytes for array in self._sweep)
        return 2 * slots * (slots + 1) + self._weights.nbytes + under_way + 21 * slots + 8 * len(self.items)

    def _slots(self) -> int:
        return int(self._gram.marks[kernels.SLOTS])

    def _begin_sweep(self) -> None:
        n, marks = self._slots(), self._gram.marks
        growth = max(self.refresh_events, int(self.refresh_growth * marks[kernels.EVENTS]))
        marks[kernels.NEXT] = marks[kernels.EVENTS] + growth
        if len(self._weights) < n:
            weights = np.zeros((n, n), dtype=np.float32)
            weights[: len(self._weights), : len(self._weights)] = self._weights
            self._weights = weights
        self._gram.stale[:] = 0
        self._sweep = _room(n)
        sweeping.begin(self._gram.pairs, n, self.regularization, self._sweep)

    def _go_on(self, operations: int) -> None:
        sweep = self._sweep
        if sweep.marks[sweeping.SIZE]:
            sweeping.advance(sweep, self._gram.pairs, self._gram.stale, self._weights, operations)
            if not sweep.marks[sweeping.SIZE]:
                self._sweep = _room(0)

    def _follow_at_once(self) -> None:
        if self._slots() <= SMALL:
            self.settle()

    def _clear(self) -> None:
        self._gram = kernels.Gram(
            pairs=np.zeros(0, dtype=np.float32),
            row_of=np.full(self.max_items, -1, dtype=np.int32),
            uses=np.zeros(self.max_items, dtype=np.int64),
            stamp=np.zeros(self.max_items + 1, dtype=np.int64),
            stale=np.zeros(self.max_items, dtype=np.uint8),
            slot_of=np.zeros(0, dtype=np.int32),
            waiting=np.zeros(0, dtype=np.int32),
            marks=np.array([0, self.refresh_events, 0, 0], dtype=np.int64),
        )
        self._weights = np.zeros((0, 0), dtype=np.float32)
        self._sweep = _room(0)

    def _reserve(self, n: int) -> None:
        """Room for n rows of the item table, and for the slots that they may take."""
        gram, limit, slots, most = self._gram, self.items.limit, min(n, self.max_items), self.max_items
        if slots * (slots + 1) // 2 > len(gram.pairs):
            pairs = grown(gram.pairs, slots * (slots + 1) // 2, most * (most + 1) // 2)
            self._gram = gram = gram._replace(pairs=pairs)
        if n > len(gram.waiting):
            self._gram = gram._replace(
                slot_of=grown(gram.slot_of, n, limit, fill=-1), waiting=grown(gram.waiting, n, limit)
            )

    def _check_parameters(self) -> None:
        ranges = {
            "max_items": (1, 5000),
            "regularization": (1e-3, 1e9),
            "window": (1, RECENT_KEPT),
            "gap_decay": (0.0, 1.0),
            "query_length": (1, RECENT_KEPT),
            "query_decay": (0.0, 1.0),
            "refresh_growth": (0.0, 10.0),
            "refresh_events": (1, 10**9),
        }
        require_ranges(self, ((name, low, high) for name, (low, high) in ranges.items()))


_NEVER = 2**62
"""More events, and more operations, than there ever are."""


def _room(n: int) -> sweeping.Sweep:
    """For an inversion of n items."""
    return sweeping.Sweep(
        work=np.zeros(n * (n + 1) // 2),
        panel=np.zeros((sweeping.BLOCK, n)),
        scaled=np.zeros((n, sweeping.BLOCK)),
        ridge=np.zeros(1),
        marks=np.zeros(3, dtype=np.int64),
    )
