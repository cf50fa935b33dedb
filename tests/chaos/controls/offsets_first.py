"""Control: a worker that commits the consumed offsets first, and goes on from there after a crash.

Whatever it had in hand when it dies is lost: the offsets say that it was handled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from confluent_kafka import Consumer, TopicPartition

import streams.source
from streams.settings import Settings
from streams.shards import INPUTS, start_offsets
from streams.transaction import OutputRecord
from tests.chaos.controls.plain import Plain, run_worker

RPC_S = 15.0


class OffsetsFirst(Plain):
    """1. commit the offsets, 2. produce."""

    def commit(
        self, records: Iterable[OutputRecord], consumer: Consumer, offsets: list[TopicPartition]
    ) -> None:
        records = list(records)
        consumer.commit(offsets=offsets, asynchronous=False)
        if any(record.topic == self.names["recommendations"] for record in records):
            self.crash.passed()
        self.send(records)
        self.committed += 1


def _by_the_group(
    settings: Settings, consumer: Consumer, shards: Any, partitions: Sequence[TopicPartition]
) -> list[TopicPartition]:
    """Read on where the group has committed, as a plain consumer does, not where the partition's own record
    says."""
    starts = start_offsets(settings, consumer, shards, partitions)
    names = {settings.names[name]: name for name in INPUTS}
    committed = {(tp.topic, tp.partition): tp.offset for tp in consumer.committed(list(partitions), RPC_S)}
    for start in starts:
        offset = committed[start.topic, start.partition]
        if offset >= 0:
            start.offset = offset
            shards[start.partition].next_offsets[names[start.topic]] = offset
    return starts


if __name__ == "__main__":
    streams.source.start_offsets = _by_the_group  # type: ignore[attr-defined]
    run_worker(OffsetsFirst)
