"""A second ranker on a share of the live queries: what its lists would have been, without holding up ours.

    the batch's own lists are made ─► a sample of its queries, with all that a ranker reads of them, is kept
    ─► the lists are on their way ─► the pipeline's scoring thread makes the other ranker's lists

Both rankers see the same candidates at the same moment, so that what users do next compares the two alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from online_models.item_state import ItemState
from serving import kernels
from serving.query import QueryBatch
from serving.ranker.inputs import Contents
from serving.ranker.ranker import Asked, Ranker
from serving.scoring import Opinion, RankerView, Standing, asked_of, blended
from serving.settings import ServingSettings

__all__ = ["COMPARED", "ShadowScorer", "Shadowed", "best_columns"]

COMPARED = 10
"""Places of a list that are compared."""

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Shadowed:
    """Queries of a batch, at `positions` intp[k], that the other ranker is asked as well."""

    positions: npt.NDArray[np.intp]
    asked: Asked
    found: kernels.Found
    seen_count: Int32
    count: Int32
    standing: Standing
    ids: Sequence[str]
    settings: ServingSettings
    lists: Future[Int32] | None = None

    def at(self, positions: npt.NDArray[np.intp]) -> Shadowed:
        """The same queries in a larger batch, where this one's lie at `positions`."""
        return replace(self, positions=positions[self.positions])

    def begun(self, executor: Executor) -> Shadowed:
        """With `lists` on their way."""
        return replace(self, lists=executor.submit(self.rows))

    def rows(self) -> Int32:
        """int32[k, COMPARED]: the lists as rows of the item table, best first, -1 padded. Raises RankerError
        when the ranker fails."""
        standing, ranker = self.standing, self.standing.view.ranker
        logits = ranker.score_rows(self.asked, standing.places, standing.types_of, standing.vectors)
        scores = blended(self.seen_count, self.found, Opinion(logits, None, ranker.fused), self.settings)
        columns = np.empty((len(self.count), COMPARED), dtype=np.int32)
        best_columns(self.count, self.found, scores.blended, self.ids, columns)
        rows: Int32 = np.take_along_axis(self.found.rows, np.maximum(columns, 0), axis=1)
        return np.where(columns >= 0, rows, np.int32(-1))


class ShadowScorer:
    """Samples queries for a ranker that does not serve. One thread at a time, but for `Shadowed.rows`."""

    def __init__(
        self,
        ranker: Ranker,
        items: ItemState,
        settings: ServingSettings,
        share: float,
        contents: Contents | None = None,
    ) -> None:
        self.ranker = ranker
        self._items = items
        self._settings = settings
        self._share = share
        self._view = RankerView(ranker, contents)
        self._draw = np.random.default_rng(0).random

    def rows_changed(self, ids: Sequence[str], rows: Int32) -> None:
        """As `RankerView.rows_changed`."""
        self._view.rows_changed(ids, rows)

    def sample(
        self,
        batch: QueryBatch,
        wanted: kernels.Wanted,
        found: kernels.Found,
        event_types: tuple[str, ...],
    ) -> list[Shadowed]:
        """The share of a batch's queries, as of now; none of those that name their candidates."""
        chosen = np.flatnonzero((self._draw(len(batch)) < self._share) & ~wanted.by_name & (found.length > 0))
        if not len(chosen):
            return []
        part = _rows_of(found, chosen)
        queries = batch.take(chosen)
        recent = wanted._replace(recent=wanted.recent[chosen])
        asked = asked_of(queries, recent, part, self._items, with_features=self.ranker.fused)
        standing = Standing.of(self._view, self._items, event_types)
        count = np.minimum(queries.count, COMPARED).astype(np.int32)
        ids = self._items.items.ids
        return [Shadowed(chosen, asked, part, queries.seen_count, count, standing, ids, self._settings)]


def best_columns(
    count: Int32, found: kernels.Found, blended: Float32, ids: Sequence[str], columns: Int32
) -> None:
    """Fill columns int32[n, K] with the `count` best candidates of each user, best first, equal scores by
    item id; -1 behind the last."""
    tied = np.empty(len(count), dtype=np.bool_)
    kernels.best(found, blended, count, columns, tied)
    for user in np.flatnonzero(tied).tolist():
        length = int(found.length[user])
        names = [ids[row] for row in found.rows[user, :length].tolist()]
        scores = blended[user, :length].tolist()
        order = sorted(range(length), key=lambda column: (-scores[column], names[column]))
        wanted = min(int(count[user]), length)
        columns[user, :wanted] = order[:wanted]


def _rows_of(found: kernels.Found, chosen: npt.NDArray[np.intp]) -> kernels.Found:
    """The candidates of some users, no wider than they need."""
    width = int(found.length[chosen].max())
    return kernels.Found(
        length=found.length[chosen],
        rows=np.ascontiguousarray(found.rows[chosen, :width]),
        sources=np.ascontiguousarray(found.sources[chosen, :width]),
        scores=np.ascontiguousarray(found.scores[chosen, :, :width]),
    )
