"""Bayesian personalised ranking: factors and item biases learned from pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from online_models import bpr_kernels as kernels
from online_models.base import Arrays, Context, OnlineRanker, contiguous_rows
from online_models.biased_table import BiasedTable
from online_models.factor_table import (
    event_hash,
    name_negatives,
    pack_users,
    require_one_event,
    unpack_users,
    withdrawn_hash,
)
from online_models.item_table import grown
from online_models.learning_batch import UNCOUNT, BatchRows, LearningBatch
from online_models.parameters import require_ranges

__all__ = ["BPR"]

_SAMPLING = {"uniform": kernels.UNIFORM, "popularity": kernels.POPULARITY, "dynamic": kernels.DYNAMIC}
_RANGES = (
    ("dimension", 1, 1024),
    ("learning_rate", 0.0, 0.5),
    ("bias_learning_rate", 0.0, 0.5),
    ("regularization", 0.0, 1.0),
    ("bias_regularization", 0.0, 1.0),
    ("negatives", 1, 64),
    ("popularity_exponent", 0.0, 1.0),
    ("candidates", 1, 256),
    ("start_scale", 0.0, 1.0),
)
"""Parameters and the least and most that they may be."""


class BPR(OnlineRanker):
    r"""Pairwise ranking from implicit feedback: what was chosen should stand above what was not.

    $$\mathrm{score}(u, i) = b_i + u \cdot v_i, \qquad x_{uij} = b_i - b_j + u \cdot (v_i - v_j)$$

    An event of weight w on item i draws m other items j. Each pair climbs

    $$\ln \sigma(s\, x_{uij}) - \tfrac{\lambda}{2} (\|u\|^2 + \|v_i\|^2 + \|v_j\|^2)
    - \tfrac{\lambda_b}{2} (b_i^2 + b_j^2), \qquad s = \mathrm{sign}(w)$$

    with steps min(|w| eta, 1/2), of the biases min(|w| eta_b, 1/2): the user at the owner, pair by pair, with
    the items as they were before the event; the items at every replica, pair by pair, with the user as it was
    before the event. A negative event ("not interested") thus puts its item below the others drawn; a weight
    of 0 teaches nothing.

    Negatives are known items, drawn by a hash of the event, so that no shared random stream exists; never the
    item itself nor one of the user's recent 50. `sampling` says how: `uniform`; `popularity`, with chances as
    count ** popularity_exponent of their positive events; `dynamic`, the best scored of `candidates` uniform
    draws (for a negative event the worst scored), pairs that teach most. Uniform ones let the bias learn
    popularity: at the optimum it is the log of it, up to a constant. The others take part of that out.

    Withdrawing an event inverts its pairs, last first, at the owner and at every replica, with negatives
    drawn anew by the same hash and the factors as they are now; what regularization took stays taken. Counts
    are subtracted.

    Parameters: dimension d, learning_rate eta, bias_learning_rate eta_b, regularization lambda,
    bias_regularization lambda_b, negatives m, sampling, popularity_exponent, candidates, start_scale
    (standard deviation of the start vectors), seed. State: float32[1 + d] an item (bias, factor), its count,
    and for `popularity` a Fenwick tree, 8 to 16 bytes an item; float32[d] a user. All parts are bounded by
    10: no input reaches a NaN.

    Reference: Rendle, Freudenthaler, Gantner and Schmidt-Thieme, BPR: Bayesian Personalized Ranking from
    Implicit Feedback, UAI 2009; dynamic negatives: Zhang, Chen, Wang and Yu, Optimizing Top-N Collaborative
    Filtering via Dynamic Negative Item Sampling, SIGIR 2013.

    >>> model = BPR(dimension=8)
    >>> for _ in range(50):
    ...     model.learn_one("ann", "tea")
    ...     model.learn_one("bob", "nails")
    >>> model.rank("ann", ["nails", "tea"]), model.rank("bob", ["nails", "tea"])
    (['tea', 'nails'], ['nails', 'tea'])
    >>> model.learn_many(["cleo", "cleo"], ["tea", "nails"], [1.0, -5.0])  # not interested in nails
    >>> round(model.predict_one("cleo", "tea"), 3), round(model.predict_one("cleo", "nails"), 3)
    (0.638, -0.653)
    """

    owner_reads_items = True

    def __init__(
        self,
        dimension: int = 64,
        learning_rate: float = 0.07,
        bias_learning_rate: float = 0.01,
        regularization: float = 0.03,
        bias_regularization: float = 0.0,
        negatives: int = 10,
        sampling: str = "dynamic",
        popularity_exponent: float = 0.5,
        candidates: int = 4,
        start_scale: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        self.dimension = dimension
        self.learning_rate = learning_rate
        self.bias_learning_rate = bias_learning_rate
        self.regularization = regularization
        self.bias_regularization = bias_regularization
        self.negatives = negatives
        self.sampling = sampling
        self.popularity_exponent = popularity_exponent
        self.candidates = candidates
        self.start_scale = start_scale
        self._rule = self._make_rule()
        self._table = BiasedTable(dimension, seed, start_scale)
        self._counts = np.zeros(0, dtype=np.int64)
        self._tree = np.zeros(1, dtype=np.int64)
        self._users: dict[str, NDArray[np.float32]] = {}

    def learn_user(self, events: Sequence[tuple[str, str, float, Context | None]]) -> LearningBatch:
        """As the base's, with factors and negatives; one event at a time (`owner_reads_items`)."""
        require_one_event(events)
        batch = super().learn_user(events)
        user, item = events[0][0], events[0][1]
        hashed = event_hash(self.seed, self._past[user][0].event_id, user, item, int(batch.time_ms[0]))
        self._owner_step(kernels.learn_user, user, batch, hashed)
        return batch

    def unlearn_user(self, user: str, batch: LearningBatch) -> None:
        hashed = withdrawn_hash(self.seed, user, self._past[user], batch)
        self._owner_step(kernels.unlearn_user, user, batch, hashed, self._counts)

    def drop_user(self, user: str) -> None:
        super().drop_user(user)
        self._users.pop(user, None)

    def _owner_step(
        self,
        kernel: Callable[..., None],
        user: str,
        batch: LearningBatch,
        hashed: int,
        *more: NDArray[np.int64],
    ) -> None:
        """Move the user by a record's one event, and fill what the record has of that."""
        item = batch.item_ids[batch.item[0]]
        before = self._user_factor(user)
        after, drawn = before.copy(), np.empty(self.negatives, dtype=np.int32)
        row, recent = self.items.row(item), self.items.rows(batch.item_ids)[batch.recent[0]]
        kernel(
            row, self._table.row_of(row, item), float(batch.weight[0]), np.uint64(hashed),
            recent, self.items.given, self._table.rows, self._tree, self._rule, after, drawn, *more,
        )  # fmt: skip
        name_negatives(batch, [self.items.ids[other] for other in drawn.tolist() if other >= 0])
        batch.user_before, batch.user_after = before[None, :].copy(), after[None, :].copy()
        self._users[user] = after

    def apply(self, batch: LearningBatch, rows: BatchRows) -> None:
        self._require_dimension(batch)
        changes, start = self._table.given_rows(batch, rows.changes)
        self._reserve()
        kernels.apply(
            changes, start, rows.item, rows.negatives, batch.weight, batch.user_before,
            self._table.rows, self._counts, self._tree, self._rule,
        )  # fmt: skip

    def unlearn(self, batch: LearningBatch, rows: BatchRows) -> None:
        self._require_dimension(batch)
        self._reserve()
        kernels.unlearn(
            rows.item, rows.negatives, batch.weight, batch.user_after,
            self._table.rows, self._counts, self._tree, self._rule,
        )  # fmt: skip

    def correct(self, batch: LearningBatch, rows: BatchRows) -> None:
        if batch.kind == UNCOUNT:
            self._reserve()
            kernels.uncount(rows.item, batch.weight, self._counts, self._tree, self._rule)
        else:
            super().correct(batch, rows)

    def forget_rows(self, rows: NDArray[np.int32]) -> None:
        self._reserve()
        kernels.forget(rows, self._table.rows, self._counts, self._tree, self._rule)

    def _require_dimension(self, batch: LearningBatch) -> None:
        if batch.user_before.shape[1] != self.dimension:
            raise ValueError(
                f"user_before: {batch.user_before.shape[1]} dimensions, but this model has {self.dimension}; "
                "the record was made under other settings"
            )

    def score_rows(self, user: str, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        out = np.empty(len(rows), dtype=np.float32)
        kernels.score(self._user_factor(user), contiguous_rows(rows), self._table.rows, out)
        return out

    def nbytes(self) -> int:
        """Bytes of the item rows and counts in use, and of the tree."""
        return self._table.rows.nbytes + 8 * len(self._table) + self._tree.nbytes

    def item_arrays(self) -> Arrays:
        return {**self._table.to_arrays("bpr.items"), "bpr.counts": self._counts[: len(self._table)].copy()}

    def load_item_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        self._table.load("bpr.items", arrays)
        self._counts = arrays["bpr.counts"].astype(np.int64)
        self._tree = np.zeros(1, dtype=np.int64)
        self._build_tree()

    def to_arrays(self) -> Arrays:
        return {**super().to_arrays(), **pack_users("bpr.users", self._users, self.dimension)}

    def from_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        super().from_arrays(arrays)
        self._users = unpack_users("bpr.users", arrays)

    def _reserve(self) -> None:
        """Room for every row of the item table."""
        self._table.ensure(self.items.ids, self.items.limit)
        self._counts = grown(self._counts, len(self._table), self.items.limit)
        self._build_tree()

    def _build_tree(self) -> None:
        """Build the tree anew, for twice the rows, when it has become too small; or not at all."""
        if self.sampling == "popularity" and len(self._tree) <= len(self._table):
            self._tree = np.zeros(1 + (1 << max(6, len(self._table).bit_length())), dtype=np.int64)
            kernels.build_tree(self._counts[: len(self._table)], self._rule.exponent, self._tree)

    def _user_factor(self, user: str) -> NDArray[np.float32]:
        """float32[d], the start factor for a user never seen; not to be written to."""
        factor = self._users.get(user)
        if factor is None:
            start: NDArray[np.float32] = self._table.start_users([user])[0, 1:].copy()
            return start
        return factor

    def _make_rule(self) -> kernels.Rule:
        """Raises ValueError for a parameter that is out of range, naming it."""
        require_ranges(self, _RANGES)
        if self.sampling not in _SAMPLING:
            raise ValueError(f"sampling is {self.sampling!r}, but one of {', '.join(_SAMPLING)} is needed")
        return kernels.Rule(
            sampling=_SAMPLING[self.sampling],
            exponent=float(self.popularity_exponent),
            candidates=self.candidates,
            rate=float(self.learning_rate),
            bias_rate=float(self.bias_learning_rate),
            penalty=float(self.regularization),
            bias_penalty=float(self.bias_regularization),
        )
