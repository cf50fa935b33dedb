"""The one list of metrics that `/metrics` shows, and how each is read from the monitor's state.

Names of lag metrics are kafka_exporter's and kafka-lag-exporter's, so that their dashboards work unchanged.
Times are in seconds. No label holds a user or an item. What is not known is left out: an alert can ask for a
missing series, but not tell a false 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from streams.events import PartitionStats, WorkerStats
from streams.lag import PartitionLag
from streams.monitor.metric import MetricSpec, Sample
from streams.monitor.model_metrics import MODEL_METRICS
from streams.monitor.state import MonitorState

__all__ = ["METRICS", "MetricSpec", "Sample", "metrics_table"]

_PARTITION = ("consumergroup", "topic", "partition")


def _lag_samples(value: Callable[[PartitionLag], float | None]) -> Callable[[MonitorState], Iterator[Sample]]:
    def samples(state: MonitorState) -> Iterator[Sample]:
        for row in state.lag:
            found = value(row)
            if found is not None:
                yield (row.group, row.topic, str(row.partition)), found

    return samples


def _lag_sum(state: MonitorState) -> Iterator[Sample]:
    for group, topic in sorted({(row.group, row.topic) for row in state.lag}):
        lags = [row.lag for row in state.lag if (row.group, row.topic) == (group, topic)]
        if None not in lags:
            yield (group, topic), sum(lag for lag in lags if lag is not None)


def _topic_samples(value: Callable[[PartitionLag], int | None]) -> Callable[[MonitorState], Iterator[Sample]]:
    def samples(state: MonitorState) -> Iterator[Sample]:
        found = {(row.topic, str(row.partition)): value(row) for row in state.lag}
        yield from ((labels, offset) for labels, offset in found.items() if offset is not None)

    return samples


def _status(state: MonitorState) -> Iterator[Sample]:
    yield from (((row.group, row.topic, str(row.partition), row.state), 1.0) for row in state.lag)


def _total(field: str) -> Callable[[MonitorState], Iterator[Sample]]:
    def samples(state: MonitorState) -> Iterator[Sample]:
        if state.stats_as_of_ms is not None:
            yield (), getattr(state.totals(), field)

    return samples


def _outcomes(state: MonitorState) -> Iterator[Sample]:
    if state.stats_as_of_ms is not None:
        totals = state.totals()
        for outcome in ("accepted", "rejected", "duplicate", "late"):
            yield (outcome,), getattr(totals, outcome)


def _share(hits: Callable[[PartitionStats], float]) -> Callable[[MonitorState], Iterator[Sample]]:
    def samples(state: MonitorState) -> Iterator[Sample]:
        totals = state.totals()
        if totals.evaluated:
            yield (), hits(totals) / totals.evaluated

    return samples


def _per_worker(value: Callable[[WorkerStats], float | None]) -> Callable[[MonitorState], Iterator[Sample]]:
    """Of the workers that still report: a silent one's last figures are no news."""

    def samples(state: MonitorState) -> Iterator[Sample]:
        for stats in sorted(state.live(), key=lambda stats: stats.worker):
            found = value(stats)
            if found is not None:
                yield (stats.worker,), found

    return samples


def _last_seen(state: MonitorState) -> Iterator[Sample]:
    yield from (((name,), view.stats.at / 1000.0) for name, view in sorted(state.workers.items()))


def _stages(state: MonitorState) -> Iterator[Sample]:
    for stats in sorted(state.live(), key=lambda stats: stats.worker):
        if stats.interval_s > 0:
            yield from (
                ((stats.worker, stage), seconds / stats.interval_s)
                for stage, seconds in stats.stage_s.items()
            )


def _retries(state: MonitorState) -> Iterator[Sample]:
    for stats in sorted(state.live(), key=lambda stats: stats.worker):
        yield from (((stats.worker, kind), count) for kind, count in sorted(stats.retries.items()))


def _as_of(state: MonitorState) -> Iterator[Sample]:
    for source, at in (("broker", state.broker_as_of_ms), ("workers", state.stats_as_of_ms)):
        if at is not None:
            yield (source,), at / 1000.0


def _counts(counts: Callable[[MonitorState], dict[str, int]]) -> Callable[[MonitorState], Iterator[Sample]]:
    def samples(state: MonitorState) -> Iterator[Sample]:
        yield from (((name,), count) for name, count in sorted(counts(state).items()))

    return samples


def _up(state: MonitorState) -> Iterator[Sample]:
    if state.broker_up is not None:
        yield (), float(state.broker_up)


def _latency(state: MonitorState) -> Iterator[Sample]:
    """Buckets by upper bound in seconds, cumulative; empty until the first latency."""
    if state.latency.count:
        for bound_ms, count in state.latency.cumulative():
            yield ("+Inf" if math.isinf(bound_ms) else f"{bound_ms / 1000.0:g}",), count


METRICS: tuple[MetricSpec, ...] = (
    MetricSpec("kafka_consumergroup_lag", "gauge", _PARTITION,
               "Records between the committed offset and the last stable offset.",
               _lag_samples(lambda r: r.lag)),
    MetricSpec("kafka_consumergroup_lag_sum", "gauge", ("consumergroup", "topic"),
               "Lag in records over a topic's partitions; absent while one of them is unknown.",
               _lag_sum),
    MetricSpec("kafka_consumergroup_group_lag_seconds", "gauge", _PARTITION,
               "Age in seconds of the record that is read next; 0 where nothing waits.",
               _lag_samples(lambda r: r.lag_s)),
    MetricSpec("kafka_consumergroup_current_offset", "gauge", _PARTITION,
               "Committed offset: the next one to be read.", _lag_samples(lambda r: r.committed)),
    MetricSpec("kafka_consumergroup_members", "gauge", ("consumergroup",),
               "Members of the group.",
               _counts(lambda s: {name: info.members for name, info in s.groups.items()})),
    MetricSpec("kafka_topic_partition_current_offset", "gauge", ("topic", "partition"),
               "Last stable offset: the end for readers of committed records.",
               _topic_samples(lambda r: r.end)),
    MetricSpec("kafka_topic_partition_oldest_offset", "gauge", ("topic", "partition"),
               "First offset that retention has left.", _topic_samples(lambda r: r.low)),
    MetricSpec("freshet_partition_status", "gauge", (*_PARTITION, "status"),
               "1 for the partition's status word: OK, WARN, STALL, REWIND, UNOWNED, DATA_LOSS or UNKNOWN.",
               _status),
    MetricSpec("freshet_partition_unowned", "gauge", _PARTITION,
               "1 while no member of the group owns the partition, else 0.",
               _lag_samples(lambda r: float(r.owner is None))),
    MetricSpec("freshet_partition_lost_records", "gauge", _PARTITION,
               "Records below the log's start that the group has not read.",
               _lag_samples(lambda r: r.lost)),
    MetricSpec("freshet_events_total", "counter", ("outcome",),
               "Records of `events` since the topic began: accepted, rejected, duplicate or late.",
               _outcomes),
    MetricSpec("freshet_requests_total", "counter", (),
               "Records of `requests` answered.", _total("requests")),
    MetricSpec("freshet_requests_rejected_total", "counter", (),
               "Records of `requests` rejected.", _total("requests_rejected")),
    MetricSpec("freshet_unknown_fields_total", "counter", (),
               "Records with fields that Freshet does not know.", _total("unknown_fields")),
    MetricSpec("freshet_misplaced_total", "counter", (),
               "Records in another partition than their key's hash says.", _total("misplaced")),
    MetricSpec("freshet_lost_total", "counter", (),
               "Records that retention removed before they were read.", _total("lost")),
    MetricSpec("freshet_retracted_total", "counter", (),
               "Events withdrawn by a `retract`.", _total("retracted")),
    MetricSpec("freshet_retracts_unknown_total", "counter", (),
               "`retract`s of an event that is unknown, withdrawn already, too old, or taught nothing.",
               _total("retracts_unknown")),
    MetricSpec("freshet_ratings_replaced_total", "counter", (),
               "Ratings replaced by a new one of the same item by the same user.", _total("replaced")),
    MetricSpec("freshet_users_forgotten_total", "counter", (),
               "Users forgotten because of a tombstone in `users`.", _total("forgotten")),
    MetricSpec("freshet_users_rejected_total", "counter", (),
               "Records of `users` rejected.", _total("users_rejected")),
    MetricSpec("freshet_users_expired_total", "counter", (),
               "Users forgotten because they were idle, or the idlest of too many.", _total("expired")),
    MetricSpec("freshet_recommendations_total", "counter", (),
               "Recommendations written.", _total("recommendations")),
    MetricSpec("freshet_coalesced_total", "counter", (),
               "Events that shared another event's list while the worker was behind.",
               _total("coalesced")),
    MetricSpec("freshet_degraded_total", "counter", (),
               "Recommendations made without the ranker or a source.", _total("degraded")),
    MetricSpec("freshet_evaluated_total", "counter", (),
               "Positive interactions that were judged test-then-learn.", _total("evaluated")),
    MetricSpec("freshet_hits_at_10_total", "counter", (),
               "Judged interactions whose item stood in the top 10 of the user's last list.",
               _total("hits_at_10")),
    MetricSpec("freshet_popularity_hits_at_10_total", "counter", (),
               "The same for the 10 most popular items.", _total("popularity_hits_at_10")),
    MetricSpec("freshet_hit_rate_at_10", "gauge", (),
               "HR@10 of what was served, since the topic began (share, 0 to 1).",
               _share(lambda t: t.hits_at_10)),
    MetricSpec("freshet_popularity_hit_rate_at_10", "gauge", (),
               "HR@10 of popularity on the same interactions.",
               _share(lambda t: t.popularity_hits_at_10)),
    MetricSpec("freshet_ndcg_at_10", "gauge", (),
               "NDCG@10 of what was served, since the topic began.", _share(lambda t: t.ndcg_at_10_sum)),
    MetricSpec("freshet_popularity_ndcg_at_10", "gauge", (),
               "NDCG@10 of popularity on the same interactions.",
               _share(lambda t: t.popularity_ndcg_at_10_sum)),
    MetricSpec("freshet_recommendation_latency_seconds", "histogram", (),
               "Event appended to recommendation committed, since the monitor started; the sum is an estimate"
               " from the buckets' middles.", _latency),
    MetricSpec("freshet_worker_last_seen_timestamp_seconds", "gauge", ("worker",),
               "When the worker made its latest record, Unix time.", _last_seen),
    MetricSpec("freshet_worker_events_per_second", "gauge", ("worker",),
               "Records of `events` handled per second in the last interval.",
               _per_worker(lambda s: s.events / s.interval_s if s.interval_s > 0 else None)),
    MetricSpec("freshet_worker_transaction_seconds", "gauge", ("worker",),
               "Mean time from begin to committed in the last interval.",
               _per_worker(lambda s: s.transaction_ms / 1000.0 if s.transactions else None)),
    MetricSpec("freshet_worker_stage_ratio", "gauge", ("worker", "stage"),
               "Share of the last interval spent in a stage of the fast path.", _stages),
    MetricSpec("freshet_worker_retries_total", "counter", ("worker", "kind"),
               "What the worker tried again since it began: connect, consume, metadata, read, session or"
               " transaction.", _retries),
    MetricSpec("freshet_worker_online_lag_records", "gauge", ("worker",),
               "Records of the learning log that the worker has not applied.",
               _per_worker(lambda s: s.online_lag)),
    MetricSpec("freshet_worker_resident_memory_bytes", "gauge", ("worker",),
               "Resident memory of the worker.", _per_worker(lambda s: s.rss_bytes)),
    MetricSpec("freshet_worker_users", "gauge", ("worker",),
               "Users in the partitions that the worker owns.", _per_worker(lambda s: s.users)),
    MetricSpec("freshet_worker_items", "gauge", ("worker",),
               "Items that the learned state knows.", _per_worker(lambda s: s.items)),
    *MODEL_METRICS,
    MetricSpec("freshet_dead_letters_total", "counter", ("reason",),
               "Records in `events-dlq` by reason.",
               _counts(lambda s: s.dead_letters if s.dead_letters_read else {})),
    MetricSpec("freshet_monitor_bad_records_total", "counter", ("topic",),
               "Records that the monitor could not read.", _counts(lambda s: s.bad_records)),
    MetricSpec("freshet_monitor_as_of_timestamp_seconds", "gauge", ("source",),
               "Latest answer of the broker, and latest record of a worker, Unix time.", _as_of),
    MetricSpec("freshet_broker_up", "gauge", (),
               "1 if the broker answered the last lag reading, else 0.", _up),
)  # fmt: skip
"""Every metric that `/metrics` shows; docs/metrics.md is held equal to it."""


def metrics_table() -> str:
    """The table of docs/metrics.md, as Markdown."""
    rows = []
    for spec in METRICS:
        labels = ", ".join(f"`{label}`" for label in spec.labels) or "-"
        rows.append(f"| `{spec.name}` | {spec.kind} | {labels} | {spec.help} |")
    return "\n".join(("| metric | type | labels | meaning |", "| --- | --- | --- | --- |", *rows))
