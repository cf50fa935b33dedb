"""From ranked lists to records of `recommendations`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import msgspec

from serving.pipeline import Pipeline
from serving.query import Query, RankedList
from streams.events import Reason, Recommendation, RecommendedItem, Request
from streams.intake import Admitted
from streams.learner import JUDGED
from streams.settings import Settings
from streams.shards import Shards
from streams.source import Source
from streams.transaction import OutputRecord
from streams.user_state import Shard, UserState
from streams.validation import AcceptedRequest

__all__ = ["Answers", "bounded_record"]

_encode = msgspec.json.Encoder().encode

MAX_LIST_BYTES = 900_000
"""A list above this is cut: `recommendations` takes twice as much, uncompressed."""
MAX_SCORED = 40_000
"""Candidates scored in one call, padding included: one request may name 10,000 and widens the whole call."""


class Answers:
    """Asks the pipeline for lists, and keeps the last one in each user's state: the next event is judged
    against it."""

    def __init__(
        self, settings: Settings, pipeline: Pipeline, shards: Shards, worker: str, epoch: int
    ) -> None:
        self._settings = settings
        self._pipeline = pipeline
        self._shards = shards
        self._topic = settings.names["recommendations"]
        self._headers = [("worker", worker.encode()), ("epoch", str(epoch).encode())]
        self._nobody = pipeline.items.start_users([""])[0] * 0
        self.sent_ms: list[int] = []
        """Kafka times of the records that the lists of this batch answer, for the latency histogram."""
        self._coalesced = 0

    def choose(self, waves: Sequence[list[Admitted]], source: Source) -> Sequence[list[Admitted]]:
        """Which events of each wave get a list: all of them. Only while the worker is far behind is it the
        newest of each user; the others are counted as coalesced."""
        trigger = self._settings.trigger
        if not trigger.events:
            return [[] for _ in waves]
        if len(waves) < 2 or not trigger.coalesce_lag or source.lag()[0] <= trigger.coalesce_lag:
            return waves
        newest = {id(event.user): event for wave in waves for event in wave}
        chosen = []
        for wave in waves:
            chosen.append([event for event in wave if newest[id(event.user)] is event])
            for event in wave:
                event.shard.stats.coalesced += newest[id(event.user)] is not event
            self._coalesced += len(wave) - len(chosen[-1])
        return chosen

    def take_coalesced(self) -> int:
        """Lists coalesced since the last call."""
        coalesced, self._coalesced = self._coalesced, 0
        return coalesced

    def to_events(self, wave: Sequence[Admitted], online_offset: int) -> list[OutputRecord]:
        """One list for each event of the wave."""
        count = self._settings.trigger.count
        lists = self._pipeline.recommend([_query(event.user, count) for event in wave])
        return [
            self._record(
                ranked,
                event.shard,
                online_offset,
                event.accepted.kafka_time_ms,
                user=event.user,
                event_id=event.accepted.event.event_id,
            )
            for event, ranked in zip(wave, lists, strict=True)
        ]

    def to_requests(self, requests: Sequence[AcceptedRequest], online_offset: int) -> list[OutputRecord]:
        """One list for each request; a request of a user nobody knows is answered as for a new one."""
        if not self._settings.trigger.requests:
            return []
        users = [self._user(accepted) for accepted in requests]
        queries = [self._request_query(r.request, user) for r, user in zip(requests, users, strict=True)]
        records = []
        lists = [ranked for part in _parts(queries) for ranked in self._pipeline.recommend(part)]
        for accepted, user, ranked in zip(requests, users, lists, strict=True):
            shard = self._shards[accepted.partition]
            shard.stats.requests += 1
            if user is not None:
                shard.touch(user)
            records.append(
                self._record(
                    ranked, shard, online_offset, accepted.kafka_time_ms, user=user, request=accepted.request
                )
            )
        return records

    def _user(self, accepted: AcceptedRequest) -> UserState | None:
        user_id = accepted.request.user_id
        return None if user_id is None else self._shards[accepted.partition].users.get(user_id)

    def _request_query(self, request: Request, user: UserState | None) -> Query:
        count = request.count or self._settings.trigger.count
        query = Query((), (), self._nobody, count) if user is None else _query(user, count)
        if request.session_items is not None:
            query.recent = request.session_items
            query.seen = set(request.session_items)
        query.categories = request.categories
        query.exclude = request.exclude or ()
        query.candidates = request.candidates
        return query

    def _record(
        self,
        ranked: RankedList,
        shard: Shard,
        online_offset: int,
        kafka_time_ms: int,
        *,
        user: UserState | None,
        event_id: str | None = None,
        request: Request | None = None,
    ) -> OutputRecord:
        now_ms = time.time() * 1000
        user_id = user.user_id if user is not None else (request.user_id if request else None)
        recommendation = Recommendation(
            user_id=user_id,
            request_id=request.request_id if request else None,
            event_id=event_id,
            items=[
                RecommendedItem(
                    item_id=item.item_id,
                    score=round(item.score, 6),
                    sources=item.sources,
                    reason=Reason(kind=item.kind, because=item.because, text=item.text),
                )
                for item in ranked.items
            ],
            ranker=ranked.ranker,
            online_offset=online_offset,
            generated_at=int(now_ms),
            latency_ms=round(max(0.0, now_ms - kafka_time_ms), 3),
            degraded=ranked.degraded is not None,
            degraded_reason=ranked.degraded,
        )
        value = bounded_record(recommendation)
        if user is not None:
            user.last_list = [item.item_id for item in recommendation.items[:JUDGED]]
        shard.stats.recommendations += 1
        shard.stats.degraded += recommendation.degraded
        self.sent_ms.append(kafka_time_ms)
        key = user_id if user_id is not None else recommendation.request_id or ""
        return OutputRecord(self._topic, key.encode(), value, headers=self._headers)


def bounded_record(recommendation: Recommendation) -> bytes:
    """The record's bytes; a list too large for the topic loses its tail and says so."""
    value = _encode(recommendation)
    asked = len(recommendation.items)
    while len(value) > MAX_LIST_BYTES and recommendation.items:
        del recommendation.items[len(recommendation.items) * 3 // 4 :]
        recommendation.degraded = True
        recommendation.degraded_reason = f"{len(recommendation.items)} of {asked} items fit into a record"
        value = _encode(recommendation)
    return value


def _parts(queries: Sequence[Query]) -> Iterator[list[Query]]:
    """Queries in parts that the pipeline works off in well under a second each."""
    part: list[Query] = []
    widest = 0
    for query in queries:
        widest = max(widest, query.count, len(query.candidates or ()))
        if part and widest * (len(part) + 1) > MAX_SCORED:
            yield part
            part, widest = [], max(query.count, len(query.candidates or ()))
        part.append(query)
    if part:
        yield part


def _query(user: UserState, count: int) -> Query:
    return Query(user.recent_items, user.seen, user.factor, count)
