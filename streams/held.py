"""Tombstones of `users` wait until the events that were sent before them are learned.

Partitions of different topics are read in no order between them: a worker with a backlog would come to the
tombstone first, forget the user, and make a new one of the events that were meant to be forgotten.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaException, TopicPartition

from streams.kafka_errors import is_passing
from streams.records import Record
from streams.settings import Settings

__all__ = ["Held"]

MOST = 1000
"""Records held of a partition beyond which no more of it are fetched."""
AGAIN_S = 5.0
"""Between two looks at where `events` ends: a partition that was cut short (its leader was lost) never gets
to where it ended once."""
LOOK_S = 1.0
"""The broker is asked no longer than this for where a partition ends; else it is asked again."""


@dataclass(slots=True)
class _Barrier:
    """Records of `users` before `users_end` may go when `events` is read up to `events_end`."""

    users_end: int
    events_end: int
    asked_at: float


class Held:
    """Holds records of `users` back, partition by partition, from the first tombstone that must wait on.

    Not a record that goes out is out of order, and the position of a partition (`offset`) stays before what
    is held: nothing is lost with the process.
    """

    def __init__(self, settings: Settings, consumer: Consumer, position: Callable[[str, int], int]) -> None:
        """`position` says up to where a partition is read, by topic and number."""
        self._users, self._events = settings.names["users"], settings.names["events"]
        self._consumer = consumer
        self._position = position
        self._records: dict[int, deque[Record]] = {}
        self._barriers: dict[int, _Barrier] = {}
        self._paused: set[int] = set()

    def exchange(self, batch: list[Record]) -> list[Record]:
        """`batch` without what must wait, and with what has waited long enough."""
        if not self._records and not any(record.topic() == self._users for record in batch):
            return batch
        go = [record for record in batch if record.topic() != self._users]
        for record in batch:
            if record.topic() == self._users:
                self._records.setdefault(record.partition(), deque()).append(record)
        for partition, records in list(self._records.items()):
            while records and self._may_go(records[0]):
                go.append(records.popleft())
            if not records:
                del self._records[partition]
            self._fetch(partition, len(records) <= MOST)
        return go

    def offset(self, partition: int) -> int | None:
        """Of the first record held of a partition of `users`, None if there is none."""
        records = self._records.get(partition)
        return records[0].offset() if records else None

    def clear(self) -> None:
        """Forget what is held: the partitions are read again from where their state stands."""
        self._records.clear()
        self._barriers.clear()
        for partition in list(self._paused):
            self._fetch(partition, True)

    def _may_go(self, record: Record) -> bool:
        if record.value() is not None:
            return True
        partition = record.partition()
        barrier = self._barriers.get(partition)
        if barrier is None or record.offset() >= barrier.users_end:
            ends = [self._end(topic, partition) for topic in (self._users, self._events)]  # in this order
            if ends[0] is None or ends[1] is None:
                return False
            barrier = self._barriers[partition] = _Barrier(ends[0], ends[1], time.monotonic())
        position = self._position(self._events, partition)
        if position < barrier.events_end and time.monotonic() - barrier.asked_at > AGAIN_S:
            barrier.asked_at, end = time.monotonic(), self._end(self._events, partition)
            barrier.events_end = min(barrier.events_end, barrier.events_end if end is None else end)
        return position >= barrier.events_end

    def _end(self, topic: str, partition: int) -> int | None:
        """Where a partition ends by now, None if the broker does not say."""
        try:
            found = self._consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=LOOK_S)
        except KafkaException as error:
            if not is_passing(error.args[0]):
                raise
            return None
        return None if found is None else int(found[1])

    def _fetch(self, partition: int, wanted: bool) -> None:
        if wanted == (partition not in self._paused):
            return
        place: Sequence[TopicPartition] = [TopicPartition(self._users, partition)]
        if wanted:
            self._paused.discard(partition)
            self._consumer.resume(list(place))
        else:
            self._paused.add(partition)
            self._consumer.pause(list(place))
