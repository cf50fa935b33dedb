"""What the monitor knows: workers' latest records, windows of one-second points, models, dead letters.

Plain Python state, rebuilt from Kafka at every start, touched by one thread (the event loop). Totals come
from the workers' `PartitionStats`, the latest for each partition: these are committed with the offsets they
count, so the sum stays exact whichever worker owned the partition when. Rates and latencies come from the
interval of each record.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from serving.registry.verdict import PairedCounts
from streams.events import ModelRecord, PartitionStats, TrialStats, WorkerStats, summed
from streams.lag import GroupInfo, LagSummary, PartitionLag, summarize
from streams.metrics import LatencyHistogram

__all__ = ["HistoryPoint", "MonitorState", "Swap", "WorkerView"]

LATENCY_WINDOW_S = 10.0
"""p50 and p99 are over this many seconds: steady enough to read, short enough to see a swap."""
HIT_WINDOW_S = 60.0
"""The hit rate over time is over this many seconds; tiles show the rate since the topic began."""
SILENT_AFTER_S = 5.0
"""A worker reports each second; one that has said nothing for so long is shown as silent."""
FORGET_AFTER_S = 3600.0
"""A silent worker leaves the page after so long."""
BACKLOG_QUIET_S = 2.0
"""Dead letters from before the start count as all read when none of them came for so long."""
MODELS_KEPT = 200
REASONS_KEPT = 64
"""Bounds on what a stranger who may write to the topics can make the monitor keep."""


class HistoryPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One point of the charts; None where nothing was known."""

    at: int
    events_per_s: float | None
    recommendations_per_s: float | None
    lag: int | None
    lag_s: float | None
    latency_p50_ms: float | None
    latency_p99_ms: float | None
    hit_rate_at_10: float | None
    popularity_hit_rate_at_10: float | None


class Swap(msgspec.Struct, frozen=True, kw_only=True):
    """When the first of the workers was seen serving another ranker version than before."""

    at: int
    worker: str
    version: str


@dataclass(slots=True)
class WorkerView:
    """A worker's latest record and when it came (monotonic seconds)."""

    stats: WorkerStats
    seen_s: float


@dataclass(frozen=True, slots=True)
class _Owned:
    """Latest totals of a partition, from which worker, made when (ms)."""

    totals: PartitionStats
    worker: str
    at: int


@dataclass(frozen=True, slots=True)
class _Judged:
    """Totals of the evaluation at a moment (monotonic seconds)."""

    s: float
    evaluated: int
    hits: int
    popularity_hits: int


def _count(totals: PartitionStats) -> int:
    return totals.accepted + totals.rejected + totals.duplicate + totals.late + totals.recommendations


class MonitorState:
    """Takes records and lag readings, and answers what views ask.

    `now` (wall clock, s) and `clock` (monotonic, s) are given by tests.
    """

    def __init__(
        self,
        history_points: int,
        events_topic: str = "events",
        *,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now, self._clock = now, clock
        self.events_topic = events_topic
        self.started_at_ms = int(now() * 1000)
        self.history: deque[HistoryPoint] = deque(maxlen=history_points)
        self.swaps: deque[Swap] = deque(maxlen=100)
        self.workers: dict[str, WorkerView] = {}
        self.models: dict[tuple[str, str], ModelRecord] = {}
        self.rollbacks = 0
        """Versions that workers rolled back, as far as `models` still says so."""
        self.dead_letters: Counter[str] = Counter()
        self.dead_letters_read = False
        """Whether those from before the start have been counted: until then a total looks like a burst."""
        self._backlog_seen_s = clock()
        self.bad_records: Counter[str] = Counter()
        self.latency = LatencyHistogram()
        """All latencies since the monitor started."""
        self.lag: list[PartitionLag] = []
        self.groups: dict[str, GroupInfo] = {}
        self.broker_up: bool | None = None
        self.broker_error: str | None = None
        self.broker_as_of_ms: int | None = None
        self.stats_as_of_ms: int | None = None
        self._partitions: dict[int, _Owned] = {}
        self._intervals: deque[tuple[float, LatencyHistogram]] = deque()
        self._judged: deque[_Judged] = deque()
        self._unowned_since_s: dict[tuple[str, str, int], float] = {}

    # ---- what comes in

    def take_stats(self, stats: WorkerStats) -> None:
        """A record of `worker-stats`; one that was seen before (at-least-once) changes nothing.

        Raises:
            ValueError: a partition is no number, or a latency bucket is of another version's scheme.
        """
        partitions = {int(number): totals for number, totals in stats.partitions.items()}
        latency = LatencyHistogram(stats.latency_ms_buckets)
        view = self.workers.get(stats.worker)
        if view is not None and (stats.epoch, stats.at) <= (view.stats.epoch, view.stats.at):
            return
        self._take_ranker(stats, None if view is None else view.stats.ranker)
        age_s = max(0.0, self._now() - stats.at / 1000.0)
        self.workers[stats.worker] = WorkerView(stats, self._clock() - age_s)
        self.stats_as_of_ms = max(stats.at, self.stats_as_of_ms or 0)
        for number, totals in partitions.items():
            self._take_totals(number, totals, stats)
        if stats.at >= self.started_at_ms:
            self.latency.merge(latency)
            self._intervals.append((self._clock(), latency))

    def _take_ranker(self, stats: WorkerStats, before: str | None) -> None:
        """Mark a change of version once, though every worker makes it."""
        marked = self.swaps[-1].version if self.swaps else None
        if stats.ranker and stats.ranker not in (before, marked):
            self.swaps.append(Swap(at=stats.at, worker=stats.worker, version=stats.ranker))

    def _take_totals(self, number: int, totals: PartitionStats, stats: WorkerStats) -> None:
        """Keep the further totals: a partition's former owner may report once more after the new one did."""
        old = self._partitions.get(number)
        if old is None or _count(totals) >= _count(old.totals) or stats.at - old.at > 10_000:
            self._partitions[number] = _Owned(totals, stats.worker, stats.at)

    def take_dead_letter(self, reason: str, written_s: float) -> None:
        """A record of `events-dlq`: its reason and Kafka timestamp (s); neither key nor value is kept."""
        if written_s * 1000 < self.started_at_ms:
            self._backlog_seen_s = self._clock()
        known = reason in self.dead_letters or len(self.dead_letters) < REASONS_KEPT
        self.dead_letters[reason if known else "other"] += 1

    def take_model(self, record: ModelRecord) -> None:
        """A record of `models`: a new live version supersedes the one before under the same name."""
        known = self.models.get((record.model, record.version))
        if record.status == "promoted" and known is not None and known.status == "live":
            return
        if record.status == "dropped" and record.trial == "probation":
            self.rollbacks += known is None or (known.status, known.trial) != ("dropped", "probation")
        if record.status == "live":
            if self._is_overtaken(record):
                return
            for key, old in self.models.items():
                if (
                    key[0] == record.model
                    and old.status == "live"
                    and old.published_at <= record.published_at
                ):
                    self.models[key] = msgspec.structs.replace(old, status="superseded")
        self.models[record.model, record.version] = record
        while len(self.models) > MODELS_KEPT:
            del self.models[min(self.models, key=lambda key: self.models[key].published_at)]

    def _is_overtaken(self, record: ModelRecord) -> bool:
        """Whether a verdict made the record, on a version that is no longer the live one."""
        live = [
            old.version for old in self.models.values() if (old.model, old.status) == (record.model, "live")
        ]
        return record.replaces is not None and bool(live) and record.replaces not in live

    def take_bad_record(self, topic: str) -> None:
        self.bad_records[topic] += 1

    def take_lag(self, rows: Sequence[PartitionLag], groups: dict[str, GroupInfo]) -> None:
        """What the broker said about the groups."""
        self.lag, self.groups = list(rows), dict(groups)
        self.broker_up, self.broker_error = True, None
        self.broker_as_of_ms = int(self._now() * 1000)
        now_s = self._clock()
        unowned = {(row.group, row.topic, row.partition) for row in rows if row.owner is None}
        self._unowned_since_s = {key: self._unowned_since_s.get(key, now_s) for key in unowned}

    def take_broker_error(self, message: str) -> None:
        """The broker did not answer: what was known of it is no longer shown as if it were so."""
        self.broker_up, self.broker_error = False, message
        self.lag, self.groups, self._unowned_since_s = [], {}, {}

    def tick(self) -> None:
        """Close one point of the history, and drop what fell out of the windows."""
        now_s = self._clock()
        self.dead_letters_read = self.dead_letters_read or now_s - self._backlog_seen_s > BACKLOG_QUIET_S
        while self._intervals and now_s - self._intervals[0][0] > LATENCY_WINDOW_S:
            self._intervals.popleft()
        totals = self.totals()
        self._judged.append(_Judged(now_s, totals.evaluated, totals.hits_at_10, totals.popularity_hits_at_10))
        while len(self._judged) > 2 and now_s - self._judged[1].s >= HIT_WINDOW_S:
            self._judged.popleft()
        self.workers = {k: v for k, v in self.workers.items() if now_s - v.seen_s < FORGET_AFTER_S}
        self.history.append(self._point())

    def _point(self) -> HistoryPoint:
        lag, (p50, p99), (hit_rate, popularity) = (
            self.lag_summary(),
            self.latency_ms(),
            self._recent_hit_rates(),
        )
        return HistoryPoint(
            at=int(self._now() * 1000),
            events_per_s=self.events_per_s(),
            recommendations_per_s=self.recommendations_per_s(),
            lag=lag.records,
            lag_s=lag.seconds,
            latency_p50_ms=p50,
            latency_p99_ms=p99,
            hit_rate_at_10=hit_rate,
            popularity_hit_rate_at_10=popularity,
        )

    # ---- what is asked

    def totals(self) -> PartitionStats:
        """Sum over partitions of their latest totals, since the topic began."""
        return summed(owned.totals for owned in self._partitions.values())

    def partition_totals(self) -> dict[int, tuple[PartitionStats, str]]:
        """Latest totals by partition, with the worker that reported them."""
        return {number: (owned.totals, owned.worker) for number, owned in sorted(self._partitions.items())}

    def silence_s(self, view: WorkerView) -> float:
        """Seconds since a worker's latest record was made."""
        return max(0.0, self._clock() - view.seen_s)

    def is_live(self, view: WorkerView) -> bool:
        return self.silence_s(view) < max(SILENT_AFTER_S, 3 * view.stats.interval_s)

    def live(self) -> list[WorkerStats]:
        """The latest records of the workers that still report."""
        return [view.stats for view in self.workers.values() if self.is_live(view)]

    def trials(self) -> list[TrialStats]:
        """Trials of two versions, all workers' parts together."""
        found: dict[tuple[str, str, str], TrialStats] = {}
        for trial in (stats.trial for stats in self.live() if stats.trial is not None):
            key = (trial.kind, trial.live_digest, trial.other_digest)
            old = found.get(key)
            counts = trial if old is None else trial.plus(old)
            found[key] = msgspec.structs.replace(
                trial, **{name: getattr(counts, name) for name in PairedCounts.__struct_fields__}
            )
        return [found[key] for key in sorted(found)]

    def now_ms(self) -> int:
        return int(self._now() * 1000)

    def events_per_s(self) -> float | None:
        live = self.live()
        return sum(s.events / s.interval_s for s in live if s.interval_s > 0) if live else None

    def recommendations_per_s(self) -> float | None:
        live = self.live()
        return sum(s.recommendations / s.interval_s for s in live if s.interval_s > 0) if live else None

    def latency_ms(self) -> tuple[float | None, float | None]:
        """p50 and p99 in ms of the last `LATENCY_WINDOW_S` seconds over all workers; None without any."""
        window = LatencyHistogram()
        for _, interval in self._intervals:
            window.merge(interval)
        return window.quantile(0.5), window.quantile(0.99)

    def _recent_hit_rates(self) -> tuple[float | None, float | None]:
        if len(self._judged) < 2:
            return None, None
        first, last = self._judged[0], self._judged[-1]
        judged = last.evaluated - first.evaluated
        if judged <= 0:
            return None, None
        return (last.hits - first.hits) / judged, (last.popularity_hits - first.popularity_hits) / judged

    def lag_summary(self) -> LagSummary:
        return summarize(self.lag)

    def unowned_s(self, row: PartitionLag) -> float | None:
        """For how many seconds a partition has had no owner; None when it has one."""
        since_s = self._unowned_since_s.get((row.group, row.topic, row.partition))
        return None if since_s is None else self._clock() - since_s

    def model_list(self) -> list[ModelRecord]:
        """Model versions, newest first."""
        return sorted(self.models.values(), key=lambda record: record.published_at, reverse=True)
