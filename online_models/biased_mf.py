"""Factors and biases for explicit ratings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from online_models import biased_mf_kernels as kernels
from online_models.base import Arrays, Context, OnlineRanker, contiguous_rows
from online_models.biased_table import BiasedTable
from online_models.factor_table import pack_users, require_one_event, unpack_users
from online_models.learning_batch import UNCOUNT, BatchRows, LearningBatch
from online_models.parameters import require_ranges

__all__ = ["BiasedMF"]

_RANGES = (
    ("dimension", 1, 1024),
    ("learning_rate", 1e-9, 1.0),
    ("bias_learning_rate", 1e-9, 1.0),
    ("regularization", 0.0, 0.5),
    ("bias_regularization", 0.0, 0.5),
    ("start_scale", 0.0, 1.0),
)
"""Parameters and the least and most that they may be."""
_MAX_ERROR = 10.0
_MOMENTS = 2


class BiasedMF(OnlineRanker):
    r"""Matrix factorisation of ratings, by stochastic gradient descent in one pass.

    $$\hat r_{ui} = \mu + b_u + b_i + u \cdot v$$

    mu is the mean of the ratings so far. A rating r moves user (at the owner) and item (at every replica)
    down the gradient of

    $$J = \tfrac12 (r - \hat r_{ui})^2 + \lambda_b (b_u^2 + b_i^2) + \lambda (\|u\|^2 + \|v\|^2),$$

    both from the values before the event:

    $$b_u \mathrel{+}= \eta_b (e - 2 \lambda_b b_u), \quad u \mathrel{+}= \eta (e v - 2 \lambda u), \quad
    e = r - \hat r_{ui}$$

    and likewise b_i and v. With `bias=False` mu and the biases are 0, and J is the plain objective of
    R = U V^T. With `adaptive` a step is eta / sqrt(1 + G) (Adagrad), G the sum of the row's squared
    gradients: of its bias; of its factor, the mean over components.

    The rating is the event's value (River's y), not its weight. A value outside low to high counts as the
    nearer of both. An event without a value (NaN in the log) teaches nothing, but a negative one
    ("not interested") counts as a rating of `low` where that is given. Errors are bounded by high - low, or
    10 where either is missing (beyond it the loss is linear, as Huber's); with components bounded by 10 and
    biases by 1000 no input reaches a NaN.

    Withdrawing a rating inverts its step, at the owner and at every replica, with sizes, mean and factors as
    they are now: at once this brings back what was, but for what regularization took; the mean and Adagrad's
    G are subtracted from.

    A ranking by estimated rating is not one by popularity: an item that few know and those few love
    stands above what everybody uses, so hit rates are low. Use it where ratings matter, or as a part of a
    blend. `low` and `high` bound the estimates too, which ties the best ones of generous users: leave them
    out for rankings.

    Parameters: dimension d, learning_rate eta, bias_learning_rate eta_b, regularization lambda,
    bias_regularization lambda_b, adaptive, bias, low and high (units of a rating, None = unbounded),
    start_scale (standard deviation of the start vectors), seed. State: float32[1 + d + 2] an item or user
    (bias, factor, both's G), and sum and number of the ratings.

    Reference: Koren, Bell and Volinsky, Matrix Factorization Techniques for Recommender Systems, Computer
    42(8), 2009; Adagrad: Duchi, Hazan and Singer, Adaptive Subgradient Methods, JMLR 12, 2011.

    >>> model = BiasedMF(low=1.0, high=5.0)
    >>> for _ in range(20):
    ...     model.learn_one("ann", "tea", 5.0)
    ...     model.learn_one("bob", "tea", 3.0)
    ...     model.learn_one("bob", "nails", 2.0)
    >>> round(model.predict_one("ann", "tea"), 2), round(model.predict_one("bob", "nails"), 2)
    (4.94, 2.03)
    >>> round(model.predict_one("ann", "nails"), 2), round(model.predict_one("stranger", "unknown"), 2)
    (3.65, 3.33)
    """

    owner_reads_items = True
    predicts_ratings = True

    def __init__(
        self,
        dimension: int = 16,
        learning_rate: float = 0.2,
        bias_learning_rate: float = 0.35,
        regularization: float = 0.01,
        bias_regularization: float = 0.04,
        adaptive: bool = True,
        bias: bool = True,
        low: float | None = None,
        high: float | None = None,
        start_scale: float = 0.05,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        self.dimension = dimension
        self.learning_rate = learning_rate
        self.bias_learning_rate = bias_learning_rate
        self.regularization = regularization
        self.bias_regularization = bias_regularization
        self.adaptive = adaptive
        self.bias = bias
        self.low = low
        self.high = high
        self.start_scale = start_scale
        self._rule = self._make_rule()
        self._table = BiasedTable(dimension, seed, start_scale, _MOMENTS)
        self._totals = np.zeros(2, dtype=np.float64)
        self._users: dict[str, NDArray[np.float32]] = {}

    @property
    def mean(self) -> float:
        """Mean of the ratings so far; 0 before the first."""
        return float(self._totals[0] / max(self._totals[1], 1.0))

    def learn_user(self, events: Sequence[tuple[str, str, float, Context | None]]) -> LearningBatch:
        """As the base's, with the user's [bias, factor]; one event at a time (`owner_reads_items`)."""
        require_one_event(events)
        batch = super().learn_user(events)
        user, item = events[0][0], events[0][1]
        before = self._user_row(user)
        after = before.copy()
        row = self._table.row_of(self.items.row(item), item)
        value, weight = float(batch.value[0]), float(batch.weight[0])
        kernels.learn_user(value, weight, self._totals, row, after, self._rule)
        width = 1 + self.dimension
        batch.user_before, batch.user_after = before[None, :width].copy(), after[None, :width].copy()
        self._users[user] = after
        return batch

    def unlearn_user(self, user: str, batch: LearningBatch) -> None:
        item, before, width = batch.item_ids[batch.item[0]], self._user_row(user), 1 + self.dimension
        after, row = before.copy(), self._table.row_of(self.items.row(item), item)
        kernels.unlearn_user(
            float(batch.value[0]), float(batch.weight[0]), self._totals, row, after, self._rule
        )
        batch.user_before, batch.user_after = before[None, :width].copy(), after[None, :width].copy()
        self._users[user] = after

    def drop_user(self, user: str) -> None:
        super().drop_user(user)
        self._users.pop(user, None)

    def unlearn(self, batch: LearningBatch, rows: BatchRows) -> None:
        self._require_columns(batch)
        self._table.ensure(self.items.ids, self.items.limit)
        kernels.unlearn(
            rows.item, batch.value, batch.weight, batch.user_after, self._totals, self._table.rows, self._rule
        )

    def correct(self, batch: LearningBatch, rows: BatchRows) -> None:
        if batch.kind == UNCOUNT:
            kernels.uncount(rows.item, batch.value, batch.weight, self._totals, self._rule)
        else:
            super().correct(batch, rows)

    def forget_rows(self, rows: NDArray[np.int32]) -> None:
        self._table.rows[rows[rows < len(self._table)]] = 0.0

    def _require_columns(self, batch: LearningBatch) -> None:
        if batch.user_before.shape[1] != 1 + self.dimension:
            raise ValueError(
                f"user_before: {batch.user_before.shape[1]} columns, but this model has {1 + self.dimension} "
                "(bias and factor); the record was made under other settings"
            )

    def apply(self, batch: LearningBatch, rows: BatchRows) -> None:
        self._require_columns(batch)
        changes, start = self._table.given_rows(batch, rows.changes)
        self._table.ensure(self.items.ids, self.items.limit)
        kernels.apply(
            changes, start, rows.item, batch.value, batch.weight, batch.user_before, self._totals,
            self._table.rows, self._rule,
        )  # fmt: skip

    def score_rows(self, user: str, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        out = np.empty(len(rows), dtype=np.float32)
        kernels.score(
            self._user_row(user), contiguous_rows(rows), self._totals, self._table.rows, self._rule, out
        )
        return out

    def nbytes(self) -> int:
        """Bytes of the item rows in use."""
        return self._table.rows.nbytes + self._totals.nbytes

    def item_arrays(self) -> Arrays:
        return {**self._table.to_arrays("biased_mf.items"), "biased_mf.totals": self._totals.copy()}

    def load_item_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        self._table.load("biased_mf.items", arrays)
        self._totals = arrays["biased_mf.totals"].astype(np.float64)

    def to_arrays(self) -> Arrays:
        return {**super().to_arrays(), **pack_users("biased_mf.users", self._users, self._table.dimension)}

    def from_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        super().from_arrays(arrays)
        self._users = unpack_users("biased_mf.users", arrays)

    def _user_row(self, user: str) -> NDArray[np.float32]:
        """float32[1 + d + 2], the start row for a user never seen; not to be written to."""
        row = self._users.get(user)
        if row is None:
            start: NDArray[np.float32] = self._table.start_users([user])[0]
            return start
        return row

    def _make_rule(self) -> kernels.Rule:
        """Raises ValueError for a parameter that is out of range, naming it."""
        require_ranges(self, _RANGES)
        low = -math.inf if self.low is None else float(self.low)
        high = math.inf if self.high is None else float(self.high)
        if not low < high:
            raise ValueError(f"low is {self.low} and high {self.high}, but low must be below high")
        return kernels.Rule(
            adaptive=bool(self.adaptive),
            bias_rate=float(self.bias_learning_rate) if self.bias else 0.0,
            rate=float(self.learning_rate),
            bias_penalty=2.0 * self.bias_regularization,
            penalty=2.0 * self.regularization,
            low=low,
            high=high,
            max_error=high - low if math.isfinite(high - low) else _MAX_ERROR,
        )
