"""Dead letters: bytes untouched, headers that say why; against the real broker, up to its size limit."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from streams import __version__
from streams.clients import consumer_config, make_consumer, make_producer, partition_for, producer_config
from streams.dead_letters import HEADER_PREFIX, MAX_BYTES, OVERHEAD_BYTES, Header, dead_letter
from streams.rejects import Reason, Rejected
from streams.settings import Settings
from streams.topics import EVENT_MAX_BYTES
from streams.validation import AcceptedEvent, EventValidator
from tests.test_streams.hostile_corpus import HostileRecord, hostile_records


@dataclass
class Record:
    """A record in memory, with the methods that `confluent_kafka.Message` has."""

    value_: bytes | None = b"v"
    key_: bytes | None = b"k"
    headers_: list[Header] | None = field(default_factory=list)

    def key(self) -> bytes | None:
        return self.key_

    def value(self) -> bytes | None:
        return self.value_

    def headers(self) -> Sequence[Header] | None:
        return self.headers_

    def set_headers(self, value: list[Header], /) -> None:
        self.headers_ = value

    def topic(self) -> str:
        return "shop.events"

    def partition(self) -> int:
        return 7

    def offset(self) -> int:
        return 12_345_678_901

    def timestamp(self) -> tuple[int, int]:
        return 1, 1_700_000_000_123


headers = st.lists(st.tuples(st.text(max_size=20), st.none() | st.binary(max_size=30)), max_size=8)
bytes_or_null = st.none() | st.binary(max_size=200)


@given(bytes_or_null, bytes_or_null, st.none() | headers, st.sampled_from(Reason), st.text(max_size=3000))
def test_everything_that_came_is_kept_and_ours_is_added(
    value: bytes | None, key: bytes | None, came: list[Header] | None, reason: Reason, message: str
) -> None:
    got_key, got_value, got = dead_letter(Record(value, key, came), reason, message)
    assert (got_key, got_value) == (key, value)
    n = len(came or ())
    assert got[:n] == (came or [])
    added = {
        name.removeprefix(HEADER_PREFIX): content.decode() for name, content in got[n:] if content is not None
    }
    text = added.pop("message")
    assert added == {
        "reason": reason.value,
        "topic": "shop.events",
        "partition": "7",
        "offset": "12345678901",
        "timestamp": "1700000000123",
        "version": __version__,
    }
    assert message.startswith(text)
    assert len(text.encode()) <= 1024
    assert text == message or len(text.encode()) > 1024 - 4


def test_what_a_replayed_letter_carries_stays_and_the_last_header_is_the_present_one() -> None:
    first = dead_letter(Record(), Reason.LATE, "first")
    again = dead_letter(Record(headers_=first[2]), Reason.INVALID_ID, "second")
    assert again[2][:7] == first[2]
    assert dict(again[2])[HEADER_PREFIX + "reason"] == b"invalid_id"


def size(letter: tuple[bytes | None, bytes | None, list[Header]]) -> int:
    key, value, got = letter
    return len(key or b"") + len(value or b"") + sum(len(n.encode()) + len(c or b"") for n, c in got)


def test_the_largest_record_of_events_fits_with_all_its_headers() -> None:
    flood: list[Header] = [(f"h{i}", b"x" * 90) for i in range(5000)]
    value = b"v" * (EVENT_MAX_BYTES - sum(len(n) + len(c or b"") + 2 for n, c in flood) - 100)
    letter = dead_letter(Record(value, b"k", flood), Reason.TOO_LARGE, "m" * 2000)
    assert letter[1] == value
    assert letter[2][:5000] == flood
    assert size(letter) + OVERHEAD_BYTES < MAX_BYTES


def test_what_cannot_fit_is_cut_and_said() -> None:
    flood: list[Header] = [("h", b"x" * 100)] * 100
    letter = dead_letter(Record(b"v" * 4000, b"k", flood), Reason.LATE, "m", max_bytes=8000)
    kept = sum(1 for name, _ in letter[2] if name == "h")
    assert letter[1] == b"v" * 4000
    assert 0 < kept < 100
    assert dict(letter[2])[HEADER_PREFIX + "headers_dropped"] == str(100 - kept).encode()
    assert HEADER_PREFIX + "value_bytes" not in dict(letter[2])
    cut = dead_letter(Record(b"v" * 9000, b"k", flood), Reason.LATE, "m", max_bytes=8000)
    assert dict(cut[2])[HEADER_PREFIX + "headers_dropped"] == b"100"
    assert dict(cut[2])[HEADER_PREFIX + "value_bytes"] == b"9000"
    assert cut[1] is not None
    assert b"v" * len(cut[1]) == cut[1]
    assert size(cut) <= 8000


UNREADABLE_HEADER = """
import asyncio, sys
from aiokafka import AIOKafkaProducer

class Raw(str):
    def encode(self, *_):
        return b"\\xff\\xfe"

async def send(bootstrap, topic):
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap)
    await producer.start()
    await producer.send_and_wait(topic, b"{", key=b"u", headers=[("good", b"1"), (Raw("name"), b"2")])
    await producer.stop()

asyncio.run(send(*sys.argv[1:]))
"""
"""aiokafka in pure Python is the one client at hand that can be made to write a name that is not UTF-8."""


def test_a_header_name_that_is_not_utf8_does_not_stop_the_stream(settings: Settings) -> None:
    command = [sys.executable, "-c", UNREADABLE_HEADER, settings.bootstrap_servers, settings.names["events"]]
    subprocess.run(command, check=True, timeout=60, env={**os.environ, "AIOKAFKA_NO_EXTENSIONS": "1"})
    consumer = make_consumer(consumer_config(settings, group="t-header-names"))
    try:
        consumer.subscribe([settings.names["events"]])
        (message,) = consumer.consume(1, 30.0)
    finally:
        consumer.close()
    key, value, headers = dead_letter(message, Reason.INVALID_JSON, "m")
    assert (key, value) == (b"u", b"{")
    assert dict(headers)[HEADER_PREFIX + "headers_dropped"] == b"all"
    assert len(headers) == 8
    assert message.headers() == [], (
        "the client's broken list must be gone: iterating it crashes the interpreter"
    )


def _examples(settings: Settings) -> list[str]:
    """The Python of docs/events.md, on this test's broker and topics."""
    page = (Path(__file__).parents[2] / "docs" / "events.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for plain, here in (
        ("127.0.0.1:9092", settings.bootstrap_servers),
        ('"events"', f'"{settings.names["events"]}"'),
        ('"events-dlq"', f'"{settings.names["events-dlq"]}"'),
    ):
        assert plain in "".join(blocks)
        blocks = [block.replace(plain, here) for block in blocks]
    return blocks


def _read_events(settings: Settings, count: int) -> list[AcceptedEvent | Rejected]:
    validator = EventValidator(
        settings.validation, lambda key: partition_for(key, settings.topics.partitions)
    )
    consumer = make_consumer(consumer_config(settings, group=f"t-read-{time.time_ns()}"))
    verdicts: list[AcceptedEvent | Rejected] = []
    try:
        consumer.subscribe([settings.names["events"]])
        deadline_s = time.monotonic() + 120
        while len(verdicts) < count and time.monotonic() < deadline_s:
            for m in consumer.consume(count, 1.0):
                place = (int(m.partition() or 0), int(m.offset() or 0))
                verdicts.append(validator.decode_event(m.value(), m.key(), *place, m.timestamp()[1]))
    finally:
        consumer.close()
    return verdicts


def test_the_page_s_examples_work(settings: Settings) -> None:
    first, mend = _examples(settings)
    exec(compile(first, "events.md, first example", "exec"), {})
    (event,) = _read_events(settings, 1)
    assert isinstance(event, AcceptedEvent), event
    assert (event.event.value, event.misplaced) == (4.5, False)

    bad = {**msgspec.to_builtins(event.event), "event_id": "e-2", "value": "3.5"}
    record = Record(msgspec.json.encode(bad), b"u-42", [])
    verdict = EventValidator(settings.validation).decode_event(
        record.value(), b"u-42", 0, 0, event.kafka_time_ms
    )
    assert isinstance(verdict, Rejected)
    key, value, headers = dead_letter(record, verdict.reason, verdict.message)
    ours = [(HEADER_PREFIX + "topic", settings.names["events"].encode())]
    _produce(settings, "events-dlq", [HostileRecord(key, value, headers + ours, verdict.reason, "")])
    exec(compile(mend, "events.md, mending", "exec"), {})
    mended = [
        v for v in _read_events(settings, 2) if isinstance(v, AcceptedEvent) and v.event.event_id == "e-2"
    ]
    assert [v.event.value for v in mended] == [3.5]


def _produce(settings: Settings, topic: str, records: Sequence[HostileRecord]) -> None:
    failed: list[object] = []
    producer = make_producer(producer_config(settings))
    for record in records:
        producer.produce(
            settings.names[topic],
            value=record.value,
            key=record.key,
            headers=record.headers,
            on_delivery=lambda error, _: failed.append(error) if error else None,
        )
        producer.poll(0)
    assert producer.flush(60) == 0
    assert failed == []


def test_hostile_records_come_back_from_the_broker_byte_for_byte(settings: Settings) -> None:
    """Producer to `events`, validator, `events-dlq`, reader: as the worker does it, without the worker."""
    sent = hostile_records(300, seed=11, time_ms=int(time.time() * 1000))
    _produce(settings, "events", sent)
    validator = EventValidator(settings.validation)
    consumer = make_consumer(consumer_config(settings, group="t-dead-letters"))
    producer = make_producer(producer_config(settings))
    reader = make_consumer(consumer_config(settings, group="t-dead-letters-reader"))
    failed: list[object] = []
    origins: dict[tuple[str, str], HostileRecord] = {}
    try:
        consumer.subscribe([settings.names["events"]])
        letters = 0
        deadline_s = time.monotonic() + 120
        while letters < len(sent) and time.monotonic() < deadline_s:
            for message in consumer.consume(100, 1.0):
                assert message.error() is None
                place = (int(message.partition() or 0), int(message.offset() or 0))
                verdict = validator.decode_event(
                    message.value(), message.key(), *place, message.timestamp()[1]
                )
                assert isinstance(verdict, Rejected)
                key, value, got = dead_letter(message, verdict.reason, verdict.message)
                producer.produce(
                    settings.names["events-dlq"],
                    value=value,
                    key=key,
                    headers=got,
                    on_delivery=lambda error, _: failed.append(error) if error else None,
                )
                origins[str(place[0]), str(place[1])] = HostileRecord(
                    message.key(), message.value(), list(message.headers() or ()), verdict.reason, ""
                )
                letters += 1
        assert producer.flush(60) == 0
        assert failed == []
        reader.subscribe([settings.names["events-dlq"]])
        read: Counter[tuple[object, ...]] = Counter()
        while read.total() < len(sent) and time.monotonic() < deadline_s:
            for message in reader.consume(100, 1.0):
                got = list(message.headers() or ())
                ours = dict(got[-7:])
                origin = origins.pop(
                    (
                        (ours[HEADER_PREFIX + "partition"] or b"").decode(),
                        (ours[HEADER_PREFIX + "offset"] or b"").decode(),
                    )
                )
                assert (message.key(), message.value(), got[:-7]) == (
                    origin.key,
                    origin.value,
                    origin.headers,
                )
                assert ours[HEADER_PREFIX + "reason"] == origin.reason.value.encode()
                assert ours[HEADER_PREFIX + "topic"] == settings.names["events"].encode()
                read[origin.key, origin.value, tuple(origin.headers)] += 1
    finally:
        consumer.close()
        reader.close()
    assert letters == len(sent)
    assert read == Counter((record.key, record.value, tuple(record.headers)) for record in sent)
    assert origins == {}
    assert max(len(record.value or b"") for record in sent) == 1_048_400
