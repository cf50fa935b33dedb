"""Columns say what `EventValidator.decode_event` says, event by event, whatever the bytes are."""

from __future__ import annotations

import json
import math
import random
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Any, cast

import numpy as np
import pytest
from confluent_kafka import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from streams import event_kernels, field_checks
from streams.clients import partition_for
from streams.errors import SettingsError
from streams.event_columns import OTHERS, EventColumns, EventReader
from streams.event_kernels import FIELDS, PADDING_BYTES, hash_bytes, read_events
from streams.events import EVENT_TYPES, Event
from streams.records import Record
from streams.rejects import Rejected
from streams.settings import ValidationSettings
from streams.validation import NEEDED_FIELD, AcceptedEvent, EventValidator
from tests.test_streams.hostile_corpus import DEFAULT_TIME_MS, hostile_records, odd_records

T0 = DEFAULT_TIME_MS
PARTITIONS = 8


def message(
    value: bytes | None, key: bytes | None = b"u1", partition: int = 0, offset: int = 0, time_ms: int = T0
) -> Record:
    """A record as the consumer hands it out."""
    made = Message(
        topic="events", partition=partition, offset=offset, key=key, value=value, timestamp=(1, time_ms)
    )
    return cast(Record, made)


def reader_and_validator(**limits: Any) -> tuple[EventReader, EventValidator]:
    settings_ = ValidationSettings(**limits)
    return EventReader(settings_, PARTITIONS), EventValidator(
        settings_, partial(partition_for, partitions=PARTITIONS)
    )


READER, VALIDATOR = reader_and_validator()
STRICT_READER, STRICT_VALIDATOR = reader_and_validator(
    partitioning="strict", max_depth=1, max_bytes=400, event_types={"écoute": 0.25, "a" * 40: -0.5}
)


def verdict(validator: EventValidator, record: Record) -> AcceptedEvent | Rejected:
    return validator.decode_event(
        record.value(), record.key(), record.partition(), record.offset(), record.timestamp()[1]
    )


def row_of(columns: EventColumns, row: int, names: tuple[str, ...]) -> dict[str, Any]:
    """Everything that the columns say of one event."""
    value = float(columns.value[row])
    texts = {name: columns.text(columns.others[row, code]) for code, name in enumerate(OTHERS)}
    return {
        **texts,
        "user_id": columns.text(columns.user[row]),
        "event_id": columns.text(columns.event[row]),
        "item_id": columns.text(columns.item[row]),
        "event_type": names[columns.event_type[row]],
        "value": None if np.isnan(value) else value.hex(),
        "time_ms": int(columns.time_ms[row]),
        "weight": float(columns.weight[row]),
        "place": (int(columns.partition[row]), int(columns.offset[row]), int(columns.kafka_time_ms[row])),
        "unknown_fields": int(columns.unknown_fields[row]),
        "misplaced": bool(columns.misplaced[row]),
        "hashes": tuple(
            int(column[row]) for column in (columns.user_hash, columns.event_hash, columns.item_hash)
        ),
    }


def id_hash(text: str | None) -> int:
    encoded = (text or "").encode()
    return hash_bytes(np.frombuffer(b"<" + encoded + b">", np.uint8), 1, len(encoded))


def row_expected(accepted: AcceptedEvent) -> dict[str, Any]:
    event = accepted.event
    return {
        **{name: getattr(event, name) for name in (*OTHERS, "user_id", "event_id", "item_id", "event_type")},
        "value": None if event.value is None else float(event.value).hex(),
        "time_ms": accepted.time_ms,
        "weight": accepted.weight,
        "place": (accepted.partition, accepted.offset, accepted.kafka_time_ms),
        "unknown_fields": accepted.unknown_fields,
        "misplaced": accepted.misplaced,
        "hashes": (id_hash(event.user_id), accepted.event_hash, id_hash(event.item_id)),
    }


def assert_same(messages: list[Record], reader: EventReader, validator: EventValidator) -> EventColumns:
    """The reader's columns, once they agree with the validator on every message."""
    columns, rejected = reader.read(messages)
    verdicts = [verdict(validator, record) for record in messages]
    assert rejected == [(i, found) for i, found in enumerate(verdicts) if isinstance(found, Rejected)]
    good = [(i, found) for i, found in enumerate(verdicts) if isinstance(found, AcceptedEvent)]
    assert columns.index.tolist() == [i for i, _ in good]
    assert len(columns) == len(good)
    for row, (_, found) in enumerate(good):
        assert row_of(columns, row, reader.type_names) == row_expected(found)
    return columns


def event(**changes: Any) -> dict[str, Any]:
    base = {"event_id": "e1", "user_id": "u1", "item_id": "i1", "event_type": "view", "timestamp": T0}
    return {name: value for name, value in {**base, **changes}.items() if value is not ...}


def written(fields: dict[str, Any], **options: Any) -> bytes:
    return json.dumps(fields, **{"ensure_ascii": False, **options}).encode("utf-8", "surrogatepass")


def with_literal(field: str, literal: str) -> bytes:
    """The usual event with `field`'s value written as `literal`, JSON or not."""
    return written(event(**{field: "@@"})).replace(b'"@@"', literal.encode())


# generated events: valid, nearly valid, damaged

plain = st.text("abcXYZ019-_.:/ é€😀\u00a0", min_size=1, max_size=12)
ids = (
    st.sampled_from(["u1", "i1", "e1", "a"])
    | plain
    | st.text(max_size=20)
    | st.integers(240, 260).map(lambda n: "x" * n)
)
numbers = (
    st.floats(-1e13, 1e13)
    | st.integers(-(10**13), 10**13)
    | st.integers(-(2**70), 2**70)
    | st.floats(0, 10).map(lambda x: round(x, 3))
    | st.sampled_from([0, -0.0, 1e12, -1e12, 5e-324, 0.1, 2**53, 2**53 + 1, 0.30000000000000004])
)
stamps = (
    st.integers(T0 - 10**9, T0 + 90_000_000)
    | st.integers(-10, 10)
    | numbers
    | st.datetimes().map(lambda t: t.isoformat() + "Z")
    | st.datetimes().map(lambda t: t.isoformat(timespec="milliseconds") + "+01:00")
    | plain
)
anything = st.none() | st.booleans() | numbers | ids | st.just([]) | st.just({}) | st.just({"a": {"b": [1]}})
contexts = st.dictionaries(ids, numbers | st.booleans() | plain | anything, max_size=5)
kinds = st.sampled_from([*EVENT_TYPES, "écoute", "a" * 40, "a" * 39, "views", ""])
FIELD_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "event_id": ids,
    "user_id": ids,
    "item_id": ids,
    "event_type": kinds,
    "timestamp": stamps,
    "value": numbers,
    "context": contexts,
    **dict.fromkeys(OTHERS, ids),
    "query": plain | st.text(max_size=5) | st.integers(1020, 1026).map(lambda n: "q" * n),
}
usual = st.fixed_dictionaries(
    {
        "event_id": plain,
        "user_id": plain,
        "event_type": st.sampled_from(sorted(EVENT_TYPES)),
        "timestamp": st.integers(T0 - 10**9, T0),
    },
    optional={
        "item_id": plain,
        "value": st.floats(-1e12, 1e12) | st.floats(0, 10).map(lambda x: round(x, 2)),
        "context": st.dictionaries(plain, plain | st.booleans() | st.integers(-9, 9), max_size=3),
        **dict.fromkeys(OTHERS, plain),
        "extra": plain | st.integers() | st.none(),
    },
)
unusual = st.fixed_dictionaries({}, optional={name: v | anything for name, v in FIELD_VALUES.items()})
extras = st.dictionaries(ids, anything, max_size=3)


@st.composite
def records(draw: st.DrawFn) -> Record:
    fields = {**draw(usual), **draw(st.just({}) | unusual), **draw(st.just({}) | extras)}
    names = draw(st.permutations(list(fields)))
    value = written(
        {name: fields[name] for name in names},
        ensure_ascii=draw(st.integers(0, 9)) == 0,
        indent=draw(st.sampled_from([None, None, 1, "\t"])),
        separators=draw(st.sampled_from([(",", ":"), None])),
    )
    if draw(st.integers(0, 5)) == 0:
        at = draw(st.integers(0, len(value)))
        insert = draw(st.binary(max_size=3) | st.sampled_from([b'"', b",", b"}", b"0", b"\0", b' "a":1,']))
        value = value[:at] + insert + value[at + draw(st.integers(0, 3)) :]
    user = fields["user_id"]
    key = user.encode("utf-8", "surrogatepass") if isinstance(user, str) else b"u1"
    key = draw(st.sampled_from([key] * 8 + [None, b"", key + b"\0", key[:-1]]))
    home = partition_for(key or b"", PARTITIONS)
    return message(
        draw(st.sampled_from([value] * 12 + [None])),
        key,
        draw(st.sampled_from([home, home, home, 3])),
        draw(st.integers(0, 2**62)),
        draw(st.sampled_from([T0] * 9 + [-1, 0, 2**62])),
    )


@settings(max_examples=50, deadline=None)
@given(st.lists(records(), max_size=3))
def test_columns_say_what_the_validator_says(batch: list[Record]) -> None:
    assert_same(batch, READER, VALIDATOR)
    assert_same(batch, STRICT_READER, STRICT_VALIDATOR)


PIECES = (
    *(b'"%s":' % name.encode() for name in (*FIELDS, "extra", "k")),
    *(b'"u1"', b'"i1"', b'"view"', b'"\xc3\xa9"', b'"a\\n"', b'"\x7f"', b'"\xc2\x85"', b'""'),
    *(b'"' + b"x" * 257 + b'"', b"1700000000000", b"0", b"-0.0", b"1.5", b"1e5", b"1e13"),
    *(b"0.30000000000000004", b"12345678901234567890", b"\t", b"]", b"["),
    *(b"null", b"true", b"false", b"{}", b'{"k":1}', b"[]", b'{"k":[1]}', b"\n"),
    *(b",", b"}", b"{", b'"', b":", b" "),
    *(b"\0", b"\xff", b"\xed\xa0\x80", b"\xf0\x9f\x98\x80", b"9", b".", b"-", b"e", b"Z"),
)  # fmt: skip


def mutated(value: bytes, rng: random.Random) -> bytes:
    """`value` with a few pieces put in, cut out or moved."""
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        at, length = rng.randrange(len(value) + 1), rng.choice((0, 0, 1, 2, 8))
        other = rng.randrange(len(value) + 1)
        piece = rng.choice((rng.choice(PIECES), value[other : other + rng.randrange(20)]))
        value = value[:at] + piece + value[at + length :]
    return value


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32))
def test_mutants_are_read_as_the_validator_reads_them(seed: int) -> None:
    rng = random.Random(seed)
    texts = [*USUAL.values(), *UNUSUAL.values()]
    batch = [message(mutated(rng.choice(texts), rng), time_ms=T0 + rng.randrange(99)) for _ in range(200)]
    assert_same(batch, READER, VALIDATOR)
    assert_same(batch, STRICT_READER, STRICT_VALIDATOR)


@given(st.lists(st.binary(max_size=60) | st.none(), max_size=4), st.none() | st.binary(max_size=9))
def test_any_bytes_are_rejected_alike(values: list[bytes | None], key: bytes | None) -> None:
    assert_same([message(value, key) for value in values], READER, VALIDATOR)


def test_hostile_records_are_rejected_in_the_validator_s_words() -> None:
    hostile = hostile_records(400, seed=3)
    batch = [message(record.value, record.key, offset=at) for at, record in enumerate(hostile)]
    for value, key in ((made, key) for key, made in odd_records(3).values()):
        batch.append(message(value, key))
    random.Random(4).shuffle(batch)
    columns = assert_same(batch, READER, VALIDATOR)
    assert len(columns) == len(odd_records(3))
    assert_same(batch, STRICT_READER, STRICT_VALIDATOR)


def full_event(number: int) -> dict[str, Any]:
    return {
        "event_id": f"0191f3a2-77aa-7c11-9c00-{number:012x}",
        "user_id": f"user-{number % 97}é",
        "item_id": f"item-{number % 89}",
        "event_type": sorted(EVENT_TYPES)[number % len(EVENT_TYPES)],
        "timestamp": T0 - number,
        "value": number / 8,
        "session_id": f"s-{number}",
        "request_id": f"r-{number}",
        "domain": "shop",
        "query": "wool socks",
        "target_user_id": f"user-{number % 7}",
        "retracts": f"e-{number}",
        "context": {"device": "phone", "page": number % 9, "dark": True, "lat": 52.520006599999995},
        "app_version": "1.2.3",
        "trace": None,
        "build": 123456789012345678,
    }


@pytest.mark.parametrize("n", [0, 1, 2, 100, 3000])
def test_batches_of_every_size_with_bad_records_among_them(n: int) -> None:
    batch = []
    for number in range(n):
        fields = full_event(number)
        key = fields["user_id"].encode()
        value = written(fields)
        if number % 10 == 3:
            value = value[:-1]
        if number % 10 == 5:
            value = written(fields, ensure_ascii=True)
        batch.append(message(value, key, number % PARTITIONS, 7 * number, T0 + number))
    before = READER.fallbacks
    columns = assert_same(batch, READER, VALIDATOR)
    bad, escaped = len(range(3, n, 10)), len(range(5, n, 10))
    assert len(columns) == n - bad
    assert READER.fallbacks - before == bad + escaped
    for name in EventColumns.__slots__:
        column = getattr(columns, name)
        assert name == "data" or len(column) == len(columns)
        assert column.flags.c_contiguous, name
    assert not columns.data[-PADDING_BYTES:].any()
    assert len(read_events.signatures) == 1, "an empty batch must compile what a full one runs"
    shapes = {name: getattr(columns, name).shape[1:] for name in ("user", "event", "item", "others")}
    assert shapes == {"user": (2,), "event": (2,), "item": (2,), "others": (6, 2)}


USUAL = {
    "spaces": written(event(), indent=3),
    "compact": written(event(), separators=(",", ":")),
    "nulls": written({**event(value=None, context=None, session_id=None), "x": None}),
    "every field": written({**full_event(1), "user_id": "u1"}),
    "an id of 256 bytes": written(event(event_id="x" * 256, item_id="é" * 128)),
    "an id of 129 bytes": written(event(event_id="x" * 129)),
    "Unicode": written(event(item_id="日本語 😀 é\u00a0")),
    "empty context": written(event(context={})),
    "texts of 1024 bytes": written(event(context={"a": "x" * 1024, "b": ""}, query="q" * 1024)),
    "seconds": with_literal("timestamp", '"2023-11-14T22:13:20Z"'),
    "microseconds": with_literal("timestamp", '"2023-11-14T22:13:19.999999Z"'),
    "a leap day": with_literal("timestamp", '"2020-02-29T23:59:59.5Z"'),
    "1970": with_literal("timestamp", "0"),
    "17 digits": with_literal("value", "0.30000000000000004"),
    "-0.0": with_literal("value", "-0.0"),
    "no item": written(event(event_type="follow", item_id=..., target_user_id="u2")),
    "32 unknown fields": written({**event(), **{f"x{i}": i for i in range(32)}}),
}  # fmt: skip


@pytest.mark.parametrize("name", USUAL)
def test_the_kernel_takes_every_usual_record_itself(name: str) -> None:
    batch = [message(USUAL[name])]
    assert len(assert_same(batch, READER, VALIDATOR)) == 1
    before = READER.fallbacks
    READER.read(batch)
    assert READER.fallbacks == before


UNUSUAL = {
    "escape": with_literal("item_id", r'"caf\u00e9"'),
    "exponent": with_literal("value", "1e3"),
    "limit": with_literal("value", "1e12"),
    "integer beyond 64 bits": with_literal("extra", "1" + "0" * 30),
    "offset": with_literal("timestamp", '"2023-11-14T22:13:20+01:00"'),
    "lower case": with_literal("timestamp", '"2023-11-14t22:13:20z"'),
    "nanoseconds": with_literal("timestamp", '"2023-11-14T22:13:19.999999999Z"'),
    "nested": written({**event(), "more": {"a": [1]}}),
    "33 unknown fields": written({**event(), **{f"x{i}": i for i in range(33)}}),
    "64 entries": written(event(context={f"k{i}": i for i in range(64)})),
    "DEL in an unknown field": written({**event(), "x": "\x7f"}),
    "19 digits": with_literal("value", "0.1234567890123456789"),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_the_unusual_is_accepted_all_the_same(name: str) -> None:
    before = READER.fallbacks
    assert len(assert_same([message(UNUSUAL[name])], READER, VALIDATOR)) == 1
    assert READER.fallbacks == before + 1


WRONG = [
    with_literal(field, literal)
    for field, literal in (
        ("timestamp", '"2023-02-29T00:00:00Z"'), ("timestamp", '"2023-11-14T22:13:60Z"'),
        ("timestamp", '"2023-11-31T22:13:00Z"'), ("timestamp", '"2023-11-14T24:00:00Z"'),
        ("timestamp", '"2023-13-14T22:13:00Z"'), ("timestamp", '"1969-12-31T23:59:59Z"'),
        ("timestamp", '"2023-11-14T22:13:20.Z"'), ("timestamp", "-0.0"), ("timestamp", "01"),
        ("timestamp", "17e11"), ("timestamp", str(T0 + 86_400_001)), ("timestamp", "99999999999999999999"),
        ("value", "1000000000000.1"), ("value", "-1000000000001"), ("value", "1."), ("value", ".5"),
        ("value", "-"), ("value", "+1"), ("value", "00"), ("value", "truex"), ("value", "nul"),
        ("value", '"1"'), ("value", "true"), ("context", "[]"), ("context", '{"a":null}'),
        ("context", '{"a":1,"a":1}'), ("context", '{"a":1,}'), ("context", '{"":1}'),
        ("context", '{"a":1e13}'), ("context", '{"a":"' + "x" * 1025 + '"}'), ("context", '{"a":{}}'),
        ("item_id", '"\x7f"'), ("item_id", '"\x85"'), ("item_id", '"' + "x" * 257 + '"'), ("item_id", '""'),
        ("query", '""'), ("query", '"' + "x" * 1025 + '"'), ("event_type", '"views"'),
        ("extra", "01"), ("extra", "nulll"), ("extra", '"a\tb"'), ("extra", '"open'), ("extra", "1 2"),
    )
]  # fmt: skip
WRONG += [
    written(event())[:-1] + tail
    for tail in (b"", b",}", b"}}", b"}\0", b"} x", b',"user_id":"u1"}', b',"x":1,"x":1}', b"]", b',"x"}')
]


@pytest.mark.parametrize("value", WRONG)
def test_the_wrong_is_rejected_in_the_validator_s_words(value: bytes) -> None:
    assert len(assert_same([message(value)], READER, VALIDATOR)) == 0


def test_only_the_user_s_own_key_will_do() -> None:
    value = written(event())
    keys = (b"u1", None, b"", b"u", b"u2", b"u11", b"\xff")
    columns = assert_same([message(value, key) for key in keys], READER, VALIDATOR)
    assert columns.index.tolist() == [0]


@given(
    st.integers(0, 10**18).map(str)
    | st.tuples(st.integers(0, 10**12), st.from_regex("[0-9]{1,17}", fullmatch=True)).map(
        lambda t: f"{t[0]}.{t[1]}"
    )
    | st.floats(-1e12, 1e12).map(repr)
    | st.floats(0, 1e5).map(lambda x: f"{(Decimal(x) + Decimal(math.nextafter(x, 1e9))) / 2:.17f}")
)
def test_numbers_are_read_to_the_last_bit(literal: str) -> None:
    """Also those half way between two doubles, and their next neighbours."""
    batch = [message(with_literal("value", sign + literal)) for sign in ("", "-")]
    assert_same(batch, READER, VALIDATOR)


@given(st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1)), st.integers(0, 6))
def test_times_are_read_to_the_millisecond(time: datetime, digits: int) -> None:
    fraction = f".{time.microsecond:06d}"[: digits + 1] if digits else ""
    literal = f'"{time:%Y-%m-%dT%H:%M:%S}{fraction}Z"'
    batch = [message(with_literal("timestamp", literal), time_ms=7_500_000_000_000)]
    before = READER.fallbacks
    assert len(assert_same(batch, READER, VALIDATOR)) == 1
    assert READER.fallbacks == before


@given(st.binary(max_size=300), st.binary(max_size=9))
def test_hash_bytes_depends_on_the_bytes_alone(given_: bytes, around: bytes) -> None:
    alone = hash_bytes(np.frombuffer(bytearray(given_), np.uint8), 0, len(given_))
    inside = np.frombuffer(bytearray(around + given_ + around[::-1]), np.uint8)
    assert hash_bytes(inside, len(around), len(given_)) == alone
    assert 0 <= alone < 2**64


def test_hash_bytes_stays_as_it_is_and_spreads() -> None:
    text = np.frombuffer(bytearray(b"user-1234567890-abcdefghij"), np.uint8)
    known = [hash_bytes(text, 0, length) for length in (7, 8, 20)]
    assert known == [11334820652703893622, 15896237303240436425, 4790025052800993910]
    ids = np.frombuffer(bytearray(b"".join(b"item-%06d" % i for i in range(20_000))), np.uint8)
    hashes = np.array([hash_bytes(ids, 11 * i, 11) for i in range(20_000)], np.uint64)
    assert len(np.unique(hashes)) == 20_000
    for shift in (0, 20, 44):
        buckets = np.bincount((hashes >> np.uint64(shift)).astype(np.int64) & 1023, minlength=1024)
        assert buckets.max() < 50, (
            f"bits {shift} to {shift + 9} hold {buckets.max()} of 20,000 ids in one of 1024"
        )


def test_a_record_beyond_the_limit_is_not_even_copied() -> None:
    batch = [message(written(event(), indent=" " * 100)), message(written(event()))]
    limited, validator = reader_and_validator(max_bytes=400)
    columns = assert_same(batch, limited, validator)
    assert columns.index.tolist() == [1]
    assert len(columns.data) < 400


def test_types_have_256_codes() -> None:
    extra = {f"type-{i}": i / 8 for i in range(256 - len(EVENT_TYPES))}
    reader, validator = reader_and_validator(event_types=extra)
    assert reader.type_names == (*EVENT_TYPES, *extra)
    batch = [message(written(event(event_type=kind))) for kind in extra]
    columns = assert_same(batch, reader, validator)
    assert columns.event_type.max() == 255
    with pytest.raises(SettingsError, match="257 types, at most 256"):
        reader_and_validator(event_types={**extra, "one-more": 1.0})


@pytest.mark.parametrize("name", ["ID_BYTES", "QUERY_BYTES", "MAP_TEXT_BYTES", "NUMBER_LIMIT"])
def test_the_kernel_s_limits_are_the_validator_s(name: str) -> None:
    assert getattr(event_kernels, name) == getattr(field_checks, name)
    assert event_kernels._MOST_NAMES <= field_checks.MAP_ENTRIES


def test_every_field_of_an_event_has_a_code() -> None:
    assert sorted(FIELDS) == sorted(Event.__struct_fields__)
    assert set(NEEDED_FIELD.values()) <= set(OTHERS)


@pytest.mark.parametrize("behind", ["u1", "9", '"', "-", ":00Z", "\u00e9"])
def test_nothing_is_read_from_the_next_record_or_the_key(behind: str) -> None:
    """A record cut off anywhere stays cut off, whatever lies behind it."""
    for whole in (written(event()), with_literal("timestamp", '"2023-11-14T22:13:20.5Z"')):
        cut = [message(whole[:at], behind.encode()) for at in range(len(whole))]
        after = [message(behind.encode() + whole, behind.encode())]
        assert len(assert_same(cut + after, READER, VALIDATOR)) == 0
