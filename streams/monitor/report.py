"""`/api/state`: the monitor's state as one JSON object, for the live page and for scripts."""

from __future__ import annotations

from typing import Any

import msgspec

from streams.events import ModelRecord, PartitionStats
from streams.lag import PartitionLag
from streams.monitor.state import MonitorState, WorkerView

__all__ = ["state_report"]


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None


def _rounded(value: float | None, digits: int = 3) -> float | None:
    return None if value is None else round(value, digits)


def state_report(state: MonitorState, since_ms: int = 0) -> dict[str, Any]:
    """Everything the page shows; of the history only the points after `since_ms`. Unknown is None."""
    totals, lag, (p50, p99) = state.totals(), state.lag_summary(), state.latency_ms()
    return {
        "now": state.now_ms(),
        "as_of": state.broker_as_of_ms,
        "stats_as_of": state.stats_as_of_ms,
        "started_at": state.started_at_ms,
        "broker_up": state.broker_up,
        "broker_error": state.broker_error,
        "totals": totals,
        "hit_rate_at_10": _share(totals.hits_at_10, totals.evaluated),
        "popularity_hit_rate_at_10": _share(totals.popularity_hits_at_10, totals.evaluated),
        "ndcg_at_10": _share(totals.ndcg_at_10_sum, totals.evaluated),
        "popularity_ndcg_at_10": _share(totals.popularity_ndcg_at_10_sum, totals.evaluated),
        "events_per_s": _rounded(state.events_per_s()),
        "recommendations_per_s": _rounded(state.recommendations_per_s()),
        "latency_p50_ms": _rounded(p50),
        "latency_p99_ms": _rounded(p99),
        "lag": lag.records,
        "lag_s": _rounded(lag.seconds),
        "unowned": lag.unowned,
        "lost": lag.lost,
        "groups": {
            name: {"state": info.state, "members": info.members} for name, info in state.groups.items()
        },
        "partitions": _partitions(state),
        "workers": [_worker(state, view) for _, view in sorted(state.workers.items())],
        "trials": state.trials(),
        "rollbacks": state.rollbacks,
        "models": [_model(record) for record in state.model_list()],
        "swaps": list(state.swaps),
        "dead_letters": dict(state.dead_letters),
        "bad_records": dict(state.bad_records),
        "history": [point for point in state.history if point.at > since_ms],
    }


def _partitions(state: MonitorState) -> list[dict[str, Any]]:
    """A row for each partition of the group's topics; those of `events` have their counts with them."""
    totals = state.partition_totals()
    rows = []
    for row in state.lag:
        counted = totals.get(row.partition) if row.topic == state.events_topic else None
        rows.append(_partition(state, row, counted))
    return rows


def _partition(
    state: MonitorState, row: PartitionLag, counted: tuple[PartitionStats, str] | None
) -> dict[str, Any]:
    return {
        "group": row.group,
        "topic": row.topic,
        "partition": row.partition,
        "owner": row.owner,
        "committed": row.committed,
        "low": row.low,
        "end": row.end,
        "lag": row.lag,
        "lag_s": _rounded(row.lag_s),
        "lost": row.lost,
        "status": row.state,
        "clock_ahead": row.clock_ahead,
        "unowned_s": _rounded(state.unowned_s(row), 1),
        "accepted": None if counted is None else counted[0].accepted,
        "rejected": None if counted is None else counted[0].rejected,
    }


def _worker(state: MonitorState, view: WorkerView) -> dict[str, Any]:
    stats = view.stats
    return {
        "worker": stats.worker,
        "state": stats.state,
        "host": stats.host,
        "pid": stats.pid,
        "epoch": stats.epoch,
        "at": stats.at,
        "silence_s": _rounded(state.silence_s(view), 1),
        "live": state.is_live(view),
        "partitions": sorted(int(number) for number in stats.partitions),
        "events_per_s": _rounded(stats.events / stats.interval_s if stats.interval_s > 0 else None, 1),
        "recommendations_per_s": _rounded(
            stats.recommendations / stats.interval_s if stats.interval_s > 0 else None, 1
        ),
        "transaction_ms": _rounded(stats.transaction_ms, 2) if stats.transactions else None,
        "latency_p50_ms": _rounded(stats.latency_p50_ms, 2),
        "latency_p99_ms": _rounded(stats.latency_p99_ms, 2),
        "lag": stats.lag,
        "online_lag": stats.online_lag,
        "users": stats.users,
        "items": stats.items,
        "ranker": stats.ranker,
        "ranker_providers": stats.ranker_providers,
        "swaps": stats.swaps,
        "refused": stats.refused,
        "refusals": stats.refusals,
        "rss_bytes": stats.rss_bytes,
        "retries": stats.retries,
    }


def _model(record: ModelRecord) -> dict[str, Any]:
    """A version with its gate metrics; where its file lies is the registry's business, not the page's."""
    shown: dict[str, Any] = msgspec.to_builtins(record)
    del shown["uri"]
    return shown
