"""Validation: round trips, closed reasons for any bytes, exact counts, times and keys."""

from __future__ import annotations

import json
import math
from collections import deque
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams import validation
from streams.errors import ProducerBrokenError
from streams.events import EVENT_TYPES, Event, Item, Request
from streams.record_json import parse_object
from streams.rejects import InvalidRecordError, Reason, Rejected, RejectGuard
from streams.settings import ValidationSettings
from streams.validation import (
    NEEDED_FIELD,
    AcceptedEvent,
    AcceptedItem,
    AcceptedRequest,
    AcceptedUser,
    EventValidator,
    Tombstone,
    event_hash,
    newest_after,
)
from tests.test_streams.hostile_corpus import HOSTILE_KINDS, hostile_records

T0 = 1_700_000_000_000
DAY_MS = 86_400_000
VALIDATOR = EventValidator(ValidationSettings())


def encode(fields: dict[str, Any]) -> bytes:
    return msgspec.json.encode(fields)


def fields(**changes: Any) -> dict[str, Any]:
    base = {"event_id": "e1", "user_id": "u1", "item_id": "i1", "event_type": "view", "timestamp": T0}
    return {name: value for name, value in {**base, **changes}.items() if value is not ...}


def decode(value: bytes | None, key: bytes | None = b"u1", **kwargs: Any) -> AcceptedEvent | Rejected:
    given_ = {"partition": 0, "offset": 0, "kafka_time_ms": T0, **kwargs}
    return VALIDATOR.decode_event(value, key, **given_)


def accepted(**changes: Any) -> AcceptedEvent:
    result = decode(encode(fields(**changes)), changes.get("user_id", "u1").encode())
    assert isinstance(result, AcceptedEvent), result
    return result


def reason_of(value: bytes | None, key: bytes | None = b"u1", **kwargs: Any) -> Reason:
    result = decode(value, key, **kwargs)
    assert isinstance(result, Rejected), result
    return result.reason


ids = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=256).filter(
    lambda s: len(s.encode()) <= 256
)
texts = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=100)
numbers = st.floats(-1e12, 1e12)
contexts = st.dictionaries(ids, texts | numbers | st.booleans(), max_size=5)


@st.composite
def events(draw: st.DrawFn) -> Event:
    kind = draw(st.sampled_from(sorted(EVENT_TYPES)))
    optional = st.none() | ids
    event = Event(
        event_id=draw(ids),
        user_id=draw(ids),
        event_type=kind,
        timestamp=draw(st.integers(0, T0 + DAY_MS)),
        item_id=draw(optional if kind in NEEDED_FIELD else ids),
        value=draw(st.none() | numbers),
        session_id=draw(optional),
        request_id=draw(optional),
        domain=draw(optional),
        target_user_id=draw(optional),
        retracts=draw(optional),
        context=draw(st.none() | contexts),
    )
    if kind == "search":
        event.query = draw(st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=200))
    elif kind in NEEDED_FIELD:
        setattr(event, NEEDED_FIELD[kind], draw(ids))
    return event


@given(events())
def test_a_valid_event_comes_through_unchanged(event: Event) -> None:
    result = decode(msgspec.json.encode(event), event.user_id.encode())
    assert isinstance(result, AcceptedEvent), result
    assert result.event == event
    assert result.time_ms == event.timestamp
    assert result.weight == EVENT_TYPES[event.event_type]
    assert result.event_hash == event_hash(event.event_id)
    assert result.unknown_fields == 0
    assert not result.misplaced


@given(events(), st.booleans(), st.sampled_from([None, 2, "\t"]))
def test_any_json_writer_s_notation_is_read_alike(event: Event, ascii_only: bool, indent: Any) -> None:
    value = json.dumps(msgspec.to_builtins(event), ensure_ascii=ascii_only, indent=indent).encode()
    result = decode(value, event.user_id.encode())
    assert isinstance(result, AcceptedEvent), result
    assert result.event == event


@given(st.binary(max_size=300) | st.text(max_size=100).map(lambda t: t.encode("utf-8", "surrogatepass")))
def test_any_bytes_give_a_verdict_and_never_an_exception(value: bytes) -> None:
    for decode_one in (
        VALIDATOR.decode_event,
        VALIDATOR.decode_item,
        VALIDATOR.decode_user,
        VALIDATOR.decode_request,
    ):
        assert isinstance(decode_one(value, b"u1", 0, 0, T0), Rejected)
        assert isinstance(decode_one(None, value, 0, 0, T0), Rejected | Tombstone)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELD_NAMES = sorted({*Event.__struct_fields__, *Item.__struct_fields__, *Request.__struct_fields__, "else"})


@settings(max_examples=400)
@given(st.dictionaries(st.sampled_from(FIELD_NAMES), json_values, max_size=6), st.booleans())
def test_any_json_in_any_field_gives_a_verdict(changes: dict[str, Any], whole: bool) -> None:
    record = {**(fields(request_id="r", title="t") if whole else {}), **changes}
    value = json.dumps(record).encode()
    for decode_one in (
        VALIDATOR.decode_event,
        VALIDATOR.decode_item,
        VALIDATOR.decode_user,
        VALIDATOR.decode_request,
    ):
        result = decode_one(value, b"u1", 0, 0, T0)
        assert isinstance(result, Rejected | AcceptedEvent | AcceptedItem | AcceptedUser | AcceptedRequest)


@settings(max_examples=300)
@given(events(), st.integers(0, 10_000), st.binary(max_size=3), st.integers(0, 3))
def test_damaged_events_give_a_verdict(event: Event, at: int, insert: bytes, cut: int) -> None:
    value = msgspec.json.encode(event)
    at %= len(value)
    damaged = value[:at] + insert + value[at + cut :]
    result = decode(damaged, event.user_id.encode())
    assert isinstance(result, AcceptedEvent | Rejected)
    if isinstance(result, AcceptedEvent):
        assert json.loads(damaged)["user_id"] == event.user_id


unknown_values = (
    st.integers() | st.text(max_size=9) | st.lists(st.none(), max_size=3) | st.just({"a": {"b": []}})
)


@given(st.dictionaries(ids.filter(lambda n: n not in Event.__struct_fields__), unknown_values, max_size=8))
def test_unknown_fields_are_ignored_and_counted_exactly(extra: dict[str, Any]) -> None:
    value = json.dumps({**fields(), **extra}).encode()
    result = decode(value)
    assert isinstance(result, AcceptedEvent), result
    assert result.unknown_fields == len(extra)
    assert result.event == accepted().event


def parse_verdict(value: bytes) -> Reason | None:
    try:
        parse_object(value, 1 << 20, 64)
    except InvalidRecordError as bad:
        return bad.reason
    return None


pairs = st.lists(
    st.tuples(st.sampled_from(["a", "b", "a:b", ":", "\\", '"', "é"]), st.just(None)), max_size=4
)


@settings(max_examples=400)
@given(st.data())
def test_duplicate_keys_are_found_wherever_they_are_and_only_then(data: st.DataObject) -> None:
    duplicates = False

    def write(depth: int) -> str:
        nonlocal duplicates
        keys = [key for key, _ in data.draw(pairs)]
        duplicates |= len(set(keys)) < len(keys)
        ascii_only = data.draw(st.booleans())
        parts = []
        for key in keys:
            inner = data.draw(st.sampled_from(["1", '":"', '"a:b"', '"\\u003a"', '"\\\\"', "[", "{"]))
            if inner == "{":
                inner = write(depth + 1) if depth < 3 else "{}"
            elif inner == "[":
                inner = f"[{write(depth + 1)},1]" if depth < 3 else "[]"
            parts.append(f"{json.dumps(key, ensure_ascii=ascii_only)}:{inner}")
        return "{" + ", ".join(parts) + "}"

    value = write(0).encode()
    assert parse_verdict(value) == (Reason.DUPLICATE_KEY if duplicates else None)


@given(st.integers(1, 200), st.text('[]{}"\\a', max_size=20), st.sampled_from(["[", '{"k":']))
def test_depth_counts_brackets_outside_strings_only(depth: int, noise: str, opening: str) -> None:
    closing = "]" if opening == "[" else "}"
    value = f'{{"s":{json.dumps(noise * 10)},"x":{opening * depth}1{closing * depth}}}'.encode()
    assert parse_verdict(value) == (Reason.TOO_DEEP if depth + 1 > 64 else None)


def test_a_depth_limit_beyond_the_parser_s_is_no_crash() -> None:
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}"), (b'{"\\u0061":', b"}")):
        value = b'{"x":' + opening * 5000 + b"1" + closing * 5000 + b"}"
        with pytest.raises(InvalidRecordError) as bad:
            parse_object(value, 1 << 20, 1_000_000)
        assert bad.value.reason == Reason.TOO_DEEP


def test_size_is_judged_before_anything_is_parsed() -> None:
    small = EventValidator(ValidationSettings(max_bytes=100))
    value = encode(fields())
    assert isinstance(small.decode_event(value, b"u1", 0, 0, T0), AcceptedEvent)
    result = small.decode_event(value + b" " * (101 - len(value)), b"u1", 0, 0, T0)
    assert isinstance(result, Rejected)
    assert result.reason == Reason.TOO_LARGE
    assert "101 bytes; at most 100" in result.message


zones = st.integers(-23 * 60 - 59, 23 * 60 + 59)


@given(st.integers(0, T0), zones, st.sampled_from("Tt "))
def test_rfc3339_is_the_same_instant_in_every_zone(time_ms: int, zone_min: int, separator: str) -> None:
    local = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=time_ms, minutes=zone_min)
    sign, minutes = "-+"[zone_min >= 0], abs(zone_min)
    text = local.strftime(f"%Y-%m-%d{separator}%H:%M:%S.") + f"{local.microsecond // 1000:03d}"
    text += f"{sign}{minutes // 60:02d}:{minutes % 60:02d}"
    assert accepted(timestamp=text.rjust(29, "0")).time_ms == time_ms


@pytest.mark.parametrize(
    ("timestamp", "reason"),
    [
        (0, None),
        (-1, Reason.INVALID_TIMESTAMP),
        (T0 + DAY_MS, None),
        (T0 + DAY_MS + 1, Reason.INVALID_TIMESTAMP),
        (10**4000, Reason.INVALID_TIMESTAMP),
        ("1969-12-31T23:59:59.999Z", Reason.INVALID_TIMESTAMP),
        ("1970-01-01T00:00:00Z", None),
        ("2023-11-14T22:13:20Z", None),
        ("2023-11-14T22:13:20", Reason.INVALID_TIMESTAMP),
        ("2023-11-14", Reason.INVALID_TIMESTAMP),
        ("0001-01-01T00:00:00+23:59", Reason.INVALID_TIMESTAMP),
        ("9999-12-31T23:59:59-23:59", Reason.INVALID_TIMESTAMP),
        (1.0, Reason.WRONG_TYPE),
        (True, Reason.WRONG_TYPE),
    ],
)
def test_event_time_lies_between_1970_and_a_day_after_the_append(
    timestamp: Any, reason: Reason | None
) -> None:
    result = decode(
        json.dumps(fields(timestamp=timestamp)).encode() if timestamp != 10**4000 else huge_timestamp()
    )
    assert (result.reason if isinstance(result, Rejected) else None) == reason


def huge_timestamp() -> bytes:
    return encode(fields()).replace(str(T0).encode(), b"1" + b"0" * 4000)


def test_late_is_judged_against_the_partition_s_newest() -> None:
    bound_ms = int(ValidationSettings().lateness_s * 1000)
    value = encode(fields())
    assert isinstance(decode(value, newest_time_ms=T0 + bound_ms, kafka_time_ms=T0 + bound_ms), AcceptedEvent)
    assert reason_of(value, newest_time_ms=T0 + bound_ms + 1) == Reason.LATE
    assert isinstance(decode(value, newest_time_ms=-1), AcceptedEvent)


def test_a_timestamp_from_the_future_does_not_make_the_rest_late() -> None:
    validator = EventValidator(ValidationSettings(lateness_s=60.0, future_s=10.0 * DAY_MS))
    future = validator.decode_event(encode(fields(timestamp=T0 + 5 * DAY_MS)), b"u1", 0, 0, T0)
    assert isinstance(future, AcceptedEvent)
    newest = newest_after(-1, future)
    assert newest == T0
    assert isinstance(validator.decode_event(encode(fields()), b"u1", 0, 1, T0 + 1, newest), AcceptedEvent)
    assert newest_after(newest, accepted(timestamp=T0 - 5)) == T0


@pytest.mark.parametrize("number", [1e12, -1e12, 0, 5e-324])
def test_numbers_within_the_bounds(number: float) -> None:
    assert accepted(value=number, context={"n": number}).event.value == number


@pytest.mark.parametrize("literal", ["1.0000001e12", "-1e13", "9223372036854775808", "1e308"])
def test_numbers_beyond_the_bounds(literal: str) -> None:
    for name, text in (("value", literal), ("context", f'{{"n":{literal}}}')):
        value = encode(fields())[:-1] + f',"{name}":{text}}}'.encode()
        assert reason_of(value) == Reason.INVALID_NUMBER


def test_negative_zero_becomes_zero() -> None:
    event = accepted(value=-0.0, context={"a": -0.0, "b": False}).event
    assert event.value is not None
    assert event.context is not None
    assert math.copysign(1, event.value) == math.copysign(1, float(event.context["a"])) == 1
    assert event.context["b"] is False


def test_event_types_come_from_the_settings() -> None:
    validator = EventValidator(ValidationSettings(event_types={"listen": 0.7, "view": -0.25}))
    for kind, weight in (("listen", 0.7), ("view", -0.25), ("click", 1.0)):
        result = validator.decode_event(encode(fields(event_type=kind)), b"u1", 0, 0, T0)
        assert isinstance(result, AcceptedEvent)
        assert result.weight == weight
    assert reason_of(encode(fields(event_type="listen"))) == Reason.UNKNOWN_EVENT_TYPE


@pytest.mark.parametrize("kind", sorted(EVENT_TYPES))
def test_every_type_needs_its_field(kind: str) -> None:
    needed = NEEDED_FIELD.get(kind, "item_id")
    without = fields(event_type=kind, item_id=...)
    assert reason_of(encode(without)) == Reason.MISSING_FIELD
    assert isinstance(decode(encode({**without, needed: "x"})), AcceptedEvent)


@pytest.mark.parametrize(
    "name",
    ["event_id", "user_id", "item_id", "session_id", "request_id", "domain", "target_user_id", "retracts"],
)
@pytest.mark.parametrize("bad", ["", "i" * 257, "é" * 129, "a\x00", "\n", "\x7f", "é\x80", "\x9f"])
def test_every_id_is_checked(name: str, bad: str) -> None:
    record = fields(**{name: bad})
    assert reason_of(encode(record), record["user_id"].encode()) == Reason.INVALID_ID


def test_the_key_is_the_user_s_id_byte_for_byte() -> None:
    composed, decomposed = "é", "e\u0301"
    value = encode(fields(user_id=composed))
    assert isinstance(decode(value, composed.encode()), AcceptedEvent)
    for key in (decomposed.encode(), None, b"", b"\xff"):
        assert reason_of(value, key) == Reason.KEY_MISMATCH


def test_misplaced_records_are_marked_or_under_strict_rejected() -> None:
    def partition_of(key: bytes) -> int:
        return len(key)

    value = encode(fields())
    lenient = EventValidator(ValidationSettings(), partition_of)
    strict = EventValidator(ValidationSettings(partitioning="strict"), partition_of)
    for validator in (lenient, strict):
        at_home = validator.decode_event(value, b"u1", 2, 0, T0)
        assert isinstance(at_home, AcceptedEvent)
        assert not at_home.misplaced
    elsewhere = lenient.decode_event(value, b"u1", 1, 0, T0)
    assert isinstance(elsewhere, AcceptedEvent)
    assert elsewhere.misplaced
    refused = strict.decode_event(value, b"u1", 1, 0, T0)
    assert isinstance(refused, Rejected)
    assert refused.reason == Reason.WRONG_PARTITION
    assert "partition 1" in refused.message
    assert "gives 2" in refused.message
    with pytest.raises(ValueError, match="partition_of"):
        EventValidator(ValidationSettings(partitioning="strict"))


def test_event_hash_is_blake2b_and_stays_so() -> None:
    assert event_hash("e-1") == int.from_bytes(bytes.fromhex("317386494bf10d9f"), "little")
    assert len({event_hash(f"e-{i}") for i in range(20_000)}) == 20_000


def test_messages_tell_no_contents() -> None:
    secret = "alice@example.org"
    for kind in HOSTILE_KINDS:
        for record in (
            r for r in hostile_records(len(HOSTILE_KINDS) * 2, seed=1) if r.kind == kind and r.value
        ):
            changed = record.value.replace(b"item-", secret.encode()).replace(b"hostile-", secret.encode())
            result = decode(changed, record.key)
            assert isinstance(result, Rejected)
            assert secret not in result.message, kind


# items, users, requests


def test_a_full_item_is_accepted() -> None:
    item = {
        "item_id": "i1",
        "title": "T",
        "description": "D\n" * 100,
        "categories": ["a", "b"],
        "labels": {"k": "v", "n": 1, "b": True},
        "price": -0.0,
        "published_at": "2024-01-01T00:00:00Z",
        "expires_at": 253_402_300_799_999,
        "is_hidden": True,
        "provider_id": "p",
        "domain": "d",
        "embeddings": {"text": [0.5, 1, -2.5]},
        "colour": "red",
    }
    result = VALIDATOR.decode_item(encode(item), b"i1", 1, 2, 3)
    assert isinstance(result, AcceptedItem), result
    assert result.published_ms == 1_704_067_200_000
    assert result.expires_ms == 253_402_300_799_999
    assert result.unknown_fields == 1
    assert result.item.price is not None
    assert math.copysign(1, result.item.price) == 1
    assert result.item.embeddings == {"text": [0.5, 1.0, -2.5]}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"item_id": None}, Reason.MISSING_FIELD),
        ({"title": "x" * 1025}, Reason.INVALID_FIELD),
        ({"description": "x" * 65_537}, Reason.INVALID_FIELD),
        ({"title": "a\x00"}, Reason.INVALID_FIELD),
        ({"categories": ["c"] * 101}, Reason.INVALID_FIELD),
        ({"categories": [""]}, Reason.INVALID_ID),
        ({"categories": "c"}, Reason.WRONG_TYPE),
        ({"labels": {"a": None}}, Reason.WRONG_TYPE),
        ({"price": 1e13}, Reason.INVALID_NUMBER),
        ({"price": "9.99"}, Reason.WRONG_TYPE),
        ({"published_at": -1}, Reason.INVALID_TIMESTAMP),
        ({"expires_at": 253_402_300_800_000}, Reason.INVALID_TIMESTAMP),
        ({"expires_at": "soon"}, Reason.INVALID_TIMESTAMP),
        ({"is_hidden": 1}, Reason.WRONG_TYPE),
        ({"provider_id": "\n"}, Reason.INVALID_ID),
        ({"embeddings": {"t": []}}, Reason.INVALID_FIELD),
        ({"embeddings": {"t": [0.0] * 4097}}, Reason.INVALID_FIELD),
        ({"embeddings": {"t": [1e7]}}, Reason.INVALID_NUMBER),
        ({"embeddings": {f"t{i}": [1.0] for i in range(9)}}, Reason.INVALID_FIELD),
        ({"embeddings": {"t": [None]}}, Reason.WRONG_TYPE),
    ],
)
def test_bad_items_are_rejected(changes: dict[str, Any], reason: Reason) -> None:
    result = VALIDATOR.decode_item(encode({"item_id": "i1", **changes}), b"i1", 0, 0, T0)
    assert isinstance(result, Rejected)
    assert result.reason == reason, result.message


def test_null_stands_for_absent_in_optional_fields() -> None:
    nulls = dict.fromkeys([n for n in Item.__struct_fields__ if n != "item_id"])
    result = VALIDATOR.decode_item(encode({"item_id": "i1", **nulls}), b"i1", 0, 0, T0)
    assert isinstance(result, AcceptedItem), result
    assert result.item == Item(item_id="i1")
    assert result.unknown_fields == 0


def test_tombstones_name_what_their_key_names() -> None:
    for decode_one in (VALIDATOR.decode_item, VALIDATOR.decode_user):
        assert decode_one(None, "é".encode(), 1, 2, 3) == Tombstone("é", 1, 2, 3)
        for key, reason in (
            (None, Reason.KEY_MISMATCH),
            (b"\xff", Reason.NOT_UTF8),
            (b"", Reason.INVALID_ID),
        ):
            result = decode_one(None, key, 1, 2, 3)
            assert isinstance(result, Rejected)
            assert result.reason == reason


def test_users() -> None:
    result = VALIDATOR.decode_user(
        encode({"user_id": "u1", "labels": {"age": -0.0}, "x": 1}), b"u1", 0, 0, T0
    )
    assert isinstance(result, AcceptedUser)
    assert math.copysign(1, float(result.user.labels["age"])) == 1
    assert result.unknown_fields == 1
    wrong = VALIDATOR.decode_user(encode({"user_id": "u1"}), b"u2", 0, 0, T0)
    assert isinstance(wrong, Rejected)
    assert wrong.reason == Reason.KEY_MISMATCH


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        (
            {
                "count": 1,
                "exclude": ["a"] * 10_000,
                "candidates": [],
                "categories": ["c"],
                "context": {"a": 1},
            },
            None,
        ),
        ({"user_id": None, "session_items": ["a", "b"]}, None),
        ({"user_id": None}, Reason.MISSING_FIELD),
        ({"session_items": ["a"]}, Reason.INVALID_FIELD),
        ({"user_id": None, "session_items": ["a"] * 1001}, Reason.INVALID_FIELD),
        ({"count": 0}, Reason.INVALID_NUMBER),
        ({"count": 1001}, Reason.INVALID_NUMBER),
        ({"count": 10**30}, Reason.INVALID_NUMBER),
        ({"count": 2.5}, Reason.WRONG_TYPE),
        ({"count": "5"}, Reason.WRONG_TYPE),
        ({"exclude": ["a"] * 10_001}, Reason.INVALID_FIELD),
        ({"candidates": ["a\n"]}, Reason.INVALID_ID),
        ({"request_id": ""}, Reason.INVALID_ID),
        ({"request_id": None}, Reason.MISSING_FIELD),
    ],
)
def test_requests(changes: dict[str, Any], reason: Reason | None) -> None:
    record = {"request_id": "r1", "user_id": "u1", **changes}
    result = VALIDATOR.decode_request(json.dumps(record).encode(), b"u1", 0, 0, T0)
    assert (result.reason if isinstance(result, Rejected) else None) == reason
    if reason is None:
        assert isinstance(result, AcceptedRequest)


def test_only_a_user_s_request_must_be_keyed_by_the_user() -> None:
    named, anonymous = (
        encode({"request_id": "r", "user_id": "u"}),
        encode({"request_id": "r", "session_items": []}),
    )
    for key in (None, b"r", b"\xff"):
        assert isinstance(VALIDATOR.decode_request(anonymous, key, 0, 0, T0), AcceptedRequest)
        result = VALIDATOR.decode_request(named, key, 0, 0, T0)
        assert isinstance(result, Rejected)
        assert result.reason == Reason.KEY_MISMATCH


# the guard


def rejected(offset: int = 0, reason: Reason = Reason.INVALID_JSON) -> Rejected:
    return Rejected(reason, "bad byte 3", 5, offset, T0)


@given(
    st.lists(st.booleans(), max_size=200),
    st.integers(1, 20),
    st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]),
)
def test_the_guard_stops_exactly_when_more_than_the_limit_of_a_full_window_is_bad(
    bad: list[bool], window: int, limit: float
) -> None:
    guard, last = RejectGuard(window, limit), deque[bool](maxlen=window)
    for is_bad in bad:
        last.append(is_bad)
        should_stop = len(last) == window and sum(last) > limit * window
        try:
            guard.add(rejected() if is_bad else None)
            stopped = False
        except ProducerBrokenError:
            stopped = True
        assert stopped == should_stop
        assert guard.rejected == sum(last)
        if stopped:
            return


def test_the_guard_says_what_where_and_what_to_do() -> None:
    guard = RejectGuard(10, 0.5, "shop.events")
    for _ in range(5):
        guard.add()
    for offset in range(5):
        guard.add(rejected(100 + offset, Reason.WRONG_TYPE if offset else Reason.LATE))
    with pytest.raises(ProducerBrokenError) as error:
        guard.add(rejected(200))
    text = str(error.value)
    assert "6 of the last 10 records of shop.events" in text
    assert "wrong_type 4" in text
    assert "limit of 50%" in text
    assert "First shop.events[5]@100, last shop.events[5]@200" in text
    assert "validation.reject_limit" in text


def test_every_reason_has_a_meaning() -> None:
    assert all(reason.meaning.endswith(".") for reason in Reason)
    assert {"Reason", "Rejected", "RejectGuard"} <= set(validation.__all__)
