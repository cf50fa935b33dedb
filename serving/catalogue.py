"""The catalogue: what items are called, and which of them may be served now.

It is a mask applied when a list is made, outside the learned state: hiding an item changes nothing that was
learned, and showing it again brings everything back.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from online_models.item_table import ItemTable

__all__ = ["Catalogue", "CatalogueEntry"]

MAX_TITLE_CHARS = 120
"""Titles are repeated in every explanation: longer ones are cut, so that a list stays a few KB."""

MAX_CATEGORY_MASKS = 64
"""Sets of categories whose masks are kept, the latest asked for: at a byte an item, 64 MB for a million
items."""


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    title: str | None = None
    categories: tuple[str, ...] = ()
    price: float | None = None
    is_hidden: bool = False
    published_ms: int | None = None
    expires_ms: int | None = None


class Catalogue:
    """Entries by item id, and a mask over the rows of the learned state's item table.

    An item that is not in the catalogue may be served: the catalogue is optional. One that was removed from
    it may not, until it is put in again.
    """

    def __init__(self, items: ItemTable) -> None:
        self._items = items
        self._entries: dict[str, CatalogueEntry] = {}
        self._removed: set[str] = set()
        self._servable = np.ones(0, dtype=np.bool_)
        self._due: list[tuple[int, str]] = []
        self._in_categories: dict[frozenset[str], npt.NDArray[np.bool_]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._entries

    def put(self, item_id: str, entry: CatalogueEntry, now_ms: int) -> None:
        before = self._entries.get(item_id)
        self._entries[item_id] = entry
        self._removed.discard(item_id)
        for moment in (entry.published_ms, entry.expires_ms):
            known = before is not None and moment in (before.published_ms, before.expires_ms)
            if moment is not None and moment > now_ms and not known:
                heapq.heappush(self._due, (moment, item_id))
        if len(self._due) > 4 * len(self._entries) + 1000:  # moments that were changed since
            self._due = [due for due in self._due if due[0] in self._moments(due[1])]
            heapq.heapify(self._due)
        self._refresh(item_id, now_ms)

    def remove(self, item_id: str, now_ms: int) -> None:
        self._entries.pop(item_id, None)
        self._removed.add(item_id)
        self._refresh(item_id, now_ms)

    def bind(self, items: ItemTable, now_ms: int) -> None:
        """Use another item table, as after a snapshot was loaded."""
        self._items = items
        self._servable = np.ones(0, dtype=np.bool_)
        self._in_categories.clear()
        self.mask(now_ms)

    def is_servable(self, item_id: str, now_ms: int) -> bool:
        """Neither hidden, nor removed, nor expired, nor not yet published."""
        entry = self._entries.get(item_id)
        if entry is None:
            return item_id not in self._removed
        return (
            not entry.is_hidden
            and (entry.expires_ms is None or entry.expires_ms > now_ms)
            and (entry.published_ms is None or entry.published_ms <= now_ms)
        )

    def mask(self, now_ms: int) -> npt.NDArray[np.bool_]:
        """bool[rows of the item table]: may be served at `now_ms`."""
        while self._due and self._due[0][0] <= now_ms:
            self._refresh(heapq.heappop(self._due)[1], now_ms)
        known, rows = len(self._servable), len(self._items)
        if rows > known:
            new = [self.is_servable(item_id, now_ms) for item_id in self._items.ids[known:]]
            self._servable = np.concatenate((self._servable, np.array(new, dtype=np.bool_)))
        return self._servable

    def in_categories(self, item_id: str, wanted: frozenset[str]) -> bool:
        entry = self._entries.get(item_id)
        return entry is not None and not wanted.isdisjoint(entry.categories)

    def category_mask(self, wanted: frozenset[str]) -> npt.NDArray[np.bool_]:
        """bool[rows]: in at least one of the wanted categories. Kept, and amended as items come and
        change."""
        mask = self._in_categories.pop(wanted, np.ones(0, dtype=np.bool_))
        if len(mask) < len(self._items):
            new = [self.in_categories(item_id, wanted) for item_id in self._items.ids[len(mask) :]]
            mask = np.concatenate((mask, np.array(new, dtype=np.bool_)))
        self._in_categories[wanted] = mask
        if len(self._in_categories) > MAX_CATEGORY_MASKS:
            del self._in_categories[next(iter(self._in_categories))]
        return mask

    def title(self, item_id: str) -> str:
        """The item's title, or its id where it has none."""
        entry = self._entries.get(item_id)
        return (entry.title if entry and entry.title else item_id)[:MAX_TITLE_CHARS]

    def _moments(self, item_id: str) -> tuple[int | None, int | None]:
        entry = self._entries.get(item_id)
        return (None, None) if entry is None else (entry.published_ms, entry.expires_ms)

    def _refresh(self, item_id: str, now_ms: int) -> None:
        row = self._items.row(item_id)
        if 0 <= row < len(self._servable):
            self._servable[row] = self.is_servable(item_id, now_ms)
        for wanted, mask in self._in_categories.items():
            if 0 <= row < len(mask):
                mask[row] = self.in_categories(item_id, wanted)
