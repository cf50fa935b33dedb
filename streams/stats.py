"""What a worker says of itself: one record a second on `worker-stats`, pre-aggregated."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from serving.registry.swap import SwapEvent
from streams.clients import make_producer, producer_config
from streams.events import WorkerStats
from streams.metrics import LatencyHistogram, StageClock, rss_bytes
from streams.retries import RETRIES

if TYPE_CHECKING:
    from streams.worker import Worker

__all__ = ["StatsReporter"]

log = logging.getLogger("freshet.stats")

REFUSED_KEPT = 20


@dataclass(slots=True)
class Committed:
    """What is counted of a batch once it is committed."""

    records: int
    requests: int
    coalesced: int
    sent_ms: list[int]
    """Kafka times of the records that its lists answer."""


class StatsReporter:
    """Counts what one worker does and reports it each `worker.stats_s`.

    Outside the transactions, with a producer of its own: a report says what was committed, and one that is
    lost is made good by the next, for totals are carried, not differences.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        settings = worker.settings
        self._topic = settings.names["worker-stats"]
        self._interval_s = settings.worker.stats_s
        self._producer = make_producer(producer_config(settings))
        self._encode = msgspec.json.Encoder().encode
        self._state = "starting"
        self._last = time.monotonic()
        self.clock = StageClock()
        self._latency = LatencyHistogram()
        self.committed = 0
        self._swaps = 0
        self._refused: list[str] = []
        self._refusals: Counter[str] = Counter()
        self._clear()

    def _clear(self) -> None:
        self._events = self._lists = self._transactions = self._coalesced = 0
        self._commit_s = 0.0
        self._latency.reset()

    def state(self, state: str) -> None:
        """Say at once that the worker is `starting`, `restoring`, `running` or `stopping`."""
        self._state = state
        self._report()

    def swapped(self, event: SwapEvent) -> None:
        if event.outcome == "swapped" and event.role == "live":
            self._swaps += 1
            log.info("ranker %s is in service (before: %s)", event.version, event.previous)
        elif event.outcome == "swapped":
            log.info("ranker %s is scored beside %s", event.version, event.previous)
        else:
            self._refusals[event.kind] += 1
            self._refused = [*self._refused, event.reason][-REFUSED_KEPT:]
            log.error("%s; %s goes on serving", event.reason, event.previous or "the online models alone")

    def count(self, batch: Committed) -> None:
        """Count a committed batch; its latencies end here, where its lists have become readable."""
        transactions = self._worker.transactions
        self.committed += bool(batch.records or batch.requests)  # progress: not merely a place in the log
        self._events += batch.records
        self._lists += len(batch.sent_ms)
        self._coalesced += batch.coalesced
        self._transactions += 1
        self._commit_s += transactions.commit_s
        transactions.commit_s = 0.0
        now_ms = time.time() * 1000
        for moment in batch.sent_ms:
            self._latency.add(now_ms - moment)

    def report_if_due(self) -> None:
        if time.monotonic() - self._last >= self._interval_s:
            self._report()

    def _report(self) -> None:
        now = time.monotonic()
        record = self._record(now - self._last)
        self._last = now
        self._producer.produce(self._topic, self._encode(record), record.worker.encode())
        self._producer.poll(0)
        self._clear()

    def _record(self, interval_s: float) -> WorkerStats:
        worker = self._worker
        replica = worker.replica
        shards = worker.shards.owned if hasattr(worker, "shards") else {}
        lag, lag_s = worker.source.lag() if self._state == "running" else (None, None)
        ranker = replica.slot.current
        return WorkerStats(
            worker=worker.id,
            epoch=worker.epoch,
            pid=os.getpid(),
            host=socket.gethostname(),
            state=self._state,
            at=int(time.time() * 1000),
            interval_s=round(interval_s, 3),
            events=self._events,
            recommendations=self._lists,
            transactions=self._transactions,
            transaction_ms=round(1000 * self._commit_s / self._transactions, 3)
            if self._transactions
            else 0.0,
            coalesced=self._coalesced,
            stage_s={name: round(seconds, 6) for name, seconds in self.clock.take().items()},
            latency_ms_buckets=self._latency.buckets(),
            latency_p50_ms=self._latency.quantile(0.5) if self._latency.count else None,
            latency_p99_ms=self._latency.quantile(0.99) if self._latency.count else None,
            partitions={str(p): shard.stats for p, shard in shards.items()},
            lag=lag,
            lag_s=lag_s,
            online_offset=replica.offset,
            online_lag=replica.lag(),
            items=len(replica.items.items),
            users=len(worker.shards.users) if hasattr(worker, "shards") else 0,
            ranker=None if ranker is None else ranker.version,
            ranker_providers=[] if ranker is None else ranker.session.providers_in_force,
            swaps=self._swaps,
            refused=self._refused,
            rss_bytes=rss_bytes(),
            retries=RETRIES.counts(),
            refusals=dict(self._refusals),
            trial=worker.tally.taken(),
        )

    def close(self) -> None:
        """Report `stopping` and wait until the report is out."""
        self.state("stopping")
        self._producer.flush(2.0)
