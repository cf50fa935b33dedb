"""Where models meet the stream: each is asked where an event's item stands, then it learns the event."""

from __future__ import annotations

import time
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from online_models.base import OnlineRanker
from online_models.evaluation import kernels
from online_models.evaluation.interactions import Interaction, weight_of

__all__ = ["LIST_LENGTH", "Arena", "Catalogue", "Entrant", "Evaluated", "UnusableScoreError"]

LIST_LENGTH = 10
POPULAR = 0.1
"""Share of the items that count as the popular ones."""


class UnusableScoreError(ValueError):
    """A model gave a score that can't be ranked; a NaN would otherwise count as the best place there is."""


class Evaluated(Protocol):
    """What the arena asks of a model; every `OnlineRanker` is one."""

    @property
    def items(self) -> Any: ...

    def learn_one(self, user: str, item: str, y: float = ..., x: Mapping[str, Any] | None = ...) -> None: ...

    def predict_one(self, user: str, item: str, x: Mapping[str, Any] | None = ...) -> float: ...

    def score_rows(self, user: str, rows: NDArray[np.int32]) -> NDArray[np.float32]: ...


class Catalogue:
    """Numbers the items in the order in which they are met; every array here is indexed by that number."""

    def __init__(self, categories: Mapping[str, Sequence[str]] | None = None) -> None:
        self.ids: list[str] = []
        self.events = np.zeros(64, dtype=np.int64)
        """Events of each item so far; room for more items than there are."""
        self._number_of: dict[str, int] = {}
        self._categories = categories or {}
        names = sorted({name for found in self._categories.values() for name in found})
        self._bit = {name: bit for bit, name in enumerate(names)}
        self.words = np.zeros((64, (len(names) + 63) // 64), dtype=np.uint64)
        """Categories of each item as bits, uint64[>= items, w]."""

    def __len__(self) -> int:
        return len(self.ids)

    def find(self, item: str) -> int:
        """Number of an item, -1 while it was not met."""
        return self._number_of.get(item, -1)

    def enrol(self, item: str) -> int:
        """Number of an item, a new one if it has none yet."""
        number = self._number_of.setdefault(item, len(self.ids))
        if number == len(self.ids):
            self.ids.append(item)
            self.events = with_room(self.events, len(self.ids))
            self.words = with_room(self.words, len(self.ids))
            for name in self._categories.get(item, ()):
                bit = self._bit[name]
                self.words[number, bit // 64] |= np.uint64(1 << bit % 64)
        return number


def with_room(values: NDArray[Any], rows: int, fill: int = 0) -> NDArray[Any]:
    """The array, or a copy of at least twice the size where it has fewer rows."""
    if rows <= len(values):
        return values
    larger = np.full((max(2 * len(values), rows), *values.shape[1:]), fill, dtype=values.dtype)
    larger[: len(values)] = values
    return larger


class _User:
    """What one user has had: distinct items as int32, and how many events there were."""

    __slots__ = ("_had", "_items", "events", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.events = 0
        self._had: set[int] = set()
        self._items = np.zeros(8, dtype=np.int32)

    def __contains__(self, item: int) -> bool:
        return item in self._had

    @property
    def items(self) -> NDArray[np.int32]:
        return self._items[: len(self._had)]

    def add(self, item: int) -> None:
        self.events += 1
        if item not in self._had:
            self._items = with_room(self._items, len(self._had) + 1)
            self._items[len(self._had)] = item
            self._had.add(item)


def _load_kernels(model: Evaluated) -> None:
    """Have a fresh model of the same parameters learn and be asked, so that no clock counts compilation."""
    if isinstance(model, OnlineRanker):
        other = model.clone()
        other.learn_many(["u", "u"], ["a", "b"])
        for rows in (other.items.rows(["a", "b"]), np.zeros(256, dtype=np.int32)):  # few, and a catalogue
            other.score_rows("u", rows)


class Entrant:
    """One model with what was measured of it."""

    def __init__(self, name: str, model: Evaluated, catalogue: Catalogue) -> None:
        self.name = name
        self.model = model
        self.ranks = array("f")
        """Rank from 0 of each judged event's item, infinite where the model doesn't know it."""
        self.shown = np.zeros(64, dtype=np.int64)
        """How often each item stood among the first ten."""
        self.listed = self.pairs = self.rated = 0
        self.surprise = self.apart = self.squared_error = 0.0
        self.score_s = self.learn_s = 0.0
        self.predicts_ratings = bool(getattr(model, "predicts_ratings", False))
        """Whether `predict_one` is a rating: the model says so by an attribute of this name."""
        self._catalogue = catalogue
        self._rows = np.full(64, -1, dtype=np.int32)
        self._hidden = np.zeros(64, dtype=np.bool_)
        self._top = np.zeros(LIST_LENGTH, dtype=np.int32)
        self._evictions = self._known = 0
        _load_kernels(model)

    def sync(self) -> None:
        """Look every item's row up anew."""
        table = self.model.items
        for item in table.ids:
            if item:
                self._catalogue.enrol(item)
        n = len(self._catalogue)
        self.reserve()
        self._rows[:n] = table.rows(self._catalogue.ids)
        self._evictions, self._known = int(getattr(table, "evictions", 0)), len(table)

    def reserve(self) -> None:
        """Room for all items of the catalogue."""
        n = len(self._catalogue)
        self._rows = with_room(self._rows, n, fill=-1)
        self._hidden = with_room(self._hidden, n)
        self.shown = with_room(self.shown, n)

    def judge(self, user: str, seen: NDArray[np.int32], target: int, events: int, all_items: bool) -> None:
        """Rank the target (-1 = never met) among all that the user has not had, and look at the first ten."""
        n = len(self._catalogue)
        if n == 0:
            self.ranks.append(np.inf)
            return
        self.reserve()
        rows = self._rows[:n]
        started = time.perf_counter()
        scores = self.model.score_rows(user, rows)
        self.score_s += time.perf_counter() - started
        if scores.shape != (n,):
            raise UnusableScoreError(f"{type(self.model).__name__}: {scores.shape} scores of {n} items")
        known = target >= 0 and rows[target] >= 0
        above, tied, size, bad = kernels.rank_target(
            scores, rows, all_items, seen, target if known else -1, self._hidden, self._top
        )
        if bad >= 0:
            raise UnusableScoreError(
                f"{type(self.model).__name__}: score of item {self._catalogue.ids[bad]!r} for user {user!r}"
                f" is not finite ({scores[bad]})"
            )
        self.ranks.append(above + tied / 2.0 if known else np.inf)
        self._describe(size, events)

    def rate(self, event: Interaction) -> None:
        """Count the error of the predicted rating."""
        if event.rating is None or not self.predicts_ratings:
            return
        error = self.model.predict_one(event.user, event.item, event.x) - event.rating
        if not np.isfinite(error):
            raise UnusableScoreError(
                f"{type(self.model).__name__}: the rating of item {event.item!r} by user {event.user!r} is"
                " not finite"
            )
        self.squared_error += error * error
        self.rated += 1

    def learn(self, event: Interaction, number: int) -> None:
        """Let the model learn, and follow which row the item has."""
        started = time.perf_counter()
        self.model.learn_one(event.user, event.item, event.y, event.x)
        self.learn_s += time.perf_counter() - started
        table = self.model.items
        if getattr(table, "evictions", 0) != self._evictions or len(table) > self._known + 1:
            self.sync()
            return
        self.reserve()
        self._rows[number], self._known = table.row(event.item), len(table)

    def _describe(self, size: int, events: int) -> None:
        surprise, apart, pairs = kernels.describe_list(
            self._top[:size], self._catalogue.events, events, self._catalogue.words, self.shown
        )
        self.listed += size
        self.surprise += surprise
        if pairs:
            self.apart += apart / pairs
            self.pairs += 1


class Arena:
    """Models side by side on the same events, with what is common to all of them."""

    def __init__(
        self, models: Mapping[str, Evaluated], categories: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self.catalogue = Catalogue(categories)
        self.users: dict[str, _User] = {}
        self.entrants = [Entrant(name, model, self.catalogue) for name, model in models.items()]
        self.event, self.user = array("q"), array("i")
        """Place in the stream, and the user's number, of each judged event."""
        self.history, self.exposures = array("q"), array("q")
        """Events of the user, and of the item, that came before each judged event."""
        self.popular = array("b")
        """1 where fewer than a tenth of the items had more events than that of the judged event."""
        self.noted = self.repeats = 0
        for entrant in self.entrants * 2:  # what a model knows already is enrolled before any looks rows up
            entrant.sync()

    def judge(self, place: int, event: Interaction, all_items: bool = False) -> None:
        """Judge every model on one event, unless its weight is not positive or the user has had the item."""
        number, user = self.catalogue.find(event.item), self._user(event.user)
        if number in user:
            self.repeats += 1
            return
        if weight_of(event) <= 0.0:
            return
        self.event.append(place)
        self.user.append(user.number)
        self.history.append(user.events)
        exposures = int(self.catalogue.events[number]) if number >= 0 else 0
        self.exposures.append(exposures)
        self.popular.append(exposures > 0 and self._ahead(exposures) < POPULAR * len(self.catalogue))
        for entrant in self.entrants:
            entrant.judge(event.user, user.items, number, self.noted, all_items)

    def rate(self, event: Interaction) -> None:
        """Ask the models that predict ratings for this one."""
        for entrant in self.entrants:
            entrant.rate(event)

    def learn(self, event: Interaction) -> None:
        """The event has happened, and every model learns it at once."""
        self.note(event)
        self.teach(event)

    def note(self, event: Interaction) -> None:
        """The event has happened: its user has had the item, which is no candidate any more."""
        number = self.catalogue.enrol(event.item)
        self.catalogue.events[number] += 1
        self._user(event.user).add(number)
        self.noted += 1

    def teach(self, event: Interaction) -> None:
        """Every model learns an event that has been noted."""
        number = self.catalogue.find(event.item)
        for entrant in self.entrants:
            entrant.learn(event, number)

    def enrol(self, items: Sequence[str]) -> None:
        """Make items known that no event had yet."""
        for item in items:
            self.catalogue.enrol(item)
        for entrant in self.entrants:
            entrant.reserve()

    def _ahead(self, exposures: int) -> int:
        """How many items had more events."""
        return int(np.count_nonzero(self.catalogue.events[: len(self.catalogue)] > exposures))

    def _user(self, user: str) -> _User:
        found = self.users.get(user)
        if found is None:
            found = self.users[user] = _User(len(self.users))
        return found
