"""Checks of single fields; each raises `InvalidRecordError` with a reason."""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Annotated

import msgspec

from streams.events import Item, Request
from streams.rejects import InvalidRecordError, Reason

__all__ = [
    "catalogue_time",
    "check_id",
    "check_ids",
    "check_item",
    "check_key_is",
    "check_request",
    "check_text",
    "checked_map",
    "event_time",
    "key_id",
    "number",
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


def check_id(name: str, text: str) -> None:
    """1 to 256 bytes, no control characters; the usual id, printable ASCII, passes on the first line."""
    if text.isascii() and text.isprintable() and 0 < len(text) <= ID_BYTES:
        return
    length = len(text.encode())
    if not 0 < length <= ID_BYTES:
        raise InvalidRecordError(Reason.INVALID_ID, f"{name} has {length} bytes; 1 to {ID_BYTES} expected")
    if bad := _CONTROL.search(text):
        raise InvalidRecordError(
            Reason.INVALID_ID, f"{name} has the control character U+{ord(bad[0]):04X} at {bad.start()}"
        )


def check_ids(name: str, ids: Collection[str], limit: int) -> None:
    """At most `limit` ids, each as `check_id` wants it."""
    if len(ids) > limit:
        raise InvalidRecordError(Reason.INVALID_FIELD, f"{name} has {len(ids)} entries; at most {limit}")
    for text in ids:
        check_id(name, text)


def check_text(name: str, text: str, limit: int, at_least: int = 0) -> None:
    """`at_least` to `limit` bytes without control characters, but for tab and line ends."""
    length = len(text.encode())
    if not at_least <= length <= limit:
        raise InvalidRecordError(
            Reason.INVALID_FIELD, f"{name} has {length} bytes; {at_least} to {limit} expected"
        )
    if bad := _TEXT_CONTROL.search(text):
        raise InvalidRecordError(
            Reason.INVALID_FIELD, f"{name} has the control character U+{ord(bad[0]):04X} at {bad.start()}"
        )


def number(name: str, given: float, limit: float = NUMBER_LIMIT) -> float:
    """`given` itself, -0.0 as 0.0. The bound also refuses integers beyond 64 bits."""
    if not -limit <= given <= limit:
        raise InvalidRecordError(
            Reason.INVALID_NUMBER, f"{name} is out of range; at most {limit:g} either way"
        )
    return given + 0.0


def checked_map(name: str, entries: dict[str, str | float | bool]) -> dict[str, str | float | bool]:
    """A flat map within its limits, -0.0 normalised."""
    check_ids(f"a key of {name}", entries, MAP_ENTRIES)
    checked: dict[str, str | float | bool] = {}
    for key, entry in entries.items():
        if isinstance(entry, str):
            check_text(f"an entry of {name}", entry, MAP_TEXT_BYTES)
        elif not isinstance(entry, bool):
            entry = number(f"an entry of {name}", entry)
        checked[key] = entry
    return checked


def event_time(timestamp: int | str, latest_ms: int) -> int:
    """An event's time in ms, from 1970 to `latest_ms`."""
    time_ms = timestamp if isinstance(timestamp, int) else rfc3339_ms("timestamp", timestamp)
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


def catalogue_time(name: str, timestamp: int | str | None) -> int | None:
    """An item's time in ms, from 1970 to 9999, or None."""
    if timestamp is None:
        return None
    time_ms = timestamp if isinstance(timestamp, int) else rfc3339_ms(name, timestamp)
    if not 0 <= time_ms <= YEAR_9999_MS:
        raise InvalidRecordError(Reason.INVALID_TIMESTAMP, f"{name} is not between 1970 and 9999")
    return time_ms


def rfc3339_ms(name: str, text: str) -> int:
    try:
        return (msgspec.convert(text, _DateTime) - _EPOCH) // _MS
    except msgspec.ValidationError:
        raise InvalidRecordError(
            Reason.INVALID_TIMESTAMP,
            f"{name} is text but not RFC 3339 with a zone, like 2026-01-31T12:00:00Z",
        ) from None


def check_key_is(key: bytes | None, expected: str, field: str) -> None:
    """A null key is refused too: its partition is arbitrary, and state belongs to the key's partition."""
    if key != expected.encode():
        what = "null" if key is None else f"{len(key)} bytes that differ from it"
        raise InvalidRecordError(Reason.KEY_MISMATCH, f"the key must be the {field} in UTF-8, and is {what}")


def key_id(key: bytes | None) -> str:
    """The id that a tombstone's key names."""
    if key is None:
        raise InvalidRecordError(Reason.KEY_MISMATCH, "a tombstone without a key names nothing")
    try:
        text = key.decode()
    except UnicodeDecodeError as bad:
        raise InvalidRecordError(Reason.NOT_UTF8, f"byte {bad.start} of the key is not UTF-8") from None
    check_id("the key", text)
    return text


def check_request(request: Request) -> None:
    """Every field of a request but its key; -0.0 in the context is normalised."""
    check_id("request_id", request.request_id)
    if (request.user_id is None) == (request.session_items is None):
        reason = Reason.MISSING_FIELD if request.user_id is None else Reason.INVALID_FIELD
        raise InvalidRecordError(reason, "a request has either user_id or session_items")
    if request.user_id is not None:
        check_id("user_id", request.user_id)
    if request.count is not None and not 1 <= request.count <= REQUEST_COUNT:
        raise InvalidRecordError(Reason.INVALID_NUMBER, f"count is not 1 to {REQUEST_COUNT}")
    limits = {"session_items": SESSION_ITEMS, "categories": CATEGORIES}
    for name in ("session_items", "categories", "exclude", "candidates"):
        ids = getattr(request, name)
        if ids is not None:
            check_ids(name, ids, limits.get(name, REQUEST_LIST))
    if request.context is not None:
        request.context = checked_map("context", request.context)


def check_item(item: Item) -> None:
    """Every field of an item but its key and times; -0.0 in numbers is normalised."""
    check_id("item_id", item.item_id)
    for name, limit in (("title", TITLE_BYTES), ("description", DESCRIPTION_BYTES)):
        text = getattr(item, name)
        if text is not None:
            check_text(name, text, limit)
    for name in ("provider_id", "domain"):
        text = getattr(item, name)
        if text is not None:
            check_id(name, text)
    check_ids("categories", item.categories, CATEGORIES)
    item.labels = checked_map("labels", item.labels)
    if item.price is not None:
        item.price = number("price", item.price)
    check_ids("a name of embeddings", item.embeddings, EMBEDDINGS)
    for vector in item.embeddings.values():
        if not 0 < len(vector) <= EMBEDDING_FLOATS:
            raise InvalidRecordError(
                Reason.INVALID_FIELD,
                f"an embedding has {len(vector)} floats; 1 to {EMBEDDING_FLOATS} expected",
            )
        for entry in vector:
            number("an entry of embeddings", entry, EMBEDDING_LIMIT)
