"""Records as they come, to records that may be learned from: every type, length, range and time (DESIGN 4).

`EventValidator.decode_*` takes what Kafka delivered and returns either the typed record or a `Rejected`: a
bad record is data, never an exception. What is accepted is bounded, so no record can break the state that it goes
into: ids are 1 to 256 bytes of UTF-8 without control characters, numbers are finite and |x| <= 1e12, maps and
lists have limits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec

from streams.events import Event, Item, Request, User
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
    "newest_after",
]

ID_BYTES = 256
NUMBER_LIMIT = 1e12
"""Largest |value|, |price|, |context number|: sums and squares of it stay far inside a double."""
MAP_ENTRIES = 64
MAP_TEXT_BYTES = 1024
QUERY_BYTES = 1024
TITLE_BYTES = 1024
DESCRIPTION_BYTES = 65_536
CATEGORIES = 100
SESSION_ITEMS = 1000
REQUEST_COUNT = 1000
REQUEST_LIST = 10_000
EMBEDDINGS = 8
EMBEDDING_FLOATS = 4096
EMBEDDING_LIMIT = 1e6
YEAR_9999_MS = 253_402_300_799_999

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_TEXT_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
"""In texts, unlike in ids, tab, line feed and carriage return are fine."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
_DateTime = Annotated[datetime, msgspec.Meta(tz=True)]
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
            time_ms = _event_time(event.timestamp, kafka_time_ms + self._future_ms)
            if newest_time_ms - time_ms > self._lateness_ms:
                behind_s, bound_s = (newest_time_ms - time_ms) / 1000, self._lateness_ms / 1000
                raise InvalidRecordError(
                    Reason.LATE,
                    f"{behind_s:.0f} s older than its partition's newest; at most {bound_s:.0f} s",
                )
            misplaced = self._check_key(key, event.user_id, partition)
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
            _check_request(request)
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
                return Tombstone(_key_id(key), partition, offset, kafka_time_ms)
            raw = parse_object(value, self._max_bytes, self._max_depth)
            item = _typed(raw, Item)
            _check_item(item)
            published_ms = _catalogue_time("published_at", item.published_at)
            expires_ms = _catalogue_time("expires_at", item.expires_at)
            _check_key_is(key, item.item_id, "item_id")
        except InvalidRecordError as bad:
            return Rejected(bad.reason, bad.message, partition, offset, kafka_time_ms)
        unknown = _unknown(raw, Item)
        return AcceptedItem(item, published_ms, expires_ms, partition, offset, kafka_time_ms, unknown)

    def decode_user(
        self, value: bytes | None, key: bytes | None, partition: int, offset: int, kafka_time_ms: int
    ) -> AcceptedUser | Tombstone | Rejected:
        """One record of `users`; a null value is the tombstone that forgets the user who is its key."""
        try:
            if value is None:
                return Tombstone(_key_id(key), partition, offset, kafka_time_ms)
            raw = parse_object(value, self._max_bytes, self._max_depth)
            user = _typed(raw, User)
            _check_id("user_id", user.user_id)
            user.labels = _checked_map("labels", user.labels)
            self._check_key(key, user.user_id, partition)
        except InvalidRecordError as bad:
            return Rejected(bad.reason, bad.message, partition, offset, kafka_time_ms)
        return AcceptedUser(user, partition, offset, kafka_time_ms, _unknown(raw, User))

    def _check_event(self, event: Event) -> float:
        """Check ids, texts and numbers, normalise -0.0, return the weight of the type."""
        _check_id("event_id", event.event_id)
        _check_id("user_id", event.user_id)
        weight = self._weights.get(event.event_type)
        if weight is None:
            raise InvalidRecordError(
                Reason.UNKNOWN_EVENT_TYPE,
                f"event_type {event.event_type[:40]!a} is unknown; add it to validation.event_types",
            )
        if event.item_id is not None:
            _check_id("item_id", event.item_id)
        needed = _NEEDS.get(event.event_type, "item_id")
        if getattr(event, needed) is None:
            raise InvalidRecordError(
                Reason.MISSING_FIELD, f"{needed} is missing; {event.event_type} events need it"
            )
        if event.value is not None:
            event.value = _number("value", event.value)
        for name in _OPTIONAL_IDS:
            text = getattr(event, name)
            if text is not None:
                _check_id(name, text)
        if event.query is not None:
            _check_text("query", event.query, QUERY_BYTES, at_least=1)
        if event.context is not None:
            event.context = _checked_map("context", event.context)
        return weight

    def _check_key(self, key: bytes | None, user_id: str, partition: int) -> bool:
        """The key must be the user's id; returns whether the partition is another than the key's."""
        _check_key_is(key, user_id, "user_id")
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


_NEEDS = {"search": "query", "follow": "target_user_id", "retract": "retracts"}
"""The field without which an event of a type says nothing; all other types need `item_id`."""
_OPTIONAL_IDS = ("session_id", "request_id", "domain", "target_user_id", "retracts")


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


def _unknown(raw: dict[str, Any], kind: type[msgspec.Struct]) -> int:
    return len(raw.keys() - set(kind.__struct_fields__))


def _check_id(name: str, text: str) -> None:
    if text.isascii() and text.isprintable() and 0 < len(text) <= ID_BYTES:
        return
    length = len(text.encode())
    if not 0 < length <= ID_BYTES:
        raise InvalidRecordError(Reason.INVALID_ID, f"{name} has {length} bytes; 1 to {ID_BYTES} expected")
    if bad := _CONTROL.search(text):
        raise InvalidRecordError(
            Reason.INVALID_ID, f"{name} has the control character U+{ord(bad[0]):04X} at {bad.start()}"
        )


def _check_ids(name: str, ids: Iterable[str], count: int, limit: int) -> None:
    if count > limit:
        raise InvalidRecordError(Reason.INVALID_FIELD, f"{name} has {count} entries; at most {limit}")
    for text in ids:
        _check_id(name, text)


def _check_text(name: str, text: str, limit: int, at_least: int = 0) -> None:
    length = len(text.encode())
    if not at_least <= length <= limit:
        raise InvalidRecordError(
            Reason.INVALID_FIELD, f"{name} has {length} bytes; {at_least} to {limit} expected"
        )
    if bad := _TEXT_CONTROL.search(text):
        raise InvalidRecordError(
            Reason.INVALID_FIELD, f"{name} has the control character U+{ord(bad[0]):04X} at {bad.start()}"
        )


def _number(name: str, number: float, limit: float = NUMBER_LIMIT) -> float:
    """`number` itself, -0.0 as 0.0. The bound also refuses integers beyond 64 bits."""
    if not -limit <= number <= limit:
        raise InvalidRecordError(
            Reason.INVALID_NUMBER, f"{name} is out of range; at most {limit:g} either way"
        )
    return number + 0.0


def _checked_map(name: str, entries: dict[str, str | float | bool]) -> dict[str, str | float | bool]:
    """A flat map within its limits, -0.0 normalised."""
    _check_ids(f"a key of {name}", entries, len(entries), MAP_ENTRIES)
    checked: dict[str, str | float | bool] = {}
    for key, entry in entries.items():
        if isinstance(entry, str):
            _check_text(f"an entry of {name}", entry, MAP_TEXT_BYTES)
        elif not isinstance(entry, bool):
            entry = _number(f"an entry of {name}", entry)
        checked[key] = entry
    return checked


def _event_time(timestamp: int | str, latest_ms: int) -> int:
    time_ms = timestamp if isinstance(timestamp, int) else _rfc3339_ms("timestamp", timestamp)
    if time_ms < 0:
        raise InvalidRecordError(
            Reason.INVALID_TIMESTAMP, "timestamp lies before 1970; ms since the epoch expected"
        )
    if time_ms > latest_ms:
        raise InvalidRecordError(
            Reason.INVALID_TIMESTAMP,
            f"timestamp lies {_beyond(time_ms - latest_ms)} beyond the Kafka record's own time plus "
            "validation.future_s; ms since the epoch expected",
        )
    return time_ms


def _beyond(ms: int) -> str:
    return f"{ms / 1000:.0f} s" if ms <= YEAR_9999_MS else "millennia"


def _catalogue_time(name: str, timestamp: int | str | None) -> int | None:
    """An item's time in ms, from 1970 to 9999, or None."""
    if timestamp is None:
        return None
    time_ms = timestamp if isinstance(timestamp, int) else _rfc3339_ms(name, timestamp)
    if not 0 <= time_ms <= YEAR_9999_MS:
        raise InvalidRecordError(Reason.INVALID_TIMESTAMP, f"{name} is not between 1970 and 9999")
    return time_ms


def _rfc3339_ms(name: str, text: str) -> int:
    try:
        return (msgspec.convert(text, _DateTime) - _EPOCH) // _MS
    except msgspec.ValidationError:
        raise InvalidRecordError(
            Reason.INVALID_TIMESTAMP,
            f"{name} is text but not RFC 3339 with a zone, like 2026-01-31T12:00:00Z",
        ) from None


def _check_key_is(key: bytes | None, expected: str, field: str) -> None:
    if key != expected.encode():
        what = "null" if key is None else f"{len(key)} bytes that differ from it"
        raise InvalidRecordError(Reason.KEY_MISMATCH, f"the key must be the {field} in UTF-8, and is {what}")


def _key_id(key: bytes | None) -> str:
    """The id that a tombstone's key names."""
    if key is None:
        raise InvalidRecordError(Reason.KEY_MISMATCH, "a tombstone without a key names nothing")
    try:
        text = key.decode()
    except UnicodeDecodeError as bad:
        raise InvalidRecordError(Reason.NOT_UTF8, f"byte {bad.start} of the key is not UTF-8") from None
    _check_id("the key", text)
    return text


def _check_request(request: Request) -> None:
    _check_id("request_id", request.request_id)
    if (request.user_id is None) == (request.session_items is None):
        reason = Reason.MISSING_FIELD if request.user_id is None else Reason.INVALID_FIELD
        raise InvalidRecordError(reason, "a request has either user_id or session_items")
    if request.user_id is not None:
        _check_id("user_id", request.user_id)
    if request.count is not None and not 1 <= request.count <= REQUEST_COUNT:
        raise InvalidRecordError(Reason.INVALID_NUMBER, f"count is not 1 to {REQUEST_COUNT}")
    limits = {"session_items": SESSION_ITEMS, "categories": CATEGORIES}
    for name in ("session_items", "categories", "exclude", "candidates"):
        ids = getattr(request, name)
        if ids is not None:
            _check_ids(name, ids, len(ids), limits.get(name, REQUEST_LIST))
    if request.context is not None:
        request.context = _checked_map("context", request.context)


def _check_item(item: Item) -> None:
    _check_id("item_id", item.item_id)
    for name, limit in (("title", TITLE_BYTES), ("description", DESCRIPTION_BYTES)):
        text = getattr(item, name)
        if text is not None:
            _check_text(name, text, limit)
    for name in ("provider_id", "domain"):
        text = getattr(item, name)
        if text is not None:
            _check_id(name, text)
    _check_ids("categories", item.categories, len(item.categories), CATEGORIES)
    item.labels = _checked_map("labels", item.labels)
    if item.price is not None:
        item.price = _number("price", item.price)
    _check_ids("a name of embeddings", item.embeddings, len(item.embeddings), EMBEDDINGS)
    for vector in item.embeddings.values():
        if not 0 < len(vector) <= EMBEDDING_FLOATS:
            raise InvalidRecordError(
                Reason.INVALID_FIELD,
                f"an embedding has {len(vector)} floats; 1 to {EMBEDDING_FLOATS} expected",
            )
        for number in vector:
            _number("an entry of embeddings", number, EMBEDDING_LIMIT)
