"""Records as workers and the trainer write them, for the monitor's tests."""

from __future__ import annotations

from typing import Any

from streams.events import ModelRecord, PartitionStats, TrialStats, WorkerStats


def worker_stats(worker: str = "w1", at: int = 1_000_000, **changes: Any) -> WorkerStats:
    """One second of a worker: 100 events, 80 lists, 1 s long, unless changed."""
    fields: dict[str, Any] = {
        "worker": worker,
        "epoch": 1,
        "pid": 4242,
        "host": "host-a",
        "state": "running",
        "at": at,
        "interval_s": 1.0,
        "events": 100,
        "recommendations": 80,
        "transactions": 20,
        "transaction_ms": 6.5,
        "coalesced": 0,
        "stage_s": {"decode": 0.05, "score": 0.4},
        "latency_ms_buckets": {"10": 70, "20": 9, "1000": 1},
        "latency_p50_ms": 9.0,
        "latency_p99_ms": 900.0,
        "partitions": {"0": partition_stats()},
        "lag": 12,
        "lag_s": 0.4,
        "online_offset": 500,
        "online_lag": 3,
        "items": 1682,
        "users": 943,
        "ranker": "v1",
        "ranker_providers": ["CPUExecutionProvider"],
        "swaps": 1,
        "refused": [],
        "rss_bytes": 300 * 2**20,
        "retries": {"read": 2},
        "refusals": {"digest": 2, "slow": 1},
        "trial": trial_stats(),
    }
    return WorkerStats(**{**fields, **changes})


def partition_stats(**changes: Any) -> PartitionStats:
    """1,000 accepted events, of which 800 were judged: 160 hits, popularity 64."""
    fields: dict[str, Any] = {
        "accepted": 1000,
        "rejected": 10,
        "duplicate": 5,
        "late": 2,
        "recommendations": 990,
        "degraded": 7,
        "evaluated": 800,
        "hits_at_10": 160,
        "ndcg_at_10_sum": 80.0,
        "popularity_hits_at_10": 64,
        "popularity_ndcg_at_10_sum": 30.0,
    }
    return PartitionStats(**{**fields, **changes})


def trial_stats(**changes: Any) -> TrialStats:
    """A shadow that is judged on 400 events."""
    fields: dict[str, Any] = {
        "kind": "shadow",
        "live": "v1",
        "live_digest": "ab" * 32,
        "other": "v2",
        "other_digest": "cd" * 32,
        "events": 400,
        "live_hits": 80,
        "other_hits": 100,
        "live_only": 10,
        "other_only": 30,
        "live_ndcg_sum": 40.0,
        "other_ndcg_sum": 60.0,
    }
    return TrialStats(**{**fields, **changes})


def model_record(
    version: str = "v1", status: str = "live", published_at: int = 1_000, **changes: Any
) -> ModelRecord:
    fields: dict[str, Any] = {
        "model": "ranker",
        "version": version,
        "status": status,
        "digest": "ab" * 32,
        "uri": "file:///models",
        "metrics": {"ndcg_at_10": 0.12, "champion_ndcg_at_10": 0.1},
        "published_at": published_at,
    }
    return ModelRecord(**{**fields, **changes})
