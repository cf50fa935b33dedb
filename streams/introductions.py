"""Which items of the catalogue get a row in the item table before anybody has used them.

An item without a row can't be proposed. Rows are the same on every replica, so a row that no event gives is
given by the learning log: the owner of partition 0 looks at its catalogue now and then, and writes in its own
transaction which items are introduced and which introductions are taken back. What it writes is a wish: at
its place in the log every replica does it alike, or leaves it (`ItemState.introduce`, `ItemState.dismiss`).

Introduced are the newest entries of the catalogue that have content and no use, up to
`content.introduce_items`; beyond, those that came longest ago make room.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np

from streams.replica import Replica
from streams.settings import Settings

__all__ = ["Arrivals", "Introductions"]

EVERY_S = 0.5
AGAIN_S = 10.0
"""What was written is in the log within milliseconds; unless its transaction was lost with the session. Also
how often items are looked at that have become visible since."""
LOOKED_AT, AT_ONCE = 5000, 1000
"""Newest entries of the catalogue that are looked at, at most, or twice as many as may be introduced, so many
at once: 0.5 ms each, while events wait."""
TABLE_SHARE = 8
"""At most one row in so many of `models.max_items` is an introduced one."""


class Arrivals(NamedTuple):
    """Ids of items to introduce, and of those whose introduction is taken back."""

    introduced: list[str]
    dismissed: list[str]

    def __bool__(self) -> bool:
        return bool(self.introduced or self.dismissed)


NOTHING = Arrivals([], [])


class Introductions:
    """Compares the catalogue of `replica` with its item table. For the owner of partition 0, while nobody
    follows the log."""

    def __init__(self, settings: Settings, replica: Replica) -> None:
        self._replica = replica
        self._most = min(settings.content.introduce_items, settings.models.max_items // TABLE_SHARE)
        self._per_batch = settings.content.introduce_per_batch
        self._asked: dict[str, float] = {}
        self._looked: tuple[int, ...] = ()
        self._due = self._due_anyway = 0.0

    def poll(self) -> Arrivals:
        """What is to be written now; nothing most of the time."""
        now, items, content = time.monotonic(), self._replica.items, self._replica.content
        if not content.spec or now < self._due:
            return NOTHING
        self._due = now + EVERY_S
        standing = (items.epoch, items.evictions, content.changes)
        if standing == self._looked and now < self._due_anyway:
            return NOTHING
        self._looked, self._due_anyway = standing, now + AGAIN_S
        self._asked = {
            item_id: moment
            for item_id, moment in self._asked.items()
            if now < moment + AGAIN_S and items.items.row(item_id) < 0
        }
        found = self._compared()
        self._asked |= dict.fromkeys(found.introduced, now)
        if len(found.introduced) == self._per_batch:
            self._looked = ()
        return found

    def _compared(self) -> Arrivals:
        items = self._replica.items
        newest = dict.fromkeys(islice(self._unused(), self._most))
        room = max(0, min(self._per_batch, items.items.room - len(self._asked)))
        absent = [one for one in newest if items.items.row(one) < 0 and one not in self._asked]
        rows = np.flatnonzero(items.introduced)
        rows = rows[np.argsort(items.items.given[rows], kind="stable")]
        introduced = [items.items.ids[row] for row in rows.tolist()]
        listed = self._replica.content.rows_of(introduced) > 0
        gone = [one for one, stays in zip(introduced, listed.tolist(), strict=True) if not stays]
        kept = {*newest, *gone}
        others = [one for one in introduced if one not in kept]
        absent = absent[:room]
        surplus = len(introduced) - len(gone) + len(self._asked) + len(absent) - self._most
        return Arrivals(absent, [*gone, *others[: max(0, surplus)]][: self._per_batch])

    def _unused(self) -> Iterator[str]:
        """Items of the catalogue that may be served, have content and were never used, newest entry first."""
        replica, now_ms = self._replica, int(time.time() * 1000)
        introduced = np.append(replica.items.introduced, False)  # of row -1, none
        newest = islice(replica.content.newest_first(), max(LOOKED_AT, 2 * self._most))
        while ids := list(islice(newest, AT_ONCE)):
            rows = replica.items.items.rows(ids)
            unused, absent = introduced[rows], np.flatnonzero(rows < 0)
            unused[absent] = replica.content.has(ids[place] for place in absent.tolist())
            for place in np.flatnonzero(unused).tolist():
                if replica.catalogue.is_servable(ids[place], now_ms):
                    yield ids[place]
