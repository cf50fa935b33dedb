"""What a user may get: not what was seen, excluded, hidden, expired or removed, and of the categories asked
for.

Items that a request names in `candidates` are asked for by name, so that having been seen does not keep them
out; all else does. The rule stands here twice, and a property test holds the two equal: `masks` and `blocked`
for the rows of the learned state, all at once and before anything is retrieved, so that what may not be
served takes no candidate's place; `allows` for one item by its id.
"""

from __future__ import annotations

from collections.abc import Sequence

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

    def masks(self, queries: Sequence[Query]) -> tuple[Bool, Int32]:
        """bool[m, rows], what may be served, and int32[n], which of its m rows holds for each query."""
        servable = self._catalogue.mask(self._now_ms)
        if all(query.categories is None for query in queries):
            return servable[None, :], np.zeros(len(queries), dtype=np.int32)
        kinds: dict[frozenset[str] | None, int] = {}
        chosen = [
            kinds.setdefault(None if q.categories is None else frozenset(q.categories), len(kinds))
            for q in queries
        ]
        masks = [servable if k is None else servable & self._catalogue.category_mask(k) for k in kinds]
        return np.stack(masks), np.array(chosen, dtype=np.int32)

    def blocked(self, query: Query) -> list[str]:
        """Ids that this user may not get, whatever the masks say."""
        return [*query.exclude] if query.candidates is not None else [*query.seen, *query.exclude]

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
