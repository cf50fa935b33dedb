"""User state: what a worker knows of the users whose partitions it owns, and its changelog `user-state`.

Three kinds of records, all written to the partition of the user's events:

* under the user's id, the hot record: recent items, factor, counters, the last list served, and what was
  seen since the cold record;
* under NUL ``cold`` NUL and the id, the cold record: the whole seen set and the dedupe window. It is
  written when the hot record's tail is full, so that the hot one, which every event rewrites, stays small;
* under NUL ``partition``, the next offsets to read, who wrote it, and the partition's totals.

Ids hold no control characters, so the reserved keys can't be a user's. Vectors are little-endian bytes.

Duplicates: an event is one when the same `event_id` is among the user's last `dedupe_entries` events and the
two event times differ by at most `dedupe_window_s`. A redelivery carries its old timestamp, so the window
needs no clock, and an event from the future moves nothing.
"""

from __future__ import annotations

import secrets
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from streams.errors import ChangelogError
from streams.events import PartitionStats
from streams.settings import UserStateSettings

__all__ = ["ChangelogRecord", "PartitionRecord", "Shard", "UserState", "describe"]

FORMAT_VERSION = 1
PARTITION_KEY = b"\x00partition"
COLD_PREFIX = b"\x00cold\x00"
TAIL_ENTRIES = 32
"""Events between two cold records of a user; the hot record repeats this many dedupe entries at most."""

ChangelogRecord = tuple[bytes, bytes | None]


class UserState:
    """One user. `recent_*` are parallel, oldest first; `seen` and `dedupe` keep their order for eviction."""

    __slots__ = (
        "dedupe",
        "events",
        "factor",
        "first_ms",
        "last_list",
        "last_ms",
        "recent_items",
        "recent_times",
        "recent_types",
        "recent_weights",
        "seen",
        "tail_dedupe",
        "tail_seen",
        "token",
        "user_id",
    )

    def __init__(self, user_id: str, token: int, factor: npt.NDArray[np.float32]) -> None:
        self.user_id = user_id
        self.token = token
        self.factor = factor
        self.events = 0
        self.first_ms = 0
        self.last_ms = 0
        self.recent_items: list[str] = []
        self.recent_times = array("q")
        self.recent_types: list[str] = []
        self.recent_weights = array("f")
        self.seen: dict[str, None] = {}
        self.dedupe: dict[int, int] = {}
        self.tail_seen: list[str] = []
        self.tail_dedupe: list[int] = []
        self.last_list: list[str] = []

    def is_duplicate(self, event_hash: int, time_ms: int, window_ms: float) -> bool:
        earlier = self.dedupe.get(event_hash)
        return earlier is not None and abs(time_ms - earlier) <= window_ms

    def admit(self, event_hash: int, time_ms: int, cap: int) -> None:
        """Count an accepted event and remember its hash."""
        self.events += 1
        self.first_ms = min(self.first_ms, time_ms) if self.events > 1 else time_ms
        self.last_ms = max(self.last_ms, time_ms)
        self.dedupe.pop(event_hash, None)
        self.dedupe[event_hash] = time_ms
        self.tail_dedupe.append(event_hash)
        while len(self.dedupe) > cap:
            del self.dedupe[next(iter(self.dedupe))]

    def see(self, item_id: str, cap: int) -> None:
        if item_id in self.seen:
            return
        self.seen[item_id] = None
        self.tail_seen.append(item_id)
        while len(self.seen) > cap:
            del self.seen[next(iter(self.seen))]

    def remember(self, item_id: str, event_type: str, time_ms: int, weight: float, cap: int) -> None:
        """Put a positive interaction at the end of the recent ring, in order of arrival."""
        self.recent_items.append(item_id)
        self.recent_times.append(time_ms)
        self.recent_types.append(event_type)
        self.recent_weights.append(weight)
        if len(self.recent_items) > cap:
            del self.recent_items[0], self.recent_times[0], self.recent_types[0], self.recent_weights[0]


class _Hot(msgspec.Struct, array_like=True):
    format: int
    token: int
    events: int
    first_ms: int
    last_ms: int
    recent_items: list[str]
    recent_times: bytes
    recent_types: list[str]
    recent_weights: bytes
    factor: bytes
    tail_seen: list[str]
    tail_hashes: bytes
    tail_times: bytes
    last_list: list[str]


class _Cold(msgspec.Struct, array_like=True):
    format: int
    seen: list[str]
    hashes: bytes
    times: bytes


class PartitionRecord(msgspec.Struct, kw_only=True):
    """A partition's own record: where its owner stands. JSON, so that an operator can read it."""

    format: int = FORMAT_VERSION
    partition: int
    partitions: int
    """Partition count of `events` when this was written: another count later means users have moved."""
    next_offsets: dict[str, int]
    """By topic (without prefix): the next offset to read."""
    transactional_id: str
    worker: str
    epoch: int
    recent_records: int = 0
    recent_rejected: int = 0
    """How many of the partition's latest records were rejected: a restart goes on counting here, so that a
    broken producer is not given a new window by it. Both are halved when the window is full."""
    item_offsets: dict[str, int] = {}
    """In partition 0's record, by partition of `items`: up to where rejected records are dead letters."""
    topic_ids: dict[str, str] = {}
    """By topic (without prefix): the id of the topic that the offsets belong to."""
    newest_ms: int
    """Newest event time, as far as Kafka's own timestamps bear it out; lateness is judged against it."""
    stats: PartitionStats


_pack = msgspec.msgpack.Encoder().encode
_hot_decoder = msgspec.msgpack.Decoder(_Hot)
_cold_decoder = msgspec.msgpack.Decoder(_Cold)
_json = msgspec.json.Encoder().encode
_partition_decoder = msgspec.json.Decoder(PartitionRecord)


def _hot(user: UserState) -> bytes:
    tail = user.tail_dedupe
    dedupe = user.dedupe
    return _pack(
        _Hot(
            FORMAT_VERSION,
            user.token,
            user.events,
            user.first_ms,
            user.last_ms,
            user.recent_items,
            user.recent_times.tobytes(),
            user.recent_types,
            user.recent_weights.tobytes(),
            user.factor.tobytes(),
            user.tail_seen,
            array("Q", tail).tobytes(),
            array("q", [dedupe.get(h, 0) for h in tail]).tobytes(),
            user.last_list,
        )
    )


def _cold(user: UserState) -> bytes:
    return _pack(
        _Cold(
            FORMAT_VERSION,
            list(user.seen),
            array("Q", user.dedupe).tobytes(),
            array("q", user.dedupe.values()).tobytes(),
        )
    )


@dataclass(slots=True)
class Shard:
    """The users of one partition, and the partition's record."""

    partition: int
    settings: UserStateSettings
    factor_width: int
    users: dict[str, UserState] = field(default_factory=dict)
    next_offsets: dict[str, int] = field(default_factory=dict)
    newest_ms: int = 0
    stats: PartitionStats = field(default_factory=PartitionStats)
    owner_transactional_id: str | None = None
    owner_worker: str | None = None
    recent_records: int = 0
    recent_rejected: int = 0
    item_offsets: dict[str, int] = field(default_factory=dict)
    topic_ids: dict[str, str] = field(default_factory=dict)
    written_for: int | None = None
    """Partition count of `events` when the partition's record was last written; None before the first."""
    touched: dict[str, UserState] = field(default_factory=dict)

    def user(self, user_id: str, start: npt.NDArray[np.float32] | None) -> UserState:
        """The user's state; a new user gets a random token and starts from `start`."""
        state = self.users.get(user_id)
        if state is None:
            factor = np.zeros(self.factor_width, np.float32) if start is None else start
            state = self.users[user_id] = UserState(user_id, secrets.randbits(64), factor)
        return state

    def count_recent(self, rejected: bool, window: int) -> None:
        """Count a record for the reject guard of whoever owns this partition after a restart."""
        self.recent_records += 1
        self.recent_rejected += rejected
        if self.recent_records >= window:
            self.recent_records //= 2
            self.recent_rejected //= 2

    def touch(self, state: UserState) -> None:
        self.touched[state.user_id] = state

    def drain_touched(self) -> Iterator[ChangelogRecord]:
        """Changelog records of every user touched since the last call: one hot record each, now and then a
        cold one."""
        tail_cap = min(TAIL_ENTRIES, self.settings.recent)
        for user_id, user in self.touched.items():
            key = user_id.encode()
            if len(user.tail_dedupe) >= tail_cap:
                yield COLD_PREFIX + key, _cold(user)
                user.tail_dedupe.clear()
                user.tail_seen.clear()
            yield key, _hot(user)
        self.touched.clear()

    def partition_record(
        self, transactional_id: str, worker: str, epoch: int, partitions: int
    ) -> ChangelogRecord:
        record = PartitionRecord(
            partition=self.partition,
            partitions=partitions,
            next_offsets=self.next_offsets,
            recent_records=self.recent_records,
            recent_rejected=self.recent_rejected,
            item_offsets=self.item_offsets,
            topic_ids=self.topic_ids,
            transactional_id=transactional_id,
            worker=worker,
            epoch=epoch,
            newest_ms=self.newest_ms,
            stats=self.stats,
        )
        return PARTITION_KEY, _json(record)

    def restore(self, key: bytes, value: bytes | None, where: str) -> None:
        """Apply one changelog record; records of one key may come in any number, the last one stands.

        Raises:
            ChangelogError: the record can't be read; `where` is its topic[partition]@offset.
        """
        try:
            if key == PARTITION_KEY:
                self._restore_partition(value, where)
            elif key.startswith(COLD_PREFIX):
                self._restore_cold(key[len(COLD_PREFIX) :].decode(), value)
            else:
                self._restore_hot(key.decode(), value)
        except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, ValueError) as error:
            raise ChangelogError(
                f"{where}: not a record of user-state ({error}). Only workers may write this topic; see "
                "its ACLs."
            ) from error

    def _restore_partition(self, value: bytes | None, where: str) -> None:
        if value is None:
            return
        record = _partition_decoder.decode(value)
        if record.format != FORMAT_VERSION:
            raise ChangelogError(
                f"{where}: user-state format {record.format}, this version reads {FORMAT_VERSION}. "
                "Upgrade every worker first."
            )
        self.next_offsets = dict(record.next_offsets)
        self.recent_records, self.recent_rejected = record.recent_records, record.recent_rejected
        self.item_offsets = dict(record.item_offsets)
        self.topic_ids = dict(record.topic_ids)
        self.newest_ms = record.newest_ms
        self.stats = record.stats
        self.owner_transactional_id = record.transactional_id
        self.owner_worker = record.worker
        self.written_for = record.partitions

    def _restore_cold(self, user_id: str, value: bytes | None) -> None:
        if value is None:
            return
        record = _cold_decoder.decode(value)
        user = self.user(user_id, None)
        user.seen = dict.fromkeys(map(sys.intern, record.seen))
        user.dedupe = dict(zip(array("Q", record.hashes), array("q", record.times), strict=True))

    def _restore_hot(self, user_id: str, value: bytes | None) -> None:
        if value is None:
            self.users.pop(user_id, None)
            return
        record = _hot_decoder.decode(value)
        user = self.user(user_id, None)
        user.token = record.token
        user.events = record.events
        user.first_ms = record.first_ms
        user.last_ms = record.last_ms
        user.recent_items = list(map(sys.intern, record.recent_items))
        user.recent_times = array("q", record.recent_times)
        user.recent_types = list(map(sys.intern, record.recent_types))
        user.recent_weights = array("f", record.recent_weights)
        user.factor = np.frombuffer(record.factor, "<f4").copy()
        user.last_list = record.last_list
        self._restore_tail(user, record)

    def _restore_tail(self, user: UserState, record: _Hot) -> None:
        """What came after the cold record; after a compaction the cold one may stand before or behind the hot
        one."""
        user.tail_seen = list(map(sys.intern, record.tail_seen))
        user.tail_dedupe = list(array("Q", record.tail_hashes))
        for item_id in user.tail_seen:
            user.seen.pop(item_id, None)  # evicted and seen again since the cold record: it is the newest now
            user.seen[item_id] = None
        for event_hash, time_ms in zip(user.tail_dedupe, array("q", record.tail_times), strict=True):
            user.dedupe.pop(event_hash, None)
            user.dedupe[event_hash] = time_ms
        while len(user.seen) > self.settings.seen:
            del user.seen[next(iter(user.seen))]
        while len(user.dedupe) > self.settings.dedupe_entries:
            del user.dedupe[next(iter(user.dedupe))]


def describe(shard: Shard, user: UserState) -> dict[str, Any]:
    """One user as plain data, for `freshet state dump`."""
    return {
        "kind": "user",
        "partition": shard.partition,
        "user_id": user.user_id,
        "token": f"{user.token:016x}",
        "events": user.events,
        "first_ms": user.first_ms,
        "last_ms": user.last_ms,
        "recent": [
            {"item_id": item, "event_type": kind, "timestamp": time_ms, "weight": weight}
            for item, kind, time_ms, weight in zip(
                user.recent_items, user.recent_types, user.recent_times, user.recent_weights, strict=True
            )
        ],
        "seen": list(user.seen),
        "dedupe": [{"hash": f"{h:016x}", "timestamp": time_ms} for h, time_ms in user.dedupe.items()],
        "factor": [float(x) for x in user.factor],
        "last_list": user.last_list,
    }
