"""The auditor's own model: the input replayed, one record after the other, by no code of the workers'.

Only the validator is the program's; it has tests of its own.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from streams.clients import partition_for
from streams.rejects import Rejected
from streams.settings import Settings
from streams.validation import AcceptedEvent, EventValidator
from tests.chaos.records import Record

__all__ = ["Model", "ModelUser", "Step", "replay"]


class Step(NamedTuple):
    """One accepted event of a user, and what it changed."""

    event_id: str
    partition: int
    offset: int
    used: str | None
    """The item that the user had not used before, if any."""
    evicted: str | None
    """The item that the seen set let go for it, if any."""
    positive: str | None
    """The item that the list before this event is judged by, if any."""
    withdrawn: str | None = None
    """The item of the event that this one takes back, if any: retracted, or rated anew."""
    unseen: str | None = None
    """The item that the user has no longer used, if any."""


@dataclass
class ModelUser:
    """What a user's state must be after a sequential replay."""

    dedupe: OrderedDict[str, tuple[int, int]] = field(default_factory=OrderedDict)
    """By event id: the event's hash and time, the oldest first."""
    recent: list[tuple[str, str, int]] = field(default_factory=list)
    """Item, type and time of the last events with an item and a weight that were not withdrawn."""
    recent_ids: list[str] = field(default_factory=list)
    seen: dict[str, None] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)


@dataclass
class Model:
    """What must have come of the input."""

    accepted: list[AcceptedEvent] = field(default_factory=list)
    rejected: list[tuple[str, Record, str]] = field(default_factory=list)
    """Topic, record and reason."""
    duplicates: Counter[int] = field(default_factory=Counter)
    """By partition."""
    requests: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    """By request id: partition and offset."""
    users: dict[str, ModelUser] = field(default_factory=dict)


def replay(records: Mapping[str, Iterable[Record]], partitions: int, settings: Settings) -> Model:
    """The sequential model of the input: the records of `events`, `requests` and `items`."""
    model = Model()
    validator = EventValidator(settings.validation, lambda key: partition_for(key, partitions))
    newest: Counter[int] = Counter()
    for record in records["events"]:
        found = validator.decode_event(
            record.value,
            record.key,
            record.partition,
            record.offset,
            record.time_ms,
            newest[record.partition],
        )
        if isinstance(found, Rejected):
            model.rejected.append(("events", record, found.reason.value))
        else:
            _event(model, found, newest, settings)
    for record in records["requests"]:
        place = record.partition, record.offset
        request = validator.decode_request(record.value, record.key, *place, record.time_ms)
        if isinstance(request, Rejected):
            model.rejected.append(("requests", record, request.reason.value))
        else:
            model.requests.setdefault(request.request.request_id, []).append(place)
    for record in records["items"]:
        item = validator.decode_item(
            record.value, record.key, record.partition, record.offset, record.time_ms
        )
        if isinstance(item, Rejected):
            model.rejected.append(("items", record, item.reason.value))
    return model


def _event(model: Model, found: AcceptedEvent, newest: Counter[int], settings: Settings) -> None:
    caps, event = settings.user_state, found.event
    user = model.users.setdefault(event.user_id, ModelUser())
    earlier = user.dedupe.get(event.event_id)
    if earlier is not None and abs(found.time_ms - earlier[1]) <= caps.dedupe_window_s * 1000:
        model.duplicates[found.partition] += 1
        return
    newest[found.partition] = max(newest[found.partition], min(found.time_ms, found.kafka_time_ms))
    user.dedupe[event.event_id] = found.event_hash, found.time_ms
    user.dedupe.move_to_end(event.event_id)
    while len(user.dedupe) > caps.dedupe_entries:
        user.dedupe.popitem(last=False)
    used = evicted = positive = withdrawn = unseen = None
    item = event.item_id
    if event.event_type == "retract":
        withdrawn, unseen = _retract(user, event.retracts)
    if item is not None and found.weight != 0:
        if event.event_type == "rating":
            withdrawn = _rated_anew(user, item)
        if item not in user.seen:
            used, user.seen[item] = item, None
            if len(user.seen) > caps.seen:
                evicted = next(iter(user.seen))
                del user.seen[evicted]
        if found.weight > 0:
            positive = item
        user.recent = [*user.recent, (item, event.event_type, found.time_ms)][-caps.recent :]
        user.recent_ids = [*user.recent_ids, event.event_id][-caps.recent :]
    place = found.partition, found.offset
    user.steps.append(Step(event.event_id, *place, used, evicted, positive, withdrawn, unseen))
    model.accepted.append(found)


def _retract(user: ModelUser, event_id: str | None) -> tuple[str | None, str | None]:
    """Item of the event withdrawn, and the item that is seen no more, None where there is none."""
    for n in range(len(user.recent) - 1, -1, -1):
        if user.recent_ids[n] == event_id:
            item = _withdraw(user, n)
            if any(other == item for other, *_ in user.recent):
                return item, None
            return item, item if user.seen.pop(item, "") is None else None
    return None, None


def _rated_anew(user: ModelUser, item: str) -> str | None:
    for n, (other, kind, _) in enumerate(user.recent):
        if (other, kind) == (item, "rating"):
            return _withdraw(user, n)
    return None


def _withdraw(user: ModelUser, n: int) -> str:
    del user.recent_ids[n]
    return user.recent.pop(n)[0]
