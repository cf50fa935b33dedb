"""What a user may get: not what was seen, excluded, hidden, expired or removed, and of the categories asked
for.

Items that a request names in `candidates` are asked for by name, so that having been seen does not keep them
out; all else does. The rule stands here twice, and a property test holds the two equal: `masks` and `blocked`
for the rows of the learned state, all at once and before anything is retrieved, so that what may not be
served takes no candidate's place; `allows` for one item by its id.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from online_models.item_table import ItemTable
from serving.catalogue import Catalogue
from serving.query import Query, QueryBatch, joined_rows

__all__ = ["Filter"]

Int32 = npt.NDArray[np.int32]
Bool = npt.NDArray[np.bool_]


class Filter:
    """The rule for one batch of queries at one moment."""

    def __init__(self, items: ItemTable, catalogue: Catalogue, now_ms: int) -> None:
        self._items = items
        self._catalogue = catalogue
        self._now_ms = now_ms

    def masks(self, batch: QueryBatch) -> tuple[Bool, Int32]:
        """bool[m, rows], what may be served, and int32[n], which of its m rows holds for each query."""
        servable, chosen = self._catalogue.mask(self._now_ms), np.zeros(len(batch), dtype=np.int32)
        wanted = {
            position: frozenset(query.categories)
            for position, query in (batch.requests or {}).items()
            if query.categories is not None
        }
        if not wanted:
            return servable[None, :], chosen
        kinds = list(dict.fromkeys(wanted.values()))
        for position, categories in wanted.items():
            chosen[position] = 1 + kinds.index(categories)
        masks = [servable & self._catalogue.category_mask(categories) for categories in kinds]
        return np.stack([servable, *masks]), chosen

    def blocked(self, batch: QueryBatch) -> tuple[Int32, Int32]:
        """Rows that the users may not get, whatever the masks say, and int32[n], where each user's end."""
        if not batch.requests:
            return batch.blocked, batch.blocked_end
        parts = np.split(batch.blocked, batch.blocked_end[:-1])
        for position, query in batch.requests.items():
            parts[position] = self._blocked_by(query, parts[position])
        return joined_rows(parts)

    def allows(self, query: Query, item_id: str) -> bool:
        """The same rule for one item by id: for items that the learned state does not know."""
        return (
            self._catalogue.is_servable(item_id, self._now_ms)
            and item_id not in query.exclude
            and (query.candidates is not None or item_id not in query.seen)
            and (
                query.categories is None
                or self._catalogue.in_categories(item_id, frozenset(query.categories))
            )
        )

    def unknown(self, requests: Mapping[int, Query]) -> dict[int, list[str]]:
        """By position: what a request names, may get, and the learned state does not know, in its order."""
        known = self._items.row
        found = {}
        for position, query in requests.items():
            named = [item_id for item_id in dict.fromkeys(query.candidates or ()) if known(item_id) < 0]
            if allowed := [item_id for item_id in named if self.allows(query, item_id)]:
                found[position] = allowed
        return found

    def _blocked_by(self, query: Query, column: Int32) -> Int32:
        excluded = self._items.rows(query.exclude)
        if query.candidates is not None:
            return excluded
        return np.concatenate((column, self._items.rows(query.seen), excluded))
