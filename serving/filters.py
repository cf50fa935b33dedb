"""What a user may get: not what was seen, excluded, hidden, expired or removed, and of the categories asked for.

Items that a request names in `candidates` are asked for by name, so that having been seen does not keep them out; all
else does.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from online_models.item_table import ItemTable
from serving.catalogue import Catalogue
from serving.query import Query

__all__ = ["Filter"]

Int32 = npt.NDArray[np.int32]
Bool = npt.NDArray[np.bool_]


class Filter:
    """The rule for one batch of queries at one moment."""

    def __init__(self, items: ItemTable, catalogue: Catalogue, now_ms: int) -> None:
        self._items = items
        self._catalogue = catalogue
        self._now_ms = now_ms
        self.servable = catalogue.mask(now_ms)
        self.hidden = np.flatnonzero(~self.servable).astype(np.int32)
        self._blocked_here = np.zeros(len(self.servable), dtype=np.bool_)

    def blocked_rows(self, query: Query) -> Int32:
        """Rows that this user may not get, beside the hidden ones."""
        ids = [*query.exclude] if query.candidates is not None else [*query.seen, *query.exclude]
        rows = self._items.rows(ids)
        return rows[rows >= 0]

    def keep(self, query: Query, blocked: Int32, rows: Int32) -> Int32:
        """Those of `rows` (each >= 0) that the user may get, in their order."""
        marks = self._blocked_here
        marks[blocked] = True
        kept = rows[self.servable[rows] & ~marks[rows]]
        marks[blocked] = False
        if query.categories is None:
            return kept
        wanted = frozenset(query.categories)
        ids = self._items.ids
        inside = [self._catalogue.in_categories(ids[row], wanted) for row in kept.tolist()]
        return kept[np.array(inside, dtype=np.bool_)]

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
