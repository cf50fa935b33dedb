"""What the models of alternating least squares share: interactions held at the replicas, users folded in."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from online_models import als_kernels
from online_models.als_kernels import Factors, Held, Objective, Work
from online_models.base import RECENT_KEPT, Arrays, Context, OnlineRanker, contiguous_rows, user_token
from online_models.factor_table import require_one_event, start_vectors
from online_models.item_table import UNLIMITED, grown
from online_models.kernels import GIVEN
from online_models.learning_batch import BatchRows, LearningBatch
from online_models.parameters import require

__all__ = ["AlternatingRanker"]


class AlternatingRanker(OnlineRanker):
    r"""Base of `IALS` and `EALS`: factors of users and items, each the answer to what the other side says.

    Every replica holds, by user's token, the newest `history` items of at most `max_users` users and at most
    `max_interactions` interactions in all; where either is full, the idlest user goes with all that is held
    of him. An event's weight adds up with what the user said of the item before when both have one sign,
    else the newer stands; a negative one means target 0 at that weight (at most 1,000 in size).

    The owner finds a user's factor from what is held of him, his recent items that are not held yet (of
    weight 1) and the event; the record carries it (`user_after`), and every replica keeps it, moves the
    item's factor, and then solves `refresh` users and items again, in turn. A user of whom nothing is known
    is the mean user.

    An event that is withdrawn leaves what is held, and the user and then the item are solved again without
    it; an item without users is as new. When a user is forgotten, so are the items that he used; what their
    factors taught others goes as those act again.

    Memory: 36 to 44 bytes and d float32 a user, 20 bytes and d float32 an item, 28 bytes an interaction.
    """

    owner_reads_items = True

    def __init__(
        self,
        *,
        dimension: int,
        start_scale: float,
        refresh: int,
        history: int,
        users_per_item: int,
        max_users: int,
        max_interactions: int,
        seed: int,
    ) -> None:
        super().__init__(seed=seed)
        require("dimension", dimension, 1, 512)
        require("start_scale", start_scale, 1e-6, 1.0)
        require("refresh", refresh, 0, 1024)
        require("history", history, 1, 1 << 16)
        require("users_per_item", users_per_item, 1, 1 << 16)
        require("max_users", max_users, 1, UNLIMITED)
        require("max_interactions", max_interactions, history, UNLIMITED)
        self.dimension = dimension
        self.start_scale = start_scale
        self.refresh = refresh
        self.history = history
        self.users_per_item = users_per_item
        self.max_users = max_users
        self.max_interactions = max_interactions
        self._clear()

    @property
    @abc.abstractmethod
    def _name(self) -> str:
        """What the names of stored arrays begin with."""

    @property
    @abc.abstractmethod
    def _objective(self) -> Objective:
        """The parameters as the kernels take them."""

    def apply(self, batch: LearningBatch, rows: BatchRows) -> None:
        self._require_dimension(batch)
        self._reserve(len(self.items), len(batch))
        given = rows.changes[rows.changes[:, 1] == GIVEN, 3]
        vectors = self._start_vectors([batch.item_ids[index] for index in given.tolist()])
        als_kernels.learn(
            rows.changes, vectors, rows.item, batch.weight, batch.user, batch.user_after, self.max_users,
            self.max_interactions, self._held, self._factors, self._work, self._objective,
        )  # fmt: skip

    def unlearn(self, batch: LearningBatch, rows: BatchRows) -> None:
        self._require_dimension(batch)
        self._reserve(len(self.items), 0)
        starts = self._start_vectors([batch.item_ids[index] for index in batch.item.tolist()])
        als_kernels.unlearn(
            rows.item, batch.weight, batch.user, batch.user_after, starts, self._held, self._factors,
            self._work, self._objective,
        )  # fmt: skip

    def unlearn_user(self, user: str, batch: LearningBatch) -> None:
        slot, item = self._slot(user), batch.item_ids[int(batch.item[0])]
        batch.user_before = np.zeros((1, self.dimension), dtype=np.float32)
        if slot >= 0:
            batch.user_before[0] = self._factors.users[slot]
        row, weight = self.items.row(item), float(batch.weight[0])
        after = self._user_now(user, row, self._work.out, weight, als_kernels.WITHDRAW)
        batch.user_after = after[None, :]

    def forget_rows(self, rows: NDArray[np.int32]) -> None:
        self._reserve(len(self.items), 0)
        for row in rows.tolist():
            als_kernels.drop_item(self._held, self._factors, row)

    def forget_users(self, tokens: NDArray[np.uint64]) -> None:
        for token in tokens:
            slot = int(als_kernels.find_user(self._held, token)) if token else -1
            if slot >= 0:
                rows = self._held.entries[self._entries_of(slot), als_kernels.ITEM].copy()
                starts = self._start_vectors([self.items.ids[row] for row in rows.tolist()])
                als_kernels.forget_user(
                    slot, rows, starts, self._held, self._factors, self._work, self._objective
                )

    def learn_user(self, events: Sequence[tuple[str, str, float, Context | None]]) -> LearningBatch:
        """As the base's, with the user's factor; exact for one event at a time (`owner_reads_items`)."""
        require_one_event(events)
        batch = super().learn_user(events)
        user, item = events[0][0], events[0][1]
        row = self.items.row(item)
        vector = self._factors.items[row] if self._is_known(row) else self._start_vectors([item])[0]
        slot = self._slot(user)
        batch.user_before = np.zeros((1, self.dimension), dtype=np.float32)
        if slot >= 0:
            batch.user_before[0] = self._factors.users[slot]
        batch.user_after = self._user_now(user, row, vector, float(batch.weight[0]), als_kernels.LEARN)[
            None, :
        ]
        return batch

    def user_factor(self, user: str) -> NDArray[np.float32]:
        """The factor float32[d] that a user of this model is scored with now."""
        return self._user_now(user, -1, self._work.out, 0.0, als_kernels.ASK)

    def interactions(self, user: str) -> dict[str, float]:
        """What is held of a user here: item id to weight, newest first."""
        held, entries = self._held, self._entries_of(self._slot(user))
        rows = held.entries[entries, als_kernels.ITEM].tolist()
        weights = held.weights[entries].tolist()
        return {self.items.ids[row]: weight for row, weight in zip(rows, weights, strict=True)}

    def score_rows(self, user: str, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        out = np.zeros(len(rows), dtype=np.float32)
        als_kernels.score(self.user_factor(user), contiguous_rows(rows), self._factors.items, out)
        return out

    def sweep(self) -> None:
        """Move every user and then every item once over what is held, as a full refit's pass does, and sum
        the Gram matrices anew. It stands in no log: replicas must all do it at the same place of theirs."""
        als_kernels.sweep(self._held, self._factors, self._work, self._objective)

    def nbytes(self) -> int:
        """Bytes of the replicated state in use."""
        return sum(array.nbytes for array in self.item_arrays().values())

    def item_arrays(self) -> Arrays:
        n, held, factors = len(self.items), self._held, self._factors
        self._reserve(n, 0)
        users, entries = int(held.marks[als_kernels.USERS]), int(held.marks[als_kernels.ENTRIES])
        held, factors = self._held, self._factors
        named: Arrays = {
            "tokens": held.tokens[:users],
            "user_lists": held.users[:users],
            "item_lists": held.items[:n],
            "entries": held.entries[:entries],
            "weights": held.weights[:entries],
            "marks": held.marks,
            "users": factors.users[:users],
            "items": factors.items[:n],
            "mass": factors.mass[:n],
            "user_gram": factors.user_gram,
            "item_gram": factors.item_gram,
            "user_sum": factors.user_sum,
            "mass_sum": factors.mass_sum,
        }
        return {f"{self._name}.{name}": array.copy() for name, array in named.items()}

    def load_item_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        taken = {
            name.removeprefix(f"{self._name}."): array
            for name, array in arrays.items()
            if name.startswith(f"{self._name}.")
        }
        if taken["items"].shape[1:] != (self.dimension,):
            raise ValueError(
                f"{self._name}.items: shape {list(taken['items'].shape)}, but [any, {self.dimension}] is "
                "needed"
            )
        self._clear()
        self._held.marks[:] = taken["marks"]
        self._reserve(len(self.items), 0, len(taken["entries"]))
        held, factors = self._held, self._factors
        for target, name in (
            (held.tokens, "tokens"), (held.users, "user_lists"), (held.items, "item_lists"),
            (held.entries, "entries"), (held.weights, "weights"), (factors.users, "users"),
            (factors.items, "items"), (factors.mass, "mass"), (factors.user_gram, "user_gram"),
            (factors.item_gram, "item_gram"), (factors.user_sum, "user_sum"), (factors.mass_sum, "mass_sum"),
        ):  # fmt: skip
            target[: len(taken[name])] = taken[name]
        als_kernels.rehash(held)

    def _clear(self) -> None:
        d, lists = self.dimension, als_kernels.COLUMNS
        marks = np.full(als_kernels.MARKS, -1, dtype=np.int64)
        marks[list(als_kernels.COUNTED)] = 0
        self._held = Held(
            tokens=np.zeros(0, dtype=np.uint64),
            places=np.full(1, -1, dtype=np.int32),
            users=np.zeros((0, lists[0]), dtype=np.int32),
            items=np.zeros((0, lists[1]), dtype=np.int32),
            entries=np.zeros((0, lists[2]), dtype=np.int32),
            weights=np.zeros(0, dtype=np.float32),
            marks=marks,
        )
        self._factors = Factors(
            users=np.zeros((0, d), dtype=np.float32),
            items=np.zeros((0, d), dtype=np.float32),
            mass=np.zeros(0),
            user_gram=np.zeros((d, d)),
            item_gram=np.zeros((d, d)),
            user_sum=np.zeros(d),
            mass_sum=np.zeros(1),
        )
        self._work = _scratch(d, max(self.history + RECENT_KEPT + 1, self.users_per_item))

    def _reserve(self, items: int, events: int, entries: int = 0) -> None:
        """Room for so many items, and for what so many events may add."""
        held, factors, marks = self._held, self._factors, self._held.marks
        if items > len(factors.items):
            limit = self.items.limit
            held = held._replace(items=grown(held.items, items, limit, fill=0))
            held.items[len(factors.items) :, als_kernels.FIRST] = -1
            rows = len(held.items)
            factors = factors._replace(
                items=grown(factors.items, rows, limit), mass=grown(factors.mass, rows, limit)
            )
        entries = max(entries, min(int(marks[als_kernels.ENTRIES]) + events, self.max_interactions))
        held = held._replace(
            entries=grown(held.entries, entries, self.max_interactions),
            weights=grown(held.weights, entries, self.max_interactions),
        )
        users = min(int(marks[als_kernels.USERS]) + events, self.max_users)
        if users > len(held.tokens):
            held = held._replace(
                tokens=grown(held.tokens, users, self.max_users),
                users=grown(held.users, users, self.max_users),
            )
            factors = factors._replace(users=grown(factors.users, users, self.max_users))
            held = held._replace(places=np.full(1 << (2 * len(held.tokens)).bit_length(), -1, dtype=np.int32))
            als_kernels.rehash(held)
        self._held, self._factors = held, factors

    def _user_now(
        self, user: str, row: int, vector: NDArray[np.float32], weight: float, purpose: int
    ) -> NDArray[np.float32]:
        recent = self.recent_rows(user, min(RECENT_KEPT, self.history))[0]
        recent[recent >= len(self._factors.items)] = -1  # rows that the catalogue gave and no event used yet
        als_kernels.query(
            np.uint64(user_token(user)), recent, row if self._is_known(row) else -1, vector, weight, purpose,
            self._held, self._factors, self._work, self._objective,
        )  # fmt: skip
        return self._work.out.copy()

    def _entries_of(self, slot: int) -> list[int]:
        """What is held of a user, newest first; slot -1 = nobody."""
        entries, held = [], self._held
        entry = int(held.users[slot, als_kernels.FIRST]) if slot >= 0 else -1
        while entry >= 0:
            entries.append(entry)
            entry = int(held.entries[entry, als_kernels.USER_OLDER])
        return entries

    def _require_dimension(self, batch: LearningBatch) -> None:
        if batch.user_after.shape[1] != self.dimension:
            raise ValueError(
                f"user_after: {batch.user_after.shape[1]} dimensions, but this model has {self.dimension}; "
                "the record was made under other settings"
            )

    def _is_known(self, row: int) -> bool:
        return 0 <= row < len(self._factors.items) and self._held.items[row, als_kernels.IN_USE] != 0

    def _slot(self, user: str) -> int:
        return int(als_kernels.find_user(self._held, np.uint64(user_token(user))))

    def _start_vectors(self, ids: Sequence[str]) -> NDArray[np.float32]:
        return start_vectors(self.seed, ids, self.dimension, self.start_scale)


def _scratch(dimension: int, most: int) -> Work:
    """Room for systems of `most` interactions."""
    m = (most + 8) // 4 * 4
    return Work(
        rows=np.zeros((m, dimension)),
        columns=np.zeros((dimension, m)),
        linear=np.zeros(m),
        quadratic=np.zeros(m),
        score=np.zeros(m),
        matrix=np.zeros((dimension, dimension)),
        right=np.zeros(dimension),
        out=np.zeros(dimension, dtype=np.float32),
        taken=np.zeros(m, dtype=np.int32),
    )
