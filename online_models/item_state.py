"""The replicated item state of a worker: every model that the learning log feeds, as one bundle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec
import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from online_models.base import Arrays, digest_arrays
from online_models.covisitation import CoVisitation
from online_models.errors import SnapshotMismatchError
from online_models.isgd import ISGD
from online_models.item_activity import ItemActivity
from online_models.item_table import ItemTable
from online_models.learning_batch import LEARN, WITHDRAW, BatchRows, LearningBatch
from online_models.popularity import DecayedPopularity
from online_models.settings import ModelSettings
from online_models.snapshot import METADATA_KEY, bits_target, metadata_of
from online_models.table_kernels import GIVEN, GONE

__all__ = ["ItemState", "ModelSettings", "settings_digest", "warm_up"]

SNAPSHOT_FORMAT = 5


class _Part(Protocol):
    """What the bundle asks of each of its models; see `online_models.base.OnlineRanker`."""

    items: ItemTable

    def apply(self, batch: LearningBatch, rows: BatchRows) -> None: ...
    def correct(self, batch: LearningBatch, rows: BatchRows) -> None: ...
    def give_rows(self, changes: NDArray[np.int32]) -> None: ...
    def forget_rows(self, rows: NDArray[np.int32]) -> None: ...
    def forget_users(self, tokens: NDArray[np.uint64]) -> None: ...
    def item_arrays(self) -> Arrays: ...
    def load_item_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None: ...


class ItemState:
    """Items, co-visitation, popularity, factors and activity at one offset of the learning log.

    Equal settings, CPU target and log give equal bytes, however the log is cut into batches. `offset` is the
    next offset of the log to apply; the caller moves it. One thread at a time.

    >>> state = ItemState(ModelSettings())
    >>> copy = ItemState.from_bytes(state.settings, state.to_bytes())
    >>> copy.offset, len(copy.items), copy.digest() == state.digest()
    (0, 0, True)
    """

    def __init__(self, settings: ModelSettings) -> None:
        self.settings = settings
        self.settings_digest = settings_digest(settings)
        self.offset = 0
        self.covisitation = CoVisitation(**msgspec.structs.asdict(settings.covisitation), seed=settings.seed)
        self.popularity = DecayedPopularity(**msgspec.structs.asdict(settings.popularity), seed=settings.seed)
        self.factors = ISGD(**msgspec.structs.asdict(settings.factors), seed=settings.seed)
        self.activity = ItemActivity()
        self._models: tuple[_Part, ...] = (self.covisitation, self.popularity, self.factors, self.activity)
        self._moved = np.zeros(0, np.uint8)
        self._moved_next = 0
        self._introduced = np.zeros(0, np.bool_)
        self._has_introduced = False
        self._share(ItemTable(limit=settings.max_items))

    def apply(self, batch: LearningBatch) -> None:
        """Take one record of the log, of any kind, into every model. A bad batch raises ValueError and
        changes nothing."""
        batch.validate()
        have = batch.user_before.shape[1]
        if batch.kind in (LEARN, WITHDRAW) and have != self.factors.dimension:
            raise ValueError(f"user_before: {have} dimensions, but settings say {self.factors.dimension}")
        if batch.kind == LEARN:
            rows = self.items.resolve(batch)
            self._hide_introduced(rows, rows.item)
            for model in self._models:
                model.apply(batch, rows)
        else:
            batch, rows = self.items.find(batch, self.introduced if self.has_introduced else None)
            self._hide_introduced(rows, rows.item[:0])
            for model in self._models:
                model.correct(batch, rows)
        self._moved[rows.item] = 1
        self._introduced[rows.changes[:, 2][rows.changes[:, 1] == GONE]] = False
        if batch.kind == LEARN:
            self._introduced[rows.item] = False

    def introduce(self, item_ids: Sequence[str]) -> int:
        """Give rows to items that nobody has used yet, so that content can propose them; returns how many.
        They are idle longest, so that no item loses its row to one, and left out in a full table; nothing is
        learned of them, nor of others by them, before they are used. To be called at the same place of the
        log on every replica."""
        changes = self.items.introduce(item_ids)
        if len(changes):
            for model in self._models:
                model.give_rows(changes)
            self._cover()
            self._introduced[changes[changes[:, 1] == GIVEN, 2]] = self._has_introduced = True
        return int(np.count_nonzero(changes[:, 1] == GIVEN))

    def dismiss(self, item_id: str) -> bool:
        """Take back that an item was introduced; False where it was not, or has been used since. To be called
        at the same place of the log on every replica."""
        row = self.items.row(item_id)
        return row >= 0 and bool(self.introduced[row]) and self.forget_item(item_id)

    @property
    def introduced(self) -> NDArray[np.bool_]:
        """bool[rows]: has its row by `introduce` and no event yet. A view."""
        self._cover()
        return self._introduced[: len(self.items)]

    @property
    def has_introduced(self) -> bool:
        """Whether any row is `introduced`; costs nothing where none ever was."""
        self._has_introduced = self._has_introduced and bool(self.introduced.any())
        return self._has_introduced

    def expose(self, item_ids: Sequence[str], item: NDArray[np.int32]) -> None:
        """Count exposures of items, by places int32[n] in `item_ids`. An item gets no row by being shown: one
        without a row is not counted."""
        if len(item):
            index = np.full(len(item_ids), -1, dtype=np.int32)
            named = np.unique(item)
            index[named] = self.items.rows(item_ids[place] for place in named.tolist())
            self.activity.expose(index[item])

    def forget_users(self, tokens: NDArray[np.uint64]) -> None:
        """Drop what models keep of users, by the tokens uint64[m] of their records. Their events are taken
        out of the counts by records of their own (`corrections.forgetting`)."""
        for model in self._models:
            model.forget_users(tokens)

    def forget_item(self, item_id: str) -> bool:
        """Take an item's row away and forget what was learned of it; False where it has none. To be called at
        the same place of the log on every replica."""
        row = self.items.free(item_id)
        if row >= 0:
            self._cover()
            self._introduced[row] = False
            for model in self._models:
                model.forget_rows(np.array([row], dtype=np.int32))
        return row >= 0

    def take_moved(self, most: int) -> NDArray[np.int32]:
        """At most `most` rows int32[m] whose items were learned from and not yet given out here; the others
        come with the next calls, in turn. Rows that moved as negatives alone are not among them. For one
        caller."""
        waiting = np.flatnonzero(self._moved)
        first = int(np.searchsorted(waiting, self._moved_next))
        moved: NDArray[np.int32] = np.roll(waiting, -first)[:most].astype(np.int32)
        self._moved[moved] = 0
        self._moved_next = int(moved[-1]) + 1 if len(moved) else 0
        return moved

    @property
    def epoch(self) -> int:
        """Row assignments made so far: the state of the item table that a writer names rows by."""
        return self.items.epoch

    @property
    def evictions(self) -> int:
        """Items that lost their row so far, because the table was full and they were idle longest."""
        return self.items.evictions

    def take_changes(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Rows whose item changed since the last call: (int32[a] those that have a new item, int32[b] those
        that have none now). A new or restored state gives all its rows at first. For one caller."""
        return self.items.take_changes()

    def nbytes(self) -> dict[str, int]:
        """Bytes in use, by model, and of the item table without the ids' own strings."""
        return {
            "items": self.items.nbytes(),
            "covisitation": self.covisitation.nbytes(),
            "popularity": self.popularity.nbytes(),
            "factors": self.factors.nbytes(),
            "activity": self.activity.nbytes(),
        }

    def start_users(self, users: Sequence[str]) -> NDArray[np.float32]:
        """Factors float32[n, d] of users never seen."""
        return self.factors.start_users(users)

    def learn_users(
        self,
        before: NDArray[np.float32],
        item_ids: Sequence[str],
        weight: NDArray[np.float32],
        event_hash: NDArray[np.uint64],
    ) -> tuple[NDArray[np.float32], list[list[str]]]:
        """The owner's step, as `ISGD.learn_users`; changes no item state."""
        return self.factors.learn_users(before, item_ids, weight, event_hash, self.introduced)

    def unlearn_users(
        self,
        before: NDArray[np.float32],
        item_ids: Sequence[str],
        weight: NDArray[np.float32],
        event_hash: NDArray[np.uint64],
    ) -> tuple[NDArray[np.float32], list[list[str]]]:
        """The owner's step for withdrawing n events of distinct users, as `ISGD.unlearn_users`; changes no
        item state. The WITHDRAW record carries before, after and the negatives returned."""
        return self.factors.unlearn_users(before, item_ids, weight, event_hash, self.introduced)

    def digest(self) -> str:
        """SHA-256 (hex) over ids and every model's arrays in use, not over the offset."""
        return digest_arrays(self.to_arrays())

    def to_arrays(self) -> Arrays:
        """All arrays in use; those of two equal states are equal byte for byte."""
        arrays = self.items.to_arrays()
        arrays["introduced"] = np.flatnonzero(self.introduced).astype(np.int32)
        for model in self._models:
            arrays.update(model.item_arrays())
        return arrays

    def from_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Replace the state by that of `to_arrays` under the same settings. The offset is left alone."""
        self._share(ItemTable.from_arrays(arrays, self.settings.max_items))
        self._introduced = np.zeros(len(self.items), np.bool_)
        self._introduced[arrays["introduced"]] = True
        self._has_introduced = len(arrays["introduced"]) > 0
        for model in self._models:
            model.load_item_arrays(arrays)

    def to_bytes(self) -> bytes:
        """A snapshot in safetensors' format; the metadata says format, settings digest and offset.

        Equal states give equal bytes: safetensors writes several metadata entries in any order, so there is
        one.
        """
        metadata = {
            "format": str(SNAPSHOT_FORMAT),
            "settings_digest": self.settings_digest,
            "offset": str(self.offset),
        }
        return bytes(
            safetensors.numpy.save(
                self.to_arrays(), metadata={METADATA_KEY: json.dumps(metadata, sort_keys=True)}
            )
        )

    @classmethod
    def from_bytes(cls, settings: ModelSettings, data: bytes) -> ItemState:
        """State of a snapshot. Raises SnapshotMismatchError for another format, settings, kernels or CPU
        target, and safetensors' own error for bytes that are no snapshot.
        """
        arrays = safetensors.numpy.load(data)  # first: it checks the header that is read next
        metadata = metadata_of(data)
        if metadata.get("format") != str(SNAPSHOT_FORMAT):
            raise SnapshotMismatchError(
                f"snapshot has format {metadata.get('format')}, this program reads {SNAPSHOT_FORMAT}; "
                "delete the snapshot and rebuild the item state from the learning log"
            )
        state = cls(settings)
        if metadata["settings_digest"] != state.settings_digest:
            raise SnapshotMismatchError(
                f"snapshot was made under settings digest {metadata['settings_digest']}, this process has "
                f"{state.settings_digest} (model settings, kernel version, CPU target, numba, numpy); "
                "restore those, or delete the snapshot and rebuild the item state from the learning log"
            )
        state.from_arrays(arrays)
        state.offset = int(metadata["offset"])
        return state

    def _hide_introduced(self, rows: BatchRows, uses: NDArray[np.int32]) -> None:
        """Have columns name no item that is only introduced, as if it had no row yet. `uses`: rows int32[n]
        whose items the n events use, one after the other."""
        self._cover()
        if not self.has_introduced:
            return
        used, first = np.unique(np.append(uses, np.int32(len(self.items))), return_index=True)
        event = np.arange(len(rows.item))[:, None]
        for column in (rows.recent, rows.negatives):
            place = np.searchsorted(used, column)
            is_used = (used[place] == column) & (first[place] <= event)
            column[(column >= 0) & self._introduced[column] & ~is_used] = -1

    def _cover(self) -> None:
        """Make the marks by row as long as the table."""
        more = len(self.items) - len(self._moved), len(self.items) - len(self._introduced)
        if more[0] > 0:
            self._moved = np.append(self._moved, np.zeros(len(self.items), np.uint8))
        if more[1] > 0:
            self._introduced = np.append(self._introduced, np.zeros(len(self.items), np.bool_))

    def _share(self, items: ItemTable) -> None:
        self.items = items
        for model in self._models:
            model.items = items


def settings_digest(settings: ModelSettings) -> str:
    """SHA-256 (hex) over all that decides the state's bits: settings, kernels, compiler, target CPU."""
    target = {"settings": msgspec.to_builtins(settings), **bits_target()}
    return hashlib.sha256(json.dumps(target, sort_keys=True).encode()).hexdigest()


def warm_up(settings: ModelSettings) -> None:
    """Compile every kernel, or load it from numba's cache, before the first event has to wait for it."""
    state = ItemState(settings)
    before = state.start_users(["warm-up"])
    event = (["a"], np.ones(1, dtype=np.float32), np.zeros(1, dtype=np.uint64))
    after, _ = state.learn_users(before, *event)
    state.unlearn_users(after, *event)
    none = np.zeros((1, 1), dtype=np.int32)
    for kind in (LEARN, WITHDRAW):
        state.apply(
            LearningBatch(
                item_ids=["a"], item=none[0], recent=none - 1, time_ms=np.zeros(1, dtype=np.int64),
                weight=np.ones(1, dtype=np.float32), event_type=np.zeros(1, dtype=np.uint8),
                user_before=before, user_after=after, negatives=none - 1, kind=kind,
            )
        )  # fmt: skip
    state.introduce(["b"])
    state.expose(["a"], none[0])
    state.forget_item("a")
    state.from_arrays(state.to_arrays())
    state.covisitation.retrieve(none, 1)
    state.covisitation.score(none, none)
    state.factors.retrieve(after, 1)
    state.factors.score(after, none)
