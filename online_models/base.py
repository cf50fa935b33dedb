"""The contract of the online models: River's ranker, split into the user's owner and the items' replicas.

    learn_one = learn_user (the owner's step: the user's own state, and a record for the log)
              + apply      (every replica's step: item state, through one sequential kernel)

so that one process, and many workers that read the same log, run the same code on the same numbers.
"""

from __future__ import annotations

import abc
import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from river.reco.base import Ranker

from online_models.item_table import ItemTable, pack_ids, unpack_ids
from online_models.learning_batch import MAX_ABS_WEIGHT, BatchRows, LearningBatch

__all__ = ["Arrays", "Context", "OnlineRanker", "contiguous_rows", "digest_arrays", "user_token"]

Arrays = dict[str, NDArray[np.generic]]
Context = Mapping[str, Any]
"""x of River's calls. Reserved keys: timestamp (epoch ms), event_type (0 to 255), weight, event_id."""

RECENT_KEPT = 50
"""Recent items kept per user of a standalone model: the most that any window or query may ask for."""


class OnlineRanker(Ranker, abc.ABC):
    """Base of the replicated models. Users and items are strings; standalone, a model keeps its own users.

    The weight of an event is x["weight"] when given, else y. Predicting never inserts and changes no byte.
    One thread at a time may use a model, for learning or retrieval (scratch memory is reused).
    """

    owner_reads_items: ClassVar[bool] = False
    """True when learn_user reads item state: each event must then be applied before the next is learned."""

    seed: int

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.items = ItemTable()
        self._recent: dict[str, list[str]] = {}

    @abc.abstractmethod
    def apply(self, batch: LearningBatch, rows: BatchRows) -> None:
        """Learn a batch of the log into item state; `rows` are its items, resolved in `self.items`."""

    @abc.abstractmethod
    def score_rows(self, user: str, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        """Scores float32[n] of rows int32[n] (-1 = unknown item) for a user of this standalone model."""

    @abc.abstractmethod
    def item_arrays(self) -> Arrays:
        """The replicated state, used parts only, without the item table; equal state gives equal bytes."""

    @abc.abstractmethod
    def load_item_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Replace the replicated state by that of `item_arrays`. `self.items` is in place already."""

    @abc.abstractmethod
    def nbytes(self) -> int:
        """Bytes of the item state in use."""

    def learn_one(  # type: ignore[override]  # ids are strings here, not any hashable
        self, user: str, item: str, y: float = 1.0, x: Context | None = None
    ) -> None:
        """Learn one event: `learn_many` of length one."""
        self.learn_many([user], [item], [y], [x])

    def learn_many(
        self,
        users: Sequence[str],
        items: Sequence[str],
        y: Sequence[float] | None = None,
        x: Sequence[Context | None] | None = None,
    ) -> None:
        """Learn events in their order; bit for bit what `learn_one` on each would do."""
        size = 1 if self.owner_reads_items else max(len(users), 1)
        rewards = [1.0] * len(users) if y is None else y
        contexts: Sequence[Context | None] = [None] * len(users) if x is None else x
        events = list(zip(users, items, rewards, contexts, strict=True))
        for start in range(0, len(events), size):
            batch = self.learn_user(events[start : start + size])
            self.apply(batch, self.items.resolve(batch))

    def predict_one(  # type: ignore[override]  # as above
        self, user: str, item: str, x: Context | None = None
    ) -> float:
        """Score of one item for one user; defined for unknown ones too."""
        return float(self.score_rows(user, self.items.rows([item]))[0])

    def rank(  # type: ignore[override]  # as above
        self, user: str, items: Collection[str], x: Context | None = None
    ) -> list[str]:
        """Items by falling score, equal scores by item id."""
        distinct = sorted(set(items))
        scores = self.score_rows(user, self.items.rows(distinct))
        return [distinct[position] for position in np.argsort(-scores, kind="stable")]

    def recommend(
        self, users: Sequence[str], k: int, exclude: Mapping[str, Collection[str]] | None = None
    ) -> list[list[tuple[str, float]]]:
        """For each user the k best known items with their scores, by falling score, then item id: what
        sorting `predict_one` of every item gives, less those in exclude[user]."""
        known = [row for row, item_id in enumerate(self.items.ids) if item_id]
        by_id = np.array(sorted(known, key=self.items.ids.__getitem__), dtype=np.int32)
        lists = []
        for user in users:
            without = self.items.rows((exclude or {}).get(user, ()))
            rows = by_id[~np.isin(by_id, without)]
            scores = self.score_rows(user, rows)
            best = np.argsort(-scores, kind="stable")[:k].tolist()
            lists.append([(self.items.ids[rows[place]], float(scores[place])) for place in best])
        return lists

    def learn_user(self, events: Sequence[tuple[str, str, float, Context | None]]) -> LearningBatch:
        """The owner's step for (user, item, y, x) in order: moves the users' state, returns the record."""
        recents: list[list[str]] = []
        moved: dict[str, list[str]] = {}
        for user, item, *_ in events:
            _check_id("user", user)
            _check_id("item", item)
            recents.append(moved[user] if user in moved else self._recent.get(user, []))
            moved[user] = [
                item,
                *recents[-1][: RECENT_KEPT - 1],
            ]  # a user's earlier event in this batch counts
        batch = _build_batch(events, recents)
        batch.validate()
        self._recent.update(moved)  # nothing is kept of a batch that is refused
        return batch

    def recent_rows(self, user: str, length: int) -> NDArray[np.int32]:
        """Rows int32[1, length] of the user's recent items, newest first, -1 padded."""
        rows = np.full((1, length), -1, dtype=np.int32)
        recent = self._recent.get(user, [])[:length]
        rows[0, : len(recent)] = self.items.rows(recent)
        return rows

    def to_arrays(self) -> Arrays:
        """All state of a standalone model: items, item state, and its users' recent items."""
        users = list(self._recent)
        recent = [item for user in users for item in self._recent[user]]
        lengths = np.array([len(self._recent[user]) for user in users], dtype=np.int32)
        return {
            **self.items.to_arrays(),
            **self.item_arrays(),
            **pack_ids("users", users),
            **pack_ids("users.recent", recent),
            "users.recent.counts": lengths,
        }

    def from_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Replace all state by that of `to_arrays` of a model with the same parameters."""
        self.items = ItemTable.from_arrays(arrays)
        self.load_item_arrays(arrays)
        recent = iter(unpack_ids("users.recent", arrays))
        counts = arrays["users.recent.counts"].tolist()
        self._recent = {
            user: [next(recent) for _ in range(count)]
            for user, count in zip(unpack_ids("users", arrays), counts, strict=True)
        }

    def digest(self) -> str:
        """SHA-256 (hex) over every array of `to_arrays`."""
        return digest_arrays(self.to_arrays())


def digest_arrays(arrays: Mapping[str, NDArray[np.generic]]) -> str:
    """SHA-256 (hex) over names, types, shapes and bytes, in the order of names."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        sha.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def contiguous_rows(rows: NDArray[np.int32]) -> NDArray[np.int32]:
    """Rows as the kernels take them: int32, C order."""
    return np.ascontiguousarray(rows, dtype=np.int32)


def _build_batch(
    events: Sequence[tuple[str, str, float, Context | None]], recents: Sequence[Sequence[str]]
) -> LearningBatch:
    n, width = len(events), max((len(recent) for recent in recents), default=0)
    index_of: dict[str, int] = {}
    item = np.array([index_of.setdefault(event[1], len(index_of)) for event in events], dtype=np.int32)
    recent = np.full((n, width), -1, dtype=np.int32)
    for position, row in enumerate(recents):
        recent[position, : len(row)] = [index_of.setdefault(item_id, len(index_of)) for item_id in row]
    contexts = [event[3] or {} for event in events]
    weights = [
        float(context.get("weight", event[2])) for event, context in zip(events, contexts, strict=True)
    ]
    return LearningBatch(
        item_ids=list(index_of),
        item=item,
        recent=recent,
        time_ms=np.array([int(context.get("timestamp", 0)) for context in contexts], dtype=np.int64),
        weight=np.array(weights, dtype=np.float32),
        event_type=np.array([int(context.get("event_type", 0)) for context in contexts], dtype=np.uint8),
        user_before=np.zeros((n, 0), dtype=np.float32),
        user_after=np.zeros((n, 0), dtype=np.float32),
        negatives=np.full((n, 0), -1, dtype=np.int32),
        user=np.array([user_token(event[0]) for event in events], dtype=np.uint64),
        value=np.array([_value_of(event[2]) for event in events], dtype=np.float32),
    )


def user_token(user: str) -> int:
    """The token of a standalone model's user, 1 to 2**64 - 1. Workers give random ones."""
    return max(int.from_bytes(hashlib.blake2b(user.encode(), digest_size=8).digest(), "little"), 1)


def _value_of(y: float) -> float:
    """What River calls the reward, as the log's value. Raises ValueError where it is not a number."""
    if not math.isfinite(y) or abs(y) > MAX_ABS_WEIGHT:
        raise ValueError(
            f"y is {y!r}, but a finite number from -{MAX_ABS_WEIGHT:g} to {MAX_ABS_WEIGHT:g} is needed"
        )
    return float(y)


def _check_id(kind: str, value: object) -> None:
    if not isinstance(value, str) or not value:
        raise TypeError(
            f"{kind} must be a non-empty string, got {value!r} ({type(value).__name__}); use str()"
        )
