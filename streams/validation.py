"""Records as they come, to records that may be learned from: every type, length, range and time.

`EventValidator.decode_*` takes what Kafka delivered and returns either the typed record or a `Rejected`: a
bad record is data, never an exception. What is accepted is bounded, so that no record can break the state
that it goes into: `streams.field_checks` has the limits, docs/events.md tells them to producers.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from streams.events import Event, Item, Request, User
from streams.field_checks import (
    QUERY_BYTES,
    catalogue_time,
    check_id,
    check_item,
    check_key_is,
    check_request,
    check_text,
    checked_map,
    event_time,
    key_id,
    number,
)
from streams.record_json import parse_object
from streams.rejects import InvalidRecordError, Reason, Rejected, RejectGuard

if TYPE_CHECKING:
    from streams.settings import ValidationSettings

__all__ = [
    "AcceptedEvent",
    "AcceptedItem",
    "AcceptedRequest",
    "AcceptedUser",
    "EventValidator",
    "Reason",
    "RejectGuard",
    "Rejected",
    "Tombstone",
    "event_hash",
    "late",
    "newest_after",
]

NEEDED_FIELD = {"search": "query", "follow": "target_user_id", "retract": "retracts"}
"""The field without which an event of a type says nothing; all other types need `item_id`."""
_EVENT_FIELDS = frozenset(Event.__struct_fields__)

T = TypeVar("T", Item, User, Request)


class AcceptedEvent(msgspec.Struct, gc=False):
    """An event that may be learned from."""

    event: Event
    time_ms: int
    """Event time, ms since the epoch, from either notation."""
    weight: float
    """How much, and in which direction, the event's type teaches."""
    event_hash: int
    """64 bits of `event_id` for the dedupe window, see `event_hash`."""
    partition: int
    offset: int
    kafka_time_ms: int
    unknown_fields: int
    """Top-level fields that this version doesn't know."""
    misplaced: bool
    """The partition is not the one that Java's default partitioner gives this key."""


class AcceptedRequest(msgspec.Struct, gc=False):
    request: Request
    partition: int
    offset: int
    kafka_time_ms: int
    unknown_fields: int


class AcceptedItem(msgspec.Struct, gc=False):
    item: Item
    published_ms: int | None
    expires_ms: int | None
    partition: int
    offset: int
    kafka_time_ms: int
    unknown_fields: int


class AcceptedUser(msgspec.Struct, gc=False):
    user: User
    partition: int
    offset: int
    kafka_time_ms: int
    unknown_fields: int


class Tombstone(msgspec.Struct, gc=False):
    """A null value on a compacted topic: remove the item, forget the user, whose id is `key`."""

    key: str
    partition: int
    offset: int
    kafka_time_ms: int


def event_hash(event_id: str) -> int:
    """First 8 bytes of BLAKE2b of the id, little-endian: the same on every machine, 0 <= h < 2^64."""
    return int.from_bytes(blake2b(event_id.encode(), digest_size=8).digest(), "little")


def newest_after(newest_time_ms: int, accepted: AcceptedEvent) -> int:
    """The partition's newest event time once `accepted` is in; start from -1.

    An event counts with at most the time at which it was appended, so that a timestamp from the future can't
    make the events after it late.
    """
    return max(newest_time_ms, min(accepted.time_ms, accepted.kafka_time_ms))


def late(newest_time_ms: int, time_ms: int, lateness_ms: int) -> str | None:
    """Why an event is too old beside its partition's newest, see `newest_after`; None where it is not."""
    behind_ms = newest_time_ms - time_ms
    if behind_ms <= lateness_ms:
        return None
    return f"{behind_ms / 1000:.0f} s older than its partition's newest; at most {lateness_ms / 1000:.0f} s"


class EventValidator:
    """Decodes and checks the records of `events`, `requests`, `items` and `users`, one at a time.

    Args:
        settings: limits, event types and their weights.
        partition_of: a key's partition under Java's default partitioner; without it no event is `misplaced`.

    Raises:
        ValueError: strict partitioning without `partition_of`.
    """

    def __init__(
        self, settings: ValidationSettings, partition_of: Callable[[bytes], int] | None = None
    ) -> None:
        self._weights = settings.weights()
        self._max_bytes = settings.max_bytes
        self._max_depth = settings.max_depth
        self._lateness_ms = int(settings.lateness_s * 1000)
        self._future_ms = int(settings.future_s * 1000)
        self._strict = settings.partitioning == "strict"
        self._partition_of = partition_of
        if self._strict and partition_of is None:
            raise ValueError('validation.partitioning = "strict" needs the partitioner: pass partition_of')

    def decode_event(
        self,
        value: bytes | None,
        key: bytes | None,
        partition: int,
        offset: int,
        kafka_time_ms: int,
        newest_time_ms: int = -1,
    ) -> AcceptedEvent | Rejected:
        """One record of `events`; `newest_time_ms` is the partition's newest so far, see `newest_after`."""
        try:
            if value is None:
                raise InvalidRecordError(
                    Reason.TOMBSTONE, "null value; to forget a user write the tombstone to users"
                )
            raw = parse_object(value, self._max_bytes, self._max_depth)
            event = _event(raw)
            weight = self._check_event(event)
            misplaced = self._check_key(key, event.user_id, partition)
            time_ms = event_time(event.timestamp, kafka_time_ms + self._future_ms)
            if message := late(newest_time_ms, time_ms, self._lateness_ms):
                raise InvalidRecordError(Reason.LATE, message)
        except InvalidRecordError as bad:
            return Rejected(bad.reason, bad.message, partition, offset, kafka_time_ms)
        unknown = 0 if raw.keys() <= _EVENT_FIELDS else len(raw.keys() - _EVENT_FIELDS)
        return AcceptedEvent(
            event,
            time_ms,
            weight,
            event_hash(event.event_id),
            partition,
            offset,
            kafka_time_ms,
            unknown,
            misplaced,
        )

    def decode_request(
        self, value: bytes | None, key: bytes | None, partition: int, offset: int, kafka_time_ms: int
    ) -> AcceptedRequest | Rejected:
        """One record of `requests`; an anonymous one may have any key."""
        try:
            if value is None:
                raise InvalidRecordError(Reason.TOMBSTONE, "null value; a request is an object")
            raw = parse_object(value, self._max_bytes, self._max_depth)
            request = _typed(raw, Request)
            check_request(request)
            if request.user_id is not None:
                self._check_key(key, request.user_id, partition)
        except InvalidRecordError as bad:
            return Rejected(bad.reason, bad.message, partition, offset, kafka_time_ms)
        return AcceptedRequest(request, partition, offset, kafka_time_ms, _unknown(raw, Request))

    def decode_item(
        self, value: bytes | None, key: bytes | None, partition: int, offset: int, kafka_time_ms: int
    ) -> AcceptedItem | Tombstone | Rejected:
        """One record of `items`; a null value is the tombstone of the item that is its key."""
        try:
            if value is None:
                return Tombstone(key_id(key), partition, offset, kafka_time_ms)
            raw = parse_object(value, self._max_bytes, self._max_depth)
            item = _typed(raw, Item)
            check_item(item)
            published_ms = catalogue_time("published_at", item.published_at)
            expires_ms = catalogue_time("expires_at", item.expires_at)
            check_key_is(key, item.item_id, "item_id")
        except InvalidRecordError as bad:
            return Rejected(bad.reason, bad.message, partition, offset, kafka_time_ms)
        unknown = _unknown(raw, Item)
        return AcceptedItem(item, published_ms, expires_ms, partition, offset, kafka_time_ms, unknown)

    def decode_user(
        self, value: bytes | None, key: bytes | None, partition: int, offset: int, kafka_time_ms: int
    ) -> AcceptedUser | Tombstone | Rejected:
        """One record of `users`; a null value is the tombstone that forgets the user who is its key: where
        it stands, for there stand the events of a producer with the same partitioner."""
        try:
            if value is None:
                user_id = key_id(key)
                self._check_key(key, user_id, partition)
                return Tombstone(user_id, partition, offset, kafka_time_ms)
            raw = parse_object(value, self._max_bytes, self._max_depth)
            user = _typed(raw, User)
            check_id("user_id", user.user_id)
            user.labels = checked_map("labels", user.labels)
            self._check_key(key, user.user_id, partition)
        except InvalidRecordError as bad:
            return Rejected(bad.reason, bad.message, partition, offset, kafka_time_ms)
        return AcceptedUser(user, partition, offset, kafka_time_ms, _unknown(raw, User))

    def _check_event(self, event: Event) -> float:
        """Check ids, texts and numbers, normalise -0.0, return the weight of the type."""
        check_id("event_id", event.event_id)
        check_id("user_id", event.user_id)
        kind = event.event_type
        weight = self._weights.get(kind)
        if weight is None:
            raise InvalidRecordError(
                Reason.UNKNOWN_EVENT_TYPE,
                f"event_type {kind[:40]!a} is unknown; add it to validation.event_types",
            )
        if event.item_id is not None:
            check_id("item_id", event.item_id)
        elif kind not in NEEDED_FIELD:
            raise _missing("item_id", kind)
        if kind in NEEDED_FIELD and getattr(event, NEEDED_FIELD[kind]) is None:
            raise _missing(NEEDED_FIELD[kind], kind)
        if event.value is not None:
            event.value = number("value", event.value)
        if event.session_id is not None:
            check_id("session_id", event.session_id)
        if event.request_id is not None:
            check_id("request_id", event.request_id)
        if event.domain is not None:
            check_id("domain", event.domain)
        if event.target_user_id is not None:
            check_id("target_user_id", event.target_user_id)
        if event.retracts is not None:
            check_id("retracts", event.retracts)
        if event.query is not None:
            check_text("query", event.query, QUERY_BYTES, at_least=1)
        if event.context is not None:
            event.context = checked_map("context", event.context)
        return weight

    def _check_key(self, key: bytes | None, user_id: str, partition: int) -> bool:
        """The key must be the user's id; returns whether the partition is another than the key's."""
        check_key_is(key, user_id, "user_id")
        if self._partition_of is None or key is None:
            return False
        expected = self._partition_of(key)
        if expected == partition:
            return False
        if self._strict:
            raise InvalidRecordError(
                Reason.WRONG_PARTITION,
                f"partition {partition}, but murmur2 of the key gives {expected}; "
                "set partitioner=murmur2_random in the producer",
            )
        return True


def _event(raw: dict[str, Any]) -> Event:
    try:
        return msgspec.convert(raw, Event)
    except msgspec.ValidationError as error:
        raise _explain(raw, Event, error) from None


def _typed(raw: dict[str, Any], kind: type[T]) -> T:
    """`raw` as a record of `kind`, null standing for absent."""
    if None in raw.values():
        raw = {name: value for name, value in raw.items() if value is not None}
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise _explain(raw, kind, error) from None


def _explain(raw: dict[str, Any], kind: type, error: msgspec.ValidationError) -> InvalidRecordError:
    missing = [f.name for f in msgspec.structs.fields(kind) if f.required and raw.get(f.name) is None]
    if missing:
        return InvalidRecordError(Reason.MISSING_FIELD, f"{', '.join(missing)} missing or null")
    return InvalidRecordError(Reason.WRONG_TYPE, str(error).replace("`", ""))


def _missing(name: str, kind: str) -> InvalidRecordError:
    return InvalidRecordError(Reason.MISSING_FIELD, f"{name} is missing or null; {kind} events need it")


def _unknown(raw: dict[str, Any], kind: type[msgspec.Struct]) -> int:
    return len(raw.keys() - set(kind.__struct_fields__))
