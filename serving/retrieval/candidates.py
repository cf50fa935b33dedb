"""Candidates from the online models, merged by user; what a user may not get never becomes one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from online_models.item_state import ItemState
from serving.filters import Filter
from serving.query import Query
from serving.settings import ServingSettings

__all__ = ["SOURCES", "Candidates", "Context", "retrieve", "user_context"]

SOURCES = ("covisitation", "popularity", "factors", "request")
"""Names of the candidate sources; bit k of `Candidates.sources` says that source k proposed the item."""

CATEGORY_FACTOR = 10
"""With a category filter most candidates fall away, so that many more are fetched first."""

Int32 = npt.NDArray[np.int32]


@dataclass(slots=True)
class Context:
    """n queries as rows of the item table: recent int32[n, L], newest first, -1 padded; factors float32[n, d]."""

    queries: Sequence[Query]
    recent: Int32
    factors: npt.NDArray[np.float32]


@dataclass(slots=True)
class Candidates:
    """rows int32[n, C], rising, -1 padded on the right; sources uint8[n, C], bits as in `SOURCES`."""

    rows: Int32
    sources: npt.NDArray[np.uint8]


def user_context(queries: Sequence[Query], items: ItemState) -> Context:
    """Translate ids into rows; a recent item without a row leaves its place empty."""
    length = items.covisitation.query_length
    recent = np.full((len(queries), length), -1, dtype=np.int32)
    for row, query in enumerate(queries):
        newest_first = query.recent[: -length - 1 : -1]
        recent[row, : len(newest_first)] = items.items.rows(newest_first)
    return Context(queries, recent, np.stack([query.factor for query in queries]))


def retrieve(context: Context, items: ItemState, allowed: Filter, settings: ServingSettings) -> Candidates:
    """The union of what each source proposes to each user."""
    queries = context.queries
    blocked = [allowed.blocked_rows(query) for query in queries]
    unwanted = padded([np.concatenate((rows, allowed.hidden)) for rows in blocked])
    more = CATEGORY_FACTOR if any(query.categories is not None for query in queries) else 1
    related = items.covisitation.retrieve(context.recent, settings.covisitation_candidates * more, unwanted)[
        0
    ]
    similar = items.factors.retrieve(context.factors, settings.factor_candidates * more, unwanted)[0]
    order = items.popularity.top(items.popularity.top_size)
    proposals = []
    for index, query in enumerate(queries):
        if query.candidates is not None:
            wanted = items.items.rows(query.candidates)
            rows = [allowed.keep(query, blocked[index], wanted[wanted >= 0])]
            kinds = [SOURCES.index("request")]
        else:
            rows = [
                _kept(allowed, query, blocked[index], related[index]),
                _popular(
                    allowed, query, blocked[index], order, max(query.count, settings.popularity_candidates)
                ),
                _kept(allowed, query, blocked[index], similar[index]),
            ]
            kinds = [0, 1, 2]
        proposals.append(_merge(rows, kinds))
    return Candidates(
        padded([rows for rows, _ in proposals]), padded([bits for _, bits in proposals], 0, np.uint8)
    )


def _kept(allowed: Filter, query: Query, blocked: Int32, rows: Int32) -> Int32:
    found = rows[rows >= 0]
    return found if query.categories is None else allowed.keep(query, blocked, found)


def _popular(allowed: Filter, query: Query, blocked: Int32, order: Int32, wanted: int) -> Int32:
    """The most popular rows that the user may get: from the top list, and beyond it in order of first use."""
    window = order if query.categories is not None else order[: wanted + len(blocked) + len(allowed.hidden)]
    rows = allowed.keep(query, blocked, window)[:wanted]
    if len(rows) < wanted and len(order) < len(allowed.servable):
        rest = np.setdiff1d(np.arange(len(allowed.servable), dtype=np.int32), order)
        rows = np.concatenate((rows, allowed.keep(query, blocked, rest)))[:wanted]
    return rows


def _merge(rows: list[Int32], kinds: list[int]) -> tuple[Int32, npt.NDArray[np.uint8]]:
    """Union of `rows`, rising, with the bits of the sources that proposed each."""
    joined = np.concatenate(rows)
    bits = np.concatenate([np.full(len(r), 1 << kind, np.uint8) for r, kind in zip(rows, kinds, strict=True)])
    union, position = np.unique(joined, return_inverse=True)
    merged = np.zeros(len(union), dtype=np.uint8)
    np.bitwise_or.at(merged, position, bits)
    return union.astype(np.int32), merged


def padded(
    rows: Sequence[npt.NDArray[np.generic]], fill: int = -1, dtype: type[np.generic] = np.int32
) -> npt.NDArray[np.generic]:
    """Rows of unequal length as one array [n, longest], `fill` behind each row's end."""
    out = np.full((len(rows), max((len(row) for row in rows), default=0)), fill, dtype=dtype)
    for index, row in enumerate(rows):
        out[index, : len(row)] = row
    return out
