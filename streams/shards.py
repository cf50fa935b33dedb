"""Taking partitions over: restore their users from `user-state`, and know where to read on.

The order, for the partitions that a rebalance hands to this worker:

1. `streams.takeover.settle` has seen to it that nothing a former owner began may still be committed. Take the
   high watermark of the changelog, with an uncommitted reader: all that was committed lies below it.
2. Read the changelog, committed records only, until the position is there. Where an open transaction stands
   in the way and its owner has left the group, fence it instead of waiting for its timeout.
3. Read on in `events`, `requests` and `users` where the partition's own record says; only where there is
   none, where the group's committed offset says. The record was committed with the state, so the two can't
   differ.
4. An offset that retention has removed is counted as lost, and never hidden.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import msgspec
from confluent_kafka import Consumer, TopicPartition

from streams.errors import DataLossError, TopicLayoutError
from streams.events import PartitionStats
from streams.reading import PartitionId, PartitionReader, partitions_of, watermarks, where
from streams.records import Record
from streams.settings import Settings
from streams.takeover import fence_absent
from streams.topic_admin import topic_ids
from streams.user_records import PARTITION_KEY, ChangelogRecord, PartitionRecord, ShardRecords
from streams.user_table import UserTable

__all__ = ["Shard", "Shards", "start_offsets"]

log = logging.getLogger("freshet.shards")

INPUTS = ("events", "requests", "users")


_json = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Shard:
    """One partition: where its owner stands, and its totals. Its users are in the owner's `UserTable`."""

    partition: int
    next_offsets: dict[str, int] = field(default_factory=dict)
    newest_ms: int = 0
    stats: PartitionStats = field(default_factory=PartitionStats)
    owner_transactional_id: str | None = None
    owner_worker: str | None = None
    recent_records: int = 0
    recent_rejected: int = 0
    item_offsets: dict[str, int] = field(default_factory=dict)
    topic_ids: dict[str, str] = field(default_factory=dict)
    written_for: int | None = None
    """Partition count of `events` when the partition's record was last written; None before the first."""

    def count_recent(self, good: int, rejected: int, window: int) -> None:
        """Count records for the reject guard of whoever owns this partition after a restart."""
        self.recent_records += good + rejected
        self.recent_rejected += rejected
        while self.recent_records >= window:
            self.recent_records //= 2
            self.recent_rejected //= 2

    def record(self, transactional_id: str, worker: str, epoch: int, partitions: int) -> ChangelogRecord:
        """The partition's own record, for the changelog."""
        record = PartitionRecord(
            partition=self.partition,
            partitions=partitions,
            next_offsets=self.next_offsets,
            recent_records=self.recent_records,
            recent_rejected=self.recent_rejected,
            item_offsets=self.item_offsets,
            topic_ids=self.topic_ids,
            transactional_id=transactional_id,
            worker=worker,
            epoch=epoch,
            newest_ms=self.newest_ms,
            stats=self.stats,
        )
        return PARTITION_KEY, _json(record)

    def restore(self, record: PartitionRecord | None) -> None:
        """Stand where the partition's last record says."""
        if record is None:
            return
        self.next_offsets = dict(record.next_offsets)
        self.recent_records, self.recent_rejected = record.recent_records, record.recent_rejected
        self.item_offsets = dict(record.item_offsets)
        self.topic_ids = dict(record.topic_ids)
        self.newest_ms = record.newest_ms
        self.stats = record.stats
        self.owner_transactional_id = record.transactional_id
        self.owner_worker = record.worker
        self.written_for = record.partitions


class Shards:
    """The partitions that this worker owns, and their users."""

    def __init__(self, settings: Settings, transactional_id: str, type_names: Sequence[str]) -> None:
        self._settings = settings
        self._fenced = {transactional_id}
        self.owned: dict[int, Shard] = {}
        self.users = UserTable(settings.user_state, settings.models.factors.dimension, type_names)

    def __getitem__(self, partition: int) -> Shard:
        return self.owned[partition]

    def drop(self, partitions: Iterable[int]) -> None:
        """Let go of partitions that another worker owns now."""
        gone = [p for p in set(partitions) if self.owned.pop(p, None) is not None]
        if gone:
            self.users.drop_partitions(gone)

    def restore(self, partitions: Sequence[int], should_stop: Callable[[], bool] = lambda: False) -> bool:
        """Steps 1 and 2 for `partitions`; False when `should_stop` ended it early."""
        started = time.monotonic()
        topic = self._settings.names["user-state"]
        keys: list[PartitionId] = [(topic, partition) for partition in partitions]
        targets = {key: end for key, (_, end) in watermarks(self._settings, keys).items()}  # 1
        found = {p: ShardRecords(p, self._settings.user_state) for p in partitions}
        reader = PartitionReader(self._settings, dict.fromkeys(keys, 0))
        records = n_bytes = 0

        def apply(message: Record) -> None:
            nonlocal records, n_bytes
            key, value = message.key(), message.value()
            records += 1
            n_bytes += len(value or b"")
            if key is not None:
                found[message.partition()].add(key, value, where(message))

        def stuck(behind: set[PartitionId]) -> None:
            fence_absent(self._settings, {partition for _, partition in behind}, self._fenced)

        try:
            timeouts = self._settings.worker
            patience_s = max(timeouts.rpc_timeout_s, timeouts.transaction_timeout_s + 5.0)
            if not reader.read_to(
                targets, apply, stuck=stuck, should_stop=should_stop, timeout_s=patience_s
            ):  # 2
                return False
        finally:
            reader.close()
        for partition in partitions:
            records_of = found.pop(partition)
            shard = Shard(partition)
            shard.restore(records_of.record())
            self.users.restore(records_of)
            self.owned[partition] = shard
        log.info(
            "restored partitions %s: %d users from %d records, %.1f MB, in %.2f s",
            sorted(partitions),
            len(self.users),
            records,
            n_bytes / 1e6,
            time.monotonic() - started,
        )
        return True


def start_offsets(
    settings: Settings, consumer: Consumer, shards: Shards, partitions: Sequence[TopicPartition]
) -> list[TopicPartition]:
    """Steps 3 and 4: where to read each assigned input partition on.

    Raises:
        DataLossError: needed records are gone and `worker.on_data_loss` is `fail`.
        TopicLayoutError: the state belongs to a topic that has been created anew, or has other partitions.
    """
    names = {settings.names[name]: name for name in INPUTS}
    _check_count(settings, consumer, shards, partitions)
    ids = topic_ids(settings, list(names))
    ends = watermarks(settings, [(tp.topic, tp.partition) for tp in partitions])
    unknown = [tp for tp in partitions if names[tp.topic] not in shards[tp.partition].next_offsets]
    committed = {
        (tp.topic, tp.partition): tp.offset
        for tp in (consumer.committed(unknown, settings.worker.rpc_timeout_s) if unknown else [])
    }
    starts = []
    for tp in partitions:
        shard, name = shards[tp.partition], names[tp.topic]
        low, high = ends[tp.topic, tp.partition]
        offset = shard.next_offsets.get(name, committed.get((tp.topic, tp.partition), -1))
        if offset > high or shard.topic_ids.get(name, ids[tp.topic]) != ids[tp.topic]:
            raise TopicLayoutError(
                f"{tp.topic}[{tp.partition}]: the state stands at offset {offset} of a topic that was "
                "deleted and "
                f"created anew since (it ends at {high} now). Use a new topic prefix, or delete user-state "
                "and "
                "interactions with it."
            )
        shard.topic_ids[name] = ids[tp.topic]
        if 0 <= offset < low:
            _count_lost(settings, shard, tp, offset, low)
        start = max(offset, low)
        shard.next_offsets[name] = start
        starts.append(TopicPartition(tp.topic, tp.partition, start))
    return starts


def _check_count(
    settings: Settings, consumer: Consumer, shards: Shards, partitions: Sequence[TopicPartition]
) -> None:
    """Refuse partitions whose state was written when there were fewer or more: their users have moved."""
    topic = settings.names["events"]
    count = len(partitions_of(consumer, topic, settings.worker.rpc_timeout_s))
    for shard in (shards[tp.partition] for tp in partitions):
        if shard.written_for not in (None, count):
            raise TopicLayoutError(
                f"{topic} has {count} partitions, but the state of partition {shard.partition} was written"
                f" when it had {shard.written_for}: the users' hashes now lead elsewhere. Partitions can't"
                " be taken away again: stop the workers, create topics with the new count under a new"
                " [topics] prefix, replay the events there, and start the workers on that prefix."
            )


def _count_lost(settings: Settings, shard: Shard, tp: TopicPartition, offset: int, low: int) -> None:
    message = (
        f"{tp.topic}[{tp.partition}]: records {offset} to {low - 1} were removed by retention before they "
        "were read "
        f"({low - offset} lost). Lengthen retention.ms, or run the workers more often than that."
    )
    if settings.worker.on_data_loss == "fail":
        raise DataLossError(message + ' Set worker.on_data_loss = "continue" to go on without them.')
    log.error(message)
    shard.stats.lost += low - offset
