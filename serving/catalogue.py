"""The catalogue: what items are called, and which of them may be served now.

It is a mask applied when a list is made, outside the learned state: hiding an item changes nothing that was
learned, and showing it again brings everything back.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
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

Bool = npt.NDArray[np.bool_]
Int32 = npt.NDArray[np.int32]
Watcher = Callable[[Int32 | None], None]
"""Told the rows int32[m] whose item or title changed; None: all, the table was replaced."""


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
    it may not, until it is put in again. Masks are kept and amended: asking for one costs what has changed
    since, not what the catalogue holds.
    """

    def __init__(self, items: ItemTable) -> None:
        self.items = items
        self._entries: dict[str, CatalogueEntry] = {}
        self._removed: set[str] = set()
        self._servable = _Mask()
        self._due: list[tuple[int, str]] = []
        self._in_categories: dict[frozenset[str], _Mask] = {}
        self._watchers: list[Watcher] = []

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
        self.items = items
        self._servable = _Mask()
        self._in_categories.clear()
        self._tell(None)
        self.mask(now_ms)

    def watch(self, watcher: Watcher) -> None:
        """Have `watcher` told of every row whose item or title changes."""
        self._watchers.append(watcher)

    def rows_changed(self, rows: Int32, now_ms: int) -> None:
        """Look anew at rows of the item table that were given to other items, or to none (id "")."""
        self._amend(rows, now_ms)
        self._tell(rows)

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

    def mask(self, now_ms: int) -> Bool:
        """bool[rows of the item table]: may be served at `now_ms`. A view, amended by later calls."""
        while self._due and self._due[0][0] <= now_ms:
            self._refresh(heapq.heappop(self._due)[1], now_ms)
        return self._servable.grown(self.items.ids, lambda item_id: self._may_serve(item_id, now_ms))

    def in_categories(self, item_id: str, wanted: frozenset[str]) -> bool:
        entry = self._entries.get(item_id)
        return entry is not None and not wanted.isdisjoint(entry.categories)

    def category_mask(self, wanted: frozenset[str]) -> Bool:
        """bool[rows]: in at least one of the wanted categories. A view, amended by later calls."""
        mask = self._in_categories.pop(wanted, _Mask())
        self._in_categories[wanted] = mask
        if len(self._in_categories) > MAX_CATEGORY_MASKS:
            del self._in_categories[next(iter(self._in_categories))]
        return mask.grown(self.items.ids, lambda item_id: self.in_categories(item_id, wanted))

    def title(self, item_id: str) -> str:
        """The item's title, or its id where it has none."""
        entry = self._entries.get(item_id)
        return (entry.title if entry and entry.title else item_id)[:MAX_TITLE_CHARS]

    def _moments(self, item_id: str) -> tuple[int | None, int | None]:
        entry = self._entries.get(item_id)
        return (None, None) if entry is None else (entry.published_ms, entry.expires_ms)

    def _may_serve(self, item_id: str, now_ms: int) -> bool:
        return item_id != "" and self.is_servable(item_id, now_ms)  # a freed row has no id

    def _refresh(self, item_id: str, now_ms: int) -> None:
        row = self.items.row(item_id)
        if row >= 0:
            rows = np.array([row], dtype=np.int32)
            self._amend(rows, now_ms)
            self._tell(rows)

    def _amend(self, rows: Int32, now_ms: int) -> None:
        for row in rows[rows < self._known_rows()].tolist():
            item_id = self.items.ids[row]
            self._servable.put(row, self._may_serve(item_id, now_ms))
            for wanted, mask in self._in_categories.items():
                mask.put(row, self.in_categories(item_id, wanted))

    def _known_rows(self) -> int:
        """Rows beyond are looked at when a mask grows over them."""
        return max([len(self._servable), *map(len, self._in_categories.values())])

    def _tell(self, rows: Int32 | None) -> None:
        for watcher in self._watchers:
            watcher(rows)


class _Mask:
    """bool by row, filled as rows come; its memory doubles, so that growing costs what is new."""

    def __init__(self) -> None:
        self._values = np.zeros(0, dtype=np.bool_)
        self._known = 0

    def __len__(self) -> int:
        return self._known

    def grown(self, ids: Sequence[str], holds: Callable[[str], bool]) -> Bool:
        rows = len(ids)
        if rows > self._known:
            if rows > len(self._values):
                more = np.zeros(max(rows, 2 * len(self._values), 1024) - len(self._values), dtype=np.bool_)
                self._values = np.concatenate((self._values, more))
            self._values[self._known : rows] = [holds(item_id) for item_id in ids[self._known : rows]]
            self._known = rows
        return self._values[:rows]

    def put(self, row: int, value: bool) -> None:
        if row < self._known:
            self._values[row] = value
