"""Reading whole partitions without a group: up to the end of now, or on and on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import cast

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from streams.clients import make_consumer, tail_consumer_config
from streams.errors import BrokerUnavailableError, DataLossError, TopicLayoutError
from streams.kafka_errors import DENIED, GONE, fatal_error, is_passing, named
from streams.records import Record
from streams.retries import RETRIES
from streams.settings import Settings

__all__ = ["PartitionId", "PartitionReader", "partitions_of", "watermarks", "where"]

log = logging.getLogger("freshet.reading")

PartitionId = tuple[str, int]


def where(message: Record) -> str:
    """`topic[partition]@offset`, as every message about a record names it."""
    return f"{message.topic()}[{message.partition()}]@{message.offset()}"


def partitions_of(consumer: Consumer, topic: str, timeout_s: float) -> list[int]:
    """The partition numbers of `topic`; raises TopicLayoutError when the broker has no such topic."""
    found = consumer.list_topics(topic, timeout_s).topics[topic]
    if found.error is not None or not found.partitions:
        raise TopicLayoutError(f"topic {topic} is not there. Create the topics: `freshet topics create`.")
    return sorted(found.partitions)


def watermarks(
    settings: Settings, partitions: Iterable[PartitionId], *, isolation: str = "read_uncommitted"
) -> dict[PartitionId, tuple[int, int]]:
    """Low and end offset of each partition; the end is the high watermark, or with `read_committed` the last
    stable offset (before the first open transaction)."""
    consumer = make_consumer(tail_consumer_config(settings, isolation=isolation))
    deadline = time.monotonic() + settings.worker.rpc_timeout_s
    try:
        return {key: _watermark(settings, consumer, key, deadline) for key in partitions}
    finally:
        consumer.close()


def _watermark(settings: Settings, consumer: Consumer, key: PartitionId, deadline: float) -> tuple[int, int]:
    while True:
        try:
            left_s = max(0.1, deadline - time.monotonic())
            found = consumer.get_watermark_offsets(TopicPartition(*key), left_s)
            if found is not None:
                return found
            reason = "no answer"
        except KafkaException as error:
            cause: KafkaError = error.args[0]
            reason = named(cause)
            if cause.code() in DENIED:
                raise fatal_error(cause, f"watermarks of {key[0]}[{key[1]}]") from error
            if not (is_passing(cause) or cause.code() in GONE):  # a leader in the making is not known yet
                deadline = 0.0
        if time.monotonic() > deadline:
            raise BrokerUnavailableError(
                f"{settings.bootstrap_servers}: no watermarks of {key[0]}[{key[1]}] within "
                f"{settings.worker.rpc_timeout_s} s: {reason}. Is the broker up, does the topic "
                f"exist, and do the "
                "ACLs allow Describe on it?"
            )
        RETRIES.count("metadata")
        time.sleep(0.05)


class PartitionReader:
    """A group-less reader of given partitions that knows how far it is, control records included.

    `positions` holds the next offset by partition: behind the last record handed out, or behind whatever the
    broker said stands before the end (transaction markers, aborted records).
    """

    def __init__(self, settings: Settings, starts: Mapping[PartitionId, int], *, lossy: bool = True) -> None:
        self._settings = settings
        reset = "earliest" if lossy else "error"
        config = tail_consumer_config(settings, auto_offset_reset=reset)
        self._consumer = make_consumer({**config, "enable.partition.eof": True})
        self.positions: dict[PartitionId, int] = {key: max(0, start) for key, start in starts.items()}
        for topic in {topic for topic, _ in starts}:  # else the first fetch waits 500 ms for the leaders
            self._consumer.list_topics(topic, settings.worker.rpc_timeout_s)
        self._consumer.assign(
            [
                TopicPartition(t, p, OFFSET_BEGINNING if start <= 0 else start)
                for (t, p), start in starts.items()
            ]
        )

    def poll(self, limit: int, timeout_s: float) -> list[Record]:
        """Up to `limit` records, waiting at most `timeout_s` for the first.

        Raises:
            DataLossError: the wanted offset is no longer in the log (only with `lossy=False`).
            FreshetError: an error that waiting does not mend.
        """
        records: list[Record] = []
        found = self._consumer.consume(
            1, timeout_s
        )  # asked for more, it would wait out the time for the last
        if found and limit > 1:
            found += self._consumer.consume(limit - 1, 0)
        for message in found:
            error = message.error()
            key = (message.topic() or "", message.partition() or 0)
            offset = message.offset() or 0
            if error is None:
                self.positions[key] = offset + 1
                records.append(cast(Record, message))
            elif error.code() == KafkaError._PARTITION_EOF:
                self.positions[key] = max(self.positions[key], offset)
            elif error.code() == KafkaError._AUTO_OFFSET_RESET:
                raise DataLossError(
                    f"{key[0]}[{key[1]}]@{self.positions[key]}: this offset is no longer in the log "
                    f"({error.str()})"
                )
            elif error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
                continue  # the client looks for the coordinator of a group that this reader never uses
            elif is_passing(error):
                log.warning("%s[%d]: %s; retried (%d)", *key, named(error), RETRIES.count("read"))
            else:
                raise fatal_error(error, f"reading {key[0]}[{key[1]}]@{self.positions.get(key, -1)}")
        return records

    def read_to(
        self,
        targets: Mapping[PartitionId, int],
        handle: Callable[[Record], None],
        *,
        stuck: Callable[[set[PartitionId]], None] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        timeout_s: float | None = None,
    ) -> bool:
        """Hand records to `handle` until every position has reached its target; False when `should_stop` said
        so.

        `stuck` is called, at most once a second, with the partitions that hold more than may be read: a
        transaction is open there.

        Raises:
            BrokerUnavailableError: no progress for `timeout_s` (default: `worker.rpc_timeout_s`).
        """
        patience_s = timeout_s or self._settings.worker.rpc_timeout_s
        last, asked = time.monotonic(), 0.0
        while behind := {key for key, target in targets.items() if self.positions[key] < target}:
            if should_stop():
                return False
            records = self.poll(2000, 0.1)
            for message in records:
                handle(message)
            now = time.monotonic()
            if records:
                last = now
            elif now - last > patience_s:
                raise BrokerUnavailableError(
                    f"{self._settings.bootstrap_servers}: nothing read for {patience_s} s; still behind: "
                    + ", ".join(
                        f"{t}[{p}]@{self.positions[t, p]} of {targets[t, p]}" for t, p in sorted(behind)
                    )
                    + ". Is the broker up? Does a producer keep a transaction open?"
                )
            elif stuck is not None and now - last > 0.3 and now - asked > 1.0:
                asked = now
                stuck(behind)
        return True

    def lag(self, key: PartitionId) -> int:
        """Records (control records included) between the position and the end that the last fetch saw."""
        _, high = self._consumer.get_watermark_offsets(TopicPartition(*key), cached=True)
        return max(0, high - self.positions[key])

    def close(self) -> None:
        self._consumer.close()
