"""A data set's events as the evaluator and the models take them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

import msgspec

from streams.errors import DatasetError

if TYPE_CHECKING:
    from online_models.evaluation.interactions import Interaction
    from streams.datasets import Dataset
    from streams.events import Event

__all__ = ["Interactions"]


class Interactions(Sequence["Interaction"]):
    """The events of a data set as the evaluator takes them, made one by one: those with an item and a weight.

    Args:
        data: the data set.
        weights: event type to weight; a type that is missing is refused.
        min_rating: leave out ratings below it, and events without one.
        limit: only the first so many of those that remain.
        tie_seed: put each user's events of the same time into an order by this seed; the data's where None.

    Raises:
        DatasetError: an event that can't be learned, by its id.
    """

    def __init__(
        self,
        data: Dataset,
        weights: Mapping[str, float],
        min_rating: float | None = None,
        limit: int | None = None,
        tie_seed: int | None = None,
    ) -> None:
        self._weights = weights
        self._codes = _codes(weights)
        self._items = data.items
        for event in data.events:
            self._check(event)
        self._events = [event for event in data.events if self._is_used(event, min_rating)]
        self.left_out = len(data.events) - len(self._events)
        if tie_seed is not None:
            self._events = _reordered(self._events, tie_seed)
        del self._events[limit if limit is not None else len(self._events) :]
        if not self._events:
            raise DatasetError(f"{data.name} holds no event with an item, a weight and such a rating.")

    def __len__(self) -> int:
        return len(self._events)

    @overload
    def __getitem__(self, place: int) -> Interaction: ...

    @overload
    def __getitem__(self, place: slice) -> list[Interaction]: ...

    def __getitem__(self, place: int | slice) -> Interaction | list[Interaction]:
        if isinstance(place, slice):
            return [self._interaction(event) for event in self._events[place]]
        return self._interaction(self._events[place])

    def categories(self) -> dict[str, list[str]]:
        """Categories of the items that have any."""
        return {item_id: item.categories for item_id, item in self._items.items() if item.categories}

    def catalogue(self) -> dict[str, dict[str, Any]]:
        """Catalogue entries as models take them (`learn_item`), without what is not stated."""
        return {
            item_id: {name: value for name, value in msgspec.structs.asdict(item).items() if value}
            for item_id, item in self._items.items()
        }

    def _check(self, event: Event) -> None:
        if event.event_type not in self._weights:
            raise DatasetError(
                f"event {event.event_id}: event_type {event.event_type!r} is unknown; add it to"
                " validation.event_types."
            )
        if not event.user_id:
            raise DatasetError(f"event {event.event_id} has no user_id. Mend or remove it.")
        if event.value is not None and not math.isfinite(event.value):
            raise DatasetError(
                f"event {event.event_id}: value {event.value} is not finite. Mend or remove it."
            )
        from online_models.learning_batch import MAX_TIME_MS

        try:
            at = _time_ms(event)
        except (ValueError, OverflowError) as error:
            raise DatasetError(
                f"event {event.event_id}: timestamp {event.timestamp!r} is no time ({error}). Mend it."
            ) from error
        if not 0 <= at <= MAX_TIME_MS:
            raise DatasetError(
                f"event {event.event_id}: timestamp {event.timestamp!r} is {at} ms, outside 0 to"
                f" {MAX_TIME_MS} (1970 to 9999). Mend it, or remove the event."
            )

    def _is_used(self, event: Event, min_rating: float | None) -> bool:
        if not event.item_id or self._weights[event.event_type] == 0.0:
            return False
        return min_rating is None or (event.value is not None and event.value >= min_rating)

    def _interaction(self, event: Event) -> Interaction:
        from online_models.evaluation.interactions import Interaction

        weight = self._weights[event.event_type]
        rating = event.value if event.event_type == "rating" else None
        x = {
            "timestamp": _time_ms(event),
            "weight": weight,
            "event_type": self._codes[event.event_type],
            "event_id": event.event_id,
        }
        return Interaction(event.user_id, str(event.item_id), weight if rating is None else rating, x, rating)


def _time_ms(event: Event) -> int:
    from streams.datasets import time_ms

    return event.timestamp if isinstance(event.timestamp, int) else time_ms(event.timestamp)


def _codes(weights: Mapping[str, float]) -> dict[str, int]:
    """Code of each event type: the models' own for those that they know by name, further ones for others."""
    from online_models.corrections import EVENT_TYPES

    others = [name for name in weights if name not in EVENT_TYPES]
    known = {name: EVENT_TYPES.index(name) for name in weights if name in EVENT_TYPES}
    return known | {name: len(EVENT_TYPES) + place for place, name in enumerate(others)}


def _reordered(events: Sequence[Event], seed: int) -> list[Event]:
    """Events of one user and moment in an order by a hash of their ids; all others stay where they are."""
    places: dict[tuple[str, int | str], list[int]] = {}
    for place, event in enumerate(events):
        places.setdefault((event.user_id, event.timestamp), []).append(place)
    found = list(events)
    for tied in places.values():
        if len(tied) > 1:
            order = sorted(tied, key=lambda place: _hash(f"{seed}:{events[place].event_id}"))
            for place, source in zip(tied, order, strict=True):
                found[place] = events[source]
    return found


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
