"""Lists as bytes: UTF-8 JSON of `items`, `ranker`, `degraded` and `degraded_reason`, behind a head of the
caller's.

A list repeats what was written a thousand times before: ids, titles, names of sources, the words of a reason.
All of it is escaped once an item and kept; a list is then copies and ten numbers, without an object an item.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from online_models.item_table import ItemTable
from serving import list_kernels
from serving.catalogue import Catalogue
from serving.explanations import QUOTES, SOURCES_OF, WORDS, ranked_list
from serving.kernels import KINDS
from serving.list_kernels import Lists, Pieces, Spans
from serving.query import BECAUSE, RankedBatch, RankedList

__all__ = ["MAX_LIST_BYTES", "ListEncoder"]

MAX_LIST_BYTES = 900_000
"""A record above this is cut: a list's tail is dropped, and the record says so."""
MAX_ARENA_BYTES = 64 << 20
"""Escaped ids and titles that are kept; above this all are forgotten and made again as they are needed."""

Int32 = npt.NDArray[np.int32]
_to_json = msgspec.json.Encoder().encode


class ListEncoder:
    """Writes ranked lists as JSON objects. Watches the catalogue: a new title shows in the next list.

    One thread at a time.
    """

    def __init__(self, items: ItemTable, catalogue: Catalogue, max_bytes: int = MAX_LIST_BYTES) -> None:
        self._items = items
        self._catalogue = catalogue
        self._max_bytes = max_bytes
        self._pieces = _pieces()
        self._arena = np.empty(1 << 16, dtype=np.uint8)
        self._forget()
        self._out = np.empty(0, dtype=np.uint8)
        catalogue.watch(self._changed)
        self.encode(RankedBatch.empty(1, 1), [b"{"])  # compiles the kernels, or loads them

    def encode(self, batch: RankedBatch, heads: Sequence[bytes]) -> list[bytes]:
        """One JSON object for each list. heads[i] is its start with at least one field, as in
        `b'{"user_id":"ann"'`; `items`, `ranker`, `degraded` and `degraded_reason` come behind it.

        Scores are rounded to six decimals. Raises ValueError when there is not one head a list.
        """
        if len(heads) != len(batch):
            raise ValueError(f"{len(heads)} heads for {len(batch)} lists: one each is needed")
        if not heads:
            return []
        lists = Lists(batch.rows, batch.scores, batch.sources, batch.kinds, batch.because, batch.length)
        self._make_room(lists)
        tails = (b',"items":[', b"]" + _tail(batch.ranker, batch.degraded))
        spans, ends = _spans(heads), np.empty(len(heads), dtype=np.int64)
        ids = Spans(self._arena, self._starts[0], self._lengths[0])
        titles = Spans(self._arena, self._starts[1], self._lengths[1])
        room = len(spans.arena) + len(heads) * sum(map(len, tails))
        room += list_kernels.room_needed(lists, ids, titles, self._pieces)
        if len(self._out) < room or len(self._out) > 4 * room + (1 << 20):
            self._out = np.empty(room + room // 4, dtype=np.uint8)
        list_kernels.write_lists(lists, spans, _spans(tails), ids, titles, self._pieces, self._out, ends)
        return self._cut_out(batch, heads, ends.tolist())

    def _cut_out(self, batch: RankedBatch, heads: Sequence[bytes], ends: list[int]) -> list[bytes]:
        written = self._out[: max(ends, default=0)].tobytes()
        records, start = [], 0
        for position, end in enumerate(ends):
            if end < 0 or end - start > self._max_bytes or position in batch.unknown:
                records.append(self._by_objects(batch, position, heads[position]))
            else:
                records.append(written[start:end])
            start = max(start, end)
        return records

    def _by_objects(self, batch: RankedBatch, position: int, head: bytes) -> bytes:
        """The same from objects: for lists that name unknown items, are too large, or hold odd scores."""
        ranked = ranked_list(batch, position, self._items, self._catalogue)
        asked, record = len(ranked.items), _record(head, ranked)
        while len(record) > self._max_bytes and ranked.items:
            del ranked.items[len(ranked.items) * 3 // 4 :]
            ranked.degraded = f"{len(ranked.items)} of {asked} items fit into a record"
            record = _record(head, ranked)
        return record

    def _changed(self, rows: Int32 | None) -> None:
        if rows is None:
            self._items = self._catalogue.items
            self._forget()
        else:
            self._lengths[:, rows[rows < self._lengths.shape[1]]] = -1

    def _forget(self) -> None:
        rows = max(1024, len(self._items))
        self._starts = np.zeros((2, rows), dtype=np.int64)
        self._lengths = np.full((2, rows), -1, dtype=np.int32)
        self._seen = np.zeros(rows, dtype=np.uint8)
        self._used = 0

    def _make_room(self, lists: Lists) -> None:
        """Have the ids and titles of all rows in the lists escaped."""
        rows = len(self._items)
        if self._used > MAX_ARENA_BYTES:
            self._forget()
        if rows > len(self._seen):
            more = max(rows, 2 * len(self._seen)) - len(self._seen)
            self._starts = np.pad(self._starts, ((0, 0), (0, more)))
            self._lengths = np.pad(self._lengths, ((0, 0), (0, more)), constant_values=-1)
            self._seen = np.pad(self._seen, (0, more))
        missing = np.empty(lists.rows.size + lists.because.size, dtype=np.int32)
        n = list_kernels.missing_rows(lists, self._lengths[0], self._seen, missing)
        for row in missing[:n].tolist():
            item_id = self._items.ids[row]
            self._keep(0, row, item_id)
            self._keep(1, row, self._catalogue.title(item_id))

    def _keep(self, table: int, row: int, text: str) -> None:
        escaped = _to_json(text)[1:-1]
        start, end = self._used, self._used + len(escaped)
        if end > len(self._arena):
            self._arena = np.concatenate((self._arena, np.empty(max(end, len(self._arena)), dtype=np.uint8)))
        self._arena[start:end] = np.frombuffer(escaped, dtype=np.uint8)
        self._starts[table, row], self._lengths[table, row], self._used = start, len(escaped), end


def _tail(ranker: str | None, degraded: str | None) -> bytes:
    fields = {"ranker": ranker, "degraded": degraded is not None, "degraded_reason": degraded}
    return b"," + _to_json(fields)[1:]


def _record(head: bytes, ranked: RankedList) -> bytes:
    items: list[dict[str, Any]] = [
        {
            "item_id": item.item_id,
            "score": round(item.score, list_kernels.DECIMALS),
            "sources": item.sources,
            "reason": {"kind": item.kind, "because": item.because, "text": item.text},
        }
        for item in ranked.items
    ]
    return head + b',"items":' + _to_json(items) + _tail(ranked.ranker, ranked.degraded)


def _spans(parts: Sequence[bytes]) -> Spans:
    lengths = np.fromiter(map(len, parts), dtype=np.int32, count=len(parts))
    arena = np.frombuffer(b"".join(parts), dtype=np.uint8)
    return Spans(arena, np.cumsum(lengths, dtype=np.int64) - lengths, lengths)


def _pieces() -> Pieces:
    """What `_record` writes around ids, titles and scores, cut where they stand."""
    empty = ("", "")
    reasons = [
        f',"sources":{_to_json(names).decode()},"reason":{{"kind":"{kind}","because":['
        for names in SOURCES_OF
        for kind in KINDS
    ]
    words = [WORDS.get((kind, named), empty) for kind in KINDS for named in (False, True)]
    texts = [f'],"text":"{before}' for before, _ in words]
    after = [f'{behind}"}}}}' for _, behind in words]
    groups = [
        [part.encode() for part in g] for g in (['{"item_id":"'], ['","score":'], reasons, texts, after)
    ]
    quotes = [part.encode() for part in QUOTES]
    named = BECAUSE * (len(b'"",') + max(map(len, quotes))) + len(quotes[-1])
    longest = sum(max(map(len, group)) for group in groups) + named + list_kernels.SCORE_BYTES + len(b",")
    item, score, reason, text, after, quote = np.cumsum([0, *map(len, groups)]).tolist()
    return Pieces(
        spans=_spans([part for group in (*groups, quotes) for part in group]),
        item=item,
        score=score,
        reason=reason,
        text=text,
        after=after,
        quotes=quote,
        kinds=len(KINDS),
        longest=longest,
    )
