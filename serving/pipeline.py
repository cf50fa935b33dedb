"""From users to ordered lists: the whole of it on one screen.

    queries ─► context ─► retrieve (what each user may get) ─► score ─► best ─► explain ─► lists

Each step is one call for all users of the batch; the loops over items are in `serving.kernels`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from online_models.item_state import ItemState
from serving import kernels
from serving.catalogue import Catalogue
from serving.explanations import BECAUSE, explained
from serving.filters import Filter
from serving.query import Query, RankedItem, RankedList
from serving.ranker.ranker import Ranker
from serving.retrieval import Context, Retriever, user_context
from serving.scoring import RankerView, Scores, score
from serving.settings import ServingSettings

__all__ = ["Pipeline"]

Int32 = npt.NDArray[np.int32]


class Pipeline:
    """Makes lists for many users at once from the learned item state, the catalogue and the ranker in
    service.

    Reading never changes what was learned, and a list does not depend on what else is in its batch. `use`
    takes another ranker (or none) between two calls. One thread at a time.
    """

    def __init__(self, items: ItemState, catalogue: Catalogue, settings: ServingSettings) -> None:
        self.items = items
        self.catalogue = catalogue
        self.settings = settings
        self._retriever = Retriever(items, settings)
        self._view: RankerView | None = None
        self._warm_up()

    def use(self, ranker: Ranker | None) -> None:
        self._view = None if ranker is None else RankerView(ranker)

    @property
    def ranker(self) -> str | None:
        return None if self._view is None else self._view.ranker.version

    def recommend(self, queries: Sequence[Query]) -> list[RankedList]:
        """One list for each query, in the queries' order; shorter than asked for only when no more items may
        be served.

        By falling score, equal scores by item id.
        """
        if not queries:
            return []
        allowed = Filter(self.items.items, self.catalogue, int(time.time() * 1000))
        context = user_context(queries, self.items)
        found = self._retriever.retrieve(context, allowed)
        scores = score(context, found, self.items, self._view, self.settings)
        columns = self._best(context, found, scores)
        lists = self._explain(context, found, scores, columns)
        for query, ranked in zip(queries, lists, strict=True):
            ranked.items += self._asked_for_but_unknown(query, allowed, ranked.items)
        return lists

    def _best(self, context: Context, found: kernels.Found, scores: Scores) -> Int32:
        """The best candidates of each user, best first: columns int32[n, K], -1 padded."""
        queries, ids = context.queries, self.items.items.ids
        count = np.array([query.count for query in queries], dtype=np.int32)
        columns = np.empty((len(queries), min(int(count.max()), found.rows.shape[1])), dtype=np.int32)
        tied = np.empty(len(queries), dtype=np.bool_)
        kernels.best(found, scores.blended, count, columns, tied)
        for user in np.flatnonzero(tied).tolist():
            length = int(found.length[user])
            names = [ids[row] for row in found.rows[user, :length].tolist()]
            blended = scores.blended[user, :length].tolist()
            order = sorted(range(length), key=lambda column: (-blended[column], names[column]))
            columns[user, : min(count[user], length)] = order[: count[user]]
        return columns

    def _explain(
        self, context: Context, found: kernels.Found, scores: Scores, columns: Int32
    ) -> list[RankedList]:
        """The chosen candidates as lists, each item with its strongest reason."""
        ids, catalogue = self.items.items.ids, self.catalogue
        users = np.arange(len(columns))[:, None]
        rows = np.where(columns >= 0, found.rows[users, columns], -1)
        because = self._retriever.because(context, rows, BECAUSE).tolist()
        chosen = (
            rows.tolist(),
            scores.blended[users, columns].tolist(),
            found.sources[users, columns].tolist(),
        )
        lists = []
        for query, reasons, *parts in zip(context.queries, because, *chosen, strict=True):
            ranked = [
                explained(
                    ids[row], value, bits, [ids[r] for r in reason if r >= 0], query.recent[-1:], catalogue
                )
                for row, value, bits, reason in zip(*parts, reasons, strict=True)
                if row >= 0
            ]
            lists.append(RankedList(ranked, None if scores.degraded else self.ranker, scores.degraded))
        return lists

    def _asked_for_but_unknown(
        self, query: Query, allowed: Filter, ranked: Sequence[RankedItem]
    ) -> list[RankedItem]:
        """Items that a request names and nobody has used yet: last, in the request's order."""
        room = query.count - len(ranked)
        if query.candidates is None or room <= 0:
            return []
        known = self.items.items.row
        unknown = [
            item_id
            for item_id in dict.fromkeys(query.candidates)
            if known(item_id) < 0 and allowed.allows(query, item_id)
        ]
        lowest = min([item.score for item in ranked], default=0.0)
        return [
            explained(item_id, lowest - place, kernels.REQUEST, [], (), self.catalogue)
            for place, item_id in enumerate(unknown[:room], start=1)
        ]

    def _warm_up(self) -> None:
        """Compile the kernels, or load them from numba's cache, before the first user has to wait for it."""
        nobody = np.zeros(self.items.factors.dimension, dtype=np.float32)
        self.recommend([Query((), (), nobody, 1)])
