"""Consumer lag as Kafka itself says it: in records, in seconds, and as a word for each partition.

For a partition with log start `low`, next offset to be read `committed`, and end `end`::

    lag   = max(0, end − max(committed, low))       records that wait
    lost  = max(0, low − committed)                 records that retention removed unread
    lag_s = now − timestamp of the record at `committed`; 0 where lag is 0

`end` is the last stable offset, which is as far as a read_committed group can get; against the high
watermark an open transaction would look like lag that no consumer can work off. Offsets count transaction
markers too, so lag is an upper bound where the topic is written in transactions. What is not known is None,
never 0.

Freshet's workers commit offsets in the transaction that holds the results: lag 0 means processed and visible.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

from confluent_kafka import (
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from streams.clients import admin
from streams.errors import BrokerUnavailableError
from streams.lag_probe import Key, TimestampProbe
from streams.lag_status import StatusWindow
from streams.settings import Settings
from streams.topics import TOPICS

__all__ = ["GroupInfo", "LagReader", "LagSummary", "PartitionLag", "lag_of", "summarize"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """Lag of one group in one partition; None where Kafka did not say."""

    group: str
    topic: str
    partition: int
    low: int | None
    committed: int | None
    end: int | None
    lag: int | None
    lag_s: float | None
    lost: int
    owner: str | None
    state: str
    clock_ahead: bool = False
    """The record's timestamp lies in the future, so `lag_s` (0 then) says nothing."""


@dataclass(frozen=True, slots=True)
class GroupInfo:
    """A consumer group: Kafka's own state word and its number of members."""

    state: str
    members: int


@dataclass(frozen=True, slots=True)
class LagSummary:
    """A group's lag: total records and the longest wait; None while one of its partitions is unknown."""

    records: int | None
    seconds: float | None
    partitions: int
    unowned: int
    lost: int


@dataclass(frozen=True, slots=True)
class _Span:
    """What Kafka says of one partition, and the arithmetic of the module's docstring on it."""

    key: Key
    low: int | None
    committed: int | None
    end: int | None

    @property
    def lag(self) -> int | None:
        if self.low is None or self.end is None:
            return None
        if self.committed is None:
            return 0 if self.low == self.end else None
        return max(0, self.end - max(self.committed, self.low))

    @property
    def lost(self) -> int:
        return 0 if self.low is None or self.committed is None else max(0, self.low - self.committed)

    @property
    def next_offset(self) -> int:
        return max(self.committed or 0, self.low or 0)


class LagReader:
    """Asks the broker for groups' lag; keeps one admin client, one group-less consumer, the status windows.

    Use it from one thread and close it (or use it in `with`). A call takes as long as the broker needs for
    four requests, plus at most `probe_s` for reading one record of each partition that is behind.
    """

    def __init__(
        self, settings: Settings, *, timeout_s: float = 5.0, probe_s: float = 1.0, window: int = 30
    ) -> None:
        self._settings = settings
        self._client: AdminClient | None = None
        self._timeout_s = timeout_s
        self._probe = TimestampProbe(settings, probe_s)
        self._window = window
        self._windows: dict[tuple[str, str, int], StatusWindow] = {}
        self.groups: dict[str, GroupInfo] = {}
        """Groups as the last `read` found them; a group that does not exist has no members."""

    def read(self, groups: Sequence[str], topics: Iterable[str] | None = None) -> list[PartitionLag]:
        """Lag of `groups` in every partition of `topics`; without topics, in what they committed or own.

        Raises:
            BrokerUnavailableError: the broker did not answer within the timeout.
        """
        client = self._client = self._client or admin(self._settings)
        client.poll(0)  # librdkafka's log lines wait in its queue until somebody polls
        try:
            # First what is safe to ask a dead broker: librdkafka aborts the process when the coordinator
            # answers a group request that has timed out (its issue 4605). So none is sent while nobody
            # answers, and a client that had one time out is not used again.
            keys = self._partitions(client, topics)
            self._client = None
            rows = [row for group in groups for row in self._read_group(client, group, keys)]
            self._client = client
            return rows
        except (KafkaException, TimeoutError) as error:
            said = error.args[0].str() if isinstance(error, KafkaException) else "timed out"
            raise BrokerUnavailableError(
                f"no answer from Kafka at {self._settings.bootstrap_servers} within {self._timeout_s:g} s"
                f" about the lag of {', '.join(groups)} ({said}). Start the broker, or correct [kafka]."
            ) from error

    def _read_group(self, client: AdminClient, group: str, wanted: list[Key] | None) -> list[PartitionLag]:
        owners, committed = self._owners(client, group), self._committed(client, group)
        keys = sorted({*owners, *committed}) if wanted is None else wanted
        low = self._offsets(client, keys, OffsetSpec.earliest())  # type: ignore[no-untyped-call]
        end = self._offsets(client, keys, OffsetSpec.latest())  # type: ignore[no-untyped-call]
        spans = [_Span(key, low.get(key), committed.get(key), end.get(key)) for key in keys]
        times = self._probe.read({span.key: span.next_offset for span in spans if span.lag})
        now_ms = time.time() * 1000.0
        return [self._row(group, span, owners.get(span.key), now_ms, times) for span in spans]

    def _row(
        self, group: str, span: _Span, owner: str | None, now_ms: float, times: dict[Key, int]
    ) -> PartitionLag:
        lag, lost = span.lag, span.lost
        wait_s = 0.0 if lag == 0 else (now_ms - times[span.key]) / 1000.0 if span.key in times else None
        window = self._windows.setdefault((group, *span.key), StatusWindow(self._window))
        return PartitionLag(
            group=group,
            topic=span.key[0],
            partition=span.key[1],
            low=span.low,
            committed=span.committed,
            end=span.end,
            lag=lag,
            lag_s=None if wait_s is None else max(0.0, wait_s),
            lost=lost,
            owner=owner,
            state=window.add(span.committed, lag, lost=lost, owned=owner is not None),
            clock_ahead=wait_s is not None and wait_s < 0.0,
        )

    def _owners(self, client: AdminClient, group: str) -> dict[Key, str]:
        """Who owns each partition: the member's static id, else its client id; fills `groups`."""
        future = client.describe_consumer_groups([group], request_timeout=self._timeout_s)[group]
        try:
            found = self._answer(future)
        except KafkaException as error:
            if error.args[0].name() != "GROUP_ID_NOT_FOUND":
                raise
            self.groups[group] = GroupInfo("DEAD", 0)
            return {}
        self.groups[group] = GroupInfo(found.state.name, len(found.members))
        return {
            (part.topic, part.partition): member.group_instance_id or member.client_id
            for member in found.members
            for part in (member.assignment.topic_partitions if member.assignment else ())
        }

    def _committed(self, client: AdminClient, group: str) -> dict[Key, int]:
        asked = [ConsumerGroupTopicPartitions(group)]
        try:
            future = client.list_consumer_group_offsets(asked, request_timeout=self._timeout_s)[group]
            found = self._answer(future).topic_partitions
        except KafkaException as error:
            if error.args[0].name() != "GROUP_ID_NOT_FOUND":
                raise
            return {}
        return {(p.topic, p.partition): p.offset for p in found if p.error is None and p.offset >= 0}

    def _partitions(self, client: AdminClient, topics: Iterable[str] | None) -> list[Key] | None:
        """Partitions of those of the topics that exist; without topics just a sign of life."""
        known = client.list_topics(timeout=self._timeout_s).topics
        if topics is None:
            return None
        return sorted((name, number) for name in topics if name in known for number in known[name].partitions)

    def _offsets(self, client: AdminClient, keys: list[Key], spec: OffsetSpec) -> dict[Key, int]:
        """Offsets by partition under read_committed; a partition whose leader did not answer is left out."""
        if not keys:
            return {}
        futures = client.list_offsets(
            {TopicPartition(*key): spec for key in keys},
            isolation_level=IsolationLevel.READ_COMMITTED,
            request_timeout=self._timeout_s,
        )
        found: dict[Key, int] = {}
        failed: KafkaException | None = None
        for part, future in futures.items():
            try:
                found[part.topic, part.partition] = self._answer(future).offset
            except KafkaException as error:
                failed = error
        if failed is not None and not found:
            raise failed
        return found

    def _answer(self, future: Future[T]) -> T:
        return future.result(timeout=2 * self._timeout_s)

    def close(self) -> None:
        self._probe.close()

    def __enter__(self) -> LagReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def summarize(rows: Iterable[PartitionLag]) -> LagSummary:
    """Total records and longest wait of a group's partitions."""
    rows = list(rows)
    records = [row.lag for row in rows]
    seconds = [row.lag_s for row in rows]
    return LagSummary(
        records=None if not rows or None in records else sum(n for n in records if n is not None),
        seconds=None if not rows or None in seconds else max(s for s in seconds if s is not None),
        partitions=len(rows),
        unowned=sum(row.owner is None for row in rows),
        lost=sum(row.lost for row in rows),
    )


def lag_of(
    settings: Settings, group: str, topics: Iterable[str] | None = None, *, timeout_s: float = 5.0
) -> LagSummary:
    """How many records wait for `group` in all, and the longest for how many seconds.

    Without `topics`, in those of this deployment (this prefix) that the group has committed or owns.

    Raises:
        BrokerUnavailableError: the broker did not answer within `timeout_s`.
    """
    with LagReader(settings, timeout_s=timeout_s) as reader:
        rows = reader.read([group], topics)
    own = {settings.names[topic] for topic in TOPICS}
    return summarize(row for row in rows if topics is not None or row.topic in own)
