"""Step 1 of the fast path beside the others: the learning log, the catalogue and the ranker are followed in a
thread of their own."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np
import numpy.typing as npt

from serving.pipeline import Pipeline
from serving.registry.swap import SwapEvent
from serving.retrieval.nearest import NearestItems
from serving.settings import ServingSettings
from streams.item_codes import ItemCodes
from streams.replica import Replica

__all__ = ["Follower"]

INDEX_S = 0.1
"""Between two looks at which items have moved, for the index of nearest items in a large catalogue."""
MOVED_AT_ONCE = 256
"""Moved items that the index takes in at one look: a millisecond or two."""
END_S = 5.0
"""How long the end of a session waits: a snapshot may be on its way."""

Int32 = npt.NDArray[np.int32]


class Follower:
    """Between `begin` and `join` nobody but the thread reads or changes the item state and the catalogue;
    the worker parses, admits, writes records and commits meanwhile. `join` tells whoever keeps something by
    row of the item table which rows changed hands."""

    def __init__(
        self,
        replica: Replica,
        settings: ServingSettings,
        on_swap: Callable[[SwapEvent], None],
        shadow_share: float = 1.0,
    ) -> None:
        self._replica = replica
        self._settings = settings
        self._on_swap = on_swap
        self._shadow_share = shadow_share
        self._nearest = NearestItems(replica.items)
        self.pipeline = Pipeline(
            replica.items,
            replica.catalogue,
            settings,
            self._nearest,
            replica.content,
        )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="follow")
        self._begun: Future[SwapEvent | None] | None = None
        self._indexed = -math.inf
        self._changed: list[Int32] = []

    def begin(self) -> None:
        """Learn what has been logged since the last time, in the thread."""
        if self._begun is None:
            self._begun = self._thread.submit(self._replica.follow)

    def join(self, codes: ItemCodes) -> None:
        """Wait for what was begun, swap the ranker if a new one is ready, and raise what the thread met."""
        if self._begun is None:
            return
        begun, self._begun = self._begun, None
        if (swap := begun.result()) is not None:
            if (swap.outcome, swap.role) == ("swapped", "live"):
                self.pipeline.use(self._replica.slot.current)
            self._on_swap(swap)
        self.pipeline.lacking = self._replica.lacking
        shadow = None if self._replica.trial is None else self._replica.slot.shadow
        self.pipeline.use_beside(shadow, self._shadow_share)
        given, freed = self._replica.items.take_changes()
        if len(given) or len(freed):
            self.pipeline.rows_changed(np.concatenate((given, freed)))
            codes.follow(given, freed)
        if described := self._replica.content.take_changes():
            rows = self._replica.items.items.rows(described)
            self.pipeline.rows_changed(rows[rows >= 0])
        self._index(given, freed)

    def _index(self, given: Int32, freed: Int32) -> None:
        items, now = self._replica.items, time.monotonic()
        if len(items.items) <= self._settings.factor_scan_items:
            return
        self._changed += [given, freed]
        if now - self._indexed >= INDEX_S or self._nearest.backlog:
            self._indexed = now
            self._nearest.follow(np.concatenate((*self._changed, items.take_moved(MOVED_AT_ONCE))))
            self._changed = []

    def end(self) -> None:
        """Wait a little for what was begun. How it went comes out of the next session's `join`: an error
        means records that are read and not learned, and a swap is told once."""
        if self._begun is not None:
            wait([self._begun], END_S)
