"""The fast path, on one screen: events in, learned from, answered, all in one transaction a micro-batch.

    events ─► decode, validate, dedupe ─► learn ─► retrieve, filter, score, explain ─► recommendations
       └─► events-dlq                       └─► interactions ─► (read back) item models of every worker

One thread does it all, in this order, so that nothing is half done when a rebalance or a signal comes.
Threads of their own have: 1, which runs beside all that does not read the item state (5, 2 and 3); waiting
for the broker in 5, when behind; ONNX Runtime.

1. Follow the learning log, the catalogue and the models topic; swap the ranker if a new one is ready.
2. Take what has arrived, up to `worker.max_batch` records: one or two when it is quiet, hundreds when
   behind.
3. Decode, validate, drop duplicates.
4. Wave by wave (a user's events one after the other): learn, or take back what an event withdraws, and note
   what a list needs to know of the user now; then make all lists at once; then forget who is to be forgotten.
5. Commit everything in one transaction (`streams.transaction` numbers its order); behind, while the next
   batch is computed.

An error in 5 leaves memory ahead of the log: the worker throws its producer, its place in the group and its
shards away, and restores from the log (`_session`).
"""

from __future__ import annotations

import gc
import logging
import math
import secrets
import sys
import time

from confluent_kafka import TopicPartition

from serving.list_encoding import ListEncoder
from streams.allocator import map_large_blocks
from streams.answers import Answers
from streams.clients import wait_for_broker
from streams.committer import Committer
from streams.errors import TransactionLostError, WorkerFencedError
from streams.follower import Follower
from streams.intake import Batch, Intake
from streams.introductions import NOTHING, Introductions
from streams.item_rejects import ItemRejects
from streams.learner import Learner, joined
from streams.learning_log import Interactions, in_phases
from streams.metrics import StageClock
from streams.outbox import Outbox
from streams.records import Record
from streams.rejects import Rejected
from streams.replica import Replica
from streams.settings import Settings
from streams.shadow_judge import ShadowJudge, Tally
from streams.shards import Shards
from streams.source import Source
from streams.stats import Committed, StatsReporter
from streams.stopping import Stop
from streams.takeover import fence_absent
from streams.topic_admin import check_layout
from streams.transaction import OutputRecord, OutputRecords, Transactions, transactional_id
from streams.validation import Tombstone
from streams.verdicts import Verdicts
from streams.warm_up import compile_all

__all__ = ["Worker"]

log = logging.getLogger("freshet.worker")

FENCED_AGAIN_S = 60.0
"""A worker that was only asleep is fenced once; one that is fenced again so soon has a twin, and gives
way."""
STALLED_S = 20.0
"""Beyond a transaction's timeout: how long the learning log may stand still before something is done."""
SWITCH_S = 0.0005
"""Python's turn between threads that both want the interpreter: its own 5 ms is a commit's whole latency."""
COMPILED_S = 5.0
"""Loading the kernels from disk takes less."""
RESTORES_IN_A_ROW = 5
"""Lost transactions without one committed in between, after which the worker gives up and says so."""


class Worker:
    """One worker process. `run` returns after `stop` was called (from a signal handler or another thread)."""

    def __init__(self, settings: Settings, worker_id: str | None = None) -> None:
        self.settings = settings
        self.static = worker_id is not None
        self.id = worker_id or f"worker-{secrets.token_hex(4)}"
        self.epoch = int(time.time() * 1000)
        self.transactional_id = transactional_id(settings, self.id)
        self._stop = Stop()
        self.serving = False
        self.tally = Tally()

    def stop(self) -> None:
        """End soon: finish the batch in hand, commit it, take no more."""
        self._stop.set()

    def run(self) -> None:
        """Serve until stopped.

        Raises:
            FreshetError: something that an operator must mend; the message says what.
        """
        try:
            map_large_blocks()
            self._prepare()
            _tune_interpreter()
            if self.replica.catch_up(self._stop.is_set):
                self._serve()
        finally:
            if hasattr(self, "stats"):
                self._stop.finish(self.stats.close, self.replica.close)

    def _prepare(self) -> None:
        """Everything that a session needs and that outlives it."""
        wait_for_broker(self.settings, self.settings.worker.rpc_timeout_s)
        self.partitions = check_layout(self.settings)
        if (taken_s := compile_all(self.settings)) > COMPILED_S:
            log.info("kernels compiled in %.0f s, once a machine: they are kept on disk", taken_s)
        events = self.partitions["events"]
        self.intake = Intake(self.settings, events)
        self.validator = self.intake.validator
        self.replica = Replica(self.settings, self.validator, self.partitions)
        self.stats = StatsReporter(self)
        self.stats.state("restoring")
        self.follower = Follower(
            self.replica, self.settings.serving, self.stats.swapped, self.settings.ranker.shadow_share
        )
        self.encoder = ListEncoder(self.replica.items.items, self.replica.catalogue)

    def _serve(self) -> None:
        """Sessions until stopped; a lost transaction ends one and begins the next."""
        self.serving = True
        lost, fenced_at = 0, -math.inf
        while not self._stop.is_set():
            committed = self.stats.committed
            try:
                self._session()
                log.info("worker %s stopped: everything it took is committed", self.id)
            except (TransactionLostError, WorkerFencedError) as error:
                lost = 1 if self.stats.committed > committed else lost + 1
                again = isinstance(error, WorkerFencedError) and time.monotonic() - fenced_at < FENCED_AGAIN_S
                if lost >= RESTORES_IN_A_ROW or again:
                    raise
                fenced_at = time.monotonic() if isinstance(error, WorkerFencedError) else fenced_at
                log.error("%s", error)
                self._stop.wait(min(0.2 * 2**lost, 5.0))

    def _session(self) -> None:
        """Join the group and serve until stopped, or until a transaction is lost."""
        settings = self.settings
        self.transactions = Transactions(settings, self.transactional_id, self._stop)
        self.committer = Committer(self.transactions, self.stats.count, settings.worker.max_batch)
        self._patience_s = settings.worker.transaction_timeout_s + STALLED_S
        kinds = self.intake.reader.type_names
        self.shards = Shards(settings, self.transactional_id, kinds)
        self.learner = Learner(settings, self.replica.items, self.shards, self.partitions["events"])
        self.source = Source(
            settings,
            self.shards,
            self.id,
            static=self.static,
            should_stop=self._stop.is_set,
            on_state=self.stats.state,
            settle=self.committer.settle,
            end_own=self.transactions.end_hanging,
        )
        signature = (self.id, self.epoch)
        self.judge = ShadowJudge(self.tally, self.shards, self.learner.codes)
        self.answers = Answers(
            settings, self.follower.pipeline, self.shards, self.learner, self.encoder, *signature, self.judge
        )
        owner = (self.transactional_id, *signature)
        self.outbox = Outbox(settings, self.shards, self.learner, owner, self.partitions["events"])
        self.item_rejects: ItemRejects | None = None
        self.verdicts: Verdicts | None = None
        self._said: list[OutputRecord] = []
        self.introductions, self._arrivals = Introductions(settings, self.replica), NOTHING
        try:
            self.follower.begin()
            while not self._stop.is_set():
                self._step()
            self.committer.settle()
        finally:
            self.follower.end()
            rejects, verdicts = self.item_rejects, self.verdicts
            self._stop.finish(
                self.source.close,
                self.committer.close,
                self.transactions.close,
                lambda: None if rejects is None else rejects.close(),
                lambda: None if verdicts is None else verdicts.close(),
            )

    def _step(self) -> None:
        """One turn of the loop: the five steps of the fast path."""
        clock = self.stats.clock
        with clock.stage("wait"):
            messages = self.source.poll(self.settings.worker.max_batch, self.settings.worker.poll_s)  # 2
            offsets = self.source.positions()
        if not messages:
            self.committer.settle()
        odd_items = self._odd_items()
        if 0 not in self.shards.owned:
            self._said, self._arrivals = [], NOTHING
        if messages or offsets or odd_items or self._said or self._arrivals:
            self._handle(messages, offsets, odd_items, clock)
        else:
            self._followed(clock)
            self.follower.begin()  # 1, of the next turn
        if self.replica.stalled_s > self._patience_s and 0 in self.shards.owned:
            self._free_log()
        self.stats.report_if_due()

    def _free_log(self) -> None:
        """The learning log stands still behind a transaction that should have timed out: one worker, the
        owner of partition 0, ends what absent ones have left hanging."""
        log.error(
            "%s[0]@%d: nothing could be read for %.0f s, though there is more: ending what hangs there",
            self.settings.names["interactions"], self.replica.offset, self.replica.stalled_s,
        )  # fmt: skip
        self._patience_s = self.replica.stalled_s + STALLED_S
        self.committer.settle()
        everywhere = range(self.partitions["events"])
        fence_absent(self.settings, everywhere, {self.transactional_id}, self.source.consumer)
        self.transactions.end_hanging(self.source.consumer)

    def _followed(self, clock: StageClock) -> None:
        """The end of 1: from here on the item state stands still."""
        with clock.stage("follow"):
            self.judge.collect()
            self.follower.join(self.learner.codes)
            self.judge.begin(self.replica.trial)
            self._said += self._verdicts()
            if 0 in self.shards.owned and not self._arrivals:
                self._arrivals = self.introductions.poll()

    def _handle(
        self,
        messages: list[Record],
        offsets: list[TopicPartition],
        odd_items: list[tuple[Record, Rejected | Tombstone]],
        clock: StageClock,
    ) -> None:
        with clock.stage("validate"):
            self.intake.begin_with(self.shards.owned.values())
            batch = self.intake.admit(messages, self.shards)  # 3
            self.learner.start(batch)
        removed = [found for _, found in odd_items if isinstance(found, Tombstone)]
        if odd_items:
            bad = [(record, found) for record, found in odd_items if isinstance(found, Rejected)]
            batch.dead += [self.intake.dead_item(record, rejected) for record, rejected in bad]
            batch.shards[0] = self.shards[0]
        self._followed(clock)
        learned, lists, coalesced = self._learn_and_answer(batch, clock)  # 4
        interactions = joined([*learned, *self._forget(batch, removed, lists)])
        self.follower.begin()  # 1, of the next turn
        with clock.stage("pack"):
            offsets = offsets or self._own_place()
            item_offsets = None if self.item_rejects is None else self.item_rejects.next_offsets()
            said, self._said = self._said, []
            records = [*lists, *said, *self.outbox.records(batch, interactions, offsets, item_offsets)]
        with clock.stage("commit"):
            counted = Committed(batch.records, len(batch.requests), coalesced, self.answers.take_sent_ms())
            self.committer.commit(records, self.source, offsets, counted)  # 5

    def _learn_and_answer(
        self, batch: Batch, clock: StageClock
    ) -> tuple[list[Interactions], list[OutputRecords], int]:
        """Step 4: the learning log's rows, the lists, and how many lists were coalesced."""
        online_offset = self.replica.offset
        learned: list[Interactions] = []
        lists: list[OutputRecords | None] = []
        for wave, chosen in self.answers.waves(batch, self.source):
            with clock.stage("learn"):
                learned.append(self.learner.learn(batch, wave, listed=not learned))
                self.answers.ask(batch, chosen)
        with clock.stage("recommend"):
            lists.append(self.answers.to_events(batch, online_offset))
            lists.append(self.answers.to_requests(batch.requests, online_offset))
        made = [records for records in lists if records is not None]
        return learned, made, self.answers.take_coalesced()

    def _forget(
        self, batch: Batch, removed: list[Tombstone], lists: list[OutputRecords]
    ) -> list[Interactions]:
        """The learning log's rows of users and items to forget, and of items to introduce; the users' lists
        are buried too."""
        withdrawals = self.learner.withdrawals
        if batch.forgotten:
            keys = [one.key.encode() for one in batch.forgotten]
            lists.append(
                OutputRecords(self.settings.names["recommendations"], None, keys, [None] * len(keys))
            )
        rows = [withdrawals.forget_user(one, batch.events) for one in batch.forgotten]
        gone = joined([some for some in rows if some is not None])
        arrivals, self._arrivals = self._arrivals, NOTHING
        rows = [
            None if gone is None else in_phases(gone),
            withdrawals.forget_items(removed, batch.events),
            withdrawals.introduce(arrivals, batch.events),
        ]
        return [some for some in rows if some is not None]

    def _odd_items(self) -> list[tuple[Record, Rejected | Tombstone]]:
        """Rejected `items` records, for the dead letters, and tombstones, for the learning log: the owner of
        partition 0 writes each of them once."""
        self._own_item_rejects(0 in self.shards.owned)
        return [] if self.item_rejects is None else self.item_rejects.poll()

    def _verdicts(self) -> list[OutputRecord]:
        """What became of versions on trial: the owner of partition 0 says so."""
        owned = 0 in self.shards.owned
        if owned and self.verdicts is None:
            self.verdicts = Verdicts(self.settings)
        elif not owned and self.verdicts is not None:
            self.verdicts.close()
            self.verdicts, self._said = None, []
        return [] if self.verdicts is None else self.verdicts.poll(self.replica)

    def _own_item_rejects(self, owned: bool) -> None:
        if owned and self.item_rejects is None:
            offsets = self.shards[0].item_offsets
            self.item_rejects = ItemRejects(self.settings, self.validator, self.partitions["items"], offsets)
        elif not owned and self.item_rejects is not None:
            self.item_rejects.close()
            self.item_rejects = None

    def _own_place(self) -> list[TopicPartition]:
        """An offset to send where none has moved: only with one does the broker check that the group still
        has us."""
        shard = self.shards[0]
        return [TopicPartition(self.settings.names["events"], 0, shard.next_offsets["events"])]


def _tune_interpreter() -> None:
    """Threads take turns often; what lives as long as the process is never looked at again by Python's
    garbage collector, and the rest seldom: a batch's records are thousands of objects without a cycle."""
    sys.setswitchinterval(SWITCH_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
