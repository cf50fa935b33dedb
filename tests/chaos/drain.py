"""After the last fault: everything that was produced is handled, or what is stuck is named."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import msgspec
from confluent_kafka import Consumer, KafkaException, TopicPartition

from streams.clients import admin
from streams.reading import watermarks
from streams.settings import Settings
from streams.user_records import PARTITION_KEY, PartitionRecord
from tests.chaos.records import offsets_of_group

__all__ = [
    "OUTPUTS",
    "await_true",
    "open_transactions",
    "output_ends",
    "unhandled",
    "unread_items",
    "unstable_offsets",
]

OUTPUTS = ("interactions", "recommendations", "events-dlq", "user-state")
LOOK_BACK = 2000
"""Offsets in which a partition's last own record is looked for: one transaction writes far fewer."""


MOST_S = 600.0
"""Whoever makes progress for so long and never comes to an end goes round in circles."""


def await_true(what: Callable[[], list[str]], tick: Callable[[], None], timeout_s: float) -> list[str]:
    """Call `what` until it names nothing that is missing any more; what it still names when that has stayed
    the same for `timeout_s`: a slow machine that gets on is not stuck."""
    began = changed = time.monotonic()
    before: list[str] = []
    while missing := what():
        now = time.monotonic()
        if missing != before:
            before, changed = missing, now
        if now > min(changed + timeout_s, began + max(MOST_S, timeout_s)):
            return missing
        pause = time.monotonic() + 0.4
        while time.monotonic() < pause:
            tick()
            time.sleep(0.05)
    return []


def unhandled(settings: Settings) -> list[str]:
    """Partitions of the input whose committed offset is not their end, and who is in the group."""
    try:
        committed, ends = offsets_of_group(settings)
    except KafkaException as error:
        return [f"committed offsets: {error.args[0].str()}", _members(settings)]
    behind = [
        f"{name}[{partition}]: committed {committed[name, partition]}, ends at {end}"
        for (name, partition), end in ends.items()
        if max(0, committed[name, partition]) != end
    ]
    return [*behind, _members(settings)] if behind else []


def _members(settings: Settings) -> str:
    try:
        client = admin(settings)
        future = client.describe_consumer_groups([settings.worker_group], request_timeout=5.0)
        group = future[settings.worker_group].result(6)
    except KafkaException as error:
        return f"group: {error.args[0].str()}"
    owned = {
        member.client_id: sorted(tp.partition for tp in member.assignment.topic_partitions)
        for member in group.members
    }
    return f"group {group.state.name}: {owned}"


def unread_items(settings: Settings, bad: Iterable[tuple[int, int]]) -> list[str]:
    """Bad records of `items` (partition, offset) whose dead letters partition 0's own record does not count
    as written."""
    last: dict[int, int] = {}
    for partition, offset in bad:
        last[partition] = max(offset, last.get(partition, -1))
    stands = _partition_0(settings) if last else {}
    return [
        f"items[{p}]@{offset} was rejected, but its dead letter is not accounted for ({stands})"
        for p, offset in last.items()
        if stands.get(str(p), 0) <= offset
    ]


def _partition_0(settings: Settings) -> dict[str, int]:
    """The offsets of `items` in the newest own record of partition 0."""
    topic = settings.names["user-state"]
    [(low, end)] = watermarks(settings, [(topic, 0)]).values()
    consumer = Consumer(
        {
            "bootstrap.servers": settings.bootstrap_servers,
            "group.id": "auditor",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
        }
    )
    found: dict[str, int] = {}
    try:
        consumer.assign([TopicPartition(topic, 0, max(low, end - LOOK_BACK))])
        while messages := consumer.consume(500, 2.0):
            for message in messages:
                if message.error() is not None:
                    return found
                if message.key() == PARTITION_KEY:
                    record = msgspec.json.decode(message.value() or b"", type=PartitionRecord)
                    found = dict(record.item_offsets)
    finally:
        consumer.close()
    return found


def output_ends(settings: Settings, isolation: str) -> dict[tuple[str, int], int]:
    """End offsets of the workers' outputs, by topic (table name) and partition."""
    names = {settings.names[name]: name for name in OUTPUTS}
    count = settings.topics.partitions
    keys = [(t, p) for t, name in names.items() for p in range(1 if name == "interactions" else count)]
    found = watermarks(settings, keys, isolation=isolation)
    return {(names[topic], partition): end for (topic, partition), (_, end) in found.items()}


def open_transactions(settings: Settings) -> list[str]:
    """Partitions in which a transaction is still open."""
    whole = output_ends(settings, "read_uncommitted")
    stable = output_ends(settings, "read_committed")
    return [
        f"{key[0]}[{key[1]}]: a transaction is open from offset {stable[key]} on (end: {end})"
        for key, end in whole.items()
        if stable[key] < end
    ]


def unstable_offsets(settings: Settings) -> list[str]:
    """Whether a transaction still holds the group's committed offsets back, now that all have ended.

    A broker that is killed while a transaction is open may abort it after its restart without telling the
    group's coordinator: the offsets then stay unstable for good. Seen with Apache Kafka 4.3.1:
    `__transaction_state` goes to CompleteAbort with `__consumer_offsets` among its partitions, and that
    partition has no abort marker.
    """
    try:
        offsets_of_group(settings, stable=True)
    except KafkaException as error:
        return [f"broker: a transaction that has ended holds the group's offsets back: {error.args[0].str()}"]
    return []
