"""The contract of the online models: River's ranker, split into the user's owner and the items' replicas.

    learn_one = learn_user (the owner's step: the user's own state, and a record for the log)
              + apply      (every replica's step: item state, through one sequential kernel)

so that one process, and many workers that read the same log, run the same code on the same numbers.
"""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from river.reco.base import Ranker

from online_models.arrays import Arrays, contiguous_rows, digest_arrays, largest
from online_models.corrections import (
    PAST_KEPT,
    RECENT_KEPT,
    Past,
    check_id,
    event_code,
    forgetting,
    pack_pasts,
    past_of,
    recent_items,
    record_of,
    unpack_pasts,
    withdrawal,
)
from online_models.item_table import ItemTable, pack_ids, unpack_ids
from online_models.learning_batch import (
    LEARN,
    PAIR,
    UNCOUNT,
    UNPAIR,
    WITHDRAW,
    BatchRows,
    LearningBatch,
)

__all__ = [
    "COUNTS",
    "FACTORS",
    "PAIRS",
    "RECENT_KEPT",
    "Arrays",
    "Context",
    "OnlineRanker",
    "contiguous_rows",
    "digest_arrays",
    "user_token",
]

Context = Mapping[str, Any]
"""x of River's calls. Reserved keys: timestamp (epoch ms), event_type (a name of `corrections.EVENT_TYPES` or
a code from 0 to 255), weight, event_id, retracts (the event_id that an event of type retract withdraws),
target_user, query, context."""

COUNTS, PAIRS, FACTORS = "counts", "pairs", "factors"
"""What a model learns: `OnlineRanker.learns`."""


class OnlineRanker(Ranker, abc.ABC):
    """Base of the replicated models. Users and items are strings; standalone, a model keeps its own users.

    The weight of an event is x["weight"] when given, else y. Predicting never inserts and changes no byte.
    One thread at a time may use a model, for learning or retrieval (scratch memory is reused).
    """

    learns: ClassVar[str] = FACTORS
    """COUNTS when an event's effect does not depend on the user's recent items and can be subtracted; PAIRS
    when it does and can be; FACTORS when it can only be compensated."""

    owner_reads_items: ClassVar[bool] = False
    """True when learn_user reads item state: each event must then be applied before the next is learned."""

    seed: int

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.items = ItemTable()
        self._recent: dict[str, list[str]] = {}
        self._past: dict[str, list[Past]] = {}

    @abc.abstractmethod
    def apply(self, batch: LearningBatch, rows: BatchRows) -> None:
        """Learn a batch of the log into item state; `rows` are its items, resolved in `self.items`."""

    def unlearn(self, batch: LearningBatch, rows: BatchRows) -> None:
        """Take back what `apply` of the same interactions did to item state: exactly for counts and pairs,
        by a compensating step for factors. Every item has its row; no row is given or taken."""
        raise NotImplementedError(f"{type(self).__name__} can't unlearn")

    @abc.abstractmethod
    def forget_rows(self, rows: NDArray[np.int32]) -> None:
        """Forget what was learned of the items that had these rows, as when the table gives them away."""

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
        """Learn events in their order; bit for bit what `learn_one` on each would do.

        An event of type retract withdraws the one that x["retracts"] names, whatever its item and y; one of
        type rating first withdraws the user's last rating of the same item. Raises ValueError or TypeError
        for what can't be learned; nothing is learned of that event, nor after it.
        """
        rewards = [1.0] * len(users) if y is None else y
        contexts: Sequence[Context | None] = [None] * len(users) if x is None else x
        waiting: list[tuple[str, str, float, Context | None]] = []
        for event in zip(users, items, rewards, contexts, strict=True):
            kind = event_code((event[3] or {}).get("event_type"))
            if kind not in (_RATING, _RETRACT):
                waiting.append(event)
                continue
            self._learn_events(waiting)
            waiting = [event] if kind == _RATING else []
            if kind == _RATING:
                self._replace_rating(event)
            else:
                self.retract(event[0], str((event[3] or {}).get("retracts", "")))
        self._learn_events(waiting)

    def retract(self, user: str, event_id: str) -> bool:
        """Withdraw one event of a user: counts become what they were without it (of the user's newest
        `corrections.RECENT_KEPT` events; of older ones, pairs that reach beyond the kept past stay), factors
        take a compensating step. False, and nothing changes, where the user has no such event among the last
        `corrections.PAST_KEPT`: it is unknown, withdrawn before, or too old."""
        pasts, wanted = self._past.get(user, ()), str(event_id)
        place = next((q for q, past in enumerate(pasts) if past.event_id == wanted != ""), -1)
        return self._withdraw(user, place)

    def forget(self, user: str | None = None, *, item: str | None = None) -> None:
        """Forget a user, or an item: no id, row, history or vector of theirs remains, and they are predicted
        like ones never seen.

        The user's kept events (`corrections.PAST_KEPT`) are subtracted from all counts; what they taught
        factors that others share ages out with the events that follow. Forgetting the unknown is no error.
        """
        if user is not None:
            for record in forgetting(user_token(user), self._past.get(user, ())):
                self.correct(*self.items.find(record))
            self.forget_users(np.array([user_token(user)], dtype=np.uint64))
            self.drop_user(user)
        if item is not None:
            self._forget_item(item)

    def learn_item(self, item: str, x: Context) -> None:
        """Take in a catalogue entry: title, description, categories, labels, price, embeddings (name to list
        of floats), domain. Models that read no content pass over it; it is not part of the learning log."""
        check_id("item", item)

    def learn_profile(self, user: str, x: Context) -> None:
        """Take in a user's labels. Models that read no profile pass over it."""
        check_id("user", user)

    def correct(self, batch: LearningBatch, rows: BatchRows) -> None:
        """Every replica's step for a record that takes back or pairs anew, of `self.items.find`."""
        if not len(batch):
            return
        if batch.kind in (PAIR, UNPAIR) and self.learns != PAIRS:
            return
        if batch.kind == UNCOUNT and self.learns == FACTORS:
            return
        if batch.kind == PAIR:
            self.apply(batch, rows)
        else:
            self.unlearn(batch, rows)

    def replicate(self, batch: LearningBatch) -> None:
        """Every replica's step for one record of the log, of any kind. Raises ValueError for a bad one."""
        batch.validate()
        if batch.kind == LEARN:
            self.apply(batch, self.items.resolve(batch))
        else:
            self.correct(*self.items.find(batch))

    def forget_users(self, tokens: NDArray[np.uint64]) -> None:
        """Drop what replicas keep of users, by token uint64[m]. Nothing, for a model that keeps none."""

    def drop_user(self, user: str) -> None:
        """Drop the owner's state of a user; a model with more of it than the base adds to this."""
        self._recent.pop(user, None)
        self._past.pop(user, None)

    def unlearn_user(self, user: str, batch: LearningBatch) -> None:
        """The owner's half of withdrawing one event: a factor model moves the user's factor back and fills
        the record's user_before, user_after and negatives."""

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
        sorting `predict_one` of every item gives, less those in exclude[user]. Raises
        ValueError for k < 0."""
        if k < 0:
            raise ValueError(f"k is {k}, but at least 0 is needed")
        by_id = self.items.rows_by_id()
        lists = []
        for user in users:
            without = self.items.rows((exclude or {}).get(user, ()))
            rows = by_id[~np.isin(by_id, without)] if len(without) else by_id
            scores = self.score_rows(user, rows)
            best = largest(scores, k)
            lists.append(
                [
                    (self.items.ids[row], float(score))
                    for row, score in zip(rows[best], scores[best], strict=True)
                ]
            )
        return lists

    def learn_user(self, events: Sequence[tuple[str, str, float, Context | None]]) -> LearningBatch:
        """The owner's step for (user, item, y, x) in order: moves the users' state, returns the record."""
        recents: list[list[str]] = []
        moved: dict[str, list[str]] = {}
        done = [past_of(*event) for event in events]
        for (user, item, *_), past in zip(events, done, strict=True):
            recents.append(moved[user] if user in moved else self._recent.get(user, []))
            liked = [item] if past.weight >= 0.0 else []  # what a user dislikes is no sign of taste
            moved[user] = [*liked, *recents[-1]][:RECENT_KEPT]  # an earlier event of this batch counts
        batch = record_of(
            [(user_token(event[0]), past) for event, past in zip(events, done, strict=True)], recents
        )
        batch.validate()
        self._recent.update(moved)  # nothing is kept of a batch that is refused
        for (user, *_), past in zip(events, done, strict=True):
            kept = self._past.setdefault(user, [])
            kept.insert(0, past)
            del kept[PAST_KEPT:]
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
            **pack_pasts({user: self._past[user] for user in users}),
        }

    def from_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Replace all state by that of `to_arrays` of a model with the same parameters."""
        self.items = ItemTable.from_arrays(arrays)
        self.load_item_arrays(arrays)
        recent = iter(unpack_ids("users.recent", arrays))
        counts, users = arrays["users.recent.counts"].tolist(), unpack_ids("users", arrays)
        self._recent = {
            user: [next(recent) for _ in range(count)] for user, count in zip(users, counts, strict=True)
        }
        self._past = unpack_pasts(users, arrays)

    def to_bytes(self) -> bytes:
        """`to_arrays` as safetensors, with class, parameters, kernel version and CPU target inside."""
        from online_models.snapshot import model_bytes  # only here: it needs the kernels

        return model_bytes(self)

    def from_bytes(self, data: bytes) -> None:
        """Replace all state by that of `to_bytes`; raises what `snapshot.restore_model` raises."""
        from online_models.snapshot import restore_model

        restore_model(self, data)

    def digest(self) -> str:
        """SHA-256 (hex) over every array of `to_arrays`."""
        return digest_arrays(self.to_arrays())

    def _learn_events(self, events: Sequence[tuple[str, str, float, Context | None]]) -> None:
        size = 1 if self.owner_reads_items else max(len(events), 1)
        for start in range(0, len(events), size):
            batch = self.learn_user(events[start : start + size])
            self.apply(batch, self.items.resolve(batch))

    def _forget_item(self, item: str) -> None:
        for user, pasts in self._past.items():
            if any(past.item == item for past in pasts):  # the places stay: others were learned around them
                blank = [past._replace(item="", event_id="") if past.item == item else past for past in pasts]
                self._past[user], self._recent[user] = blank, recent_items(blank)
        if (row := self.items.free(item)) >= 0:
            self.forget_rows(np.array([row], dtype=np.int32))

    def _replace_rating(self, event: tuple[str, str, float, Context | None]) -> None:
        """Withdraw the user's last rating of the item, if he gave one and the new one can be learned."""
        user, item, *_ = event
        places = enumerate(self._past.get(user, ()))
        place = next((q for q, past in places if past.item == item and past.event_type == _RATING), -1)
        if place >= 0:
            record_of([(0, past_of(*event))], [()]).validate()  # a refused one takes nothing back
            self._withdraw(user, place)

    def _withdraw(self, user: str, place: int) -> bool:
        if place < 0:
            return False
        for record in withdrawal(user_token(user), self._past[user], place):
            if record.kind == WITHDRAW:
                self.unlearn_user(user, record)
                del self._past[user][place]
                self._recent[user] = recent_items(self._past[user])
            self.correct(*self.items.find(record))
        return True


def user_token(user: str) -> int:
    """The token of a standalone model's user, 1 to 2**64 - 1. Workers give random ones."""
    return max(int.from_bytes(hashlib.blake2b(user.encode(), digest_size=8).digest(), "little"), 1)


_RATING, _RETRACT = event_code("rating"), event_code("retract")
