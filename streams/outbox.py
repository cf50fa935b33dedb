"""What a batch sends besides its lists: dead letters, the learning log, and the changelog."""

from __future__ import annotations

from collections.abc import Mapping

from confluent_kafka import TopicPartition

from streams.bounds import Bounds
from streams.intake import Batch
from streams.learner import Learner
from streams.learning_log import Interactions
from streams.settings import Settings
from streams.shards import INPUTS, Shards
from streams.takeover import TAIL_RECORDS
from streams.transaction import OutputRecord, OutputRecords

__all__ = ["Outbox"]


class Outbox:
    """Makes the records of a batch that was learned. `signature` goes into the partitions' records: the
    transactional id, the worker and its epoch."""

    def __init__(
        self,
        settings: Settings,
        shards: Shards,
        learner: Learner,
        signature: tuple[str, str, int],
        partitions: int,
    ) -> None:
        self._names = settings.names
        self._inputs = {settings.names[name]: name for name in INPUTS}
        self._shards = shards
        self._log = learner.log
        self._bounds = Bounds(settings.user_state, shards, learner.codes)
        self._signature = signature
        self._partitions = partitions

    def records(
        self,
        batch: Batch,
        learned: Interactions | None,
        offsets: list[TopicPartition],
        item_offsets: Mapping[str, int] | None,
    ) -> list[OutputRecord | OutputRecords]:
        """The records of a batch after which the inputs stand at `offsets`, and whose dead letters of `items`
        reach up to `item_offsets`.

        The log goes first: it names items by their codes, and keeping the bounds gives codes back. A
        partition's own record goes last, and first too where many users' stand between: whoever takes over
        finds it near the end, or where the open transaction begins.
        """
        records: list[OutputRecord | OutputRecords] = list(batch.dead)
        if learned is not None:
            for value in self._log.pack(learned):
                records.append(OutputRecord(self._names["interactions"], None, value, partition=0))
        self._bounds.keep()
        for tp in offsets:
            shard = batch.shards[tp.partition] = self._shards[tp.partition]
            shard.next_offsets[self._inputs[tp.topic]] = tp.offset
        if item_offsets is not None and 0 in batch.shards:
            batch.shards[0].item_offsets = dict(item_offsets)
        topic = self._names["user-state"]
        own = [
            OutputRecord(topic, *shard.record(*self._signature, self._partitions), partition)
            for partition, shard in batch.shards.items()
        ]
        many: list[OutputRecords] = [
            OutputRecords(topic, partition, keys, values)
            for partition, keys, values in self._shards.users.drain_touched()
        ]
        large = {one.partition for one in many if len(one.keys) > TAIL_RECORDS // 2}
        return [*records, *(one for one in own if one.partition in large), *many, *own]
