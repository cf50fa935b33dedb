"""What the tests of user state share: a worker's fast path without a broker, users as plain Python has them,
and what must hold of the columns at any moment."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from confluent_kafka import Message

from online_models.item_state import ItemState
from streams.intake import Batch, Intake
from streams.learner import Learner, joined
from streams.learning_log import Interactions, decode_record, learn_record
from streams.records import Record
from streams.settings import Settings, UserStateSettings, load_settings
from streams.shards import Shard, Shards
from streams.user_kernels import COUNT, DEDUPE, PARTITION, RECENT, ROOM, SEEN, START
from streams.user_records import ShardRecords
from streams.user_table import UserTable

T0 = 1_700_000_000_000
PARTITIONS = 3
TYPES = {"good": 1.0, "half": 0.5, "bad": -1.0, "nothing": 0.0}
DIMENSION = 3


def settings_of(**tables: Any) -> Settings:
    models = {"factors": {"dimension": DIMENSION, "negatives": 2}, "covisitation": {"window": 4}}
    return load_settings(
        environ={}, overrides={"models": models, "validation": {"event_types": TYPES}, **tables}
    )


@dataclass(frozen=True)
class Ev:
    """One event as a test writes it; `time_ms` counts from T0."""

    user: str
    event: str
    time_ms: int = 0
    item: str | None = None
    type: str = "good"
    partition: int = 0
    retracts: str | None = None
    """Makes it a retract of that event, whatever else it says."""
    rates: float | None = None
    context: dict[str, str | float | bool] | None = field(default=None, hash=False)

    @property
    def kind(self) -> str:
        if self.retracts is not None:
            return "retract"
        return self.type if self.item is not None else "search"

    def value(self) -> bytes:
        fields = {
            "event_id": self.event,
            "user_id": self.user,
            "item_id": self.item,
            "event_type": self.kind,
            "query": "q" if self.kind == "search" else None,
            "retracts": self.retracts,
            "value": self.rates,
            "timestamp": T0 + self.time_ms,
            "context": self.context,
        }
        return json.dumps({k: v for k, v in fields.items() if v is not None}).encode()

    @property
    def weight(self) -> float:
        return 0.0 if self.item is None or self.retracts is not None else {**TYPES, "rating": 1.0}[self.type]


def record(
    value: bytes | None,
    key: bytes | None,
    partition: int = 0,
    offset: int = 0,
    time_ms: int = T0,
    topic: str = "events",
) -> Record:
    """A record as the consumer hands it out."""
    made = Message(
        topic=topic, partition=partition, offset=offset, key=key, value=value, timestamp=(1, time_ms)
    )
    return cast(Record, made)


@dataclass
class Worker:
    """Intake, learner and users as one worker has them, and the changelog they write; there is no Kafka."""

    settings: Settings
    items: ItemState = field(init=False)
    intake: Intake = field(init=False)
    shards: Shards = field(init=False)
    learner: Learner = field(init=False)
    log: dict[int, list[tuple[bytes, bytes | None]]] = field(init=False)
    offset: int = 0

    def __post_init__(self) -> None:
        self.items = ItemState(self.settings.models)
        self.intake = Intake(self.settings, PARTITIONS)
        self.log = {p: [] for p in range(PARTITIONS)}
        self._join()

    def _join(self) -> None:
        self.shards = Shards(self.settings, "transactional-id", self.intake.reader.type_names)
        self.shards.owned.update({p: Shard(p) for p in range(PARTITIONS)})
        self.learner = Learner(self.settings, self.items, self.shards, PARTITIONS)

    @property
    def users(self) -> UserTable:
        return self.shards.users

    def messages(self, events: Iterable[Ev]) -> list[Record]:
        made = []
        for event in events:
            place = event.partition, self.offset
            made.append(record(event.value(), event.user.encode(), *place, T0 + event.time_ms))
            self.offset += 1
        return made

    def admit(self, events: Iterable[Ev]) -> Batch:
        batch = self.intake.admit(self.messages(events), self.shards)
        self.learner.start(batch)
        return batch

    def take(self, events: Iterable[Ev], *, in_waves: bool = False) -> tuple[Batch, Interactions | None]:
        """One batch through admit and learn."""
        batch = self.admit(events)
        waves = batch.waves() if in_waves else [batch.accepted]
        return batch, joined([self.learner.learn(batch, wave) for wave in waves])

    def apply(self, rows: Interactions | None) -> None:
        """What every replica does with the rows, once they are in the log."""
        self.follow(list(self.learner.log.pack(rows)) if rows is not None else [])

    def follow(self, log: Iterable[bytes]) -> None:
        """Learn records of the learning log, whoever wrote them."""
        for value in log:
            learn_record(self.items, decode_record(value, "here"), "here")
        self.learner.codes.follow(*self.items.take_changes())

    def show(self, user: str, items: list[str]) -> None:
        """The user gets a list, in every partition that knows the user."""
        codes = self.users.items.codes_of([item.encode() for item in items], ensure=True)
        for partition in range(PARTITIONS):
            if (row := self.users.row(user, partition)) >= 0:
                self.users.users.last_list[row] = -1
                self.users.users.last_list[row, : len(codes)] = codes
                self.users.touch(row)

    def commit(self) -> Counter[int]:
        """Write the changelog; by partition, how many records there were."""
        written: Counter[int] = Counter()
        for partition, keys, values in self.users.drain_touched():
            assert len(keys) == len(values) > 0
            self.log[partition] += zip(keys, values, strict=True)
            written[partition] += len(keys)
        return written

    def records(self, partition: int) -> ShardRecords:
        """The partition's changelog as a new owner reads it."""
        found = ShardRecords(partition, self.settings.user_state)
        for n, (key, value) in enumerate(self.log[partition]):
            found.add(key, value, f"user-state[{partition}]@{n}")
        return found

    def move(self, partition: int) -> None:
        """The partition goes away and comes back."""
        self.users.drop_partitions([partition])
        self.users.restore(self.records(partition))

    def restart(self) -> None:
        """A new process: users come from the changelog, partitions stand where they stood."""
        owned = self.shards.owned
        self._join()
        self.shards.owned = owned
        for partition in range(PARTITIONS):
            self.users.restore(self.records(partition))


@dataclass
class PlainUser:
    """A user as the words of the documentation have it, with lists and dicts."""

    events: int = 0
    first_ms: int = 0
    last_ms: int = 0
    recent: list[tuple[str, str, int, float]] = field(default_factory=list)
    recent_ids: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    dedupe: dict[str, int] = field(default_factory=dict)

    def take(self, event: Ev, caps: UserStateSettings) -> None:
        time_ms = T0 + event.time_ms
        self.events += 1
        self.first_ms = time_ms if self.events == 1 else min(self.first_ms, time_ms)
        self.last_ms = max(self.last_ms, time_ms)
        self.dedupe.pop(event.event, None)
        self.dedupe[event.event] = time_ms
        while len(self.dedupe) > caps.dedupe_entries:
            del self.dedupe[next(iter(self.dedupe))]
        if event.retracts is not None and event.retracts in self.recent_ids:
            newest = max(n for n, one in enumerate(self.recent_ids) if one == event.retracts)
            item = self._withdraw(newest)
            if item not in [one for one, *_ in self.recent] and item in self.seen:
                self.seen.remove(item)
        if event.item is None or event.weight == 0:
            return
        for n, (item, kind, *_) in enumerate(self.recent):
            if event.type == kind == "rating" and item == event.item:
                self._withdraw(n)
                break
        if event.item not in self.seen:
            self.seen = [*self.seen, event.item][-caps.seen :]
        if event.weight != 0:  # what was disliked too: it can be withdrawn
            self.recent = [*self.recent, (event.item, event.type, time_ms, event.weight)][-caps.recent :]
            self.recent_ids = [*self.recent_ids, event.event][-caps.recent :]

    def _withdraw(self, n: int) -> str:
        del self.recent_ids[n]
        return self.recent.pop(n)[0]


class PlainUsers:
    """All users of all partitions, one event after the other."""

    def __init__(self, settings: Settings) -> None:
        self._caps = settings.user_state
        self._lateness_ms = settings.validation.lateness_s * 1000
        self.newest: dict[int, int] = dict.fromkeys(range(PARTITIONS), 0)
        self.users: dict[tuple[int, str], PlainUser] = {}

    def take(self, event: Ev) -> str:
        """What becomes of the event."""
        time_ms, key = T0 + event.time_ms, (event.partition, event.user)
        if self.newest[event.partition] - time_ms > self._lateness_ms:
            return "late"
        user = self.users.get(key)
        if user is not None and event.event in user.dedupe:
            apart = abs(time_ms - user.dedupe[event.event])
            if apart <= self._caps.dedupe_window_s * 1000:
                return "duplicate"
        self.newest[event.partition] = max(self.newest[event.partition], time_ms)
        self.users.setdefault(key, PlainUser()).take(event, self._caps)
        return "accepted"

    def expire(self, partition: int, kept: set[str], most: int, idle_before_ms: int) -> int:
        """Forget who is not among `kept`, once it is clear that they were the right ones: whoever was idle
        since then, and of too many the idlest, a few more than needed. Returns how many went."""
        last = {user_id: user.last_ms for (p, user_id), user in self.users.items() if p == partition}
        gone = last.keys() - kept
        idle = sum(time_ms < idle_before_ms for time_ms in last.values())
        surplus = max(0, len(last) - idle - most)
        assert len(gone) == min(len(last), idle + surplus + (most // 32 if surplus else 0))
        assert max((last[u] for u in gone), default=0) <= min((last[u] for u in kept), default=2**63)
        for user_id in gone:
            del self.users[partition, user_id]
        return len(gone)


def live_users(table: UserTable) -> dict[tuple[int, str], dict[str, Any]]:
    """Every user of a table, read from its columns."""
    users, items = table.users, table.items
    found = {}
    for row in table._ids.held().tolist():
        recent, seen, dedupe = (_span(table, row, which) for which in (RECENT, SEEN, DEDUPE))
        _, events, first_ms, last_ms, *_ = users.long[row].tolist()
        kinds = [table.kinds.id_of(k).decode() for k in users.recent_kind[recent].tolist()]
        found[int(users.small[row, PARTITION]), table.id_of(row).decode()] = {
            "token": f"{int(users.long[row, 0]) % 2**64:016x}",
            "events": events,
            "first_ms": first_ms,
            "last_ms": last_ms,
            "recent": list(
                zip(
                    [items.id_of(code).decode() for code in users.recent_item[recent].tolist()],
                    kinds,
                    users.recent_time[recent].tolist(),
                    users.recent_weight[recent].tolist(),
                    strict=True,
                )
            ),
            "recent_events": _events(users.recent_hash[recent].tolist(), users.recent_value[recent].tolist()),
            "seen": [items.id_of(code).decode() for code in users.seen_item[seen].tolist()],
            "dedupe": list(
                zip(users.dedupe_hash[dedupe].tolist(), users.dedupe_time[dedupe].tolist(), strict=True)
            ),
            "factor": users.factor[row].tobytes(),
            "last_list": [items.id_of(c).decode() for c in users.last_list[row].tolist() if c >= 0],
        }
    assert len(found) == len(table)
    return found


def written_users(shards: Iterable[ShardRecords]) -> dict[tuple[int, str], dict[str, Any]]:
    """The same, from the changelog."""
    found = {}
    for shard in shards:
        for user_id, user in shard.users.items():
            found[shard.partition, user_id] = {
                "token": f"{user.token:016x}",
                "events": user.events,
                "first_ms": user.first_ms,
                "last_ms": user.last_ms,
                "recent": list(
                    zip(
                        user.recent_items,
                        user.recent_types,
                        user.recent_times,
                        user.recent_weights,
                        strict=True,
                    )
                ),
                "recent_events": _events(user.recent_hashes, user.recent_values),
                "seen": list(user.seen),
                "dedupe": list(user.dedupe.items()),
                "factor": user.factor.tobytes(),
                "last_list": user.last_list,
            }
    return found


def _events(hashes: list[int], values: list[float]) -> list[tuple[int, float | None]]:
    """Hash and value of each recent event, None for no value: NaN is not equal to itself."""
    return [(h, None if np.isnan(v) else v) for h, v in zip(hashes, values, strict=True)]


def _span(table: UserTable, row: int, which: int) -> slice:
    start, count = int(table.users.long[row, START + which]), int(table.users.small[row, COUNT + which])
    return slice(start, start + count)


def check_table(table: UserTable, caps: Sequence[int]) -> None:
    """What holds of the columns whatever happened: every entry of a pool that was ever used belongs to one
    list or to one free segment, and every code in a list is held."""
    users, held = table.users, table._ids.held().tolist()
    pools = (users.recent_item, users.seen_item, users.dedupe_hash)
    links = (users.recent_time, users.seen_item, users.dedupe_time)
    for which, cap in enumerate(caps):
        taken = np.zeros(len(pools[which]), np.int32)
        for row in held:
            span = _span(table, row, which)
            if (size_class := int(users.small[row, ROOM + which])) < 0:
                assert span.stop == span.start
                continue
            room = int(users.sizes[which, size_class])
            assert span.stop - span.start <= min(room, cap)
            taken[span.start : span.start + room] += 1
        for size_class, head in enumerate(users.free[which].tolist()):
            while head >= 0:
                taken[head : head + int(users.sizes[which, size_class])] += 1
                head = int(links[which][head])
                assert taken.max(initial=0) <= 1, "a segment is free twice, or in use too"
        end = int(users.ends[which])
        assert (taken[:end] == 1).all()
        assert not taken[end:].any()
    for row in held:
        items = [users.recent_item[_span(table, row, RECENT)], users.seen_item[_span(table, row, SEEN)]]
        shown = users.last_list[row]
        for code in np.concatenate([*items, shown[shown >= 0]]).tolist():
            assert 0 <= code < table.items.codes
            assert table.items.is_held(code)
        assert (users.recent_kind[_span(table, row, RECENT)] < table.kinds.codes).all()
