"""One micro-batch, one transaction: the order on which exactly-once depends.

1. Compute everything in memory; no transaction is open, so a slow step holds nobody back.
2. Begin.
3. Produce recommendations, `user-state`, `interactions` and dead letters.
4. Send the consumed offsets, as positions, with the group's metadata of this very moment: the broker then
   refuses the batch of a worker that has lost its partitions.
5. Commit. Only now is anything of the batch visible to readers of committed records.
6. Only now may the batch be counted and the next one's transaction begin.

Where the worker is behind, 4 and 5 wait for the broker in a thread of their own, while the next batch is
computed (1): its transaction begins when this one is committed, and if this one is lost, so is what was
computed on it.

An error or a timeout anywhere in 2 to 5 leaves memory ahead of the log. There is no way back from that but
the log itself: `TransactionLostError` tells the worker to throw its producer and its shards away and restore.

With `delivery = "at_least_once"` the same records are flushed and the offsets committed after them: a crash
between the two learns a batch twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from streams.clients import make_producer, producer_config
from streams.errors import BrokerUnavailableError, FreshetError, TransactionLostError, WorkerFencedError
from streams.guard import Guard
from streams.kafka_errors import DENIED, FENCED, cause_of, fatal_error, is_passing, named
from streams.retries import RETRIES
from streams.settings import Settings
from streams.stopping import Stop

__all__ = ["OutputRecord", "OutputRecords", "Transactions", "fence", "transactional_id"]

log = logging.getLogger("freshet.transaction")

OUTPUTS = ("interactions", "user-state", "recommendations", "events-dlq", "models")
"""The topics that a transaction writes to."""
HANGING_KEY = b"\x00hanging"
"""Of the records of `end_hanging`: ids hold no control characters, and those are never committed."""
OUTAGE_S = 900.0
"""How long a worker that has begun waits for a broker that went away: restored from the log it goes on as if
nothing had been. Ended and started again it would find no broker either."""


@dataclass(slots=True)
class OutputRecord:
    """One record to produce; `partition` None lets the partitioner place it by key."""

    topic: str
    key: bytes | None
    value: bytes | None
    partition: int | None = None
    headers: Sequence[tuple[str, bytes | str | None]] | None = None


@dataclass(slots=True)
class OutputRecords:
    """Many records alike; a value of None is a tombstone. Without a partition the partitioner places them."""

    topic: str
    partition: int | None
    keys: Sequence[bytes]
    values: Sequence[bytes | None]
    headers: Sequence[tuple[str, bytes | str | None]] | None = None


REPORTED_BYTES = 65_536
"""Of many records alike, the first and those above this size report how they fared, and name the place if
they are refused: what a broker refuses of a topic it refuses of the first, or for its size."""


HANGS = "send_offsets_to_transaction"
HUNG_S = 5.0
"""Beyond a transaction's timeout, when the broker has aborted it anyway: that call will not come back."""

_NEVER_TAKEN = frozenset(
    {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE, KafkaError.INVALID_RECORD}
)
"""What a broker says of a record that it will refuse however often it is sent."""

_PURGED = frozenset({KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT})
"""What an abort says of records that it threw away; may be reported before the record that caused it."""


def transactional_id(settings: Settings, worker_id: str) -> str:
    """The id under which a worker commits: stable over its restarts, so that each fences the one before."""
    return f"{settings.topics.prefix}freshet-{worker_id}"


class Transactions:
    """Commits micro-batches under one transactional id."""

    def __init__(self, settings: Settings, transactional_id: str, stop: Stop | None = None) -> None:
        self._settings = settings
        self.transactional_id = transactional_id
        self.exactly_once = settings.worker.delivery == "exactly_once"
        self._timeout_s = settings.worker.rpc_timeout_s
        self._limit_s = settings.worker.transaction_timeout_s + HUNG_S
        self._stop = stop or Stop()
        config = producer_config(settings, transactional_id=transactional_id if self.exactly_once else None)
        self._producer = make_producer(config)
        self._guard = Guard(self._stop)
        self._failed: tuple[KafkaError, str] | None = None
        self.committed = 0
        self.commit_s = 0.0
        self._started = 0.0
        if self.exactly_once:
            _initialise(self._producer, transactional_id, OUTAGE_S, self._stop)
            end_hanging(settings, self._producer, self._guard)

    def commit(
        self,
        records: Iterable[OutputRecord | OutputRecords],
        consumer: Consumer,
        offsets: list[TopicPartition],
    ) -> None:
        """Steps 2 to 5 for one batch; raises what `begin` and `finish` raise."""
        self.begin(records)
        self.finish(self.member(consumer), offsets)

    def begin(self, records: Iterable[OutputRecord | OutputRecords]) -> None:
        """Steps 2 and 3: on their way to the broker when this returns.

        Raises:
            TransactionLostError: the batch can't be committed; memory must be restored from the log.
            WorkerFencedError: another process has taken this one's place; this one must end.
        """
        self._started = time.perf_counter()
        with self._explained():
            if self.exactly_once:
                self._producer.begin_transaction()  # 2
            self._produce(records)  # 3

    def member(self, consumer: Consumer) -> Any:
        """What `finish` needs of the consumer, asked for in the consumer's own thread: the group's metadata.

        A call of the consumer from another thread would wait for a rebalance callback that waits for it. With
        at_least_once it is the consumer itself, and `finish` is for its own thread too.

        Raises:
            TransactionLostError: the group has thrown this worker out.
        """
        with self._explained():
            return _membership(consumer) if self.exactly_once else consumer

    def finish(self, member: Any, offsets: list[TopicPartition]) -> None:
        """Steps 4 and 5, with `exactly_once` in any thread, while no other transaction is begun; `member` as
        `member` gave it after `begin`.

        Raises:
            TransactionLostError: the batch may not have been committed; memory must be restored from the log.
            WorkerFencedError: another process has taken this one's place; this one must end.
        """
        with self._explained():
            if self.exactly_once:
                self._commit_transaction(member, offsets)
            else:
                self._flush_then_commit(member, offsets)
        self.committed += 1
        self.commit_s += time.perf_counter() - self._started

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """librdkafka's errors as the two kinds that the worker tells apart, and those that end it."""
        try:
            yield
        except (KafkaException, SystemError) as error:
            raise self._failure(cause_of(error)) from error

    def end_hanging(self, consumer: Consumer) -> None:
        """What `end_hanging` does, under this worker's own id, while no transaction is open."""
        if self.exactly_once:
            end_hanging(self._settings, self._producer, self._guard, consumer)

    def _failure(self, cause: KafkaError) -> FreshetError:
        """The error to raise for `cause`, after the transaction was aborted where that is allowed."""
        RETRIES.count("session")
        if cause.code() in FENCED:
            return WorkerFencedError(
                f"{self.transactional_id} was fenced ({cause.name()}): another worker runs under this id, or"
                " the group took this one for dead and gave its partitions away, or it stood still for longer"
                " than worker.transaction_timeout_s. Nothing of the open batch was committed. Give each"
                " worker an --id of its own."
            )
        self._give_up(cause)
        failed, self._failed = self._failed, None  # only now: the abort also brings the delivery reports
        if failed is None and cause.code() in _NEVER_TAKEN:  # records that ask for no report
            failed = (cause, f"transaction of {self.transactional_id}")
        if failed is not None and failed[0].code() in _NEVER_TAKEN:
            return FreshetError(
                f"{failed[1]}: {named(failed[0])}. The broker will never take it, so the"
                " batch can't be committed: raise max.message.bytes of that topic, then start again."
            )
        denied = next((e for e in (cause, failed and failed[0]) if e and e.code() in DENIED), None)
        if denied is not None:
            place = f" ({failed[1]})" if failed is not None else ""
            return fatal_error(denied, f"transaction of {self.transactional_id}{place}")
        return TransactionLostError(
            f"transaction of {self.transactional_id} failed: {named(cause)}; state is restored from the log"
        )

    def _commit_transaction(self, group: Any, offsets: list[TopicPartition]) -> None:
        producer = self._producer
        self._patiently(lambda slice_s: self._send_offsets(offsets, group, slice_s))  # 4
        self._patiently(producer.commit_transaction)  # 5
        self._check_deliveries()

    def _send_offsets(self, offsets: list[TopicPartition], group: Any, slice_s: float) -> None:
        send = self._producer.send_offsets_to_transaction
        self._guard.call(lambda: send(offsets, group, slice_s), self._limit_s, HANGS)

    def _patiently(self, call: Callable[[float], object]) -> None:
        self._stop.patiently(call, self._timeout_s)

    def _flush_then_commit(self, consumer: Consumer, offsets: list[TopicPartition]) -> None:
        left = self._producer.flush(self._timeout_s)
        self._check_deliveries()
        if left:
            raise KafkaException(
                KafkaError(KafkaError._TIMED_OUT, f"{left} records not delivered within {self._timeout_s} s")
            )
        consumer.commit(offsets=offsets, asynchronous=False)

    def _produce(self, records: Iterable[OutputRecord | OutputRecords]) -> None:
        for record in records:
            if isinstance(record, OutputRecords):
                self._produce_many(record)
                continue
            options: dict[str, Any] = {"on_delivery": self._delivered}
            if record.partition is not None:
                options["partition"] = record.partition
            if record.headers is not None:
                options["headers"] = list(record.headers)
            self._produce_one(record.topic, record.value, record.key, options)
        self._producer.poll(0)

    def _produce_one(
        self, topic: str, value: bytes | None, key: bytes | None, options: Mapping[str, Any]
    ) -> None:
        while True:
            try:
                self._producer.produce(topic, value, key, **options)
                return
            except BufferError:
                self._producer.poll(0.01)
            except KafkaException as error:
                self._failed = (error.args[0], f"{topic}: a record of {len(value or b'')} bytes")
                raise

    def _produce_many(self, records: OutputRecords) -> None:
        produce, topic = self._producer.produce, records.topic
        options: dict[str, Any] = {}
        if records.partition is not None:
            options["partition"] = records.partition
        if records.headers is not None:
            options["headers"] = list(records.headers)
        reported = {**options, "on_delivery": self._delivered}
        options = options if self.exactly_once else reported  # no commit would fail for a record that did
        first = True
        for key, value in zip(records.keys, records.values, strict=True):
            if first or (value is not None and len(value) > REPORTED_BYTES):
                self._produce_one(topic, value, key, reported)
                first = False
                continue
            try:
                produce(topic, value, key, **options)
            except BufferError:
                self._produce_one(topic, value, key, reported)

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None and self._failed is None and error.code() not in _PURGED:
            place = f"{message.topic()}[{message.partition()}]"
            self._failed = (error, f"{place}: a record of {len(message.value() or b'')} bytes")
            log.error("%s: not delivered: %s", place, named(error))

    def _check_deliveries(self) -> None:
        if self._failed is not None:
            raise KafkaException(self._failed[0])

    def _give_up(self, cause: KafkaError) -> None:
        """Abort where the protocol allows it, so that readers are not held back until the timeout."""
        if not self.exactly_once or cause.fatal() or self._stop.expired():
            return  # whoever comes next under this id aborts it with its first call
        try:
            self._patiently(self._producer.abort_transaction)
        except (KafkaException, SystemError) as error:
            log.warning("abort of %s failed too: %s", self.transactional_id, cause_of(error).str())

    def close(self) -> None:
        """Let go of the producer; anything still queued is dropped, for it belongs to no committed batch."""
        self._guard.close()
        if self._guard.hung:
            return  # what still stands in a call of the producer keeps it
        try:
            self._producer.purge()
            self._producer.flush(1.0)
        except (KafkaException, SystemError) as error:  # what ended the last transaction, told once more
            log.warning("producer of %s: %s", self.transactional_id, cause_of(error).str())


def _membership(consumer: Consumer) -> Any:
    """The group's metadata with which the broker checks that this member still owns what it commits.

    Thrown out of the group, a consumer has no member id, and the broker would take its offsets unchecked
    while the group is empty: that is an error here, as the check would have been.
    """
    member = consumer.memberid()
    group = consumer.consumer_group_metadata()
    if not member or consumer.memberid() != member:
        raise KafkaException(KafkaError(KafkaError.UNKNOWN_MEMBER_ID, "the group has thrown this worker out"))
    return group


def fence(settings: Settings, transactional_id: str, consumer: Consumer | None = None) -> None:
    """Abort what a dead worker left open: take its transactional id over for a moment. `consumer`: a member
    of the workers' group, whose offsets are then freed too.

    A read_committed reader waits behind an open transaction until it times out; whoever takes over the dead
    worker's partition need not.
    """
    log.warning("fencing transactional id %s, which left a transaction open", transactional_id)
    producer = make_producer(producer_config(settings, transactional_id=transactional_id))
    stop = Stop()
    _initialise(producer, transactional_id, settings.worker.rpc_timeout_s, stop)
    guard = Guard(stop)
    try:
        end_hanging(settings, producer, guard, consumer)
    finally:
        guard.close()


def end_hanging(
    settings: Settings, producer: Producer, guard: Guard, consumer: Consumer | None = None
) -> None:
    """End whatever `producer`'s id may still have open in a partition, though its transaction is over.

    A broker that was killed while a transaction was open was seen (Kafka 4.3.1) to end it after its restart
    without the mark that says so in the partitions: readers of committed records then wait there for ever, a
    hanging transaction (KIP-664). The mark of a later transaction of the same producer id ends it too, so one
    that holds a record for each partition the workers write, and the group's offsets where there is a
    consumer, is begun and aborted. Nobody ever sees its records.
    """
    wait_s = settings.worker.transaction_timeout_s / 2
    try:
        producer.begin_transaction()
        for name in OUTPUTS:
            topic = settings.names[name]
            for partition in producer.list_topics(topic, wait_s).topics[topic].partitions:
                producer.produce(topic, None, HANGING_KEY, partition)
        producer.flush(wait_s)  # aborted before they are sent, they would leave no mark
        if consumer is not None and consumer.memberid():
            events = settings.names["events"]
            found = producer.list_topics(events, wait_s).topics[events].partitions
            places = [TopicPartition(events, partition, 0) for partition in found]
            group = consumer.consumer_group_metadata()
            send = producer.send_offsets_to_transaction
            guard.call(lambda: send(places, group, wait_s), wait_s + HUNG_S, HANGS)
        producer.abort_transaction(wait_s)
    except (KafkaException, SystemError) as error:
        log.warning("ending what may hang of an earlier transaction failed: %s", named(cause_of(error)))
        try:
            producer.abort_transaction(wait_s)
        except (KafkaException, SystemError) as again:
            log.warning("and so did the abort: %s", named(cause_of(again)))


def _initialise(producer: Producer, transactional_id: str, timeout_s: float, stop: Stop) -> None:
    """Fence a predecessor of the same id and abort what it left open; retried while the coordinator loads.

    Raises:
        BrokerUnavailableError: it did not work within `timeout_s` seconds.
        FreshetError: it is not allowed.
    """
    try:
        stop.patiently(producer.init_transactions, timeout_s)
    except (KafkaException, SystemError) as error:
        cause = cause_of(error)
        if is_passing(cause) and stop.is_set():
            raise TransactionLostError(
                f"{transactional_id}: told to stop while Kafka did not answer"
            ) from error
        if is_passing(cause):
            raise BrokerUnavailableError(
                f"transactional id {transactional_id}: {named(cause)} for {timeout_s:g} s. Check that the"
                " broker runs and that its __transaction_state topic is available."
            ) from error
        raise fatal_error(cause, f"transactional id {transactional_id}") from error
