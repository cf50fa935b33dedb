"""The one table of topics: names, keys, partitions and topic-level configuration (DESIGN 3)."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CO_PARTITIONED", "TOPICS", "TopicNames", "TopicSpec"]

DAY_MS = 86_400_000
EVENT_MAX_BYTES = 1_048_588
"""Kafka's own default: the largest record batch that `events` takes."""


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """One topic as Freshet creates it; `partitioned` topics share the partition count of `events`."""

    name: str
    key: str
    partitioned: bool
    config: dict[str, str]
    written_by: str
    holds: str

    def partitions(self, events_partitions: int) -> int:
        return events_partitions if self.partitioned else 1


def _delete(days: int, **extra: str) -> dict[str, str]:
    return {"cleanup.policy": "delete", "retention.ms": str(days * DAY_MS), **extra}


def _compact(**extra: str) -> dict[str, str]:
    return {
        "cleanup.policy": "compact",
        "max.compaction.lag.ms": str(DAY_MS),
        "delete.retention.ms": str(7 * DAY_MS),
        "segment.ms": str(6 * 3_600_000),
        "segment.bytes": str(128 * 1024 * 1024),
        **extra,
    }


_NO_FUTURE = {"message.timestamp.after.max.ms": "3600000"}
"""Kafka 4's default, said aloud: a record stamped in the future would make all that come after it late."""
_TWICE = {"max.message.bytes": str(2 * EVENT_MAX_BYTES)}

TOPICS: dict[str, TopicSpec] = {
    spec.name: spec
    for spec in (
        TopicSpec("events", "user_id", True, _delete(7, **_NO_FUTURE), "your producers", "what users did"),
        TopicSpec(
            "items", "item_id", True, _compact(), "your producers", "catalogue; a tombstone removes the item"
        ),
        TopicSpec(
            "users", "user_id", True, _compact(), "your producers", "profiles; a tombstone forgets the user"
        ),
        TopicSpec("requests", "user_id", True, _delete(1), "your services", "give me n for this user, now"),
        TopicSpec(
            "recommendations",
            "user_id, else request_id",
            True,
            {**_compact(**_TWICE), "cleanup.policy": "compact,delete", "retention.ms": str(7 * DAY_MS)},
            "worker",
            "the answer, ranked and explained",
        ),
        TopicSpec(
            "events-dlq",
            "as it came",
            True,
            _delete(30, **_TWICE),
            "worker",
            "rejected bytes with reason headers",
        ),
        TopicSpec("interactions", "none", False, _delete(3650), "worker", "the learning log (binary)"),
        TopicSpec(
            "user-state", "user_id", True, _compact(**_TWICE), "worker", "changelog of the users' state"
        ),
        TopicSpec(
            "models", "model name", False, _compact(), "trainer, worker", "which ranker version is live"
        ),
        TopicSpec(
            "worker-stats", "worker id", False, _delete(1), "worker", "one record per worker per second"
        ),
    )
}

CO_PARTITIONED = ("events", "users", "requests", "user-state")
"""Topics that must have one partition count: a user is the same partition number in each."""


@dataclass(frozen=True, slots=True)
class TopicNames:
    """The topics' names as they stand on the broker: the table's names behind a prefix."""

    prefix: str = ""

    def __getitem__(self, name: str) -> str:
        if name not in TOPICS:
            raise KeyError(f"no topic {name!r} in the table; there are {', '.join(TOPICS)}")
        return self.prefix + name
