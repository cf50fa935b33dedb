"""The records on the wire, as types: what producers send and what Freshet answers (DESIGN 4).

Everything is UTF-8 JSON with snake_case names. Unknown fields are ignored (and counted), so that producers
may add fields before their consumers know them. What a type alone can't say (ids, ranges, times) is in
`streams.validation`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from serving.registry.verdict import PairedCounts

__all__ = [
    "EVENT_TYPES",
    "Event",
    "Item",
    "ModelRecord",
    "PartitionStats",
    "Reason",
    "Recommendation",
    "RecommendedItem",
    "Request",
    "TrialStats",
    "User",
    "WorkerStats",
    "summed",
]

EVENT_TYPES: dict[str, float] = {
    "impression": 0.0,
    "view": 0.5,
    "click": 1.0,
    "like": 1.5,
    "dislike": -1.0,
    "cart": 1.5,
    "purchase": 2.0,
    "rating": 1.0,
    "share": 1.5,
    "search": 0.0,
    "follow": 0.0,
    "retract": 0.0,
}
"""Event types and the weight with which each teaches the item models; the settings may change and add."""

Scalar = str | float | bool


class Event(msgspec.Struct, kw_only=True, gc=False):
    """What one user did: a record of `events`, keyed by `user_id`."""

    event_id: str
    user_id: str
    event_type: str
    timestamp: int | str
    item_id: str | None = None
    value: float | None = None
    session_id: str | None = None
    request_id: str | None = None
    domain: str | None = None
    query: str | None = None
    target_user_id: str | None = None
    context: dict[str, Scalar] | None = None
    retracts: str | None = None


class Item(msgspec.Struct, kw_only=True):
    """A catalogue entry: a record of `items`, keyed by `item_id`."""

    item_id: str
    title: str | None = None
    description: str | None = None
    categories: list[str] = []
    labels: dict[str, Scalar] = {}
    price: float | None = None
    published_at: int | str | None = None
    expires_at: int | str | None = None
    is_hidden: bool = False
    provider_id: str | None = None
    domain: str | None = None
    embeddings: dict[str, list[float]] = {}


class User(msgspec.Struct, kw_only=True):
    """A profile: a record of `users`, keyed by `user_id`."""

    user_id: str
    labels: dict[str, Scalar] = {}


class Request(msgspec.Struct, kw_only=True):
    """ "Give me `count` items now": a record of `requests`, keyed by `user_id` (or by `request_id` when
    anonymous)."""

    request_id: str
    user_id: str | None = None
    session_items: list[str] | None = None
    count: int | None = None
    categories: list[str] | None = None
    exclude: list[str] | None = None
    candidates: list[str] | None = None
    context: dict[str, Scalar] | None = None


class Reason(msgspec.Struct, kw_only=True):
    """Why an item stands in a list: `kind` is a source's name, `because` the user's items that led to it."""

    kind: str
    because: list[str]
    text: str


class RecommendedItem(msgspec.Struct, kw_only=True):
    item_id: str
    score: float
    sources: list[str]
    reason: Reason


class Recommendation(msgspec.Struct, kw_only=True):
    """A ranked, explained list: a record of `recommendations`."""

    user_id: str | None
    request_id: str | None
    event_id: str | None
    items: list[RecommendedItem]
    ranker: str | None
    online_offset: int
    experiment: str | None = None
    variant: str | None = None
    generated_at: int
    latency_ms: float
    degraded: bool = False
    degraded_reason: str | None = None


class ModelRecord(msgspec.Struct, kw_only=True):
    """A record of `models`: the live version under the model's name, what else became of a version under
    `name#version`."""

    model: str
    version: str
    status: str
    """`live`; `shadow`: scored beside the live one; `promoted` or `dropped`: how that ended, or how the time
    after a swap did; `refused`: by the gate or at load."""
    digest: str | None
    uri: str
    """The registry that holds the version."""
    reason: str | None = None
    against: str | None = None
    """Of a live version: the one before it, which is scored beside it until a verdict."""
    against_digest: str | None = None
    replaces: str | None = None
    """Of a live version that a worker's verdict made so: the live version that the verdict was about. Where
    another is live by now, the record counts for nothing."""
    trial: str | None = None
    """What a worker's verdict came out of: `shadow`, `probation` or `load`."""
    metrics: dict[str, float] = {}
    trained_on: dict[str, int] = {}
    published_at: int


class PartitionStats(msgspec.Struct, kw_only=True):
    """Totals of one `events` partition since the topic began; they are committed with the partition's
    offsets, so a crash neither loses nor repeats a count."""

    accepted: int = 0
    rejected: int = 0
    duplicate: int = 0
    late: int = 0
    requests: int = 0
    """Records of `requests` answered."""
    requests_rejected: int = 0
    unknown_fields: int = 0
    misplaced: int = 0
    """Records in another partition than their key's hash says."""
    recommendations: int = 0
    coalesced: int = 0
    degraded: int = 0
    lost: int = 0
    """Records that retention removed before they were read."""
    expired: int = 0
    """Users forgotten because they were idle, or the idlest of too many (`user_state.max_users`)."""
    retracted: int = 0
    """Events withdrawn by a `retract`."""
    retracts_unknown: int = 0
    """Accepted `retract`s of an event that is unknown, withdrawn already, too old, or taught nothing."""
    replaced: int = 0
    """Ratings replaced by a new one of the same item by the same user."""
    forgotten: int = 0
    """Users forgotten because of a tombstone in `users`."""
    users_rejected: int = 0
    """Records of `users` rejected."""
    evaluated: int = 0
    """Accepted positive interactions judged test-then-learn."""
    hits_at_10: int = 0
    ndcg_at_10_sum: float = 0.0
    popularity_hits_at_10: int = 0
    popularity_ndcg_at_10_sum: float = 0.0


def summed(stats: Iterable[PartitionStats]) -> PartitionStats:
    """The totals of several partitions added up."""
    total = PartitionStats()
    for one in stats:
        for name in PartitionStats.__struct_fields__:
            setattr(total, name, getattr(total, name) + getattr(one, name))
    return total


class TrialStats(PairedCounts, kw_only=True):
    """One worker's part of a trial: two versions judged on the same queries, since it found both in force."""

    kind: str
    """`shadow` or `probation`."""
    live: str
    live_digest: str
    other: str
    """The version that is scored beside the live one."""
    other_digest: str
    scored: int = 0
    """Queries that the other version was scored on."""
    failed: str | None = None
    """Why the other version can't be scored any more."""


class WorkerStats(msgspec.Struct, kw_only=True):
    """A record of `worker-stats`: one worker's last second, pre-aggregated."""

    worker: str
    epoch: int
    """Start time of the process in ms: tells a restarted worker from its predecessor."""
    pid: int
    host: str
    state: str
    """`starting`, `restoring`, `running` or `stopping`."""
    at: int
    """When the record was made, ms since the epoch."""
    interval_s: float
    events: int
    """Records of `events` handled in the interval."""
    recommendations: int
    transactions: int
    transaction_ms: float
    """Mean time from begin to committed in the interval."""
    coalesced: int
    stage_s: dict[str, float]
    """Seconds spent in each stage of the fast path in the interval."""
    latency_ms_buckets: dict[str, int]
    """Event append to recommendation committed: counts in the interval by bucket, see `streams.metrics`."""
    latency_p50_ms: float | None
    latency_p99_ms: float | None
    partitions: dict[str, PartitionStats]
    """The partitions that this worker owns, by number."""
    lag: int | None
    lag_s: float | None
    online_offset: int
    online_lag: int
    items: int
    """Items that the learned state knows."""
    users: int
    """Users in the partitions that this worker owns."""
    ranker: str | None
    ranker_providers: list[str]
    swaps: int
    """Ranker versions taken into service since the process began."""
    refused: list[str]
    """Versions refused since the process began, with the reason."""
    rss_bytes: int
    retries: dict[str, int] = {}
    """What the process tried again since it began, by kind (`streams.retries`)."""
    refusals: dict[str, int] = {}
    """Refusals since the process began, by what failed (`serving.ranker.errors.REFUSAL_KINDS`)."""
    trial: TrialStats | None = None


JsonDict = dict[str, Any]
