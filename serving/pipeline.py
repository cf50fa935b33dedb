"""From users to ordered lists: the whole of it on one screen."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from online_models.item_state import ItemState
from serving.catalogue import Catalogue
from serving.explanations import explain
from serving.filters import Filter
from serving.query import Query, RankedItem, RankedList
from serving.ranker.ranker import Ranker
from serving.retrieval import Candidates, Context, retrieve, user_context
from serving.scoring import RankerView, Scores, score
from serving.settings import ServingSettings

__all__ = ["Pipeline"]


class Pipeline:
    """Makes lists for many users at once from the learned item state, the catalogue and the ranker in service.

    Reading never changes what was learned; `use` takes another ranker (or none) between two calls.
    """

    def __init__(self, items: ItemState, catalogue: Catalogue, settings: ServingSettings) -> None:
        self.items = items
        self.catalogue = catalogue
        self.settings = settings
        self._view: RankerView | None = None

    def use(self, ranker: Ranker | None) -> None:
        self._view = None if ranker is None else RankerView(ranker)

    @property
    def ranker(self) -> str | None:
        return None if self._view is None else self._view.ranker.version

    def recommend(self, queries: Sequence[Query]) -> list[RankedList]:
        """One list for each query, in the queries' order; shorter than asked for only when no more items may be served."""
        if not queries:
            return []
        allowed = Filter(self.items.items, self.catalogue, int(time.time() * 1000))
        context = user_context(queries, self.items)
        candidates = retrieve(context, self.items, allowed, self.settings)
        scores = score(context, candidates, self.items, self._view, self.settings)
        return [self._best(user, context, candidates, scores, allowed) for user in range(len(queries))]

    def _best(
        self, user: int, context: Context, candidates: Candidates, scores: Scores, allowed: Filter
    ) -> RankedList:
        """The user's candidates by falling score, ties by item id, explained."""
        query, ids = context.queries[user], self.items.items.ids
        blended, rows = scores.blended[user], candidates.rows[user]
        valid = int((rows >= 0).sum())
        wanted = min(query.count, valid)
        if wanted < valid:
            cut = np.partition(blended, len(blended) - wanted)[len(blended) - wanted]
            chosen = np.flatnonzero(blended >= cut)
        else:
            chosen = np.arange(valid)
        best = sorted(chosen.tolist(), key=lambda column: (-float(blended[column]), ids[rows[column]]))[
            :wanted
        ]
        columns = np.array(best, dtype=np.intp)
        ranked = explain(user, columns, context, candidates, scores, self.items, self.catalogue)
        ranked += self._asked_for_but_unknown(query, allowed, query.count - len(ranked))
        return RankedList(ranked, None if scores.degraded else self.ranker, scores.degraded)

    def _asked_for_but_unknown(self, query: Query, allowed: Filter, room: int) -> list[RankedItem]:
        """Items that a request names and nobody has used yet: last, in the request's order."""
        if query.candidates is None or room <= 0:
            return []
        unknown = [
            i
            for i in dict.fromkeys(query.candidates)
            if self.items.items.row(i) < 0 and allowed.allows(query, i)
        ]
        lowest = -1e9
        text = "Among the items you asked about"
        return [RankedItem(i, lowest, ["request"], "request", [], text) for i in unknown[:room]]
