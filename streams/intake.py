"""Records in, good ones and bad ones out: decode, validate, drop duplicates.

A bad record is data: it becomes a dead letter, bytes untouched, and the stream goes on. Only when most of the
latest records are bad does the worker stop, for then a producer has broken.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from streams import user_kernels as kernels
from streams.clients import partition_for
from streams.contexts import ContextReader
from streams.dead_letters import dead_letter
from streams.event_columns import EventColumns, EventReader
from streams.records import Record
from streams.rejects import Reason, Rejected, RejectGuard
from streams.settings import Settings
from streams.shards import Shard, Shards
from streams.transaction import OutputRecord
from streams.user_kernels import ACCEPTED, DUPLICATE, LATE
from streams.validation import AcceptedRequest, EventValidator, Tombstone, late

__all__ = ["Batch", "Intake"]

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]


@dataclass(slots=True)
class Batch:
    """What one micro-batch holds once the bad records are out.

    `rows`, `codes`, `turns` int32[n] say of each event in `events` its user's row, its item's code (-1 none)
    and how many events of that user were accepted before it in the batch; all -1 unless it was accepted.
    """

    events: EventColumns
    accepted: Int32
    """int32[m]: places in `events` of those that were accepted, in order of arrival."""
    rows: Int32
    codes: Int32
    turns: Int32
    new: Int32
    """int32[k]: places in `events` of the first event of users nobody knew."""
    requests: list[AcceptedRequest] = field(default_factory=list)
    forgotten: list[Tombstone] = field(default_factory=list)
    """Users to forget once the batch is learned and answered."""
    dead: list[OutputRecord] = field(default_factory=list)
    records: int = 0
    """Records of `events` in the micro-batch, good or not."""
    shards: dict[int, Shard] = field(default_factory=dict)
    """Every shard that a record of the batch belongs to."""
    contexts: Float32 = field(default_factory=lambda: np.empty((0, 0), np.float32))
    """float32[n, HASHED]: `ContextHash` of each event's context; without rows where no keys are read."""

    def hashed(self, places: Int32) -> Float32:
        """float32[m, HASHED] of events at places int32[m]; [m, 0] where no keys are read."""
        return self.contexts[places] if len(self.contexts) else np.empty((len(places), 0), np.float32)

    def waves(self) -> list[Int32]:
        """`accepted` such that each wave holds at most one event per user, in order of arrival: a user's
        second event is in a later wave than the first, so that its list knows the first."""
        turns = self.turns[self.accepted]
        if not turns.any():
            return [self.accepted] if len(turns) else []
        order = np.argsort(turns, kind="stable")
        ends = np.cumsum(np.bincount(turns))
        return np.split(self.accepted[order], ends[:-1])


class Intake:
    """Turns consumed records into a `Batch`, counting every record in its partition's totals."""

    def __init__(self, settings: Settings, partitions: int) -> None:
        self.reader = EventReader(settings.validation, partitions)
        self._contexts = ContextReader(settings.ranker.context_keys)
        self.validator = EventValidator(settings.validation, lambda key: partition_for(key, partitions))
        self._partitions = partitions
        self._window_ms = settings.user_state.dedupe_window_s * 1000
        self._topic, self._dlq = settings.names["events"], settings.names["events-dlq"]
        self._users_topic = settings.names["users"]
        limits = settings.validation
        self._lateness_ms = int(limits.lateness_s * 1000)
        self._guards = {
            name: RejectGuard(limits.reject_window, limits.reject_limit, settings.names[name])
            for name in ("events", "requests", "users")
        }
        self._window = limits.reject_window
        self._fresh = True

    def begin_with(self, shards: Iterable[Shard]) -> None:
        """Let the guard go on where the partitions' last owners stood, if it has seen nothing itself yet."""
        if not self._fresh:
            return
        self._fresh = False
        shards = list(shards)
        rejected = sum(shard.recent_rejected for shard in shards)
        self._guards["events"].resume(sum(shard.recent_records for shard in shards), rejected)

    def admit(self, messages: Sequence[Record], shards: Shards) -> Batch:
        """Sort `messages` out.

        Raises:
            ProducerBrokenError: too many of the latest records are bad.
        """
        events, others = _by_topic(messages, self._topic)
        columns, rejected = self.reader.read(events)
        batch = self._judge(columns, shards)
        batch.records = len(events)
        batch.contexts = self._contexts.of(events, columns.index)
        batch.shards = {message.partition(): shards[message.partition()] for message in others}
        batch.shards |= {p: shards[p] for p in np.unique(columns.partition).tolist()}
        batch.shards |= {found.partition: shards[found.partition] for _, found in rejected}
        bad = dict(rejected)
        self._count(columns, bad, shards)
        late = np.flatnonzero(batch.turns < 0)
        late = late[self._status[late] == LATE]
        for n in late.tolist():
            place = int(columns.index[n])
            bad[place] = self._late(columns, n, self._newest[n])
        batch.dead = [self._dead(events[place], bad[place]) for place in sorted(bad)]
        for message in others:
            if message.topic() == self._users_topic:
                self._profile(message, shards[message.partition()], batch)
            else:
                self._request(message, shards[message.partition()], batch)
        return batch

    def _judge(self, events: EventColumns, shards: Shards) -> Batch:
        """Late, duplicate or accepted: the kernel takes the events one after the other."""
        n = len(events)
        users = shards.users
        self._status = status = np.empty(n, np.uint8)
        rows, codes, turns = np.empty(n, np.int32), np.empty(n, np.int32), np.empty(n, np.int32)
        new = np.empty(n, np.uint8)
        tokens = np.frombuffer(bytearray(secrets.token_bytes(8 * n)), np.uint64)
        newest = np.full(self._partitions, -1, np.int64)
        for p, shard in shards.owned.items():
            newest[p] = shard.newest_ms
        self._newest = np.empty(n, np.int64)
        counts = np.zeros((self._partitions, 3), np.int64)
        users.reserve(n, int(events.user[:, 1].sum() + events.item[:, 1].sum()))
        now_ms, done = int(time.time() * 1000), 0
        while done < n:
            done = kernels.admit(
                done, events.data, events.user, events.item, events.user_hash, events.item_hash,
                events.event_hash, events.time_ms, events.kafka_time_ms, events.partition, tokens,
                users.users, users.items.ids, newest, counts, self._lateness_ms, self._window_ms, now_ms,
                status, rows, codes, turns, new, self._newest,
            )  # fmt: skip
            if done < n:
                users.make_room()
        for p in np.flatnonzero(counts.any(axis=1)).tolist():
            shard = shards[p]
            shard.newest_ms = int(newest[p])
            shard.stats.accepted += int(counts[p, ACCEPTED])
            shard.stats.duplicate += int(counts[p, DUPLICATE])
            shard.stats.late += int(counts[p, LATE])
        accepted = np.flatnonzero(status == ACCEPTED).astype(np.int32)
        return Batch(events, accepted, rows, codes, turns, accepted[new[accepted] == 1])

    def _count(self, events: EventColumns, bad: dict[int, Rejected], shards: Shards) -> None:
        """The partitions' totals of odd records, and the guards' windows in order of arrival."""
        on_time = self._status != LATE
        for n in np.flatnonzero(on_time & ((events.unknown_fields > 0) | events.misplaced)).tolist():
            stats = shards[int(events.partition[n])].stats
            stats.unknown_fields += int(events.unknown_fields[n])
            stats.misplaced += bool(events.misplaced[n])
        guard = self._guards["events"]
        good = np.bincount(events.partition, minlength=self._partitions)
        for p in np.flatnonzero(good).tolist():
            shards[p].count_recent(int(good[p]), 0, self._window)
        seen = 0
        for place in sorted(bad):
            guard.add_good(place - seen)
            seen = place + 1
            shard = shards[bad[place].partition]
            shard.stats.rejected += 1
            shard.count_recent(0, 1, self._window)
            guard.add(bad[place])
        guard.add_good(len(events) + len(bad) - seen)

    def _late(self, events: EventColumns, n: int, newest_ms: int) -> Rejected:
        message = late(int(newest_ms), int(events.time_ms[n]), self._lateness_ms)
        return Rejected(
            Reason.LATE,
            message or "",
            int(events.partition[n]),
            int(events.offset[n]),
            int(events.kafka_time_ms[n]),
        )

    def _request(self, message: Record, shard: Shard, batch: Batch) -> None:
        found = self.validator.decode_request(
            message.value(), message.key(), message.partition(), message.offset(), message.timestamp()[1]
        )
        if isinstance(found, Rejected):
            self._guards["requests"].add(found)
            shard.stats.requests_rejected += 1
            batch.dead.append(self._dead(message, found))
        else:
            self._guards["requests"].add()
            batch.requests.append(found)

    def _profile(self, message: Record, shard: Shard, batch: Batch) -> None:
        found = self.validator.decode_user(
            message.value(), message.key(), message.partition(), message.offset(), message.timestamp()[1]
        )
        if isinstance(found, Rejected):
            self._guards["users"].add(found)
            shard.stats.users_rejected += 1
            batch.dead.append(self._dead(message, found))
            return
        self._guards["users"].add()
        if isinstance(found, Tombstone):
            batch.forgotten.append(found)
            shard.stats.misplaced += partition_for(found.key.encode(), self._partitions) != found.partition

    def _dead(self, message: Record, rejected: Rejected) -> OutputRecord:
        key, value, headers = dead_letter(message, rejected.reason, rejected.message)
        return OutputRecord(self._dlq, key, value, headers=headers)

    def dead_item(self, message: Record, rejected: Rejected) -> OutputRecord:
        """The dead letter of a rejected `items` record."""
        return self._dead(message, rejected)


def _by_topic(messages: Sequence[Record], topic: str) -> tuple[Sequence[Record], list[Record]]:
    """Records of `topic`, and the others, each in order of arrival."""
    others = [message for message in messages if message.topic() != topic]
    if not others:
        return messages, others
    return [message for message in messages if message.topic() == topic], others
