"""What the owner of partition 0 writes of `items`: rejected records as dead letters, removals to the log.

Every worker reads `items` for its catalogue, but only the owner of partition 0 writes what is rejected there
to `events-dlq`, and what is removed there to `interactions`, so that every replica forgets it at the same
place: it reads the topic a second time, from the offsets in its partition's own record, and commits what it
writes together with the new offsets. So each is written once, whoever owns the partition when.
"""

from __future__ import annotations

import time

from streams.reading import PartitionReader
from streams.records import Record
from streams.rejects import Rejected, RejectGuard
from streams.settings import Settings
from streams.validation import EventValidator, Tombstone

__all__ = ["ItemRejects"]

SLICE_RECORDS = 1000
"""`items` records looked at in one turn of the worker's loop, so that a large catalogue does not hold
events up."""
EVERY_S = 0.5


class ItemRejects:
    """Finds rejected records and tombstones of `items` behind the given offsets (`items/<partition>` in the
    partition's record)."""

    def __init__(
        self, settings: Settings, validator: EventValidator, partitions: int, next_offsets: dict[str, int]
    ) -> None:
        topic = settings.names["items"]
        starts = {(topic, p): next_offsets.get(str(p), 0) for p in range(partitions)}
        self._reader = PartitionReader(settings, starts)
        self._validator = validator
        limits = settings.validation
        self._guard = RejectGuard(limits.reject_window, limits.reject_limit, topic)
        self._due = 0.0

    def poll(self) -> list[tuple[Record, Rejected | Tombstone]]:
        """Rejected records and tombstones among the next slice; empty most of the time, for it looks only now
        and then.

        Raises:
            ProducerBrokenError: too many of the latest `items` records were rejected.
        """
        now = time.monotonic()
        if now < self._due:
            return []
        records = self._reader.poll(SLICE_RECORDS, 0)
        self._due = 0.0 if records else now + EVERY_S
        found: list[tuple[Record, Rejected | Tombstone]] = []
        for record in records:
            judged = self._validator.decode_item(
                record.value(), record.key(), record.partition(), record.offset(), record.timestamp()[1]
            )
            self._guard.add(judged if isinstance(judged, Rejected) else None)
            if isinstance(judged, Rejected | Tombstone):
                found.append((record, judged))
        return found

    def next_offsets(self) -> dict[str, int]:
        """What to put into the partition's record with what was found."""
        return {str(p): offset for (_, p), offset in self._reader.positions.items()}

    def close(self) -> None:
        self._reader.close()
