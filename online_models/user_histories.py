"""Users' histories at a replica, by token: what some models need of users other than the one who asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from online_models import user_histories_kernels as kernels
from online_models.base import Arrays
from online_models.item_table import UNLIMITED, grown
from online_models.learning_batch import PAIR, UNPAIR, BatchRows, LearningBatch
from online_models.user_histories_kernels import Histories

__all__ = ["UserHistories", "Uses"]

Uses = tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float32]]
"""Of n events: float32[n] values of their uses, and the users' uses before them, newest first: int32[n, R]
rows and float32[n, R] values."""

_NODE_ARRAYS = ("row", "value", "time_ms", "older", "newer")
_ITEM_ARRAYS = ("head",)
_USER_ARRAYS = ("token", "uses", "held", "total", "owed", "idler", "fresher")
_NO_ROW = ("row", "older", "newer", "head")


class UserHistories:
    """The newest `length` uses of each of at most `max_users` users, who are told apart by token.

    A use is an item and a float32 value, of which only its model knows the meaning. An item stands once in a
    history: using it again moves it to the front, and the place where it stood counts on. A new user who
    finds `max_users` takes the place of the one idle longest; an item that loses its row leaves every
    history. An event costs `length` steps at most, whatever the number of users and items.

    A use that is withdrawn leaves no place behind, and an older use of the same item comes back, if it is
    still within the `length` newest: then the history is what it would be without it.
    """

    __slots__ = ("length", "max_users", "store")

    def __init__(self, max_users: int, length: int) -> None:
        if not 1 <= max_users <= 2**26 or not 1 <= length <= 1024 or max_users * length >= 2**31:
            raise ValueError(
                f"max_users is {max_users} and history_length {length}, but 1 to {2**26} and 1 to 1024 are "
                f"needed, of product below {2**31}"
            )
        self.max_users = max_users
        self.length = length
        self.store: Histories
        self.clear()

    def __len__(self) -> int:
        """Users of whom something is kept."""
        return int(self.store.marks[kernels.USERS])

    def slot(self, token: int) -> int:
        """Slot of a user, -1 when he has none. Never inserts."""
        sought: Any = np.uint64(token)  # as int64, half of the tokens would be out of range
        return int(kernels.find_slot(sought, self.store.token, self.store.index))

    def learn(
        self,
        span: tuple[int, int],
        batch: LearningBatch,
        rows: BatchRows,
        changed: int,
        sign: NDArray[np.int8],
        value: NDArray[np.float32],
        centred: bool,
        out: Uses,
    ) -> int:
        """Move the histories on by events span[0] to span[1] - 1 and the table changes from `changed` on;
        returns the first change that is left. `sign`, `value`, `centred` and `out`: see `histories_learn`.
        """
        return kernels.histories_learn(
            span[0], span[1], rows.changes, changed, batch.user, rows.item, sign, value, batch.time_ms,
            centred, batch.kind == PAIR, self.store, self.max_users, self.length, *out,
        )  # fmt: skip

    def unlearn(
        self,
        batch: LearningBatch,
        rows: BatchRows,
        sign: NDArray[np.int8],
        value: NDArray[np.float32],
        out: Uses,
    ) -> None:
        """Take the events of a batch back, newest first; see `histories_unlearn`."""
        kernels.histories_unlearn(
            batch.user, rows.item, sign, value, batch.time_ms, batch.kind == UNPAIR, self.store, self.length,
            *out,
        )  # fmt: skip

    def forget_items(self, rows: NDArray[np.int32]) -> None:
        """Take items out of every history."""
        known = np.ascontiguousarray(rows[rows < len(self.store.head)], dtype=np.int32)
        kernels.histories_forget_items(known, self.store, self.length)

    def forget_users(self, tokens: NDArray[np.uint64]) -> None:
        """Drop users' histories."""
        kernels.histories_forget_users(tokens, self.store, self.length)

    def newest_items(self, token: int, count: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Rows int32[m] and values float32[m] of a user's newest uses, newest first; m <= count."""
        slot, length = self.slot(token), self.length
        if slot < 0:
            return np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.float32)
        uses = int(self.store.uses[slot])
        nodes = slot * length + (uses - 1 - np.arange(min(uses, length))) % length
        nodes = nodes[self.store.row[nodes] >= 0][:count]
        return self.store.row[nodes], self.store.value[nodes]

    def reserve(self, more_users: int, items: int, limit: int) -> None:
        """Room for `more_users` new users, and for items up to row items - 1 of a table of `limit` rows."""
        store = self.store
        users, have = min(len(self) + more_users, self.max_users), len(store.token)
        if len(store.head) < items:
            store = store._replace(head=grown(store.head, items, limit, fill=-1))
        if have < users:
            slots = min(max(users, have + have // 4, 64), self.max_users)
            for name in _USER_ARRAYS:
                store = store._replace(**{name: _longer(getattr(store, name), slots)})
            for name in _NODE_ARRAYS:
                fill = -1 if name in _NO_ROW else 0
                store = store._replace(**{name: _longer(getattr(store, name), slots * self.length, fill)})
            if len(store.index) < 2 * slots:
                store = store._replace(index=np.full(1 << (2 * slots).bit_length(), -1, dtype=np.int32))
                kernels.rebuild_index(len(self), store.token, store.index)
        self.store = store

    def nbytes(self) -> int:
        """Bytes of the users and items in use."""
        per_user = 8 + 8 + 4 + 8 + 4 + 4 + 4 + self.length * 24
        return per_user * len(self) + int(self.store.head.nbytes)

    def to_arrays(self, name: str, items: int) -> Arrays:
        """The slots in use, of each the places ever written, and items 0 to items - 1; under `name`."""
        self.reserve(0, items, UNLIMITED)
        store, written = self.store, self._written()
        arrays: Arrays = {f"{name}.{part}": getattr(store, part)[: len(self)].copy() for part in _USER_ARRAYS}
        arrays |= {f"{name}.{part}": getattr(store, part)[: len(written)][written] for part in _NODE_ARRAYS}
        arrays |= {f"{name}.{part}": getattr(store, part)[:items].copy() for part in _ITEM_ARRAYS}
        return {**arrays, f"{name}.marks": store.marks.copy()}

    def load(self, name: str, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Replace all by what `to_arrays` gave."""
        self.clear()
        users, items = len(arrays[f"{name}.token"]), len(arrays[f"{name}.head"])
        self.reserve(users, items, UNLIMITED)
        store = self.store
        for part, n in [*((part, users) for part in _USER_ARRAYS), *((part, items) for part in _ITEM_ARRAYS)]:
            getattr(store, part)[:n] = arrays[f"{name}.{part}"]
        store.marks[:] = arrays[f"{name}.marks"]
        written = self._written()
        for part in _NODE_ARRAYS:
            getattr(store, part)[: len(written)][written] = arrays[f"{name}.{part}"]
        kernels.rebuild_index(users, store.token, store.index)

    def clear(self) -> None:
        """Forget everybody."""
        int32, float64 = np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.float64)
        self.store = Histories(
            row=int32, value=np.zeros(0, dtype=np.float32), time_ms=np.zeros(0, dtype=np.int64),
            older=int32, newer=int32, head=int32, token=np.zeros(0, dtype=np.uint64),
            uses=np.zeros(0, dtype=np.int64), held=int32, total=float64, owed=int32, idler=int32,
            fresher=int32, index=np.full(2, -1, dtype=np.int32),
            marks=np.array([0, -1, -1], dtype=np.int64),
        )  # fmt: skip

    def _written(self) -> NDArray[np.bool_]:
        """bool[users * length]: places that were ever written."""
        filled: NDArray[np.bool_] = np.arange(self.length) < self.store.uses[: len(self), None]
        return filled.ravel()


def _longer(array: NDArray[Any], size: int, fill: int = 0) -> NDArray[Any]:
    longer = np.full(size, fill, dtype=array.dtype)
    longer[: len(array)] = array
    return longer
