"""The owner's half of learning: a user's state moves at once, and the learning log carries the rest to every
replica."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import numpy as np

from online_models.item_state import ItemState
from streams.intake import Admitted
from streams.learning_log import Interaction
from streams.settings import Settings
from streams.user_state import UserState

__all__ = ["JUDGED", "Learner"]

JUDGED = 10
"""Hit rate and NDCG look at the first ten items of the list last emitted."""


class Learner:
    """Judges each event against the list before it, then learns from it (test, then learn)."""

    def __init__(self, settings: Settings, items: ItemState) -> None:
        self._settings = settings.user_state
        self._topic = settings.names["events"]
        self._items = items
        models = settings.models
        self._window = models.covisitation.window
        self.widths = (self._window, models.factors.dimension, models.factors.negatives)

    def learn(self, wave: Sequence[Admitted]) -> list[Interaction]:
        """Learn one event each of different users; returns their rows for the learning log, in the same
        order."""
        for event in wave:
            if event.new_user:
                event.user.factor = self._items.start_users([event.user.user_id])[0]
            self._judge(event)
        teaching = [e for e in wave if e.accepted.weight != 0 and e.accepted.event.item_id is not None]
        after, negatives = self._step(teaching)
        moved = {id(e): (after[n], negatives[n]) for n, e in enumerate(teaching)}
        rows = []
        for event in wave:
            before = event.user.factor
            factor, sampled = moved.get(id(event), (before, ()))
            rows.append(self._interaction(event, factor, sampled))
            event.user.factor = factor
            self._remember(event)
        return rows

    def _step(self, wave: Sequence[Admitted]) -> tuple[np.ndarray, Sequence[Sequence[str]]]:
        """New factors float32[n, d] and the negatives that were sampled for each; the replicas' state is only
        read."""
        if not wave:
            return np.empty((0, 0), np.float32), []
        return self._items.learn_users(
            np.stack([e.user.factor for e in wave]),
            [e.accepted.event.item_id or "" for e in wave],
            np.array([e.accepted.weight for e in wave], np.float32),
            np.array([e.accepted.event_hash for e in wave], np.uint64),
        )

    def _interaction(self, event: Admitted, after: np.ndarray, negatives: Sequence[str]) -> Interaction:
        accepted, user = event.accepted, event.user
        return Interaction(
            event_id=accepted.event.event_id,
            token=user.token,
            item_id=accepted.event.item_id,
            event_type=accepted.event.event_type,
            time_ms=accepted.time_ms,
            weight=accepted.weight,
            value=accepted.event.value,
            recent=user.recent_items[: -self._window - 1 : -1],
            before=user.factor,
            after=after,
            negatives=negatives,
            topic=self._topic,
            partition=accepted.partition,
            offset=accepted.offset,
        )

    def _remember(self, event: Admitted) -> None:
        """What was used, liked or not, is seen; what was liked is also a recent item. An impression is
        neither."""
        accepted = event.accepted
        item_id = accepted.event.item_id
        if item_id is None or accepted.weight == 0:
            return
        item_id = sys.intern(item_id)
        event.user.see(item_id, self._settings.seen)
        if accepted.weight > 0:
            kind = sys.intern(accepted.event.event_type)
            event.user.remember(item_id, kind, accepted.time_ms, accepted.weight, self._settings.recent)

    def _judge(self, event: Admitted) -> None:
        """Was the item in the last list, and would plain popularity have had it among its ten unseen?

        Popularity is asked at the moment of the event, at a user's first event too, where no list has been
        emitted yet: the comparison leans towards it.
        """
        accepted, user, stats = event.accepted, event.user, event.shard.stats
        item_id = accepted.event.item_id
        if item_id is None or accepted.weight <= 0:
            return
        stats.evaluated += 1
        if item_id in user.last_list[:JUDGED]:
            stats.hits_at_10 += 1
            stats.ndcg_at_10_sum += 1 / math.log2(user.last_list.index(item_id) + 2)
        rank = self._popularity_rank(item_id, user)
        if rank is not None:
            stats.popularity_hits_at_10 += 1
            stats.popularity_ndcg_at_10_sum += 1 / math.log2(rank + 2)

    def _popularity_rank(self, item_id: str, user: UserState) -> int | None:
        """Place (from 0) among the ten most popular items that the user has not seen, or None."""
        row = self._items.items.row(item_id)
        if row < 0 or item_id in user.seen:
            return None
        order = self._items.popularity.top_plain(JUDGED + len(user.seen))
        found = np.flatnonzero(order == row)
        if not len(found):
            return None
        ids = self._items.items.ids
        ahead = sum(ids[other] not in user.seen for other in order[: found[0]].tolist())
        return ahead if ahead < JUDGED else None
