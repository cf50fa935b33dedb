"""The hostile corpus against the validator: every kind gets its reason, nothing raises, odd records pass."""

from __future__ import annotations

import math

import pytest

from streams.rejects import Reason
from streams.settings import ValidationSettings
from streams.validation import AcceptedEvent, EventValidator, Rejected
from tests.test_streams.hostile_corpus import (
    BIG_KINDS,
    BROKER_VALUE_BYTES,
    DEFAULT_TIME_MS,
    HOSTILE_KINDS,
    HostileRecord,
    hostile_records,
    odd_records,
)

KAFKA_MS = DEFAULT_TIME_MS + 60_000
RECORDS = {r.kind: r for r in hostile_records(len(HOSTILE_KINDS) + len(BIG_KINDS), seed=7)}
ODD = odd_records(seed=7)


@pytest.fixture(scope="module")
def validator() -> EventValidator:
    return EventValidator(ValidationSettings())


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
def test_hostile_record_gets_its_reason(validator: EventValidator, record: HostileRecord) -> None:
    result = validator.decode_event(record.value, record.key, 3, 41, KAFKA_MS, KAFKA_MS)
    assert isinstance(result, Rejected)
    size = 0 if record.value is None else len(record.value)
    too_large = size > ValidationSettings().max_bytes
    assert result.reason == (Reason.TOO_LARGE if too_large else record.reason), result.message
    assert (result.partition, result.offset, result.kafka_time_ms) == (3, 41, KAFKA_MS)
    assert result.message
    assert len(result.message) < 400, "a message must not carry the record's contents"


@pytest.mark.parametrize("kind", ODD)
def test_odd_record_is_accepted(validator: EventValidator, kind: str) -> None:
    key, value = ODD[kind]
    result = validator.decode_event(value, key, 0, 0, KAFKA_MS)
    assert isinstance(result, AcceptedEvent), result
    for number in (result.event.value, *(result.event.context or {}).values()):
        assert not isinstance(number, float) or number != 0 or math.copysign(1, number) == 1


def test_every_kind_is_in_the_corpus_and_the_corpus_is_seeded() -> None:
    records = hostile_records(1000, seed=3)
    assert len(records) == 1000
    assert {r.kind for r in records} == HOSTILE_KINDS.keys() | BIG_KINDS.keys()
    assert records == hostile_records(1000, seed=3)
    assert records != hostile_records(1000, seed=4)
    assert sum(len(r.value or b"") for r in records) < 40_000_000


def test_megabyte_records_are_as_large_as_the_broker_takes() -> None:
    sizes = {kind: len(RECORDS[kind].value or b"") for kind in BIG_KINDS}
    assert set(sizes.values()) == {BROKER_VALUE_BYTES}


def test_the_corpus_meets_every_reason_that_a_single_record_can_have() -> None:
    needs_more = {Reason.TOO_LARGE, Reason.LATE, Reason.WRONG_PARTITION}
    assert {r.reason for r in RECORDS.values()} == set(Reason) - needs_more


def test_hostile_bytes_on_the_other_topics_are_rejected_too(validator: EventValidator) -> None:
    for record in RECORDS.values():
        if record.value is None:
            continue
        for decode in (validator.decode_item, validator.decode_user, validator.decode_request):
            result = decode(record.value, b"\xff", 0, 0, KAFKA_MS)
            assert isinstance(result, Rejected), (record.kind, decode)
