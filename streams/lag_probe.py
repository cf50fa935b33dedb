"""When was the record written that a group reads next: one record per partition, and no more than that."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Consumer, TopicPartition

from streams.clients import make_consumer, tail_consumer_config
from streams.settings import Settings

__all__ = ["Key", "TimestampProbe"]

Key = tuple[str, int]
"""Topic and partition."""


class TimestampProbe:
    """Reads the timestamp (ms) of one record per partition, and remembers it while the offset stays."""

    def __init__(self, settings: Settings, limit_s: float) -> None:
        config: dict[str, Any] = tail_consumer_config(settings)
        # One record per partition is wanted: do not fetch megabytes ahead of it.
        config |= {
            "max.partition.fetch.bytes": 16_384,
            "queued.min.messages": 1,
            "queued.max.messages.kbytes": 64,
        }
        self._make: Callable[[], Consumer] = lambda: make_consumer(config)
        self._consumer: Consumer | None = None
        self._limit_s = limit_s
        self._known: dict[Key, tuple[int, int]] = {}

    def read(self, offsets: dict[Key, int]) -> dict[Key, int]:
        """Timestamps of the first readable records at or after `offsets`; late ones are left out."""
        self._known = {k: v for k, v in self._known.items() if k in offsets and v[0] == offsets[k]}
        wanted = {key: offset for key, offset in offsets.items() if key not in self._known}
        if wanted:
            self._fetch(wanted)
        return {key: timestamp for key, (_, timestamp) in self._known.items()}

    def _fetch(self, wanted: dict[Key, int]) -> None:
        consumer = self._consumer = self._consumer or self._make()
        consumer.assign([TopicPartition(*key, offset) for key, offset in wanted.items()])
        missing, deadline_s = dict(wanted), time.monotonic() + self._limit_s
        while missing and (left_s := deadline_s - time.monotonic()) > 0:
            message = consumer.poll(left_s)
            if message is None or message.error():
                continue
            key = (message.topic() or "", message.partition() or 0)
            offset = missing.pop(key, None)
            if offset is None:
                continue
            consumer.pause([TopicPartition(*key)])
            kind, timestamp = message.timestamp()
            if kind != TIMESTAMP_NOT_AVAILABLE:
                self._known[key] = (offset, timestamp)
        consumer.resume([TopicPartition(*key) for key in wanted if key not in missing])  # outlives `unassign`
        consumer.unassign()

    def close(self) -> None:
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None
