"""What users did before, for a reader of the learning log: bounded, in one ring of the newest events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from serving.ranker.inputs import HASHED
from serving.training.pasts_kernels import take_back, walk

__all__ = ["Before", "Pasts"]

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
UInt64 = npt.NDArray[np.uint64]

_START = 1024
NOBODY = -1


class Before(NamedTuple):
    """Of n events: what their users had seen. One user's rows stand behind the other's."""

    blocked: Int32
    """Rows of the items seen; -1 where an item has none now."""
    ends: Int32
    """int32[n]: where each user's end in `blocked`."""
    seen_count: Int32
    """int32[n]: distinct items seen."""
    newest_ms: Int64
    """int64[n]: time of the newest positive event, -1 where there is none."""
    newest_at: Int64
    """int64[n]: where that stands in the ring, -1 where there is none; for `Pasts.contexts_at`."""
    is_repeat: npt.NDArray[np.bool_]
    """bool[n]: the event's own item is among those seen; then nothing of the user stands in `blocked`."""

    def without_repeats(self) -> Before:
        """The events whose item is new to their user."""
        new = ~self.is_repeat
        return Before(
            self.blocked, self.ends[new], self.seen_count[new], self.newest_ms[new], self.newest_at[new],
            self.is_repeat[new],
        )  # fmt: skip


class Pasts:
    """Each user's events as a chain, newest first, through a ring of the newest `capacity` events of all: 20
    bytes an event, 32 more once one has a context, and an entry in a dict for each user who has one in it.
    What fell out of the ring counts as not seen.

    >>> pasts = Pasts(capacity=4, most_seen=2)
    >>> newest = pasts.add([7, 7, 8], np.array([0, 1, 0]), np.array([10, 20, 30]), np.ones(3, bool))
    >>> newest.tolist(), pasts.before(newest, np.array([0, 0, 0]), np.array([5, 6])).is_repeat.tolist()
    ([-1, 0, -1], [False, True, False])
    """

    def __init__(self, capacity: int, most_seen: int) -> None:
        self._capacity = capacity
        self._most_seen = most_seen
        self._items = np.zeros(min(_START, capacity), dtype=np.int32)
        self._previous = np.zeros(min(_START, capacity), dtype=np.int64)
        self._times_ms = np.zeros(min(_START, capacity), dtype=np.int64)
        self._contexts = np.zeros((0, HASHED), dtype=np.float16)
        self._newest: dict[int, int] = {}
        self._events = 0
        self._stamps = np.zeros(0, dtype=np.int64)
        self._stamp = 0

    def add(
        self,
        users: Sequence[int],
        items: Int32,
        times_ms: Int64,
        positive: npt.NDArray[np.bool_],
        contexts: Float32 | None = None,
    ) -> Int64:
        """Append events, items by code, contexts float32[n, HASHED] that float16 holds (None is zeros);
        returns for each the place of its user's event before it, -1 where there is none."""
        n, first = len(users), self._events
        self._reserve(n)
        before, newest = np.empty(n, dtype=np.int64), self._newest
        get = newest.get
        for place, user in enumerate(users):
            before[place] = get(user, NOBODY)
            newest[user] = first + place
        at = np.arange(first, first + n) % len(self._items)
        self._items[at], self._previous[at] = items, before
        self._times_ms[at] = np.where(positive, times_ms, -1)
        if contexts is not None or len(self._contexts):
            self._keep_contexts(at, contexts)
        self._events += n
        if first // self._capacity != self._events // self._capacity:
            oldest = self._events - self._capacity
            self._newest = {user: place for user, place in newest.items() if place >= oldest}
        return before

    def before(self, newest: Int64, items: Int32, row_of: Int32) -> Before:
        """What stood before events of the items int32[n] (codes), from the places that `add` gave them;
        `row_of` int32[>= codes] leads from codes to rows."""
        n = len(newest)
        if len(self._stamps) < len(row_of):
            self._stamps = np.zeros(2 * len(row_of), dtype=np.int64)
        found = Before(
            np.empty(n * self._most_seen, np.int32), np.empty(n, np.int32), np.empty(n, np.int32),
            np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.bool_),
        )  # fmt: skip
        oldest = max(0, self._events - len(self._items))
        walk(
            newest, items, oldest, self._items, self._previous, self._times_ms, self._stamps, self._stamp,
            self._most_seen, row_of, found.blocked, found.ends, found.seen_count, found.newest_ms,
            found.newest_at, found.is_repeat,
        )  # fmt: skip
        self._stamp += n
        return found._replace(blocked=found.blocked[: int(found.ends[-1]) if n else 0])

    def contexts_at(self, places: Int64) -> Float32 | None:
        """float32[n, HASHED] of what was said beside the events at places of the ring, zeros for -1; None
        where nothing ever was."""
        if not len(self._contexts):
            return None
        found: Float32 = self._contexts[places].astype(np.float32)
        found[places < 0] = 0.0
        return found

    def _keep_contexts(self, at: npt.NDArray[np.intp], contexts: Float32 | None) -> None:
        if len(self._contexts) < len(self._items):
            more = np.zeros((len(self._items) - len(self._contexts), HASHED), dtype=np.float16)
            self._contexts = np.concatenate([self._contexts, more])
        self._contexts[at] = 0.0 if contexts is None else contexts

    def take_back(self, users: Sequence[int], items: Int32, times_ms: Int64) -> None:
        """Drop the event of each user with the item of that code and that time: it is withdrawn."""
        oldest = max(0, self._events - len(self._items))
        newest = np.array([self._newest.get(user, NOBODY) for user in users], dtype=np.int64)
        take_back(newest, items, times_ms, oldest, self._items, self._previous, self._times_ms)

    def codes(self) -> Int32:
        """int32: codes that the events in the ring name, -1 among them, some more than once; a view."""
        return self._items

    def renumber(self, new: Int32) -> None:
        """Items got other codes: new int32[old codes + 1], as `ItemRows.keep_only` gives them."""
        self._items = new[self._items]
        self._stamps, self._stamp = np.zeros(0, dtype=np.int64), 0

    def forget(self, users: Sequence[int]) -> None:
        """Drop users; their events stand in the ring unnamed until they fall out."""
        for user in users:
            self._newest.pop(user, None)

    def _reserve(self, more: int) -> None:
        have = len(self._items)
        if self._events + more <= have or have == self._capacity:
            return
        room = min(self._capacity, max(2 * have, self._events + more))
        self._items = np.concatenate([self._items, np.zeros(room - have, np.int32)])
        self._previous = np.concatenate([self._previous, np.zeros(room - have, np.int64)])
        self._times_ms = np.concatenate([self._times_ms, np.zeros(room - have, np.int64)])
