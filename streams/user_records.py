"""Records of the compacted topic `user-state`, all in the partition of the user's events.

* Under the user's id, the hot record: counters, factor, the last list served, and what the user's lists got
  since the cold record;
* under NUL ``cold`` NUL and the id, the cold record: the same fields with the whole lists. It is written when
  enough has come since the last one, so that the hot record, which every event rewrites, stays small;
* under NUL ``partition``, the next offsets to read, who wrote it, and the partition's totals (JSON).

Ids hold no control characters, so the reserved keys can't be a user's. A user's record is a msgpack array of
19 values; columns are little-endian byte strings, and items stand in them as places in the record's own table
of ids, which begins with the seen items in their order. The kernels write and read it; what is here reads it
for dumps, audits and error messages. Records of the format before it, of 17 values, are read too: of the
recent items in them nobody knows any more which events they were.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from streams.errors import ChangelogError
from streams.events import PartitionStats
from streams.settings import UserStateSettings
from streams.user_kernels import FORMAT, FORMAT_WITHOUT_EVENTS

__all__ = ["COLD_PREFIX", "PARTITION_KEY", "ChangelogRecord", "PartitionRecord", "ShardRecords", "UserRecord"]

PARTITION_FORMAT = 1
PARTITION_KEY = b"\x00partition"
COLD_PREFIX = b"\x00cold\x00"

ChangelogRecord = tuple[bytes, bytes | None]


class PartitionRecord(msgspec.Struct, kw_only=True):
    """A partition's own record: where its owner stands. JSON, so that an operator can read it."""

    format: int = PARTITION_FORMAT
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


class _Columns(msgspec.Struct, array_like=True):
    """A user's record on the wire."""

    format: int
    token: int
    events: int
    first_ms: int
    last_ms: int
    factor: bytes
    type_names: list[str]
    recent_types: bytes
    id_lengths: bytes
    ids: bytes
    seen: int
    recent_items: bytes
    recent_times: bytes
    recent_weights: bytes
    dedupe_hashes: bytes
    dedupe_times: bytes
    last_list: bytes
    recent_hashes: bytes = b""
    recent_values: bytes = b""

    def items(self) -> list[str]:
        ends = np.cumsum(np.frombuffer(self.id_lengths, "<u2"), dtype=np.int64).tolist()
        return [self.ids[start:end].decode() for start, end in zip([0, *ends], ends, strict=False)]


@dataclass(slots=True)
class UserRecord:
    """One user, decoded. `recent_*` are parallel, oldest first, disliked items among them; `seen` and
    `dedupe` (hash to event time, ms) in the order in which they would be evicted; `factor` float32[d]."""

    user_id: str
    token: int = 0
    events: int = 0
    first_ms: int = 0
    last_ms: int = 0
    recent_items: list[str] = field(default_factory=list)
    recent_times: list[int] = field(default_factory=list)
    recent_types: list[str] = field(default_factory=list)
    recent_weights: list[float] = field(default_factory=list)
    recent_hashes: list[int] = field(default_factory=list)
    """Of the event's id; 0 = not known."""
    recent_values: list[float] = field(default_factory=list)
    """NaN = none."""
    seen: dict[str, None] = field(default_factory=dict)
    dedupe: dict[int, int] = field(default_factory=dict)
    factor: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    last_list: list[str] = field(default_factory=list)

    def add(self, record: _Columns, caps: UserStateSettings) -> None:
        """Take a record in: the scalars as they stand, the lists behind those already there."""
        items = record.items()
        self.token, self.events = record.token, record.events
        self.first_ms, self.last_ms = record.first_ms, record.last_ms
        self.factor = np.frombuffer(record.factor, "<f4").copy()
        self.last_list = [items[k] for k in np.frombuffer(record.last_list, "<u2").tolist()]
        self.recent_items += [items[k] for k in np.frombuffer(record.recent_items, "<u2").tolist()]
        self.recent_types += [record.type_names[k] for k in record.recent_types]
        self.recent_times += np.frombuffer(record.recent_times, "<i8").tolist()
        self.recent_weights += np.frombuffer(record.recent_weights, "<f4").tolist()
        n = len(record.recent_types)
        self.recent_hashes += np.frombuffer(record.recent_hashes or bytes(8 * n), "<u8").tolist()
        no_values = np.full(n, np.nan, "<f4").tobytes()
        self.recent_values += np.frombuffer(record.recent_values or no_values, "<f4").tolist()
        for column in (
            self.recent_items, self.recent_types, self.recent_times, self.recent_weights, self.recent_hashes,
            self.recent_values,
        ):  # fmt: skip
            del column[: -caps.recent]
        for item_id in items[: record.seen]:
            self.seen.pop(item_id, None)  # evicted and seen again since the cold record: the newest now
            self.seen[item_id] = None
        hashes, times = np.frombuffer(record.dedupe_hashes, "<u8"), np.frombuffer(record.dedupe_times, "<i8")
        for event_hash, time_ms in zip(hashes.tolist(), times.tolist(), strict=True):
            self.dedupe.pop(event_hash, None)
            self.dedupe[event_hash] = time_ms
        while len(self.seen) > caps.seen:
            del self.seen[next(iter(self.seen))]
        while len(self.dedupe) > caps.dedupe_entries:
            del self.dedupe[next(iter(self.dedupe))]

    def describe(self, partition: int) -> dict[str, Any]:
        """As plain data, for `freshet state dump`."""
        recent = zip(
            self.recent_items, self.recent_types, self.recent_times, self.recent_weights, strict=True
        )
        return {
            "kind": "user",
            "partition": partition,
            "user_id": self.user_id,
            "token": f"{self.token:016x}",
            "events": self.events,
            "first_ms": self.first_ms,
            "last_ms": self.last_ms,
            "recent": [
                {"item_id": item, "event_type": kind, "timestamp": time_ms, "weight": weight}
                for item, kind, time_ms, weight in recent
            ],
            "seen": list(self.seen),
            "dedupe": [{"hash": f"{h:016x}", "timestamp": time_ms} for h, time_ms in self.dedupe.items()],
            "factor": [float(x) for x in self.factor],
            "last_list": self.last_list,
        }


_columns = msgspec.msgpack.Decoder(_Columns)
_partition = msgspec.json.Decoder(PartitionRecord)


class ShardRecords:
    """The changelog of one partition: the last record under each key, which is all that counts."""

    def __init__(self, partition: int, caps: UserStateSettings) -> None:
        self.partition = partition
        self._caps = caps
        self.hot: dict[bytes, bytes] = {}
        self.cold: dict[bytes, bytes] = {}
        self._record: tuple[bytes, str] | None = None

    def add(self, key: bytes, value: bytes | None, where: str) -> None:
        """Apply one record; `where` is its topic[partition]@offset."""
        if key == PARTITION_KEY:
            self._record = None if value is None else (value, where)
            return
        if key.startswith(COLD_PREFIX):
            records, key = self.cold, key[len(COLD_PREFIX) :]
        else:
            records = self.hot
        if value is None:
            records.pop(key, None)
        else:
            records[key] = value

    def record(self) -> PartitionRecord | None:
        """The partition's own record, None before the first transaction.

        Raises:
            ChangelogError: it can't be read, or was written by another version.
        """
        if self._record is None:
            return None
        value, where = self._record
        try:
            record = _partition.decode(value)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise _unreadable(where, error) from error
        if record.format != PARTITION_FORMAT:
            raise ChangelogError(
                f"{where}: user-state format {record.format}, this version reads {PARTITION_FORMAT}. "
                "Upgrade every worker first."
            )
        return record

    @property
    def stats(self) -> PartitionStats:
        """The partition's totals; zeros before the first transaction."""
        record = self.record()
        return PartitionStats() if record is None else record.stats

    @property
    def next_offsets(self) -> dict[str, int]:
        """By topic: the next offset to read."""
        record = self.record()
        return {} if record is None else record.next_offsets

    def user(self, key: bytes) -> UserRecord:
        """The user whose id is `key`.

        Raises:
            ChangelogError: a record that can't be read, or of another format.
        """
        place = f"user-state[{self.partition}], key {key[:80]!r}"
        try:
            user = UserRecord(key.decode())
            for value in (self.cold.get(key), self.hot.get(key)):
                if value is not None:
                    record = _columns.decode(value)
                    if record.format not in (FORMAT, FORMAT_WITHOUT_EVENTS):
                        raise ChangelogError(
                            f"{place}: format {record.format}, this version reads {FORMAT}. Upgrade every "
                            "worker first."
                        )
                    user.add(record, self._caps)
        except (msgspec.DecodeError, msgspec.ValidationError, ValueError, IndexError) as error:
            raise _unreadable(place, error) from error
        return user

    @property
    def users(self) -> dict[str, UserRecord]:
        """Every user, decoded: for dumps and audits."""
        return {key.decode(): self.user(key) for key in self.hot}


def _unreadable(where: str, error: Exception) -> ChangelogError:
    return ChangelogError(
        f"{where}: not a record of user-state ({error}). Only workers may write this topic; see its ACLs."
    )
