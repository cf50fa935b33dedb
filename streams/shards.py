"""Taking partitions over: restore their users from `user-state`, and know where to read on.

The order, for the partitions that a rebalance hands to this worker:

1. Take the high watermark of the changelog, with an uncommitted reader: all that the predecessor committed
   lies below it.
2. Read the changelog, committed records only, until the position is there. Where an open transaction stands
   in the way and its owner has left the group, fence it instead of waiting for its timeout.
3. Read on in `events` and `requests` where the partition's own record says; only where there is none, where
   the group's committed offset says. The record was committed with the state, so the two can't differ.
4. An offset that retention has removed is counted as lost, and never hidden.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from confluent_kafka import Consumer, TopicPartition

from streams.clients import admin
from streams.errors import DataLossError, TopicLayoutError
from streams.reading import PartitionId, PartitionReader, partitions_of, watermarks, where
from streams.records import Record
from streams.settings import Settings
from streams.topic_admin import topic_ids
from streams.transaction import fence
from streams.user_state import Shard

__all__ = ["Shards", "start_offsets"]

log = logging.getLogger("freshet.shards")

INPUTS = ("events", "requests")


class Shards:
    """The partitions that this worker owns."""

    def __init__(self, settings: Settings, group: str, transactional_id: str, factor_width: int) -> None:
        self._settings = settings
        self._group = group
        self._transactional_id = transactional_id
        self._factor_width = factor_width
        self._fenced: set[str] = set()
        self.owned: dict[int, Shard] = {}

    def __getitem__(self, partition: int) -> Shard:
        return self.owned[partition]

    def drop(self) -> None:
        self.owned.clear()

    def restore(self, partitions: Sequence[int], should_stop: Callable[[], bool] = lambda: False) -> bool:
        """Steps 1 and 2 for `partitions`; False when `should_stop` ended it early."""
        started = time.monotonic()
        topic = self._settings.names["user-state"]
        keys: list[PartitionId] = [(topic, partition) for partition in partitions]
        targets = {key: end for key, (_, end) in watermarks(self._settings, keys).items()}  # 1
        shards = {p: Shard(p, self._settings.user_state, self._factor_width) for p in partitions}
        reader = PartitionReader(self._settings, dict.fromkeys(keys, 0))
        records = 0

        def apply(message: Record) -> None:
            nonlocal records
            records += 1
            key = message.key()
            if key is not None:
                shards[message.partition()].restore(key, message.value(), where(message))

        def stuck(behind: set[PartitionId]) -> None:
            for _, partition in behind:
                self._fence_owner(shards[partition])

        try:
            timeouts = self._settings.worker
            patience_s = max(timeouts.rpc_timeout_s, timeouts.transaction_timeout_s + 5.0)
            if not reader.read_to(
                targets, apply, stuck=stuck, should_stop=should_stop, timeout_s=patience_s
            ):  # 2
                return False
        finally:
            reader.close()
        self.owned.update(shards)
        log.info(
            "restored partitions %s: %d users from %d records in %.2f s",
            sorted(partitions),
            sum(len(s.users) for s in shards.values()),
            records,
            time.monotonic() - started,
        )
        return True

    def _fence_owner(self, shard: Shard) -> None:
        owner = shard.owner_transactional_id
        if owner is None or owner == self._transactional_id or owner in self._fenced:
            return
        if shard.owner_worker in self._members():
            return
        self._fenced.add(owner)
        fence(self._settings, owner)

    def _members(self) -> set[str]:
        """Client ids in the group: a worker's client id is its worker id."""
        timeout_s = self._settings.worker.rpc_timeout_s
        client = admin(self._settings)
        described = client.describe_consumer_groups([self._group], request_timeout=timeout_s)[
            self._group
        ].result()
        return {member.client_id for member in described.members}


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
