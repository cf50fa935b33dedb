"""From users to ordered lists: the whole of it on one screen.

    queries ─► retrieve (what each user may get) ─► score ─► best ─► explain ─► lists

Each step is one call for all users of the batch; the loops over items are in `serving.kernels`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from online_models.item_state import ItemState
from serving import kernels
from serving.catalogue import Catalogue
from serving.content.vectors import ContentVectors
from serving.explanations import ranked_list
from serving.filters import Filter
from serving.query import Query, QueryBatch, RankedBatch, RankedList
from serving.ranker.layout import warm_up
from serving.ranker.ranker import Ranker
from serving.retrieval import ContentCandidates, FactorCandidates, Retriever
from serving.scoring import (
    Opinion,
    RankerView,
    Scores,
    Standing,
    asked_of,
    blended,
    ranker_opinion,
    score,
)
from serving.settings import ServingSettings
from serving.shadowing import ShadowScorer, best_columns

__all__ = ["Pipeline"]

Int32 = npt.NDArray[np.int32]

MAX_CELLS = 262_144
"""Candidates of one call of the kernels, padding included: one request may name 10,000, which would widen
every user's row. 5 MB."""


OVERLAPPED = 64
"""Queries scored at once by the ranker where there are many: it runs beside the rest of the pipeline."""


@dataclass(slots=True)
class _Part:
    """A part of a batch that the ranker is scoring."""

    start: int
    batch: QueryBatch
    wanted: kernels.Wanted
    found: kernels.Found
    opinion: Future[Opinion]


class Pipeline:
    """Makes lists for many users at once from the learned item state, the catalogue and the ranker in
    service.

    Reading never changes what was learned, and a list does not depend on what else is in its batch. `use`
    takes another ranker (or none) between two calls. One thread at a time.
    """

    def __init__(
        self,
        items: ItemState,
        catalogue: Catalogue,
        settings: ServingSettings,
        nearest: FactorCandidates | None = None,
        contents: ContentVectors | None = None,
    ) -> None:
        """`contents` gives content vectors of items that a ranker has never seen, and by which new items are
        found."""
        self.event_types: tuple[str, ...] = ()
        """Names of the codes in `QueryBatch.recent_kinds`."""
        self.lacking: str | None = None
        """Why there is no ranker though one should serve: lists made without one are then `degraded`."""
        self.items = items
        self._contents = contents
        self.catalogue = catalogue
        self.settings = settings
        self._content: ContentCandidates | None = None
        if contents is not None and contents.spec and settings.content_candidates:
            self._content = ContentCandidates(items, contents, settings)
        self._retriever = Retriever(items, settings, nearest, self._content)
        self._view: RankerView | None = None
        self._shadow: ShadowScorer | None = None
        self._scorer = ThreadPoolExecutor(1, thread_name_prefix="ranker")
        self._warm_up()

    def use(self, ranker: Ranker | None) -> None:
        self._view = None if ranker is None else RankerView(ranker, self._contents)

    def use_beside(self, ranker: Ranker | None, share: float = 1.0) -> None:
        """Ask another ranker as well, on a share of the queries that the one in service answers."""
        if ranker is None:
            self._shadow = None
        elif self._shadow is None or self._shadow.ranker is not ranker:
            self._shadow = ShadowScorer(ranker, self.items, self.settings, share, self._contents)

    @property
    def ranker(self) -> str | None:
        return None if self._view is None else self._view.ranker.version

    @property
    def history_length(self) -> int:
        """Recent items that `recommend_batch` reads of each user: changes with the ranker."""
        related = self.items.covisitation.query_length
        rankers = [one.ranker for one in (self._view, self._shadow) if one is not None]
        return max([related, *(ranker.history_length for ranker in rankers)])

    def rows_changed(self, rows: Int32) -> None:
        """Look anew at rows of the item table that were given to other items, or to none, or whose items got
        other content."""
        self.catalogue.rows_changed(rows, int(time.time() * 1000))
        if self._content is not None:
            self._content.rows_changed(rows)
        if self._view is not None:
            self._view.rows_changed(self.items.items.ids, rows)
        if self._shadow is not None:
            self._shadow.rows_changed(self.items.items.ids, rows)

    def recommend(self, queries: Sequence[Query]) -> list[RankedList]:
        """`recommend_batch` with ids and objects for columns: one list for each query, in their order."""
        if not queries:
            return []
        items = self.items.items
        ranked = self.recommend_batch(QueryBatch.of(queries, items, self.history_length, self.event_types))
        return [ranked_list(ranked, position, items, self.catalogue) for position in range(len(queries))]

    def recommend_batch(self, batch: QueryBatch) -> RankedBatch:
        """One list for each query; shorter than asked for only when no more items may be served.

        By falling score, equal scores by item id. When the ranker fails, all lists are made without it,
        and say so, as they do where one is `lacking`.
        """
        if not len(batch):
            return RankedBatch.empty(0, 0)
        allowed = Filter(self.items.items, self.catalogue, int(time.time() * 1000))
        ranked = self._in_parts(batch, allowed, self._view)
        if self._view is None:
            ranked.degraded = self.lacking
        elif ranked.degraded is not None:
            ranked = replace(self._in_parts(batch, allowed, None), degraded=ranked.degraded)
        if batch.requests:
            self._add_unknown(ranked, batch, allowed)
        ranked.shadowed = [queries.begun(self._scorer) for queries in ranked.shadowed]
        return ranked

    def _in_parts(self, batch: QueryBatch, allowed: Filter, view: RankerView | None) -> RankedBatch:
        rooms = self._retriever.rooms(batch)
        if len(batch) * int(rooms.max()) <= MAX_CELLS:
            if view is None or len(batch) < 2 * OVERLAPPED:
                return self._rank(batch, allowed, view)
            return self._overlapped(batch, allowed, view)
        ranked = RankedBatch.empty(len(batch), int(np.minimum(batch.count, rooms).max()))
        for positions in _parts(rooms):
            part = self._rank(batch.take(positions), allowed, view)
            ranked.put(positions, part)
            ranked.ranker, ranked.degraded = part.ranker, part.degraded
            if part.degraded is not None:
                break
        return ranked

    def _overlapped(self, batch: QueryBatch, allowed: Filter, view: RankerView) -> RankedBatch:
        """In parts, the ranker scoring one in a thread of its own while this one retrieves the next."""
        n = len(batch)
        ranked = RankedBatch.empty(n, int(batch.count.max()))
        standing = Standing.of(view, self.items, self.event_types)
        begun: list[_Part] = []
        for start in range(0, n, OVERLAPPED):
            part = batch.part(start, min(start + OVERLAPPED, n))
            wanted, found = self._retriever.retrieve(part, allowed)
            opinion = self._scorer.submit(ranker_opinion, part, wanted, found, self.items, standing)
            begun.append(_Part(start, part, wanted, found, opinion))
            if len(begun) > 1:
                self._finish(begun.pop(0), view, ranked)
        for rest in begun:
            self._finish(rest, view, ranked)
        return ranked

    def _finish(self, begun: _Part, view: RankerView, ranked: RankedBatch) -> None:
        scores = blended(begun.batch.seen_count, begun.found, begun.opinion.result(), self.settings)
        part = self._ordered(begun.batch, begun.wanted, begun.found, scores, view)
        ranked.put(np.arange(begun.start, begun.start + len(part)), part)
        ranked.ranker = part.ranker
        ranked.degraded = ranked.degraded or part.degraded

    def _rank(self, batch: QueryBatch, allowed: Filter, view: RankerView | None) -> RankedBatch:
        wanted, found = self._retriever.retrieve(batch, allowed)
        standing = None if view is None else Standing.of(view, self.items, self.event_types)
        scores = score(batch, wanted, found, self.items, standing, self.settings)
        return self._ordered(batch, wanted, found, scores, view)

    def _ordered(
        self,
        batch: QueryBatch,
        wanted: kernels.Wanted,
        found: kernels.Found,
        scores: Scores,
        view: RankerView | None,
    ) -> RankedBatch:
        """The best of the candidates, best first, with their reasons."""
        ranked = RankedBatch.empty(len(batch), min(int(batch.count.max()), found.rows.shape[1]))
        self._choose(wanted.count, found, scores, ranked)
        self._retriever.explain(wanted, ranked)
        ranked.degraded = scores.degraded
        ranked.ranker = None if view is None or scores.degraded else view.ranker.version
        if self._shadow is not None and ranked.ranker is not None:
            ranked.shadowed = self._shadow.sample(batch, wanted, found, self.event_types)
        return ranked

    def _choose(self, count: Int32, found: kernels.Found, scores: Scores, ranked: RankedBatch) -> None:
        """Put the best candidates of each user in, best first."""
        columns = np.empty(ranked.rows.shape, dtype=np.int32)
        best_columns(count, found, scores.blended, self.items.items.ids, columns)
        kernels.pick(
            found, scores.blended, columns, ranked.rows, ranked.scores, ranked.sources, ranked.length
        )

    def _add_unknown(self, ranked: RankedBatch, batch: QueryBatch, allowed: Filter) -> None:
        """Items that a request names and nobody has used yet: last, in the request's order."""
        for position, ids in allowed.unknown(batch.requests or {}).items():
            length = int(ranked.length[position])
            lowest = float(ranked.scores[position, length - 1]) if length else 0.0
            room = int(batch.count[position]) - length
            if room > 0:
                ranked.unknown[position] = [
                    (item_id, lowest - place) for place, item_id in enumerate(ids[:room], start=1)
                ]

    def _warm_up(self) -> None:
        """Compile the kernels, or load them from numba's cache, before the first user has to wait for it."""
        nobody = np.zeros(self.items.factors.dimension, dtype=np.float32)
        query = Query((), (), nobody, 1)
        self.recommend([query])
        batch = QueryBatch.of([query], self.items.items, self.history_length)
        wanted, found = self._retriever.retrieve(batch, Filter(self.items.items, self.catalogue, 0))
        asked_of(batch, wanted, found, self.items, with_features=True)
        if self._content is not None:
            self._content.warm_up()
        warm_up()


def _parts(rooms: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.intp]]:
    """Positions in parts whose tables of candidates stay small: those that need like room go together."""
    order = np.argsort(rooms, kind="stable")
    start = 0
    while start < len(order):
        widths = np.maximum(rooms[order[start:]], 1)
        sizes = widths * np.arange(1, len(widths) + 1)
        stop = start + max(1, int(np.searchsorted(sizes, MAX_CELLS, side="right")))
        yield order[start:stop]
        start = stop
