"""Incremental factors for implicit feedback, with sampled negatives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from online_models import kernels
from online_models.base import Arrays, Context, OnlineRanker, contiguous_rows
from online_models.factor_table import (
    FactorTable,
    event_hash,
    name_negatives,
    pack_users,
    require_one_event,
    start_vectors,
    unpack_users,
    withdrawn_hash,
)
from online_models.learning_batch import BatchRows, LearningBatch

__all__ = ["ISGD"]

_USER_PREFIX = "user:"
"""Keeps a user and an item of the same id from starting at the same vector."""


class ISGD(OnlineRanker):
    r"""Stochastic gradient descent on implicit feedback, one pass, with m sampled negatives an event.

    $$\mathrm{score}(u, i) = p_u \cdot q_i$$

    An event of weight w moves the user (at the owner), then the item and the negatives (at every replica),
    with learning rate $\eta = \min(|w| \eta_0, 1/2)$; y = 1 for the item when w > 0, and 0 for it when w <= 0
    and for negatives:

    $$p_u \mathrel{+}= \eta ((y - p_u \cdot q_i) q_i - \lambda p_u)$$

    $$q_i \mathrel{+}= \eta ((y - p_u \cdot q_i) p_u - \lambda q_i)$$

    where the item's step sees p_u as it was before the event. Negatives are known items drawn uniformly by a
    hash of the event, so no shared random stream exists. Components and errors are bounded by 10: no input
    reaches a NaN.

    Withdrawing an event inverts these steps, at the owner and at every replica, with the factors as they are
    now and negatives drawn anew by the same hash, but for what regularization took, and for what overshot:
    a step is taken back as far as it moved a product by a fifth of its error.

    Parameters: dimension, learning_rate eta_0, regularization lambda, negatives m, start_scale (standard
    deviation of the start vectors), seed.

    Reference: Vinagre, Jorge and Gama, Fast Incremental Matrix Factorization for Recommendation with
    Positive-Only Feedback, UMAP 2014; the negatives follow their later recency-based variant in spirit, not
    in sampling.

    >>> model = ISGD(dimension=8, learning_rate=0.3)
    >>> for _ in range(30):
    ...     model.learn_one("ann", "tea")
    ...     model.learn_one("bob", "nails")
    >>> round(model.predict_one("ann", "tea"), 3), round(model.predict_one("ann", "nails"), 3)
    (0.96, 0.0)
    """

    owner_reads_items = True

    def __init__(
        self,
        dimension: int = 32,
        learning_rate: float = 0.3,
        regularization: float = 0.01,
        negatives: int = 8,
        start_scale: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        if dimension < 1 or negatives < 0:
            raise ValueError(
                f"dimension is {dimension} and negatives {negatives}; at least 1 and 0 are needed"
            )
        if not 0.0 < learning_rate <= 0.5 or not 0.0 <= regularization <= 1.0:
            raise ValueError(
                f"learning_rate {learning_rate} must be 0 to 0.5, regularization {regularization} 0 to 1"
            )
        self.dimension = dimension
        self.learning_rate = learning_rate
        self.regularization = regularization
        self.negatives = negatives
        self.start_scale = start_scale
        self.factors = FactorTable(dimension, seed, start_scale)
        self._no_vectors = np.empty((0, dimension), dtype=np.float32)
        self._mask = np.zeros(0, dtype=np.float32)
        self._users: dict[str, NDArray[np.float32]] = {}

    def start_users(self, users: Sequence[str]) -> NDArray[np.float32]:
        """Factors float32[n, d] of users never seen, a function of seed and id only."""
        return start_vectors(
            self.seed, [_USER_PREFIX + user for user in users], self.dimension, self.start_scale
        )

    def learn_users(
        self,
        before: NDArray[np.float32],
        item_ids: Sequence[str],
        weight: NDArray[np.float32],
        event_hash: NDArray[np.uint64],
        introduced: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[np.float32], list[list[str]]]:
        """The owner's step for n events of distinct users; reads item factors, changes none.

        before float32[n, d], weight float32[n], event_hash uint64[n]. Returns the users' factors after it,
        float32[n, d], and the ids of each event's negatives (at most m; none while nothing is known or
        weight <= 0). introduced bool[>= rows]: rows that are no negatives, for nobody has used them.
        """
        return self._owner_step(
            kernels.isgd_learn_users, (self.learning_rate, self.regularization),
            before, item_ids, weight, event_hash, introduced,
        )  # fmt: skip

    def unlearn_users(
        self,
        before: NDArray[np.float32],
        item_ids: Sequence[str],
        weight: NDArray[np.float32],
        event_hash: NDArray[np.uint64],
        introduced: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[np.float32], list[list[str]]]:
        """The owner's step for withdrawing n events of distinct users, each with its weight and hash as
        learned; as `learn_users`. Its record carries before, after and the negatives."""
        return self._owner_step(
            kernels.isgd_unlearn_users,
            (self.learning_rate,),
            before,
            item_ids,
            weight,
            event_hash,
            introduced,
        )

    def _owner_step(
        self,
        kernel: Callable[..., None],
        rates: tuple[float, ...],
        before: NDArray[np.float32],
        item_ids: Sequence[str],
        weight: NDArray[np.float32],
        event_hash: NDArray[np.uint64],
        introduced: NDArray[np.bool_] | None,
    ) -> tuple[NDArray[np.float32], list[list[str]]]:
        rows = self.items.rows(item_ids)
        rows[rows >= len(self.factors)] = -1
        vectors = np.empty((len(rows), self.dimension), dtype=np.float32)
        unknown = np.flatnonzero(rows < 0)
        vectors[rows >= 0] = self.factors.rows[rows[rows >= 0]]
        vectors[unknown] = self.factors.start_vectors([item_ids[position] for position in unknown.tolist()])
        after = np.array(before, dtype=np.float32, order="C")
        drawn = np.full((len(rows), self.negatives), -1, dtype=np.int32)
        untried = np.zeros(len(self.factors), np.bool_) if introduced is None else introduced
        kernel(rows, vectors, weight, event_hash, self.factors.rows, untried, *rates, after, drawn)
        ids = self.items.ids
        return after, [[ids[row] for row in line if row >= 0 and ids[row]] for line in drawn.tolist()]

    def apply(self, batch: LearningBatch, rows: BatchRows) -> None:
        self._require_dimension(batch)
        changes, vectors = self._given_vectors(batch, rows.changes)
        self.factors.ensure(self.items.ids, self.items.limit)
        kernels.isgd_apply(
            changes, vectors, rows.item, rows.negatives, batch.weight, batch.user_before, self.factors.rows,
            self.learning_rate, self.regularization,
        )  # fmt: skip

    def unlearn(self, batch: LearningBatch, rows: BatchRows) -> None:
        self._require_dimension(batch)
        kernels.isgd_unlearn(
            rows.item, rows.negatives, batch.weight, batch.user_after, self.factors.rows, self.learning_rate
        )

    def give_rows(self, changes: NDArray[np.int32]) -> None:
        """Take in rows that were given to items which nobody has used yet: they have their start vectors."""
        given = changes[changes[:, 1] == kernels.GIVEN, 2]
        again, ids = given[given < len(self.factors)], self.items.ids
        self.factors.ensure(ids, self.items.limit)
        if len(again):
            self.factors.rows[again] = self.factors.start_vectors([ids[row] for row in again.tolist()])

    def forget_rows(self, rows: NDArray[np.int32]) -> None:
        self.factors.rows[rows[rows < len(self.factors)]] = 0.0

    def _require_dimension(self, batch: LearningBatch) -> None:
        if batch.user_before.shape[1] != self.dimension:
            raise ValueError(
                f"user_before: {batch.user_before.shape[1]} dimensions, but this model has {self.dimension}; "
                "the record was made under other settings"
            )

    def _given_vectors(
        self, batch: LearningBatch, changes: NDArray[np.int32]
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Changes that the kernel must follow event by event, and start vectors float32[given, d] for them;
        none where rows are only added to the table."""
        if not len(changes):
            return changes, self._no_vectors
        given = changes[:, 1] == kernels.GIVEN
        if given.all() and (changes[:, 2] >= len(self.factors)).all():
            return changes[:0], self._no_vectors
        ids = [batch.item_ids[index] for index in changes[given, 3].tolist()]
        return changes, self.factors.start_vectors(ids)

    def retrieve(
        self, user_factors: NDArray[np.float32], k: int, exclude_rows: NDArray[np.int32] | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Best items of user_factors float32[n, d]: rows int32[n, k] (-1 padded), scores float32[n, k] (0
        padded).

        By falling score, then row; exclude_rows int32[n, E] (-1 padded) are left out. Costs items x d a user.
        """
        n, known = len(user_factors), len(self.factors)
        rows, scores = np.full((n, k), -1, dtype=np.int32), np.zeros((n, k), dtype=np.float32)
        exclude = np.empty((n, 0), dtype=np.int32) if exclude_rows is None else exclude_rows
        if len(self._mask) < known:
            self._mask = np.zeros(2 * known, dtype=np.float32)
        kernels.isgd_retrieve(
            np.ascontiguousarray(user_factors, dtype=np.float32),
            contiguous_rows(np.where(exclude < known, exclude, -1)),
            self.factors.rows, self.items.given, self._mask, rows, scores,
        )  # fmt: skip
        return rows, scores

    def score(
        self, user_factors: NDArray[np.float32], candidate_rows: NDArray[np.int32]
    ) -> NDArray[np.float32]:
        """Scores float32[n, C] of candidate_rows int32[n, C] (-1 scores 0) for user_factors float32[n, d]."""
        out = np.zeros(candidate_rows.shape, dtype=np.float32)
        users = np.ascontiguousarray(user_factors, dtype=np.float32)
        kernels.isgd_score(users, contiguous_rows(candidate_rows), self.factors.rows, out)
        return out

    def score_rows(self, user: str, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        scores: NDArray[np.float32] = self.score(self._user_factor(user)[None, :], rows[None, :])[0]
        return scores

    def learn_user(self, events: Sequence[tuple[str, str, float, Context | None]]) -> LearningBatch:
        """As the base's, with factors and negatives; exact for one event at a time (`owner_reads_items`)."""
        require_one_event(events)
        batch = super().learn_user(events)
        user, item = events[0][0], events[0][1]
        before = self._user_factor(user)[None, :]
        hashed = event_hash(self.seed, self._past[user][0].event_id, user, item, int(batch.time_ms[0]))
        after, negatives = self.learn_users(before, [item], batch.weight, np.array([hashed], dtype=np.uint64))
        name_negatives(batch, negatives[0])
        batch.user_before, batch.user_after = before.copy(), after
        self._users[user] = after[0]
        return batch

    def unlearn_user(self, user: str, batch: LearningBatch) -> None:
        hashed = withdrawn_hash(self.seed, user, self._past[user], batch)
        before, item = self._user_factor(user)[None, :], batch.item_ids[batch.item[0]]
        after, negatives = self.unlearn_users(
            before, [item], batch.weight, np.array([hashed], dtype=np.uint64)
        )
        name_negatives(batch, negatives[0])
        batch.user_before, batch.user_after = before.copy(), after
        self._users[user] = after[0]

    def drop_user(self, user: str) -> None:
        super().drop_user(user)
        self._users.pop(user, None)

    def nbytes(self) -> int:
        """Bytes of the item factors in use."""
        return self.factors.rows.nbytes

    def item_arrays(self) -> Arrays:
        return self.factors.to_arrays("isgd.items")

    def load_item_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        self.factors.load("isgd.items", arrays)

    def to_arrays(self) -> Arrays:
        return {**super().to_arrays(), **pack_users("isgd.users", self._users, self.dimension)}

    def from_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        super().from_arrays(arrays)
        self._users = unpack_users("isgd.users", arrays)

    def _user_factor(self, user: str) -> NDArray[np.float32]:
        factor = self._users.get(user)
        if factor is None:
            start: NDArray[np.float32] = self.start_users([user])[0]
            return start
        return factor
