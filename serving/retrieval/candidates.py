"""Candidates from the online models, merged by user; what a user may not get never becomes one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from online_models.item_state import ItemState
from serving import kernels
from serving.explain_kernels import explain
from serving.filters import Filter
from serving.query import QueryBatch, RankedBatch, joined_rows
from serving.retrieval.content import ContentCandidates, Proposed
from serving.retrieval.learned import learned_arrays
from serving.settings import ServingSettings

__all__ = ["SOURCES", "FactorCandidates", "Retriever"]

SOURCES = kernels.KINDS
"""Names of the sources; bit k of `Found.sources` says that source k proposed the item."""

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]


class FactorCandidates(Protocol):
    """Finds items by their factors in catalogues that are too large to scan for every list."""

    def __call__(self, users: Float32, k: int, mask: Bool) -> Int32:
        """Rows int32[n, k] with large inner products with users float32[n, d], best first, -1 padded, of
        those that mask bool[rows] lets through."""
        ...


class Retriever:
    """Gathers candidates, with every online source's score of each. Holds the kernels' scratch memory.

    `nearest` gives the factors' candidates where there are more items than `factor_scan_items`; without it,
    the factors only score there what the other sources propose. `content` proposes new items that are like
    what a user had; an item that was only introduced comes from nowhere else, unless it is asked for by name.
    """

    def __init__(
        self,
        items: ItemState,
        settings: ServingSettings,
        nearest: FactorCandidates | None = None,
        content: ContentCandidates | None = None,
    ) -> None:
        self.nearest = nearest
        self.content = content
        self._items = items
        self._settings = settings
        self._quotas = np.array(
            [settings.covisitation_candidates, settings.popularity_candidates, settings.factor_candidates]
        )
        self._scratch = _scratch(items, 1024, scanned=True)
        self._learned = learned_arrays(items)

    def rooms(self, batch: QueryBatch) -> npt.NDArray[np.int64]:
        """int64[n]: candidates that each query may have at most."""
        related, popular, similar = self._quotas.tolist()
        related += 0 if self.content is None else self._settings.content_candidates
        rooms: npt.NDArray[np.int64] = related + similar + np.maximum(popular, batch.count.astype(np.int64))
        for position, query in (batch.requests or {}).items():
            if query.candidates is not None:
                rooms[position] = len(query.candidates)
        return rooms

    def retrieve(self, batch: QueryBatch, allowed: Filter) -> tuple[kernels.Wanted, kernels.Found]:
        """The union of what each source proposes to each user, only of what the user may get."""
        self._learned = learned = learned_arrays(self._items)
        masks, mask = allowed.masks(batch)
        rows = masks.shape[1]
        scanned = rows <= self._settings.factor_scan_items
        if len(self._scratch.total) < rows or scanned != bool(self._scratch.similar.shape[1]):
            self._scratch = _scratch(self._items, 2 * rows, scanned=scanned)
        known, mask_of_known = self._used(batch, masks, mask)
        nearest = self._nearest(batch.factors, known[0], scanned)
        wanted = self._wanted(batch, allowed, mask, nearest)
        if self.content is not None:
            content = self.content.find(wanted, masks, self._scratch.blocked, learned.decay)
            wanted = wanted._replace(content=content.rows, content_scores=content.scores)
        masks, wanted = known, wanted._replace(mask=mask_of_known)
        found = _empty(len(batch), int(self.rooms(batch).max()))
        kernels.gather(wanted, learned, masks, self._quotas, self._scratch, found)
        return wanted, found

    def explain(self, wanted: kernels.Wanted, ranked: RankedBatch) -> None:
        """Put in why each item of the lists stands there: of what was retrieved last."""
        place, columns = self._scratch.place, (ranked.because, ranked.kinds)
        explain(wanted.recent, ranked.rows, ranked.sources, self._learned, place, *columns)
        if self.content is not None:
            self.content.explain(wanted.recent, ranked, self._learned.decay)

    def _used(self, batch: QueryBatch, masks: Bool, mask: Int32) -> tuple[Bool, Int32]:
        """The masks, and which of them holds for whom, without items that nobody has used: all that is known
        of them is that they are new. Who asks by name may get them."""
        if not self._items.has_introduced:
            return masks, mask
        named = [at for at, query in (batch.requests or {}).items() if query.candidates is not None]
        chosen = mask.copy()
        chosen[named] += len(masks)
        used = masks & ~self._items.introduced
        return np.concatenate((used, masks)) if named else used, chosen

    def _nearest(self, users: Float32, mask: Bool, scanned: bool) -> Int32:
        quota = self._settings.factor_candidates
        if scanned or self.nearest is None or not quota:
            return np.empty((len(users), 0), dtype=np.int32)
        return self.nearest(users, 2 * quota, mask)  # what this user may not get falls out of the double

    def _wanted(self, batch: QueryBatch, allowed: Filter, mask: Int32, nearest: Int32) -> kernels.Wanted:
        n, nothing = len(batch), Proposed.nothing(len(batch))
        blocked, blocked_end = allowed.blocked(batch)
        recent, asked, asked_end = (
            _int32(batch.recent),
            np.empty(0, dtype=np.int32),
            np.zeros(n, dtype=np.int32),
        )
        by_name = np.zeros(n, dtype=np.bool_)
        if batch.requests:
            rows, length = self._items.items.rows, recent.shape[1]
            recent = recent.copy()
            named: list[Sequence[str]] = [()] * n
            for position, query in batch.requests.items():
                by_name[position] = query.candidates is not None
                named[position] = query.candidates or ()
                if query.recent:
                    newest_first = rows(query.recent[: -length - 1 : -1])
                    recent[position] = -1
                    recent[position, : len(newest_first)] = newest_first
            asked, asked_end = joined_rows([rows(ids) for ids in named])
        return kernels.Wanted(
            recent=recent,
            users=np.ascontiguousarray(batch.factors, dtype=np.float32),
            blocked=_int32(blocked),
            blocked_end=_int32(blocked_end),
            asked=asked,
            asked_end=asked_end,
            by_name=by_name,
            count=_int32(batch.count),
            mask=mask,
            nearest=nearest,
            content=nothing.rows,
            content_scores=nothing.scores,
        )


def _int32(column: Int32) -> Int32:
    """In the one layout that the kernels are compiled for."""
    return np.ascontiguousarray(column, dtype=np.int32)


def _empty(n: int, room: int) -> kernels.Found:
    return kernels.Found(
        length=np.empty(n, dtype=np.int32),
        rows=np.empty((n, room), dtype=np.int32),
        sources=np.empty((n, room), dtype=np.uint8),
        scores=np.empty((n, kernels.ONLINE, room), dtype=np.float32),
    )


def _scratch(items: ItemState, rows: int, *, scanned: bool) -> kernels.Scratch:
    related = items.covisitation
    touched = related.query_length * related.row_capacity + 1
    columns = rows if scanned else 0
    return kernels.Scratch(
        total=np.zeros(rows, dtype=np.float32),
        place=np.full(rows, -1, dtype=np.int32),
        blocked=np.zeros(rows, dtype=np.bool_),
        touched=np.zeros(touched, dtype=np.int32),
        keys=np.zeros(max(columns, touched, min(rows, kernels.DENSE * touched)), dtype=np.int32),
        similar=np.zeros((kernels.SCAN_USERS, columns), dtype=np.float32),
        transposed=np.zeros((items.factors.dimension, columns), dtype=np.float32),
    )
