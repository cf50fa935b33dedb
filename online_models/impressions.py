"""Impressions without a click as weak negatives, corrected for where in the list they stood."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from online_models.base import Arrays, Context
from online_models.item_table import pack_ids, unpack_ids
from online_models.parameters import require

__all__ = ["ImpressionJudge", "WeightedEvent"]

WeightedEvent = tuple[str, str, float, Context]
"""(user, item, y, x) of `OnlineRanker.learn_many`."""

COUNTED = 1_000_000.0
"""Impressions of a position after which its counts are halved: what was long ago fades."""


@dataclass(slots=True)
class _Shown:
    """One list that a user was shown."""

    time_ms: int
    waiting: dict[int, str] = field(default_factory=dict)  # position to item, not clicked and not judged
    seen: set[int] = field(default_factory=set)  # positions that ever came
    is_answered: bool = False
    is_closed: bool = False


class ImpressionJudge:
    r"""Turns what a user was shown and did not take into events of small negative weight.

    A list that the user clicks in is read from the top (the cascade): what stands above the click was seen
    and passed over, what stands below it may not have been seen, and is not judged. A list that nothing of is
    clicked for `patience_s` of event time is judged by how likely each position was looked at. Positions k
    count from 0, θ_k is the probability that k is examined, w the weight:

    $$y_k = -w\,/\,\theta_k \text{ above a click}, \qquad y_k = -w\,\theta_k \text{ in a list without one}$$

    θ is learned from the clicks c_k among the n_k impressions at k, relative to position 0, as if items were
    equally good wherever they stand, and shrunk (strength s) towards (1 + k)^(-η); r is the click rate at 0,
    shrunk towards `click_rate`:

    $$\theta_k = \frac{c_k / r + s\,(1 + k)^{-\eta}}{n_k + s}, \quad \theta_0 = 1, \quad
    \theta_k \in [1 / \mathrm{cap}, 1]$$

    An impression is judged once at most. Per user the newest `max_lists` lists and of each the first
    `max_items` positions are kept; a list dropped for room is not judged. `settle` also drops users whose
    lists are all older than twice the patience. One object serves one owner's users; its events go to
    `learn_many` (of models of implicit feedback: y is no rating), each with the id "list_id/position", by
    which it can be withdrawn.

    References: Craswell, Zoeter, Taylor and Ramsey, An Experimental Comparison of Click Position-Bias Models,
    WSDM 2008. Joachims, Swaminathan and Schnabel, Unbiased Learning-to-Rank with Biased Feedback, WSDM 2017
    (weights by inverse propensity).

    >>> judge = ImpressionJudge(weight=0.1, patience_s=60.0)
    >>> for position, item in enumerate(["a", "b", "c", "d"]):
    ...     _ = judge.shown("ann", item, position, "list-1", time_ms=0)
    >>> [(item, round(y, 3)) for _, item, y, _ in judge.clicked("ann", "c", time_ms=5_000)]
    [('a', -0.1), ('b', -0.202)]
    >>> _ = judge.shown("bob", "a", 0, "list-2", 0), judge.shown("bob", "b", 1, "list-2", 0)
    >>> [(item, round(y, 3)) for _, item, y, _ in judge.settle(time_ms=60_000)]
    [('a', -0.1), ('b', -0.049)]
    """

    def __init__(
        self,
        weight: float = 0.1,
        patience_s: float = 1800.0,
        cap: float = 5.0,
        eta: float = 1.0,
        strength: float = 100.0,
        click_rate: float = 0.1,
        max_lists: int = 8,
        max_items: int = 100,
    ) -> None:
        for name, value, low, high in [
            ("weight", weight, 1e-6, 1e3),
            ("patience_s", patience_s, 1.0, 1e9),
            ("cap", cap, 1.0, 1e3),
            ("eta", eta, 0.0, 10.0),
            ("strength", strength, 1e-3, 1e9),
            ("click_rate", click_rate, 1e-6, 1.0),
            ("max_lists", max_lists, 1, 1_000),
            ("max_items", max_items, 1, 10_000),
        ]:
            require(name, value, low, high)
        self.weight = weight
        self.patience_s = patience_s
        self.cap = cap
        self.eta = eta
        self.strength = strength
        self.click_rate = click_rate
        self.max_lists = max_lists
        self.max_items = max_items
        self._patience_ms = math.ceil(1000.0 * patience_s)
        self._lists: dict[str, dict[str, _Shown]] = {}  # of each user by list id, oldest first
        self._clicks = np.zeros(max_items, dtype=np.float64)
        self._impressions = np.zeros(max_items, dtype=np.float64)

    def shown(self, user: str, item: str, position: int, list_id: str, time_ms: int) -> list[WeightedEvent]:
        """Note an impression; returns what is to be learned of the user's lists that waited long enough.

        A repeat, a position of `max_items` or more, and one of a list already closed are passed over. Raises
        ValueError for a negative position, and for an empty user, item or list id.
        """
        if position < 0 or not (user and item and list_id):
            raise ValueError(
                f"an impression needs user, item and list_id, and a position from 0; got {user!r}, {item!r}, "
                f"{list_id!r} and {position}"
            )
        learned = self._expire(user, time_ms)
        lists = self._lists.setdefault(user, {})
        if list_id not in lists:
            while len(lists) >= self.max_lists:
                del lists[next(iter(lists))]
            lists[list_id] = _Shown(time_ms)
        found = lists[list_id]
        if position < self.max_items and position not in found.seen and not found.is_closed:
            found.seen.add(position)
            found.waiting[position] = item
            self._count(position, 1.0, 0.0)
        return learned

    def clicked(self, user: str, item: str, time_ms: int, list_id: str = "") -> list[WeightedEvent]:
        """Note that the user took an item: what stood above it is judged. Without list_id, the newest open
        list that shows the item is meant; where there is none, nothing of it is learned."""
        learned = self._expire(user, time_ms)
        for name in reversed(self._lists.get(user, {})):
            found = self._lists[user][name]
            places = sorted(place for place, waits in found.waiting.items() if waits == item)
            if places and name == (list_id or name):
                del found.waiting[places[0]]
                found.is_answered = True
                self._count(places[0], 0.0, 1.0)
                for place in sorted(place for place in found.waiting if place < places[0]):
                    y = -self.weight / self.examination(place)
                    learned.append(_event(user, found.waiting.pop(place), y, name, place, time_ms))
                break
        return learned

    def settle(self, time_ms: int) -> list[WeightedEvent]:
        """What is to be learned of all users' lists that have waited long enough at time_ms."""
        learned = [event for user in self._lists for event in self._expire(user, time_ms)]
        since_ms = time_ms - 2 * self._patience_ms
        self._lists = {
            user: lists
            for user, lists in self._lists.items()
            if any(found.time_ms > since_ms for found in lists.values())
        }
        return learned

    def examination(self, position: int) -> float:
        """Probability that a position is looked at, as learned so far: 1 / cap to 1."""
        if position == 0:
            return 1.0
        prior: float = (1.0 + position) ** -self.eta
        if position >= self.max_items:
            return max(prior, 1.0 / self.cap)
        clicks, impressions = self._clicks.item(0), self._impressions.item(0)
        rate = (clicks + self.strength * self.click_rate) / (impressions + self.strength)
        clicks, impressions = self._clicks.item(position), self._impressions.item(position)
        learned: float = (clicks / rate + self.strength * prior) / (impressions + self.strength)
        return min(max(learned, 1.0 / self.cap), 1.0)

    def forget(self, user: str | None = None, *, item: str | None = None) -> None:
        """Drop a user's lists, or an item from all lists. Counts by position name neither, and stay."""
        if user is not None:
            self._lists.pop(user, None)
        if item is not None:
            for found in self._all():
                found.waiting = {place: waits for place, waits in found.waiting.items() if waits != item}

    def to_arrays(self) -> Arrays:
        """All state, for a snapshot."""
        lists, every = self._lists, list(self._all())
        items = [item for found in every for item in found.waiting.values()]
        return {
            **pack_ids("impressions.users", list(lists)),
            "impressions.lists_of_user": _ints(len(found) for found in lists.values()),
            **pack_ids("impressions.lists", [name for found in lists.values() for name in found]),
            "impressions.time_ms": _ints(found.time_ms for found in every),
            "impressions.state": _ints(2 * found.is_answered + found.is_closed for found in every),
            "impressions.waiting": _ints(len(found.waiting) for found in every),
            "impressions.position": _ints(place for found in every for place in found.waiting),
            **pack_ids("impressions.items", items),
            "impressions.seen": _ints(len(found.seen) for found in every),
            "impressions.seen_position": _ints(place for found in every for place in sorted(found.seen)),
            "impressions.counts": np.stack([self._clicks, self._impressions]),
        }

    def from_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Replace all state by that of `to_arrays` of a judge with the same parameters."""
        named = {name: iter(arrays[f"impressions.{name}"].tolist()) for name in _COLUMNS}
        items, names = (iter(unpack_ids(f"impressions.{name}", arrays)) for name in ("items", "lists"))
        self._lists = {}
        users = unpack_ids("impressions.users", arrays)
        for user, lists in zip(users, arrays["impressions.lists_of_user"].tolist(), strict=True):
            self._lists[user] = {}
            for _ in range(lists):
                state, waiting = next(named["state"]), range(next(named["waiting"]))
                self._lists[user][next(names)] = _Shown(
                    time_ms=next(named["time_ms"]),
                    waiting={next(named["position"]): next(items) for _ in waiting},
                    seen={next(named["seen_position"]) for _ in range(next(named["seen"]))},
                    is_answered=state >= 2,
                    is_closed=state % 2 == 1,
                )
        self._clicks, self._impressions = np.array(arrays["impressions.counts"], dtype=np.float64)

    def _all(self) -> Iterable[_Shown]:
        return (found for lists in self._lists.values() for found in lists.values())

    def _expire(self, user: str, time_ms: int) -> list[WeightedEvent]:
        learned: list[WeightedEvent] = []
        for name, found in self._lists.get(user, {}).items():
            due_ms = found.time_ms + self._patience_ms
            if found.is_closed or due_ms > time_ms:
                continue
            found.is_closed = True
            if not found.is_answered:
                for place in sorted(found.waiting):
                    y = -self.weight * self.examination(place)
                    learned.append(_event(user, found.waiting[place], y, name, place, due_ms))
            found.waiting = {}
        return learned

    def _count(self, position: int, impressions: float, clicks: float) -> None:
        self._impressions[position] += impressions
        self._clicks[position] += clicks
        if self._impressions[position] >= COUNTED:
            self._impressions[position] /= 2.0
            self._clicks[position] /= 2.0


_COLUMNS = ("time_ms", "state", "waiting", "position", "seen", "seen_position")


def _event(user: str, item: str, y: float, list_id: str, position: int, time_ms: int) -> WeightedEvent:
    event_id = f"{list_id}/{position}"
    return user, item, y, {"timestamp": time_ms, "event_type": "impression", "event_id": event_id}


def _ints(values: Iterable[int]) -> NDArray[np.int64]:
    return np.array(list(values), dtype=np.int64)
