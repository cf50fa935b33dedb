"""What the pipeline is asked, and what it answers: by columns for many users at once, or one by one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from online_models.item_table import ItemTable

if TYPE_CHECKING:
    from serving.shadowing import Shadowed

__all__ = ["BECAUSE", "Query", "QueryBatch", "RankedBatch", "RankedItem", "RankedList", "joined_rows"]

BECAUSE = 2
"""Recent items named in a reason at most."""

Int32 = npt.NDArray[np.int32]
UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]


@dataclass(slots=True)
class Query:
    """One list to make. `recent` holds the user's items, oldest first, `recent_types` and `recent_times_ms`
    their event types and times where they are known; `factor` is float32 [d], zeros when unknown."""

    recent: Sequence[str]
    seen: Collection[str]
    factor: Float32
    count: int
    categories: Sequence[str] | None = None
    exclude: Sequence[str] = ()
    candidates: Sequence[str] | None = None
    recent_types: Sequence[str] = ()
    recent_times_ms: Sequence[int] = ()
    now_ms: int = 0
    """The time that the list is made for, by the events' clock; 0 unknown."""
    hashed: Float32 | None = None
    """float32[HASHED] of what was said beside the event or the request (`ContextHash`); None is nothing."""


@dataclass(slots=True)
class QueryBatch:
    """n users' queries by columns; items are rows of the learned state's item table."""

    recent: Int32
    """int32[n, L], newest first, -1 where there is none or it is unknown; L is at least
    `Pipeline.history_length`, or what the users have."""
    blocked: Int32
    """Rows that the users may not get, one user after the other; -1 counts for nothing."""
    blocked_end: Int32
    """int32[n]: where each user's end in `blocked`."""
    seen_count: Int32
    """int32[n]: items that the user has seen."""
    factors: Float32
    """float32[n, d], zeros when unknown."""
    count: Int32
    """int32[n]: items wanted."""
    requests: Mapping[int, Query] | None = None
    """What the columns can't say, by position: `categories`, `exclude` and `candidates` (with which the
    column `blocked` counts for nothing). `recent`, where it is not empty, stands in place of the column's,
    `seen` comes to what is blocked; `seen_count`, `factor` and `count` are the columns'."""

    recent_kinds: Int32 = field(default_factory=lambda: np.empty((0, 0), dtype=np.int32))
    """int32[n, L]: codes of the event types of `recent`, by `Pipeline.event_types`; -1 unknown."""
    recent_times_ms: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 0), dtype=np.int64))
    """int64[n, L]: their times, -1 unknown."""
    now_ms: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """int64[n]: the time that each list is made for, by the events' clock; 0 unknown."""
    hashed: Float32 = field(default_factory=lambda: np.empty((0, 0), dtype=np.float32))
    """float32[n, HASHED] of what was said beside each event or request (`ContextHash`), or [n, 0]."""

    def __post_init__(self) -> None:
        if len(self.hashed) != len(self.recent):
            self.hashed = np.empty((len(self.recent), 0), dtype=np.float32)
        if self.recent_kinds.shape != self.recent.shape:
            self.recent_kinds = np.full(self.recent.shape, -1, dtype=np.int32)
        if self.recent_times_ms.shape != self.recent.shape:
            self.recent_times_ms = np.full(self.recent.shape, -1, dtype=np.int64)
        if len(self.now_ms) != len(self.recent):
            self.now_ms = np.zeros(len(self.recent), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.count)

    @classmethod
    def joined(cls, parts: Sequence[QueryBatch]) -> QueryBatch:
        """All of `parts`, which have no `requests`, one behind the other."""
        if len(parts) == 1:
            return parts[0]
        before = np.cumsum([0, *(len(part.blocked) for part in parts[:-1])])
        ends = [part.blocked_end + start for part, start in zip(parts, before, strict=True)]
        return cls(
            recent=np.concatenate([part.recent for part in parts]),
            blocked=np.concatenate([part.blocked for part in parts]),
            blocked_end=np.concatenate(ends).astype(np.int32),
            seen_count=np.concatenate([part.seen_count for part in parts]),
            factors=np.concatenate([part.factors for part in parts]),
            count=np.concatenate([part.count for part in parts]),
            recent_kinds=np.concatenate([part.recent_kinds for part in parts]),
            recent_times_ms=np.concatenate([part.recent_times_ms for part in parts]),
            now_ms=np.concatenate([part.now_ms for part in parts]),
            hashed=np.concatenate([part.hashed for part in parts]),
        )

    @classmethod
    def of(
        cls, queries: Sequence[Query], items: ItemTable, length: int, event_types: Sequence[str] = ()
    ) -> QueryBatch:
        """The columns of queries, `length` recent items each; `event_types` gives the types their codes."""
        recent = np.full((len(queries), length), -1, dtype=np.int32)
        kinds, times_ms = recent.copy(), np.full(recent.shape, -1, dtype=np.int64)
        code_of = {name: code for code, name in enumerate(event_types)}
        for user, query in enumerate(queries):
            newest_first = items.rows(query.recent[: -length - 1 : -1])
            recent[user, : len(newest_first)] = newest_first
            codes = [code_of.get(name, -1) for name in query.recent_types[: -length - 1 : -1]]
            kinds[user, : len(codes)] = codes
            newest_ms = query.recent_times_ms[: -length - 1 : -1]
            times_ms[user, : len(newest_ms)] = newest_ms
        blocked, blocked_end = joined_rows([items.rows(query.seen) for query in queries])
        special = {
            position: query
            for position, query in enumerate(queries)
            if query.categories is not None or query.exclude or query.candidates is not None
        }
        return cls(
            recent=recent,
            blocked=blocked,
            blocked_end=blocked_end,
            seen_count=np.array([len(query.seen) for query in queries], dtype=np.int32),
            factors=np.stack([query.factor for query in queries]).astype(np.float32, copy=False),
            count=np.array([query.count for query in queries], dtype=np.int32),
            requests=special or None,
            recent_kinds=kinds,
            recent_times_ms=times_ms,
            now_ms=np.array([query.now_ms for query in queries], dtype=np.int64),
            hashed=_hashed_of(queries),
        )

    def part(self, start: int, stop: int) -> QueryBatch:
        """The queries from `start` up to `stop`, as views."""
        first = int(self.blocked_end[start - 1]) if start else 0
        requests = self.requests or {}
        return QueryBatch(
            recent=self.recent[start:stop],
            blocked=self.blocked[first : int(self.blocked_end[stop - 1])],
            blocked_end=self.blocked_end[start:stop] - np.int32(first),
            seen_count=self.seen_count[start:stop],
            factors=self.factors[start:stop],
            count=self.count[start:stop],
            requests={n - start: requests[n] for n in requests if start <= n < stop} or None,
            recent_kinds=self.recent_kinds[start:stop],
            recent_times_ms=self.recent_times_ms[start:stop],
            now_ms=self.now_ms[start:stop],
            hashed=self.hashed[start:stop],
        )

    def take(self, positions: npt.NDArray[np.intp]) -> QueryBatch:
        """The queries at some positions, in that order."""
        starts = np.concatenate((np.zeros(1, np.int32), self.blocked_end[:-1]))[positions]
        spans = zip(starts.tolist(), self.blocked_end[positions].tolist(), strict=True)
        blocked, blocked_end = joined_rows([self.blocked[start:end] for start, end in spans])
        requests = self.requests or {}
        return QueryBatch(
            recent=self.recent[positions],
            blocked=blocked,
            blocked_end=blocked_end,
            seen_count=self.seen_count[positions],
            factors=self.factors[positions],
            count=self.count[positions],
            requests={new: requests[old] for new, old in enumerate(positions.tolist()) if old in requests},
            recent_kinds=self.recent_kinds[positions],
            recent_times_ms=self.recent_times_ms[positions],
            now_ms=self.now_ms[positions],
            hashed=self.hashed[positions],
        )


def _hashed_of(queries: Sequence[Query]) -> Float32:
    """float32[n, HASHED], zeros for a query without; [n, 0] where none has any."""
    given = {n: query.hashed for n, query in enumerate(queries) if query.hashed is not None}
    width = max((len(row) for row in given.values()), default=0)
    whole = np.zeros((len(queries), width), dtype=np.float32)
    for n, row in given.items():
        whole[n] = row
    return whole


def joined_rows(parts: Sequence[Int32]) -> tuple[Int32, Int32]:
    """All rows one part behind the other, and where each part ends."""
    rows = np.concatenate([np.empty(0, dtype=np.int32), *parts]).astype(np.int32, copy=False)
    return rows, np.cumsum([len(part) for part in parts], dtype=np.int32)


@dataclass(slots=True)
class RankedBatch:
    """n lists by columns, best first; items are rows of the item table as it stood when they were made."""

    rows: Int32
    """int32[n, K], -1 behind a list's last."""
    scores: Float32
    """float32[n, K]: finite where there is a row."""
    sources: UInt8
    """uint8[n, K]: bit k says that source k of `serving.retrieval.SOURCES` spoke for the item."""
    kinds: UInt8
    """uint8[n, K]: the reason's kind, a place in `serving.kernels.KINDS`."""
    because: Int32
    """int32[n, K, BECAUSE], -1 padded: the user's items that the reason names."""
    length: Int32
    """int32[n]: items of each list, without the unknown ones."""
    ranker: str | None
    degraded: str | None
    """Why the lists were made without a part that should have been there; None when all was there."""
    unknown: dict[int, list[tuple[str, float]]] = field(default_factory=dict)
    """By position: items that a request names and nobody has used yet, with their scores; they come last."""
    shadowed: list[Shadowed] = field(default_factory=list)
    """Queries that the version beside the live one was asked as well."""

    def __len__(self) -> int:
        return len(self.length)

    @classmethod
    def empty(cls, n: int, width: int) -> RankedBatch:
        """n lists without items, with room for `width` each."""
        return cls(
            rows=np.full((n, width), -1, dtype=np.int32),
            scores=np.zeros((n, width), dtype=np.float32),
            sources=np.zeros((n, width), dtype=np.uint8),
            kinds=np.zeros((n, width), dtype=np.uint8),
            because=np.full((n, width, BECAUSE), -1, dtype=np.int32),
            length=np.zeros(n, dtype=np.int32),
            ranker=None,
            degraded=None,
        )

    def put(self, positions: npt.NDArray[np.intp], part: RankedBatch) -> None:
        """Put a part's lists at some positions."""
        width = min(part.rows.shape[1], self.rows.shape[1])  # what is wider is padding: room that nobody had
        for name in ("rows", "scores", "sources", "kinds", "because"):
            getattr(self, name)[positions, :width] = getattr(part, name)[:, :width]
        self.length[positions] = part.length
        for new, items in part.unknown.items():
            self.unknown[int(positions[new])] = items
        self.shadowed += [queries.at(positions) for queries in part.shadowed]


@dataclass(slots=True)
class RankedItem:
    item_id: str
    score: float
    sources: list[str]
    kind: str
    because: list[str]
    text: str


@dataclass(slots=True)
class RankedList:
    items: list[RankedItem]
    ranker: str | None
    degraded: str | None
    """Why the list was made without a part that should have been there; None when all was there."""
