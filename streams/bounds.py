"""What keeps the users' state within its bounds: idle users expire, and item codes that nobody names any more
are given back."""

from __future__ import annotations

import math
import time

from streams.item_codes import ItemCodes
from streams.settings import UserStateSettings
from streams.shards import Shards

__all__ = ["Bounds"]

IDLE_CHECK_S = 60.0
"""Between two looks for idle users: each goes through all that are held."""


class Bounds:
    """Applied once a batch, after its events are learned and before its records are written: the tombstones
    of those who expire go out in the same transaction."""

    def __init__(self, settings: UserStateSettings, shards: Shards, codes: ItemCodes) -> None:
        self._settings = settings
        self._shards = shards
        self._codes = codes
        self._looked = -math.inf

    def keep(self) -> None:
        users, most = self._shards.users, self._settings.max_users
        full = [p for p, n in users.population.items() if n > most]
        if self._settings.idle_s and time.monotonic() - self._looked >= IDLE_CHECK_S:
            self._looked = time.monotonic()
            full = list(self._shards.owned)
        for partition in full:
            shard = self._shards[partition]
            idle_before_ms = (
                shard.newest_ms - int(1000 * self._settings.idle_s) if self._settings.idle_s else 0
            )
            shard.stats.expired += users.expire(partition, most, idle_before_ms)
        unused = users.unused_items(self._codes.named)
        if len(unused):
            self._codes.forget(unused)
