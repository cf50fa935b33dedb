"""Rejected records: why, where from, and when there are too many of them to go on."""

from __future__ import annotations

from collections import Counter, deque
from enum import StrEnum

import msgspec

from streams.errors import ProducerBrokenError

__all__ = ["InvalidRecordError", "Reason", "RejectGuard", "Rejected"]


class Reason(StrEnum):
    """The closed list of reasons; each value is the header `freshet.errors.reason` of a dead letter."""

    TOMBSTONE = "tombstone"
    TOO_LARGE = "too_large"
    NOT_UTF8 = "not_utf8"
    INVALID_JSON = "invalid_json"
    DUPLICATE_KEY = "duplicate_key"
    TOO_DEEP = "too_deep"
    MISSING_FIELD = "missing_field"
    WRONG_TYPE = "wrong_type"
    INVALID_ID = "invalid_id"
    INVALID_TIMESTAMP = "invalid_timestamp"
    INVALID_NUMBER = "invalid_number"
    INVALID_FIELD = "invalid_field"
    UNKNOWN_EVENT_TYPE = "unknown_event_type"
    KEY_MISMATCH = "key_mismatch"
    WRONG_PARTITION = "wrong_partition"
    LATE = "late"

    @property
    def meaning(self) -> str:
        """One sentence for people: what a record with this reason has wrong."""
        return _MEANINGS[self]


_MEANINGS: dict[Reason, str] = {
    Reason.TOMBSTONE: "The value is null, and this topic takes no tombstones.",
    Reason.TOO_LARGE: "The value is longer than `validation.max_bytes`.",
    Reason.NOT_UTF8: "The bytes aren't UTF-8, or a `\\u` escape is half of a surrogate pair.",
    Reason.INVALID_JSON: "Not JSON as RFC 8259 has it: empty, cut off, a BOM, NaN, Infinity, trailing bytes.",
    Reason.DUPLICATE_KEY: "An object has one key twice, so its meaning depends on who reads it.",
    Reason.TOO_DEEP: "Arrays and objects are nested deeper than `validation.max_depth`.",
    Reason.MISSING_FIELD: "A required field is absent or null.",
    Reason.WRONG_TYPE: "The record is not an object, or a field has another JSON type than it should.",
    Reason.INVALID_ID: "An id is not 1 to 256 bytes of UTF-8 without control characters.",
    Reason.INVALID_TIMESTAMP: "A time is neither ms since the epoch nor RFC 3339, or out of range.",
    Reason.INVALID_NUMBER: "A number is not finite or out of range.",
    Reason.INVALID_FIELD: "A text, list or map breaks its limits, or fields exclude each other.",
    Reason.UNKNOWN_EVENT_TYPE: "`event_type` is neither built in nor in `validation.event_types`.",
    Reason.KEY_MISMATCH: "The record's key is not the id that the topic is keyed by.",
    Reason.WRONG_PARTITION: 'The partition is not the key\'s (`validation.partitioning = "strict"` only).',
    Reason.LATE: "The event is older than `validation.lateness_s` against its partition's newest.",
}


class InvalidRecordError(Exception):
    """Inside the decoders only: carries a reason to the one place that makes a `Rejected` of it."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class Rejected(msgspec.Struct, frozen=True, gc=False):
    """A record that is not taken: `reason` for programs, `message` for people, and where it stands.

    `message` names fields, lengths and limits, never contents: it goes into headers and may go into logs.
    """

    reason: Reason
    message: str
    partition: int
    offset: int
    kafka_time_ms: int


class RejectGuard:
    """Stops the worker when more than `limit` of the last `window` records of `topic` were rejected.

    A broken producer deployment would otherwise be drained into the dead letters unnoticed. Judged only once
    `window` records were seen; `limit=1` never stops.
    """

    def __init__(self, window: int, limit: float, topic: str = "events") -> None:
        self._records: deque[Rejected | None] = deque(maxlen=window)
        self._window = window
        self._limit = limit
        self._allowed = limit * window
        self._topic = topic
        self._rejected = 0

    @property
    def rejected(self) -> int:
        """Rejected records in the window."""
        return self._rejected

    def resume(self, records: int, rejected: int) -> None:
        """Begin with what is known of `records` earlier records, `rejected` of them rejected, good ones
        first."""
        earlier = Rejected(Reason.INVALID_JSON, "rejected before the restart", -1, -1, 0)
        records = min(records, self._window)
        rejected = min(rejected, records)
        self._records.extend([None] * (records - rejected) + [earlier] * rejected)
        self._rejected += rejected

    def add(self, rejected: Rejected | None = None) -> None:
        """Count one record: `None` for a good one.

        Raises:
            ProducerBrokenError: the share of rejected records in the full window is above the limit.
        """
        records = self._records
        if len(records) == self._window and records[0] is not None:
            self._rejected -= 1
        records.append(rejected)
        if rejected is not None:
            self._rejected += 1
        if self._rejected > self._allowed and len(records) == self._window:
            raise ProducerBrokenError(self._explain())

    def add_good(self, n: int) -> None:
        """Count `n` good records."""
        if self._rejected == 0 and len(self._records) == self._window:
            return  # a full window of good records stays one
        for _ in range(min(n, self._window)):
            self.add()

    def _explain(self) -> str:
        bad = [record for record in self._records if record is not None]
        counts = Counter(record.reason.value for record in bad)
        top = ", ".join(f"{reason} {count}" for reason, count in counts.most_common(3))
        return (
            f"{len(bad)} of the last {self._window} records of {self._topic} were rejected ({top}), more "
            f"than the limit of {self._limit:.0%}: a producer has broken. First {self._place(bad[0])}, last "
            f"{self._place(bad[-1])}; the latest: {bad[-1].message}. Mend the producer, then start the "
            "worker again; to go on regardless set validation.reject_limit = 1."
        )

    def _place(self, record: Rejected) -> str:
        return f"{self._topic}[{record.partition}]@{record.offset}"
