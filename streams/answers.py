"""From ranked lists to records of `recommendations`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from serving.list_encoding import ListEncoder
from serving.pipeline import Pipeline
from serving.query import Query, QueryBatch, RankedBatch
from serving.ranker.hashing import ContextHash
from streams.events import Request
from streams.intake import Batch
from streams.learner import JUDGED, Learner
from streams.settings import Settings
from streams.shadow_judge import ShadowJudge
from streams.shards import Shards
from streams.source import Source
from streams.transaction import OutputRecords
from streams.validation import AcceptedRequest

__all__ = ["Answers"]

_encode = msgspec.json.Encoder().encode

Int32 = npt.NDArray[np.int32]


class Answers:
    """Asks the pipeline for lists, and keeps the last one in each user's state: the next event is judged
    against it."""

    def __init__(
        self,
        settings: Settings,
        pipeline: Pipeline,
        shards: Shards,
        learner: Learner,
        encoder: ListEncoder,
        worker: str,
        epoch: int,
        judge: ShadowJudge | None = None,
    ) -> None:
        self._settings = settings
        self._hashing = ContextHash(settings.ranker.context_keys)
        self._pipeline = pipeline
        self._pipeline.event_types = ()  # those of other shards, whose codes may mean other types
        self._shards = shards
        self._learner = learner
        self._codes = learner.codes
        self._judge = judge
        self._asked: list[tuple[Int32, QueryBatch]] = []
        self._encoder = encoder
        self._topic = settings.names["recommendations"]
        self._headers = [("worker", worker.encode()), ("epoch", str(epoch).encode())]
        self._nobody = pipeline.items.start_users([""])[0] * 0
        self._sent_ms: list[int] = []
        self._coalesced = 0

    def waves(self, batch: Batch, source: Source) -> Iterator[tuple[Int32, Int32]]:
        """Events to learn, and those of them that get a list then: all. Only while the worker is far behind
        is it the newest of each user; the others are counted as coalesced. Without lists there is one
        wave."""
        trigger, none = self._settings.trigger, np.zeros(0, np.int32)
        if not trigger.events:
            yield batch.accepted, none
            return
        waves = batch.waves()
        if len(waves) < 2 or not trigger.coalesce_lag or source.lag()[0] <= trigger.coalesce_lag:
            yield from ((wave, wave) for wave in waves)
            return
        rows = batch.rows[batch.accepted]
        _, last = np.unique(rows[::-1], return_index=True)
        newest = np.zeros(len(rows), np.bool_)
        newest[len(rows) - 1 - last] = True
        left_out = batch.events.partition[batch.accepted[~newest]]
        for p, n in enumerate(np.bincount(left_out).tolist()):
            if n:
                self._shards[p].stats.coalesced += n
        self._coalesced += len(left_out)
        yield batch.accepted, batch.accepted[newest]

    def take_sent_ms(self) -> list[int]:
        """Kafka times, ms, of the records that the lists since the last call answer."""
        sent_ms, self._sent_ms = self._sent_ms, []
        return sent_ms

    def take_coalesced(self) -> int:
        """Lists coalesced since the last call."""
        coalesced, self._coalesced = self._coalesced, 0
        return coalesced

    def ask(self, batch: Batch, wave: Int32) -> None:
        """Note what the users of the wave's events, all different, are to get lists of: as they stand now."""
        if len(wave):
            count = np.full(len(wave), self._settings.trigger.count, np.int32)
            now_ms = batch.events.time_ms[wave]
            queries = self._queries(batch.rows[wave], count, now_ms)
            queries.hashed = batch.hashed(wave)
            self._asked.append((wave, queries))

    def to_events(self, batch: Batch, online_offset: int) -> OutputRecords | None:
        """One list for each event that was asked for, in that order; None of none."""
        if not self._asked:
            self._judged(batch, batch.accepted)
            return None
        waves, queries = zip(*self._asked, strict=True)
        self._asked = []
        wave = np.concatenate(waves)
        events, users, rows = batch.events, self._shards.users, batch.rows[wave]
        ranked = self._pipeline.recommend_batch(QueryBatch.joined(queries))
        shown = self._remember(rows, ranked)
        if len(waves) > 1:  # else no user has two of these events
            self._learner.judge(batch, wave, shown)
        self._judged(batch, wave)
        if self._judge is not None:
            self._judge.listed(rows, shown, ranked.shadowed, batch, wave)
        keys = users.ids_of(rows)
        event_ids = _cut(events.data, events.event[wave])
        ids = [_ids(_quoted(key), b"null", _quoted(one)) for key, one in zip(keys, event_ids, strict=True)]
        kafka_ms = events.kafka_time_ms[wave].tolist()
        partitions = events.partition[wave].tolist()
        return self._records(ranked, keys, ids, kafka_ms, partitions, online_offset)

    def to_requests(self, requests: Sequence[AcceptedRequest], online_offset: int) -> OutputRecords | None:
        """One list for each request; a request of a user nobody knows is answered as for a new one."""
        if not requests or not self._settings.trigger.requests:
            return None
        users = self._shards.users
        rows = [
            -1 if r.request.user_id is None else users.row(r.request.user_id, r.partition) for r in requests
        ]
        count = np.array([r.request.count or self._settings.trigger.count for r in requests], np.int32)
        now_ms = np.array([r.kafka_time_ms for r in requests], np.int64)
        queries = self._queries(np.array(rows, np.int32), count, now_ms)
        queries.hashed = self._hashing.rows([r.request.context for r in requests])
        queries.requests = {
            n: query for n, r in enumerate(requests) if (query := self._special(r.request)) is not None
        }
        ranked = self._pipeline.recommend_batch(queries)
        keys, ids = [], []
        for accepted, row in zip(requests, rows, strict=True):
            request = accepted.request
            self._shards[accepted.partition].stats.requests += 1
            if row >= 0:
                users.touch(row)
            key = request.user_id if request.user_id is not None else request.request_id
            keys.append(key.encode())
            user = b"null" if request.user_id is None else _quoted(keys[-1])
            ids.append(_ids(user, _quoted(request.request_id.encode()), b"null"))
        shown = self._remember(np.array(rows, np.int32), ranked)
        if self._judge is not None:
            self._judge.listed(np.array(rows, np.int32), shown, ranked.shadowed, None, np.zeros(0, np.int32))
        kafka_ms = [r.kafka_time_ms for r in requests]
        return self._records(ranked, keys, ids, kafka_ms, [r.partition for r in requests], online_offset)

    def _judged(self, batch: Batch, order: Int32) -> None:
        """Lists of two versions, where there are two, are judged by the events that followed them."""
        if self._judge is not None:
            self._judge.events(batch, order)

    def _queries(self, rows: Int32, count: Int32, now_ms: npt.NDArray[np.int64]) -> QueryBatch:
        """What the users in `rows` (-1: nobody knows them) are asked for, as of the times `now_ms`."""
        known = np.flatnonzero(rows >= 0)
        users = self._shards.users
        found = users.gather(rows[known], self._codes.row_of, self._pipeline.history_length)
        if len(self._pipeline.event_types) != users.kinds.codes:
            names = [users.kinds.id_of(code).decode() for code in range(users.kinds.codes)]
            self._pipeline.event_types = tuple(names)
        columns: tuple[npt.NDArray[Any], ...] = (
            found.recent,
            found.kinds,
            found.times_ms,
            found.factors,
            found.seen_count,
        )
        ends = found.blocked_end
        if len(known) < len(rows):
            columns = tuple(
                _spread(column, known, len(rows), fill) for column, fill in zip(columns, _FILLS, strict=True)
            )
            ends = np.cumsum(columns[-1], dtype=np.int32)
        recent, kinds, times_ms, factors, seen = columns
        return QueryBatch(
            recent=recent,
            blocked=found.blocked,
            blocked_end=ends,
            seen_count=seen,
            factors=factors,
            count=count,
            recent_kinds=kinds,
            recent_times_ms=times_ms,
            now_ms=now_ms,
        )

    def _special(self, request: Request) -> Query | None:
        """What columns can't say of a request; None when it says nothing more."""
        session = request.session_items
        query = Query(session or (), set(session or ()), self._nobody, request.count or 0)
        query.categories = request.categories
        query.exclude = request.exclude or ()
        query.candidates = request.candidates
        plain = session is None and not query.exclude and query.categories is None
        return None if plain and query.candidates is None else query

    def _remember(self, rows: Int32, ranked: RankedBatch) -> Int32:
        """Keep the head of each list in its user's state, a user's last one in the end; the heads' item codes
        int32[n, 10], -1 padded."""
        users = self._shards.users
        shown = np.full((len(rows), JUDGED), -1, np.int32)
        width = min(JUDGED, ranked.rows.shape[1])
        best = ranked.rows[:, :width]
        shown[:, :width] = np.where(best >= 0, self._codes.code_of[best], -1)
        for n, unknown in ranked.unknown.items():
            start = int(ranked.length[n])
            names = [item_id.encode() for item_id, _ in unknown[: max(0, JUDGED - start)]]
            if names:
                shown[n, start : start + len(names)] = users.items.codes_of(names, ensure=True)
                users.make_room()
                self._codes.cover()
        known = rows >= 0
        users.users.last_list[rows[known]] = shown[known]
        return shown

    def _records(
        self,
        ranked: RankedBatch,
        keys: Sequence[bytes],
        ids: Sequence[bytes],
        kafka_ms: Sequence[int],
        partitions: Sequence[int],
        online_offset: int,
    ) -> OutputRecords:
        now_ms = time.time() * 1000
        made = b',"experiment":null,"variant":null,"online_offset":%d,"generated_at":%d' % (
            online_offset,
            now_ms,
        )
        heads = [
            b'%b%b,"latency_ms":%.3f' % (one, made, max(0.0, now_ms - moment))
            for one, moment in zip(ids, kafka_ms, strict=True)
        ]
        values = self._encoder.encode(ranked, heads)
        for p, n in enumerate(np.bincount(partitions).tolist()):
            if n:
                stats = self._shards[p].stats
                stats.recommendations += n
                stats.degraded += n * (ranked.degraded is not None)
        self._sent_ms += kafka_ms
        return OutputRecords(self._topic, None, keys, values, self._headers)


_FILLS = (-1, -1, -1, 0, 0)
"""Recent rows, types, times, factors and seen items of a user nobody knows."""


def _spread(column: npt.NDArray[Any], known: npt.NDArray[np.intp], n: int, fill: int) -> npt.NDArray[Any]:
    """[n, ...] with the column's rows at `known` and `fill` elsewhere."""
    whole = np.full((n, *column.shape[1:]), fill, column.dtype)
    whole[known] = column
    return whole


def _ids(user_id: bytes, request_id: bytes, event_id: bytes) -> bytes:
    """The ids, as JSON, with which a list's record begins."""
    return b'{"user_id":%b,"request_id":%b,"event_id":%b' % (user_id, request_id, event_id)


def _quoted(text: bytes) -> bytes:
    """An id as JSON: it holds no control characters."""
    if b'"' in text or b"\\" in text:
        return _encode(text.decode())
    return b'"%b"' % text


def _cut(data: npt.NDArray[np.uint8], spans: Int32) -> list[bytes]:
    """The parts of `data` at spans int32[n, 2] (start, length)."""
    view = data.data
    return [bytes(view[start : start + length]) for start, length in spans.tolist()]
