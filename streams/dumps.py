"""The learning log and the users' state as JSON lines, for audits and curiosity (`freshet log dump`, `state
dump`)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import msgspec

from online_models.learning_batch import LEARN, PAIR, UNCOUNT, UNPAIR, WITHDRAW
from streams.errors import BrokerUnavailableError
from streams.learning_log import LogRecord, decode_record
from streams.log_kinds import DISMISS, FORGET_ITEM, FORGET_USER, INTRODUCE
from streams.reading import PartitionId, PartitionReader, watermarks, where
from streams.records import Record
from streams.settings import Settings
from streams.topic_admin import check_layout
from streams.user_records import ShardRecords

__all__ = ["dump_log", "dump_state", "read_log", "read_shards"]

KINDS = {
    LEARN: "learn",
    WITHDRAW: "withdraw",
    UNPAIR: "unpair",
    PAIR: "pair",
    UNCOUNT: "uncount",
    FORGET_USER: "forget_user",
    FORGET_ITEM: "forget_item",
    INTRODUCE: "introduce",
    DISMISS: "dismiss",
}


def read_shards(settings: Settings) -> dict[int, ShardRecords]:
    """Every partition's users and record, from the committed changelog as it stands now."""
    topic = settings.names["user-state"]
    count = check_layout(settings)["user-state"]
    shards = {p: ShardRecords(p, settings.user_state) for p in range(count)}
    keys: list[PartitionId] = [(topic, partition) for partition in shards]

    def apply(message: Record) -> None:
        key = message.key()
        if key is not None:
            shards[message.partition()].add(key, message.value(), where(message))

    _read_whole(settings, keys, apply)
    return shards


def dump_state(settings: Settings) -> Iterator[dict[str, Any]]:
    """One object for each partition's record, then one for each of its users, by partition and user id."""
    for partition, shard in read_shards(settings).items():
        record = shard.record()
        yield {
            "kind": "partition",
            "partition": partition,
            "next_offsets": shard.next_offsets,
            "transactional_id": None if record is None else record.transactional_id,
            "worker": None if record is None else record.worker,
            "newest_ms": 0 if record is None else record.newest_ms,
            **msgspec.structs.asdict(shard.stats),
        }
        for key in sorted(shard.hot):
            yield shard.user(key).describe(partition)


def dump_log(settings: Settings, *, corrections: bool = False) -> Iterator[dict[str, Any]]:
    """One object for each committed interaction, in log order; `user_id` is None for a user who is no longer
    known. With `corrections` also for each row that takes one back, under the event that asked for it; `kind`
    tells them apart."""
    users = {
        user.token: user_id
        for shard in read_shards(settings).values()
        for user_id, user in shard.users.items()
    }
    for record, offset in read_log(settings):
        for row in _rows(record, offset, users):
            if corrections or row["kind"] == KINDS[LEARN]:
                yield row


def read_log(settings: Settings) -> Iterator[tuple[LogRecord, int]]:
    """Every committed record of the learning log as it ends now, with its offset.

    Raises:
        BrokerUnavailableError: nothing came for `worker.rpc_timeout_s`.
    """
    topic = settings.names["interactions"]
    [(_, end)] = watermarks(settings, [(topic, 0)], isolation="read_committed").values()
    reader = PartitionReader(settings, {(topic, 0): 0})
    last = time.monotonic()
    try:
        while reader.positions[topic, 0] < end:
            records = reader.poll(500, 0.1)
            last = time.monotonic() if records else last
            if time.monotonic() - last > settings.worker.rpc_timeout_s:
                raise BrokerUnavailableError(
                    f"{settings.bootstrap_servers}: nothing of {topic}[0] read for "
                    f"{settings.worker.rpc_timeout_s} s at "
                    f"offset {reader.positions[topic, 0]} of {end}. Is the broker up?"
                )
            for message in records:
                yield decode_record(message.value(), where(message)), message.offset()
    finally:
        reader.close()


def _rows(record: LogRecord, log_offset: int, users: dict[int, str]) -> Iterator[dict[str, Any]]:
    item_ids = record.item_ids
    columns = zip(
        record.event_ids,
        record.column("token", "<u8").tolist(),
        record.column("item", "<i4").tolist(),
        record.column("event_type", "u1").tolist(),
        record.column("time_ms", "<i8").tolist(),
        record.column("weight", "<f4").tolist(),
        record.column("topic", "u1").tolist(),
        record.column("partition", "<i4").tolist(),
        record.column("offset", "<i8").tolist(),
        record.kinds.tolist(),
        strict=True,
    )
    for event_id, token, item, kind, time_ms, weight, topic, partition, offset, does in columns:
        yield {
            "event_id": event_id,
            "user_id": users.get(token),
            "user_token": f"{token:016x}",
            "item_id": item_ids[item] if item >= 0 else None,
            "kind": KINDS[does],
            "event_type": record.event_types[kind],
            "timestamp": time_ms,
            "weight": weight,
            "topic": record.topics[topic],
            "partition": partition,
            "offset": offset,
            "log_offset": log_offset,
        }


def _read_whole(settings: Settings, keys: list[PartitionId], handle: Any) -> None:
    ends = {key: end for key, (_, end) in watermarks(settings, keys, isolation="read_committed").items()}
    reader = PartitionReader(settings, dict.fromkeys(keys, 0))
    try:
        reader.read_to(ends, handle)
    finally:
        reader.close()
