"""Compile what every event goes through, or load it from numba's cache, before the worker joins its group: a
member that compiles for half a minute after it was given partitions is taken for dead."""

from __future__ import annotations

import json
import time

import numpy as np

from online_models.item_state import ItemState, warm_up
from serving.catalogue import Catalogue
from serving.content.vectors import ContentVectors
from serving.pipeline import Pipeline
from streams import user_kernels
from streams.clients import partition_for
from streams.intake import Batch, Intake
from streams.learner import Learner
from streams.learning_log import Interactions, decode_record, learn_record
from streams.records import Header
from streams.settings import Settings, load_settings
from streams.shards import Shard, Shards
from streams.user_records import ShardRecords
from streams.validation import Tombstone

__all__ = ["compile_all", "compile_kernels"]

PARTITIONS = 2
USERS = ("ann", "bob")


class _Event:
    """A record that never was in Kafka."""

    def __init__(self, topic: str, user_id: str, n: int, time_ms: int) -> None:
        self._topic = topic
        self._user_id = user_id
        self._n = n
        self._time_ms = time_ms

    def key(self) -> bytes:
        return self._user_id.encode()

    def value(self) -> bytes:
        n = self._n
        fields = {
            "event_id": f"e{n}",
            "user_id": self._user_id,
            "item_id": f"i{n % 3}",
            "retracts": f"e{n - 2}",
        }
        kind = "retract" if n % 13 == 12 else "rating" if n % 5 == 0 else "click"
        return json.dumps({**fields, "event_type": kind, "timestamp": self._time_ms}).encode()

    def headers(self) -> None:
        return None

    def set_headers(self, value: list[Header], /) -> None:
        raise NotImplementedError("a record for warming up has no headers")

    def topic(self) -> str:
        return self._topic

    def partition(self) -> int:
        return partition_for(self.key(), PARTITIONS)

    def offset(self) -> int:
        return self._n

    def timestamp(self) -> tuple[int, int]:
        return 1, self._time_ms


def compile_kernels(settings: Settings) -> None:
    """Take a handful of made-up events through everything that needs no broker, twice: learned, written,
    read back."""
    warm_up(settings.models)
    items = ItemState(settings.models)
    intake = Intake(settings, PARTITIONS)
    shards = _shards(settings, intake)
    learner = Learner(settings, items, shards, PARTITIONS)
    topic, now_ms = settings.names["events"], 1_700_000_000_000
    records = {p: ShardRecords(p, settings.user_state) for p in range(PARTITIONS)}
    for start in (0, 40):
        made = [_Event(topic, USERS[n % 2], n, now_ms + n) for n in range(start, start + 40)]
        batch = intake.admit(made, shards)
        learner.start(batch)
        for wave in batch.waves():
            _log(learner, items, learner.learn(batch, wave))
        learner.codes.follow(*items.take_changes())
        for partition, keys, values in shards.users.drain_touched():
            for key, value in zip(keys, values, strict=True):
                records[partition].add(key, value, "warm-up")
    _forget(learner, items, intake.admit([], shards))
    again = _shards(settings, intake)
    for one in records.values():
        again.users.restore(one)
    row = again.users.row(USERS[0], partition_for(USERS[0].encode(), PARTITIONS))
    again.users.gather(np.array([row], np.int32), learner.codes.row_of, 1)
    again.users.touch(row)
    user_kernels.compact(again.users.users, user_kernels.RECENT, np.array([row], np.int32))
    again.users.unused_items(learner.codes.named)
    again.users.expire(partition_for(USERS[0].encode(), PARTITIONS), 0, 0)


def _log(learner: Learner, items: ItemState, rows: Interactions | None) -> None:
    for record in learner.log.pack(rows) if rows is not None else ():
        learn_record(items, decode_record(record, "warm-up"), "warm-up")


def _forget(learner: Learner, items: ItemState, batch: Batch) -> None:
    """One of the users, and an item."""
    user, item = (Tombstone(key, 0, 0, 0) for key in (USERS[1], "i0"))
    user.partition = partition_for(USERS[1].encode(), PARTITIONS)
    _log(learner, items, learner.withdrawals.forget_user(user, batch.events))
    _log(learner, items, learner.withdrawals.forget_items([item], batch.events))


def compile_all(settings: Settings) -> float:
    """`compile_kernels` and the kernels of lists; returns the seconds it took: near none from the second time
    on a machine."""
    started = time.monotonic()
    compile_kernels(settings)
    items = ItemState(settings.models)
    content = ContentVectors(embeddings={"any": 1})
    Pipeline(items, Catalogue(items.items), settings.serving, None, content)
    return time.monotonic() - started


def _shards(settings: Settings, intake: Intake) -> Shards:
    shards = Shards(settings, "warm-up", intake.reader.type_names)
    shards.owned.update({p: Shard(p) for p in range(PARTITIONS)})
    return shards


if __name__ == "__main__":
    print(f"kernels compiled in {compile_all(load_settings(environ={})):.1f} s")  # a command
