"""The worker's side of the consumer group: batches of `events`, `requests` and `users`, and who owns what."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import cast

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from streams.clients import consumer_config, make_consumer
from streams.errors import BrokerUnavailableError, SettingsError, TopicLayoutError, TransactionLostError
from streams.held import Held
from streams.kafka_errors import DENIED, GONE, fatal_error, is_passing, named
from streams.records import Record
from streams.retries import RETRIES
from streams.settings import Settings
from streams.shards import INPUTS, Shards, start_offsets
from streams.takeover import settle
from streams.topic_admin import check_layout
from streams.transaction import transactional_id

__all__ = ["Source"]

log = logging.getLogger("freshet.source")

Callback = Callable[[Consumer, list[TopicPartition]], None]


TIMES_LOOKED_AT = 64
"""Records of a batch whose times are looked at, for the age of what still waits: all would cost a microsecond
each."""


class Source:
    """Consumes for the workers' group, with the shards following each rebalance.

    All runs on the worker's one thread: rebalance callbacks are called inside `poll`, when no batch is in
    flight, so a revoked partition has nothing half done. `generation` counts assignments and revocations. An
    exception in a callback is kept and comes out of `poll`: swallowed, it would leave partitions without an
    owner, and through librdkafka it would not come out whole.
    """

    def __init__(
        self,
        settings: Settings,
        shards: Shards,
        worker_id: str,
        *,
        static: bool,
        should_stop: Callable[[], bool],
        on_state: Callable[[str], None],
        settle: Callable[[], None] = lambda: None,
        end_own: Callable[[Consumer], None] = lambda _: None,
    ) -> None:
        """`settle` is called before partitions change: what is on its way is committed first. `end_own` is
        for `streams.takeover.settle`."""
        self._settings = settings
        self._shards = shards
        self._transactional_id = transactional_id(settings, worker_id)
        self._should_stop = should_stop
        self._on_state = on_state
        self._settle = settle
        self._end_own = end_own
        config = consumer_config(
            settings, group=settings.worker_group, instance_id=worker_id if static else None
        )
        self.consumer: Consumer = make_consumer({**config, "client.id": worker_id})
        self._incremental = settings.kafka.get("group.protocol") == "consumer"
        self._names = {settings.names[name]: name for name in INPUTS}
        self._last_time_ms: dict[tuple[str, int], int] = {}
        self._callback_error: Exception | None = None
        self._committed: dict[tuple[str, int], int] = {}
        self.generation = 0
        self._held = Held(settings, self.consumer, self._position)
        self.consumer.subscribe(
            list(self._names),
            on_assign=self._kept(self._assigned),
            on_revoke=self._kept(self._revoked),
            on_lost=self._kept(self._lost),
        )

    def _kept(self, callback: Callback) -> Callback:
        """`callback`, with what it raises kept for `poll` and no partition taken."""

        def call(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            try:
                callback(consumer, partitions)
            except Exception as error:  # noqa: BLE001  # `poll` raises it again, on this side of librdkafka
                self._callback_error = self._callback_error or error
                self._take_nothing(consumer)

        return call

    def _take_nothing(self, consumer: Consumer) -> None:
        if self._incremental:
            consumer.incremental_assign([])
        else:
            consumer.assign([])

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._settle()
        self.generation += 1
        # A blocking call of the client whose callback this is would end the process with that client's next
        # log line (confluent-kafka 2.16 forgets a callback's state with a call within it): another one asks.
        asker: Consumer = make_consumer(consumer_config(self._settings, group=self._settings.worker_group))
        try:
            self._take_over(consumer, asker, partitions)
        finally:
            asker.close()

    def _take_over(self, consumer: Consumer, asker: Consumer, partitions: list[TopicPartition]) -> None:
        numbers = sorted({tp.partition for tp in partitions} - set(self._shards.owned))
        log.info("assigned %s", [f"{tp.topic}[{tp.partition}]" for tp in partitions])
        self._check_together(consumer, partitions)
        if numbers:
            check_layout(self._settings)  # partitions may have been added since the start
            self._on_state("restoring")
            stop = self._should_stop
            if not (
                settle(
                    self._settings, asker, consumer, self._transactional_id, partitions, stop, self._end_own
                )
                and self._shards.restore(numbers, stop)
            ):
                self._take_nothing(consumer)
                return
        fresh = {number for number in numbers if not self._shards[number].next_offsets}
        starts = start_offsets(self._settings, asker, self._shards, partitions)
        for tp in starts:
            if tp.partition in fresh and tp.offset > 0:
                log.warning(
                    "%s[%d]: read from offset %d on without any state in user-state: either Freshet is new on"
                    " this topic, or the changelog was emptied, and its users begin anew",
                    tp.topic, tp.partition, tp.offset,
                )  # fmt: skip
        self._committed.update({(tp.topic, tp.partition): -1 for tp in partitions})
        if self._incremental:
            consumer.incremental_assign(starts)
        else:
            consumer.assign(starts)
        self._on_state("running")

    def _check_together(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Refuse an assignment that does not hold the same partition numbers of each input.

        Raises:
            TopicLayoutError: it does not; users' events would be learned here and their requests answered
                elsewhere.
        """
        given = [*partitions, *(consumer.assignment() if self._incremental else [])]
        numbers = {name: sorted({tp.partition for tp in given if tp.topic == name}) for name in self._names}
        if len(set(map(tuple, numbers.values()))) > 1:
            listed = ", ".join(f"{name} {found}" for name, found in numbers.items())
            raise TopicLayoutError(
                f"the group {self._settings.worker_group} gave this worker other partitions of one input than"
                f" of the other: {listed}. Something else consumes in this group, or with another assignor:"
                " end it, or give it a group of its own; all workers need the same [kafka] group.* settings."
            )

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._settle()
        self.generation += 1
        log.info("revoked %s", [f"{tp.topic}[{tp.partition}]" for tp in partitions])
        for tp in partitions:
            self._shards.drop([tp.partition])
            self._committed.pop((tp.topic, tp.partition), None)
        if self._incremental:
            consumer.incremental_unassign(partitions)
        else:
            consumer.unassign()

    def _lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        log.warning(
            "lost %s: the group went on without this worker",
            [f"{tp.topic}[{tp.partition}]" for tp in partitions],
        )
        self._revoked(consumer, partitions)

    def poll(self, limit: int, wait_s: float) -> list[Record]:
        """The next micro-batch: whatever has arrived, up to `limit`, waiting at most `wait_s` for the first
        record; tombstones of users behind the events that came before them (`streams.held`).

        Raises:
            FreshetError: a fatal client error (fenced, not authorised, topic gone); librdkafka retries all
                others itself.
            TransactionLostError: taking partitions over failed in passing.
        """
        generation = self.generation
        batch = self._good(self.consumer.consume(1, wait_s))
        if batch and limit > 1:
            batch += self._good(self.consumer.consume(limit - 1, 0))
        if self._callback_error is not None:
            self._raise_callback_error()
        if generation == self.generation:
            return self._held.exchange(batch)
        self._held.clear()
        self._rewind()
        return []

    def _raise_callback_error(self) -> None:
        """What a rebalance callback raised; Kafka's passing errors as a lost session, which is begun anew."""
        error, self._callback_error = self._callback_error, None
        if isinstance(error, KafkaException):
            cause: KafkaError = error.args[0]
            if not is_passing(cause) and cause.code() not in _LOST:
                raise fatal_error(cause, "taking partitions over") from error
        if isinstance(error, KafkaException | BrokerUnavailableError):
            RETRIES.count("session")
            raise TransactionLostError(
                f"taking partitions over failed: {error}; it is tried again"
            ) from error
        if error is not None:
            raise error

    def _rewind(self) -> None:
        """A rebalance came between the records of one batch: which of them are still ours can't be told, so
        none is taken, and all partitions are read on from where their state stands."""
        assigned = [tp for tp in self.consumer.assignment() if tp.partition in self._shards.owned]
        for tp in assigned:
            tp.offset = self._shards[tp.partition].next_offsets[self._names[tp.topic]]
        if not assigned:
            return
        if self._incremental:
            for tp in assigned:
                self.consumer.seek(tp)
        else:
            self.consumer.assign(assigned)

    def _good(self, messages: list[Message]) -> list[Record]:
        good = [cast(Record, message) for message in messages if message.error() is None]
        for record in (*good[:: max(1, len(good) // TIMES_LOOKED_AT)], *good[-1:]):
            self._last_time_ms[record.topic(), record.partition()] = record.timestamp()[1]
        if len(good) < len(messages):
            self._explain([error for message in messages if (error := message.error()) is not None])
        return good

    def _explain(self, errors: list[KafkaError]) -> None:
        """Raise what can't be waited out, tell the rest."""
        for error in errors:
            if error.code() == KafkaError.INVALID_SESSION_TIMEOUT:
                raise SettingsError(
                    "setting worker.session_timeout_s: the broker does not take"
                    f" {self._settings.worker.session_timeout_s:g} s ({error.name()}). Choose one between its"
                    " group.min.session.timeout.ms (6000 by default) and group.max.session.timeout.ms."
                )
            if error.fatal() or error.code() in _FATAL:
                raise fatal_error(error, f"consuming as {self._settings.worker_group}")
            log.warning("consumer: %s; retried (%d)", named(error), RETRIES.count("consume"))

    def positions(self) -> list[TopicPartition]:
        """Next offsets of the assigned partitions that moved since they were last committed; where nothing
        has been read yet, the offset to start from."""
        moved = []
        for tp in self.consumer.position(self.consumer.assignment()):
            tp.offset = self._read_to(tp)
            if self._names[tp.topic] == "users" and (held := self._held.offset(tp.partition)) is not None:
                tp.offset = held
            if self._committed.get((tp.topic, tp.partition)) != tp.offset:
                moved.append(tp)
        return moved

    def _read_to(self, position: TopicPartition) -> int:
        """The position's offset; where nothing has been read yet, the one to start from."""
        if position.offset >= 0:
            return position.offset
        return self._shards[position.partition].next_offsets[self._names[position.topic]]

    def _position(self, topic: str, partition: int) -> int:
        [found] = self.consumer.position([TopicPartition(topic, partition)])
        return self._read_to(found)

    def committed(self, offsets: list[TopicPartition]) -> None:
        self._committed.update({(tp.topic, tp.partition): tp.offset for tp in offsets})

    def lag(self) -> tuple[int, float]:
        """Records still to read in the assigned partitions, and the age in seconds of the oldest of them, as
        far as this worker has seen: the high watermark is the last fetch's."""
        total, oldest_ms = 0, None
        now_ms = time.time() * 1000
        for tp in self.consumer.position(self.consumer.assignment()):
            _, high = self.consumer.get_watermark_offsets(tp, cached=True)
            waiting = max(0, high - tp.offset) if tp.offset >= 0 else max(0, high)
            total += waiting
            seen_ms = self._last_time_ms.get((tp.topic, tp.partition))
            if waiting and seen_ms is not None:
                oldest_ms = seen_ms if oldest_ms is None else min(oldest_ms, seen_ms)
        return total, 0.0 if oldest_ms is None else max(0.0, (now_ms - oldest_ms) / 1000)

    def close(self) -> None:
        """Leave the group (a static member keeps its place until the session times out) and close."""
        self.consumer.close()


_FATAL = frozenset(
    {
        *DENIED,
        *GONE,
        KafkaError._FATAL,
        KafkaError._AUTHENTICATION,
        KafkaError.FENCED_INSTANCE_ID,
        KafkaError.UNRELEASED_INSTANCE_ID,
        KafkaError.INCONSISTENT_GROUP_PROTOCOL,
        KafkaError.UNSUPPORTED_ASSIGNOR,
    }
)

_LOST = frozenset(
    {KafkaError.UNKNOWN_MEMBER_ID, KafkaError.ILLEGAL_GENERATION, KafkaError.STALE_MEMBER_EPOCH}
)
"""The group went on while partitions were being taken over: they are another's by now."""
