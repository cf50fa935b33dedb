"""What an audit reads, and how: whole topics, committed records only."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import cast

from confluent_kafka import Consumer, TopicPartition

from streams.settings import Settings

__all__ = ["Commit", "Finding", "Record", "fingerprint", "offsets_of_group", "read_topic"]

INPUTS = ("events", "requests", "users")


@dataclass(frozen=True)
class Record:
    """One Kafka record, as bytes."""

    partition: int
    offset: int
    time_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


@dataclass(frozen=True)
class Commit:
    """A worker's record of a partition: whose transaction it was, and where it left the inputs."""

    partition: int
    offset: int
    worker: str
    epoch: int
    next_offsets: dict[str, int]


@dataclass(frozen=True)
class Finding:
    """One way in which a run was not exactly once.

    `kind` is `lost` (`count` records that must be there are not), `duplicated` (`count` records stand there
    once too often) or `wrong` (anything else).
    """

    kind: str
    count: int
    text: str


def fingerprint(key: bytes | None, value: bytes | None, headers: object) -> bytes:
    """16 bytes that tell a record from any other, null from empty included."""
    parts = repr((key, headers)).encode() + b"\x00" + repr(value is None).encode() + (value or b"")
    return hashlib.blake2b(parts, digest_size=16).digest()


def read_topic(settings: Settings, name: str) -> list[Record]:
    """Every committed record of a topic, partition by partition, up to its end."""
    topic = settings.names[name]
    consumer = Consumer(
        {
            "bootstrap.servers": settings.bootstrap_servers,
            "group.id": "auditor",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 10,
        }
    )
    try:
        left = set(consumer.list_topics(topic, 60).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, p, 0) for p in left])
        found: list[Record] = []
        while left:
            waiting = consumer.consume(1, 60.0)
            assert waiting, f"{topic}: neither a record nor its end within 60 s"
            for message in [*waiting, *consumer.consume(5000, 0)]:
                partition, error = message.partition() or 0, message.error()
                if error is not None:
                    left.discard(partition)  # the end of the partition; all else fails below
                    assert error.name() == "_PARTITION_EOF", error
                    continue
                headers = cast(list[tuple[str, bytes | None]], message.headers() or [])
                time_ms = message.timestamp()[1]
                record = Record(
                    partition, message.offset() or 0, time_ms, message.key(), message.value(), tuple(headers)
                )
                found.append(record)
    finally:
        consumer.close()
    return sorted(found, key=lambda r: (r.partition, r.offset))


def offsets_of_group(
    settings: Settings, *, stable: bool = False
) -> tuple[dict[tuple[str, int], int], dict[tuple[str, int], int]]:
    """Committed offsets of the workers' group and end offsets, by (name, partition).

    Offsets that an open transaction holds back are left out, or with `stable` waited for.

    Raises:
        KafkaException: no answer within 10 s.
    """
    consumer = Consumer(
        {
            "bootstrap.servers": settings.bootstrap_servers,
            "group.id": settings.worker_group,
            "isolation.level": "read_committed" if stable else "read_uncommitted",
            "log_level": 0,
        }
    )
    names = {settings.names[name]: name for name in INPUTS}
    try:
        wanted = [
            TopicPartition(t, p) for t in names for p in consumer.list_topics(t, 10).topics[t].partitions
        ]
        committed = {(names[tp.topic], tp.partition): tp.offset for tp in consumer.committed(wanted, 10)}
        ends = {(names[tp.topic], tp.partition): consumer.get_watermark_offsets(tp, 10)[1] for tp in wanted}
    finally:
        consumer.close()
    return committed, ends
