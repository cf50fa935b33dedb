"""Hostile records for `events`, seeded: what producers have sent or could send, and the reason each must get.

Also `odd_records`: records that look wrong and are right, which must be accepted.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any, NamedTuple

from streams.rejects import Reason

__all__ = ["DEFAULT_TIME_MS", "HOSTILE_KINDS", "ODD_KINDS", "HostileRecord", "hostile_records", "odd_records"]

DEFAULT_TIME_MS = 1_700_000_000_000
BROKER_VALUE_BYTES = 1_048_400
"""With a short key and no headers the batch stays under the broker's default of 1,048,588 bytes."""
BIG_ROUNDS = 3
"""Rounds through the kinds that include those of a megabyte."""


class HostileRecord(NamedTuple):
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    reason: Reason
    kind: str


Fields = dict[str, Any]
Made = bytes | Fields | tuple[bytes | None, bytes | Fields | None] | None
"""A value, the fields of an event, or (key, either)."""


def text(fields: Fields) -> bytes:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _set(**changes: Any) -> Callable[[Fields], Made]:
    """The event with some fields changed; a user_id that is text is the key as well."""

    def make(event: Fields) -> Made:
        changed = {**event, **changes}
        user_id = changed["user_id"]
        key = user_id.encode() if isinstance(user_id, str) else event["user_id"].encode()
        return key, changed

    return make


def _without(*names: str) -> Callable[[Fields], Made]:
    return lambda event: {name: value for name, value in event.items() if name not in names}


def _raw(field: str, literal: bytes) -> Callable[[Fields], Made]:
    """The event with `field`'s value written as `literal`, JSON or not."""
    return lambda event: text({**event, field: "@@"}).replace(b'"@@"', literal)


def _value(make: Callable[[bytes], bytes | None]) -> Callable[[Fields], Made]:
    return lambda event: make(text(event))


def _key(make: Callable[[bytes], bytes | None]) -> Callable[[Fields], Made]:
    return lambda event: (make(event["user_id"].encode()), event)


def _pad(event: Fields, field: str) -> Fields:
    """The event with `field` so long that the value has exactly BROKER_VALUE_BYTES bytes."""
    room = BROKER_VALUE_BYTES - len(text({**event, field: ""}))
    return {**event, field: "x" * room}


def _pad_context(event: Fields) -> Fields:
    room = BROKER_VALUE_BYTES - len(text({**event, "context": {"page": ""}}))
    return {**event, "context": {"page": "x" * room}}


def _nested(depth: int, opening: bytes, closing: bytes) -> bytes:
    return opening * depth + b"1" + closing * depth


def _duplicated(event: Fields) -> bytes:
    return text(event)[:-1] + b',"user_id":"somebody-else"}'


R = Reason
HOSTILE_KINDS: dict[str, tuple[Callable[[Fields], Made], Reason]] = {
    "tombstone": (lambda e: None, R.TOMBSTONE),
    "tombstone without key": (lambda e: (None, None), R.TOMBSTONE),
    "empty bytes": (lambda e: b"", R.INVALID_JSON),
    "blanks": (lambda e: b" \n\t ", R.INVALID_JSON),
    "one NUL": (lambda e: b"\x00", R.INVALID_JSON),
    "not UTF-8: Latin-1": (_raw("item_id", b'"caf\xe9"'), R.NOT_UTF8),
    "not UTF-8: 0xFF": (lambda e: b"\xff\xff\xff", R.NOT_UTF8),
    "not UTF-8: overlong": (_raw("item_id", b'"\xc0\xaf"'), R.NOT_UTF8),
    "not UTF-8: surrogate bytes": (_raw("item_id", b'"\xed\xa0\x80"'), R.NOT_UTF8),
    "not UTF-8: beyond U+10FFFF": (_raw("item_id", b'"\xf4\x90\x80\x80"'), R.NOT_UTF8),
    "not UTF-8: UTF-16 with BOM": (_value(lambda v: v.decode().encode("utf-16")), R.NOT_UTF8),
    "not UTF-8: an unknown field": (_raw("note", b'"\xfe"'), R.NOT_UTF8),
    "UTF-16 without BOM": (_value(lambda v: v.decode().encode("utf-16-le")), R.INVALID_JSON),
    "BOM": (_value(lambda v: b"\xef\xbb\xbf" + v), R.INVALID_JSON),
    "Avro of a registry": (lambda e: b"\x00\x00\x00\x00\x07\x02a\x06abc", R.INVALID_JSON),
    "truncated: last byte": (_value(lambda v: v[:-1]), R.INVALID_JSON),
    "truncated: half": (_value(lambda v: v[: len(v) // 2]), R.INVALID_JSON),
    "truncated: in a name": (lambda e: b'{"event_i', R.INVALID_JSON),
    "trailing garbage": (_value(lambda v: v + b"}"), R.INVALID_JSON),
    "two records": (_value(lambda v: v + b"\n" + v), R.INVALID_JSON),
    "single quotes": (lambda e: b"{'event_id':'e'}", R.INVALID_JSON),
    "trailing comma": (_value(lambda v: v[:-1] + b",}"), R.INVALID_JSON),
    "raw newline in a string": (_raw("item_id", b'"a\nb"'), R.INVALID_JSON),
    "NaN": (_raw("value", b"NaN"), R.INVALID_JSON),
    "Infinity": (_raw("value", b"Infinity"), R.INVALID_JSON),
    "-Infinity": (_raw("value", b"-Infinity"), R.INVALID_JSON),
    "NaN in context": (_raw("context", b'{"a":NaN}'), R.INVALID_JSON),
    "number with a leading zero": (_raw("value", b"01"), R.INVALID_JSON),
    "1e400": (_raw("value", b"1e400"), R.INVALID_NUMBER),
    "-1e400": (_raw("value", b"-1e400"), R.INVALID_NUMBER),
    "1e300": (_raw("value", b"1e300"), R.INVALID_NUMBER),
    "integer beyond 64 bits: value": (_raw("value", b"123456789012345678901234567890"), R.INVALID_NUMBER),
    "integer beyond 64 bits: context": (_raw("context", b'{"n":18446744073709551616}'), R.INVALID_NUMBER),
    "integer beyond 64 bits: timestamp": (_raw("timestamp", b"18446744073709551616"), R.INVALID_TIMESTAMP),
    "integer beyond 64 bits: negative": (_raw("timestamp", b"-9223372036854775809"), R.INVALID_TIMESTAMP),
    "integer of 5,000 digits": (_raw("value", b"9" * 5000), R.INVALID_NUMBER),
    "scalar: number": (lambda e: b"1", R.WRONG_TYPE),
    "scalar: text": (lambda e: b'"event"', R.WRONG_TYPE),
    "scalar: true": (lambda e: b"true", R.WRONG_TYPE),
    "null": (lambda e: b"null", R.WRONG_TYPE),
    "array": (_value(lambda v: b"[" + v + b"]"), R.WRONG_TYPE),
    "empty object": (lambda e: b"{}", R.MISSING_FIELD),
    "number as text: value": (_set(value="4.0"), R.WRONG_TYPE),
    "number as text: timestamp": (_set(timestamp="1700000000000"), R.INVALID_TIMESTAMP),
    "bool as number": (_set(value=True), R.WRONG_TYPE),
    "bool as timestamp": (_set(timestamp=True), R.WRONG_TYPE),
    "float as timestamp": (_set(timestamp=1.5), R.WRONG_TYPE),
    "number as id": (_set(item_id=5), R.WRONG_TYPE),
    "array as id": (_set(item_id=["a"]), R.WRONG_TYPE),
    "object as id": (_set(user_id={"id": "u"}), R.WRONG_TYPE),
    "text as context": (_set(context="home"), R.WRONG_TYPE),
    "nested context": (_set(context={"a": {"b": 1}}), R.WRONG_TYPE),
    "null in context": (_set(context={"a": None}), R.WRONG_TYPE),
    "number as event_type": (_set(event_type=3), R.WRONG_TYPE),
    "missing event_id": (_without("event_id"), R.MISSING_FIELD),
    "missing user_id": (_without("user_id"), R.MISSING_FIELD),
    "missing item_id": (_without("item_id"), R.MISSING_FIELD),
    "missing event_type": (_without("event_type"), R.MISSING_FIELD),
    "missing timestamp": (_without("timestamp"), R.MISSING_FIELD),
    "null event_id": (_set(event_id=None), R.MISSING_FIELD),
    "null user_id": (_set(user_id=None), R.MISSING_FIELD),
    "null item_id": (_set(item_id=None), R.MISSING_FIELD),
    "null timestamp": (_set(timestamp=None), R.MISSING_FIELD),
    "search without query": (_set(event_type="search"), R.MISSING_FIELD),
    "follow without target": (_set(event_type="follow"), R.MISSING_FIELD),
    "retract of nothing": (_set(event_type="retract"), R.MISSING_FIELD),
    "empty event_id": (_set(event_id=""), R.INVALID_ID),
    "empty user_id": (_set(user_id=""), R.INVALID_ID),
    "empty item_id": (_set(item_id=""), R.INVALID_ID),
    "id of 257 bytes": (_set(item_id="i" * 257), R.INVALID_ID),
    "id of 129 two-byte characters": (_set(item_id="é" * 129), R.INVALID_ID),
    "huge id": (_set(user_id="u" * 100_000), R.INVALID_ID),
    "id with NUL": (_set(item_id="a\x00b"), R.INVALID_ID),
    "id with newline": (_set(user_id="a\nb"), R.INVALID_ID),
    "id with DEL": (_set(event_id="a\x7f"), R.INVALID_ID),
    "id with a C1 control": (_set(item_id="é\x85"), R.INVALID_ID),
    "session_id with escape": (_set(session_id="\x1b[2J"), R.INVALID_ID),
    "unknown event type": (_set(event_type="teleport"), R.UNKNOWN_EVENT_TYPE),
    "empty event type": (_set(event_type=""), R.UNKNOWN_EVENT_TYPE),
    "event type in capitals": (_set(event_type="VIEW"), R.UNKNOWN_EVENT_TYPE),
    "before 1970": (_set(timestamp=-1), R.INVALID_TIMESTAMP),
    "far future": (_set(timestamp=253_402_300_799_999), R.INVALID_TIMESTAMP),
    "microseconds": (lambda e: {**e, "timestamp": e["timestamp"] * 1000}, R.INVALID_TIMESTAMP),
    "time without a zone": (_set(timestamp="2023-11-14T22:13:20"), R.INVALID_TIMESTAMP),
    "date that doesn't exist": (_set(timestamp="2023-02-30T00:00:00Z"), R.INVALID_TIMESTAMP),
    "empty time": (_set(timestamp=""), R.INVALID_TIMESTAMP),
    "duplicate key": (_duplicated, R.DUPLICATE_KEY),
    "duplicate key behind an escape": (
        _value(lambda v: v[:-1] + b',"event\\u005fid":"other"}'),
        R.DUPLICATE_KEY,
    ),
    "duplicate key in context": (_raw("context", b'{"a":1,"a":2}'), R.DUPLICATE_KEY),
    "duplicate key beside escaped colons": (
        _value(lambda v: v[:-1] + b',"domain":"a\\u003ab","domain":"a\\u003ab"}'),
        R.DUPLICATE_KEY,
    ),
    "depth 10,000: arrays": (_raw("x", _nested(10_000, b"[", b"]")), R.TOO_DEEP),
    "depth 10,000: objects": (_raw("context", _nested(10_000, b'{"a":', b"}")), R.TOO_DEEP),
    "depth 10,000: never closed": (lambda e: b"[" * 10_000, R.TOO_DEEP),
    "depth 1,000: arrays": (_raw("x", _nested(1_000, b"[", b"]")), R.TOO_DEEP),
    "depth 1,000: objects": (_raw("context", _nested(1_000, b'{"a":', b"}")), R.TOO_DEEP),
    "depth 65": (_raw("x", _nested(64, b"[", b"]")), R.TOO_DEEP),
    "lone high surrogate": (_raw("item_id", b'"\\ud800"'), R.NOT_UTF8),
    "lone low surrogate": (_raw("item_id", b'"\\udc00x"'), R.NOT_UTF8),
    "two high surrogates": (_raw("item_id", b'"\\ud800\\ud800"'), R.NOT_UTF8),
    "lone surrogate in an unknown field": (_raw("note", b'"x\\udfff"'), R.NOT_UTF8),
    "another user's key": (_key(lambda k: k + b"-else"), R.KEY_MISMATCH),
    "no key": (_key(lambda k: None), R.KEY_MISMATCH),
    "empty key": (_key(lambda k: b""), R.KEY_MISMATCH),
    "key not UTF-8": (_key(lambda k: b"\xff\xfe" + k), R.KEY_MISMATCH),
    "key in quotes": (_key(lambda k: b'"' + k + b'"'), R.KEY_MISMATCH),
    "context of 65 entries": (_set(context={f"k{i}": i for i in range(65)}), R.INVALID_FIELD),
    "context text of 1,025 bytes": (_set(context={"page": "x" * 1025}), R.INVALID_FIELD),
    "context key with newline": (_set(context={"a\nb": 1}), R.INVALID_ID),
    "empty query": (_set(event_type="search", query=""), R.INVALID_FIELD),
    "query with NUL": (_set(event_type="search", query="a\x00"), R.INVALID_FIELD),
}
BIG_KINDS: dict[str, tuple[Callable[[Fields], Made], Reason]] = {
    "1 MB: item_id": (lambda e: _pad(e, "item_id"), R.INVALID_ID),
    "1 MB: context": (_pad_context, R.INVALID_FIELD),
    "1 MB: zeros": (lambda e: bytes(BROKER_VALUE_BYTES), R.INVALID_JSON),
    "1 MB: brackets": (lambda e: b"[" * BROKER_VALUE_BYTES, R.TOO_DEEP),
    "1 MB: not UTF-8": (lambda e: b'{"event_id":"' + b"\xff" * (BROKER_VALUE_BYTES - 13), R.NOT_UTF8),
    "1 MB: digits": (lambda e: b"9" * BROKER_VALUE_BYTES, R.INVALID_NUMBER),
}
ODD_KINDS: dict[str, Callable[[Fields], Made]] = {
    "-0.0": _raw("value", b"-0.0"),
    "-0": _raw("value", b"-0"),
    "denormal": _raw("value", b"5e-324"),
    "underflow": _raw("value", b"1e-400"),
    "-0.0 in context": _raw("context", b'{"a":-0.0,"b":true,"c":"","d":2}'),
    "blanks around": _value(lambda v: b" \r\n\t" + v + b"\n "),
    "RFC 3339": lambda e: {**e, "timestamp": "2023-11-14T22:13:20.5+01:00"},
    "null optional fields": _set(value=None, session_id=None, context=None, query=None),
    "id of 256 bytes": _set(item_id="i" * 256),
    "id of 128 two-byte characters": _set(item_id="é" * 128),
    "id with spaces, quotes and a backslash": _set(user_id=' "u\\:" '),
    "id like a reserved word": _set(user_id="__offset", item_id="null"),
    "id of emoji, written as a surrogate pair": _raw("item_id", b'"\\ud83d\\ude00"'),
    "ids that escape a letter": _raw("item_id", b'"\\u0069tem"'),
    "one id everywhere": lambda e: {**e, "item_id": e["user_id"], "session_id": e["user_id"]},
    "colons in ids and context": _set(item_id="item:1:2", context={"utm:source": "a:b", "n": 1}),
    "unknown fields": _set(v=2, app={"version": "1.2", "flags": ["a", {"b": None}]}),
    "unknown field beyond 64 bits": _raw("trace", b"123456789012345678901234567890"),
    "brackets in texts": _set(item_id="[" * 200, context={"page": "{" * 500}),
    "depth 64": _raw("x", _nested(63, b"[", b"]")),
    "many brackets, shallow": _set(x=[[]] * 500),
    "search": lambda e: {**_fields_without(e, "item_id"), "event_type": "search", "query": "red shoes\n"},
    "follow": lambda e: {**_fields_without(e, "item_id"), "event_type": "follow", "target_user_id": "u-2"},
    "retract": lambda e: {**_fields_without(e, "item_id"), "event_type": "retract", "retracts": "e-1"},
    "year 1970": _set(timestamp=0),
}


def _fields_without(event: Fields, name: str) -> Fields:
    return {field: value for field, value in event.items() if field != name}


def _event(rng: random.Random, number: int, time_ms: int) -> Fields:
    return {
        "event_id": f"h-{number}-{rng.getrandbits(32):08x}",
        "user_id": f"hostile-{rng.randrange(50)}",
        "item_id": f"item-{rng.randrange(500)}",
        "event_type": rng.choice(("view", "click", "rating")),
        "timestamp": time_ms + number,
        "value": rng.randrange(1, 6),
    }


def _headers(rng: random.Random, value: bytes | None) -> list[tuple[str, bytes | None]]:
    """None, or some that a careless copy would change: not text, empty, null, one name twice."""
    if (value is not None and len(value) > 1_000_000) or rng.random() < 0.5:
        return []
    return [
        ("trace", rng.randbytes(8)),
        ("empty", b""),
        ("null", None),
        ("trace", b"\xff\x00"),
        ("café", b"x"),
    ]


def _record(made: Made, event: Fields) -> tuple[bytes | None, bytes | None]:
    key: bytes | None = event["user_id"].encode()
    if isinstance(made, tuple):
        key, made = made
    return key, text(made) if isinstance(made, dict) else made


def hostile_records(n: int, seed: int = 0, time_ms: int = DEFAULT_TIME_MS) -> list[HostileRecord]:
    """`n` hostile records, every kind in turn, in seeded order; those of a megabyte in the first rounds only.

    Args:
        time_ms: where timestamps are fine, they start here.
    """
    rng = random.Random(seed)
    chosen: list[str] = []
    while len(chosen) < n:
        chosen += HOSTILE_KINDS
        if len(chosen) <= BIG_ROUNDS * (len(HOSTILE_KINDS) + len(BIG_KINDS)):
            chosen += BIG_KINDS
    del chosen[n:]
    rng.shuffle(chosen)
    records = []
    for number, kind in enumerate(chosen):
        event = _event(rng, number, time_ms)
        make, reason = {**HOSTILE_KINDS, **BIG_KINDS}[kind]
        key, value = _record(make(event), event)
        records.append(HostileRecord(key, value, _headers(rng, value), reason, kind))
    return records


def odd_records(seed: int = 0, time_ms: int = DEFAULT_TIME_MS) -> dict[str, tuple[bytes, bytes]]:
    """Key and value of one record of every kind that looks wrong and must be accepted."""
    rng = random.Random(seed)
    records = {}
    for number, (kind, make) in enumerate(ODD_KINDS.items()):
        event = _event(rng, number, time_ms)
        key, value = _record(make(event), event)
        assert key is not None, kind
        assert value is not None, kind
        records[kind] = key, value
    return records
