"""Candidates from the online models, merged by user; what a user may not get never becomes one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from online_models.item_state import ItemState
from serving import kernels
from serving.filters import Filter
from serving.query import Query
from serving.retrieval.learned import learned_arrays
from serving.settings import ServingSettings

__all__ = ["SOURCES", "Context", "Retriever", "user_context"]

SOURCES = ("covisitation", "popularity", "factors", "request", "ranker")
"""Names of the sources; bit k of `Found.sources` says that source k proposed the item."""

Int32 = npt.NDArray[np.int32]


@dataclass(slots=True)
class Context:
    """n queries as rows of the item table: recent int32[n, L], newest first, -1 padded; factors float32[n,
    d]."""

    queries: Sequence[Query]
    recent: Int32
    factors: npt.NDArray[np.float32]


def user_context(queries: Sequence[Query], items: ItemState) -> Context:
    """Translate ids into rows; a recent item without a row leaves its place empty."""
    length, row_of = items.covisitation.query_length, items.items.row
    recent = np.full((len(queries), length), -1, dtype=np.int32)
    for user, query in enumerate(queries):
        newest_first = query.recent[: -length - 1 : -1]
        recent[user, : len(newest_first)] = [row_of(item_id) for item_id in newest_first]
    factors = np.stack([query.factor for query in queries]).astype(np.float32, copy=False)
    return Context(queries, recent, factors)


class Retriever:
    """Gathers candidates, with every online source's score of each. Holds the kernels' scratch memory."""

    def __init__(self, items: ItemState, settings: ServingSettings) -> None:
        self._items = items
        self._settings = settings
        related, popular = settings.covisitation_candidates, settings.popularity_candidates
        self._quotas = (related, popular, settings.factor_candidates)
        self._unscanned = (related, popular, 0)
        self._scratch = _scratch(items, 1024)

    def retrieve(self, context: Context, allowed: Filter) -> kernels.Found:
        """The union of what each source proposes to each user, only of what the user may get."""
        queries, learned = context.queries, learned_arrays(self._items)
        masks, mask = allowed.masks(queries)
        if len(self._scratch.total) < masks.shape[1]:
            self._scratch = _scratch(self._items, 2 * masks.shape[1])
        quotas = self._quotas if len(learned.factors) <= self._settings.factor_scan_items else self._unscanned
        found = _empty(len(queries), max(_room(query, quotas) for query in queries))
        wanted = self._wanted(context, allowed, mask)
        kernels.gather(wanted, learned, masks, np.array(quotas), self._scratch, found)
        return found

    def because(self, context: Context, chosen: Int32, reasons: int) -> Int32:
        """int32[n, K, reasons], -1 padded: the recent rows that speak most for each of the rows chosen
        int32[n, K]."""
        because = np.empty((*chosen.shape, reasons), dtype=np.int32)
        learned = learned_arrays(self._items)
        kernels.explain(context.recent, chosen, learned, self._scratch.place, because)
        return because

    def _wanted(self, context: Context, allowed: Filter, mask: Int32) -> kernels.Wanted:
        queries, items = context.queries, self._items.items
        blocked, blocked_end = _joined([allowed.blocked(query) for query in queries])
        asked, asked_end = _joined([query.candidates or () for query in queries])
        return kernels.Wanted(
            recent=context.recent,
            users=context.factors,
            blocked=items.rows(blocked),
            blocked_end=blocked_end,
            asked=items.rows(asked),
            asked_end=asked_end,
            by_name=np.array([query.candidates is not None for query in queries]),
            count=np.array([query.count for query in queries], dtype=np.int32),
            mask=mask,
        )


def _room(query: Query, quotas: tuple[int, int, int]) -> int:
    """Candidates that a query may have at most."""
    if query.candidates is not None:
        return len(query.candidates)
    return quotas[0] + max(quotas[1], query.count) + quotas[2]


def _joined(lists: Sequence[Sequence[str]]) -> tuple[list[str], Int32]:
    """All lists one behind the other, and where each ends."""
    joined: list[str] = []
    ends = []
    for ids in lists:
        joined.extend(ids)
        ends.append(len(joined))
    return joined, np.array(ends, dtype=np.int32)


def _empty(n: int, room: int) -> kernels.Found:
    return kernels.Found(
        length=np.zeros(n, dtype=np.int32),
        rows=np.full((n, room), -1, dtype=np.int32),
        sources=np.zeros((n, room), dtype=np.uint8),
        scores=np.zeros((n, room, kernels.ONLINE), dtype=np.float32),
    )


def _scratch(items: ItemState, rows: int) -> kernels.Scratch:
    related = items.covisitation
    return kernels.Scratch(
        total=np.zeros(rows, dtype=np.float32),
        place=np.full(rows, -1, dtype=np.int32),
        blocked=np.zeros(rows, dtype=np.bool_),
        touched=np.zeros(related.query_length * related.row_capacity + 1, dtype=np.int32),
    )
