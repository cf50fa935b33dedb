"""A factor table whose rows carry a bias before the factor, and step statistics behind it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from online_models import kernels
from online_models.factor_table import FactorTable, start_vectors
from online_models.learning_batch import LearningBatch

__all__ = ["USER_PREFIX", "BiasedTable"]

USER_PREFIX = "user:"
"""Keeps a user and an item of the same id from starting at the same vector."""


class BiasedTable(FactorTable):
    """Rows float32[1 + factors + moments]: bias, factor, and what a step rule remembers of the row.

    Bias and moments start at 0, the factor at the id's start vector. Used for users as well, by
    `start_users`.

    >>> table = BiasedTable(factors=2, seed=7, scale=0.1, moments=1)
    >>> table.ensure(["milk"])
    >>> table.rows.astype(float).round(3).tolist()
    [[0.0, 0.084, 0.111, 0.0]]
    """

    __slots__ = ("factors",)

    def __init__(self, factors: int, seed: int, scale: float, moments: int = 0) -> None:
        super().__init__(1 + factors + moments, seed, scale)
        self.factors = factors

    def start_vectors(self, ids: Sequence[str]) -> NDArray[np.float32]:
        """Start rows float32[n, 1 + factors + moments] of ids, whether or not they have rows."""
        rows = np.zeros((len(ids), self.dimension), dtype=np.float32)
        rows[:, 1 : 1 + self.factors] = start_vectors(self.seed, ids, self.factors, self.scale)
        return rows

    def start_users(self, users: Sequence[str]) -> NDArray[np.float32]:
        """Start rows float32[n, 1 + factors + moments] of users, other than those of items of the same id."""
        return self.start_vectors([USER_PREFIX + user for user in users])

    def row_of(self, row: int, item_id: str) -> NDArray[np.float32]:
        """The row itself (a view), or the start row where the item has none (row -1) or none here yet."""
        if 0 <= row < len(self):
            view: NDArray[np.float32] = self.rows[row]
            return view
        start: NDArray[np.float32] = self.start_vectors([item_id])[0]
        return start

    def given_rows(
        self, batch: LearningBatch, changes: NDArray[np.int32]
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Changes of the item table that a kernel must follow event by event, and the start rows
        float32[given, dimension] of the items that are given rows; none where rows are only added, which
        `ensure` does. To be called before `ensure`."""
        if not len(changes):
            return changes, np.empty((0, self.dimension), dtype=np.float32)
        given = changes[:, 1] == kernels.GIVEN
        if given.all() and (changes[:, 2] >= len(self)).all():
            return changes[:0], np.empty((0, self.dimension), dtype=np.float32)
        return changes, self.start_vectors([batch.item_ids[index] for index in changes[given, 3].tolist()])
