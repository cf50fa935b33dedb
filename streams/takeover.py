"""Before a partition is restored: nothing that a former owner began may still come to be committed.

A worker that was stopped between its offsets and its commit (a machine that froze, a long pause) can wake up
and commit after its partitions were given away, and would commit what the new owner has read again meanwhile.
So, before anything is read:

1. Ask the group's committed offsets, stable ones (KIP-447): the broker does not answer while a transaction
   that holds offsets of these partitions is open. Once it answers, no such transaction is left, and a new one
   of a former owner is refused, for the group has gone on.
2. Where it does not answer: the open transaction's owner stands in the partition's newest record of
   `user-state`, committed or not. If it has left the group it is fenced, which aborts its transaction now
   instead of after its timeout.
3. Where it still does not answer when every transaction has timed out, go on: the former owners' producers
   are fenced by then, and what `streams.transaction.end_hanging` does has not helped. The partition's own
   record, in its changelog, says where to read on.

Reference: KIP-447, Producer scalability for exactly once semantics; KIP-98, section on zombie fencing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from streams.clients import admin, make_consumer, tail_consumer_config
from streams.errors import BrokerUnavailableError
from streams.kafka_errors import is_passing, named
from streams.reading import PartitionId, watermarks
from streams.retries import RETRIES
from streams.settings import Settings
from streams.transaction import fence
from streams.user_records import PARTITION_KEY

__all__ = ["Owner", "fence_absent", "group_members", "newest_owners", "settle"]

log = logging.getLogger("freshet.takeover")

PATIENT_S = 0.25
"""Stable offsets come within milliseconds where no transaction is open: after so long, look for its owner."""
TAIL_RECORDS = 1000
"""How far a partition's newest record is looked for, back from the end of the changelog and on from where
the first open transaction begins: a transaction writes it behind its users' records, and, where those are
more than half of this, before them too."""
GRACE_S = 5.0
"""Beyond the transaction's timeout: the broker looks for timed-out ones each second or so, ten at most."""


class Owner(msgspec.Struct, frozen=True):
    """Who wrote a partition's record."""

    transactional_id: str
    worker: str


_decoder = msgspec.json.Decoder(Owner)


def settle(
    settings: Settings,
    asker: Consumer,
    member: Consumer,
    transactional_id: str,
    partitions: Sequence[TopicPartition],
    should_stop: Callable[[], bool],
    end_own: Callable[[Consumer], None] = lambda _: None,
) -> bool:
    """Steps 1 and 2 for newly assigned `partitions`; False when `should_stop` ended it early.

    `asker` is a consumer of the group that has not joined it; `member` the one that has, which is not asked
    anything, for this runs within its callback. `end_own` ends what hangs of this worker's own transactions.

    Raises:
        BrokerUnavailableError: the broker answers nothing at all.
        KafkaException: an error that waiting does not mend (not authorised).
    """
    timeouts = settings.worker
    began = time.monotonic()
    deadline = began + max(timeouts.rpc_timeout_s, timeouts.transaction_timeout_s + GRACE_S)
    fenced: set[str] = {transactional_id}
    ended = False
    while not should_stop():
        reason = _unstable(asker, list(partitions))  # 1
        if reason is None:
            return True
        RETRIES.count("metadata")
        fence_absent(settings, {tp.partition for tp in partitions}, fenced, member)  # 2
        if not ended and time.monotonic() - began > PATIENT_S * 4:
            ended = True
            end_own(member)
        if time.monotonic() > deadline:
            _check_answers(settings, reason)
            log.error(
                "%s: no stable offsets of %s (%s), though every transaction that was open has timed out: the"
                " broker has lost the mark that ends one. Going on by the changelog, which says where to read"
                " on.",
                settings.bootstrap_servers,
                settings.worker_group,
                reason,
            )
            return True
    return False


def _check_answers(settings: Settings, reason: str) -> None:
    """A broker that is gone gives no offsets either: then nothing is known, and waiting goes on elsewhere."""
    try:
        watermarks(settings, [(settings.names["user-state"], 0)])
    except KafkaException as error:
        raise BrokerUnavailableError(
            f"{settings.bootstrap_servers}: no stable offsets of {settings.worker_group} ({reason}), and the"
            f" broker does not answer ({named(error.args[0])}). Is it up?"
        ) from error


def fence_absent(
    settings: Settings, numbers: Iterable[int], fenced: set[str], consumer: Consumer | None = None
) -> None:
    """Fence whoever wrote the newest records of these partitions and has left the group; those in `fenced`
    are spared, and those that are fenced are added to it."""
    for owner in newest_owners(settings, numbers):
        if owner.transactional_id not in fenced and owner.worker not in group_members(settings):
            fenced.add(owner.transactional_id)
            fence(settings, owner.transactional_id, consumer)


def _unstable(consumer: Consumer, partitions: list[TopicPartition]) -> str | None:
    """Why the group's stable offsets of `partitions` can't be had yet; None when they can."""
    try:
        found = consumer.committed(partitions, PATIENT_S)
    except KafkaException as error:
        cause: KafkaError = error.args[0]
        if not is_passing(cause):
            raise
        return named(cause)
    errors = [tp.error for tp in found if tp.error is not None]
    for cause in errors:
        if not is_passing(cause):
            raise KafkaException(cause)
    return named(errors[0]) if errors else None


def group_members(settings: Settings) -> set[str]:
    """Client ids in the workers' group: a worker's client id is its worker id."""
    name, timeout_s = settings.worker_group, settings.worker.rpc_timeout_s
    client = admin(settings)  # it must outlive its answer: thrown away before, it never gives one
    described = client.describe_consumer_groups([name], request_timeout=timeout_s)[name].result(timeout_s)
    return {member.client_id for member in described.members}


def newest_owners(settings: Settings, numbers: Iterable[int]) -> set[Owner]:
    """Who wrote the records of these partitions that stand near the end of `user-state`, uncommitted ones
    too."""
    topic = settings.names["user-state"]
    keys: list[PartitionId] = [(topic, number) for number in numbers]
    ends = watermarks(settings, keys)
    stable = watermarks(settings, keys, isolation="read_committed")
    tails = {key: max(low, end - TAIL_RECORDS) for key, (low, end) in ends.items() if low < end}
    opened = {key: stable[key][1] for key, start in tails.items() if stable[key][1] < start}
    owners: set[Owner] = set()
    found = [
        *_uncommitted(settings, tails, {key: end for key, (_, end) in ends.items()}),
        *_uncommitted(settings, opened, {key: start + TAIL_RECORDS for key, start in opened.items()}),
    ]
    for key, value in found:
        if key == PARTITION_KEY and value is not None:
            try:
                owners.add(_decoder.decode(value))
            except (msgspec.DecodeError, msgspec.ValidationError) as error:
                log.warning(
                    "%s: a partition's record that can't be read (%s): not fenced by it", topic, error
                )
    return owners


def _uncommitted(
    settings: Settings, starts: dict[PartitionId, int], ends: dict[PartitionId, int]
) -> Iterable[tuple[bytes | None, bytes | None]]:
    """Keys and values from `starts` to `ends`, of open and aborted transactions too."""
    if not starts:
        return
    config = tail_consumer_config(settings, isolation="read_uncommitted")
    reader = make_consumer({**config, "enable.partition.eof": True})
    try:
        reader.assign([TopicPartition(topic, number, start) for (topic, number), start in starts.items()])
        left, deadline = set(starts), time.monotonic() + settings.worker.rpc_timeout_s
        while left and time.monotonic() < deadline:
            for message in reader.consume(2000, 0.05):
                place = (message.topic() or "", message.partition() or 0)
                error = message.error()
                if error is None:
                    yield message.key(), message.value()
                elif error.code() != KafkaError._PARTITION_EOF:
                    log.info("%s[%d]: %s", *place, named(error))  # the deadline ends it if it stays
                    continue
                if error is not None or (message.offset() or 0) + 1 >= ends[place]:
                    left.discard(place)
    finally:
        reader.close()
