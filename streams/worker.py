"""The fast path, on one screen: events in, learned from, answered, all in one transaction a micro-batch.

    events ─► decode, validate, dedupe ─► learn ─► retrieve, filter, score, explain ─► recommendations
       └─► events-dlq                       └─► interactions ─► (read back) item models of every worker

One thread does it all, in this order, so that nothing is half done when a rebalance or a signal comes:

1. Follow the learning log, the catalogue and the models topic; swap the ranker if a new one is ready.
2. Take what has arrived, up to `worker.max_batch` records: one or two when it is quiet, hundreds when
   behind.
3. Decode, validate, drop duplicates.
4. Wave by wave (a user's events one after the other): learn, then make the lists.
5. Commit everything in one transaction (`streams.transaction` numbers its order).

An error in 5 leaves memory ahead of the log: the worker throws its producer, its place in the group and its
shards away, and restores from the log (`_session`).
"""

from __future__ import annotations

import logging
import secrets
import threading
import time

from confluent_kafka import TopicPartition

from online_models.item_state import warm_up
from serving.pipeline import Pipeline
from streams.answers import Answers
from streams.clients import partition_for, wait_for_broker
from streams.errors import TransactionLostError
from streams.intake import Batch, Intake
from streams.learner import Learner
from streams.learning_log import Interaction, pack
from streams.metrics import StageClock
from streams.records import Record
from streams.replica import Replica
from streams.settings import Settings
from streams.shards import Shards
from streams.source import WORKER_GROUP, Source
from streams.stats import StatsReporter
from streams.topic_admin import check_layout
from streams.transaction import OutputRecord, Transactions
from streams.validation import EventValidator

__all__ = ["Worker"]

log = logging.getLogger("freshet.worker")

RESTORES_IN_A_ROW = 5
"""Lost transactions without one committed in between, after which the worker gives up and says so."""


class Worker:
    """One worker process. `run` returns after `stop` was called (from a signal handler or another thread)."""

    def __init__(self, settings: Settings, worker_id: str | None = None) -> None:
        self.settings = settings
        self.static = worker_id is not None
        self.id = worker_id or f"worker-{secrets.token_hex(4)}"
        self.epoch = int(time.time() * 1000)
        self.transactional_id = f"{settings.topics.prefix}freshet-{self.id}"
        self._stop = threading.Event()

    def stop(self) -> None:
        self._stop.set()

    def run(self) -> None:
        """Serve until stopped.

        Raises:
            FreshetError: something that an operator must mend; the message says what.
        """
        wait_for_broker(self.settings, self.settings.worker.rpc_timeout_s)
        partitions = check_layout(self.settings)
        self.partitions = partitions["events"]
        warm_up(self.settings.models)
        validator = EventValidator(self.settings.validation, lambda key: partition_for(key, self.partitions))
        self.replica = Replica(self.settings, validator, partitions)
        self.stats = StatsReporter(self)
        try:
            self.stats.state("restoring")
            if not self.replica.catch_up(self._stop.is_set):
                return
            self.pipeline = Pipeline(self.replica.items, self.replica.catalogue, self.settings.serving)
            self.learner = Learner(self.settings, self.replica.items)
            self._serve(validator)
        finally:
            self.stats.close()
            self.replica.close()
        log.info("worker %s stopped: everything it took is committed", self.id)

    def _serve(self, validator: EventValidator) -> None:
        """Sessions until stopped; a lost transaction ends one and begins the next."""
        lost = 0
        while not self._stop.is_set():
            committed = self.stats.committed
            try:
                self._session(validator)
            except TransactionLostError as error:
                lost = 1 if self.stats.committed > committed else lost + 1
                if lost >= RESTORES_IN_A_ROW:
                    raise
                log.error("%s", error)
                self.stats.restored += 1
                self._stop.wait(min(0.2 * 2**lost, 5.0))

    def _session(self, validator: EventValidator) -> None:
        """Join the group and serve until stopped, or until a transaction is lost."""
        transactions = Transactions(self.settings, self.transactional_id)
        shards = Shards(
            self.settings, WORKER_GROUP, self.transactional_id, self.settings.models.factors.dimension
        )
        source = Source(
            self.settings,
            shards,
            self.id,
            static=self.static,
            should_stop=self._stop.is_set,
            on_state=self.stats.state,
        )
        self.source, self.shards, self.transactions = source, shards, transactions
        self.intake = Intake(self.settings, validator, shards)
        self.answers = Answers(self.settings, self.pipeline, shards, self.id, self.epoch)
        try:
            while not self._stop.is_set():
                self._step()
        finally:
            source.close()
            transactions.close()

    def _step(self) -> None:
        """One turn of the loop: the five steps of the fast path."""
        clock = self.stats.clock
        with clock.stage("follow"):
            if (swap := self.replica.follow()) is not None:  # 1
                self.pipeline.use(self.replica.slot.current)
                self.stats.swapped(swap)
        with clock.stage("wait"):
            messages = self.source.poll(self.settings.worker.max_batch, self.settings.worker.poll_s)  # 2
        if messages or self.source.positions() or self._owes_dead_letters():
            self._handle(messages, clock)
        self.stats.report_if_due()

    def _handle(self, messages: list[Record], clock: StageClock) -> None:
        with clock.stage("validate"):
            batch = self.intake.admit(messages, self.source)  # 3
        interactions, lists, coalesced = self._learn_and_answer(batch, clock)  # 4
        with clock.stage("pack"):
            offsets = self.source.positions() or self._own_place()
            records = [*lists, *self._state_records(batch, interactions, offsets)]
        with clock.stage("commit"):
            self.transactions.commit(records, self.source.consumer, offsets)  # 5
        self.source.committed(offsets)
        if 0 in self.shards.owned:
            self.replica.rejected_items.clear()
        self.stats.count(batch, len(lists), coalesced, self.answers.sent_ms)
        self.answers.sent_ms.clear()

    def _learn_and_answer(
        self, batch: Batch, clock: StageClock
    ) -> tuple[list[Interaction], list[OutputRecord], int]:
        """Step 4: the learning log's rows, the lists, and how many lists were coalesced."""
        online_offset = self.replica.offset
        interactions: list[Interaction] = []
        lists: list[OutputRecord] = []
        waves = list(batch.waves())
        answered = self.answers.choose(waves, self.source)
        for wave, chosen in zip(waves, answered, strict=True):
            with clock.stage("learn"):
                interactions += self.learner.learn(wave)
            with clock.stage("recommend"):
                lists += self.answers.to_events(chosen, online_offset)
        with clock.stage("recommend"):
            lists += self.answers.to_requests(batch.requests, online_offset)
        return interactions, lists, self.answers.take_coalesced()

    def _state_records(
        self, batch: Batch, interactions: list[Interaction], offsets: list[TopicPartition]
    ) -> list[OutputRecord]:
        """Dead letters, the learning log's records, and the changelog of every user and partition touched."""
        names = self.settings.names
        records = list(batch.dead)
        for value in pack(interactions, self.learner.widths, self.replica.items.settings_digest):
            records.append(OutputRecord(names["interactions"], None, value, partition=0))
        for tp in offsets:
            shard = self.shards[tp.partition]
            shard.next_offsets[self.source.name(tp.topic)] = tp.offset
            batch.shards[tp.partition] = shard
        records += self._rejected_items(batch)
        for partition, shard in batch.shards.items():
            changes = [*shard.drain_touched()]
            changes.append(
                shard.partition_record(self.transactional_id, self.id, self.epoch, self.partitions)
            )
            records += [OutputRecord(names["user-state"], key, value, partition) for key, value in changes]
        return records

    def _rejected_items(self, batch: Batch) -> list[OutputRecord]:
        """Rejected `items` records: the owner of partition 0 writes each to the dead letters once. They are
        kept until the transaction is committed, for another session has to write them if it is lost."""
        shard = self.shards.owned.get(0)
        if shard is None or not self.replica.rejected_items:
            return []
        batch.shards[0] = shard
        records = []
        for message, rejected in self.replica.rejected_items:
            key = f"items/{message.partition()}"
            if message.offset() >= shard.next_offsets.get(key, 0):
                shard.next_offsets[key] = message.offset() + 1
                records.append(self.intake.dead_item(message, rejected))
        return records

    def _owes_dead_letters(self) -> bool:
        return bool(self.replica.rejected_items) and 0 in self.shards.owned

    def _own_place(self) -> list[TopicPartition]:
        """An offset to send where none has moved: only with one does the broker check that the group still
        has us."""
        shard = self.shards[0]
        return [TopicPartition(self.settings.names["events"], 0, shard.next_offsets["events"])]
