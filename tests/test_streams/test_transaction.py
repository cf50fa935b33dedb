"""One transaction a batch, on a real broker: all of it or nothing, and a fenced or failed one says so."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest
from confluent_kafka import Consumer, TopicPartition

from streams.clients import consumer_config, make_consumer
from streams.errors import FreshetError, TransactionLostError, WorkerFencedError
from streams.reading import PartitionReader, watermarks
from streams.settings import Settings
from streams.transaction import OutputRecord, Transactions, fence
from tests.conftest import settings_for

TOO_LARGE = random.Random(0).randbytes(1_500_000)
"""Does not compress, and the broker takes 1 MB on `interactions`."""


@pytest.fixture
def group(settings: Settings) -> Iterator[Consumer]:
    consumer = make_consumer(consumer_config(settings, group=f"{settings.topics.prefix}g"))
    consumer.subscribe([settings.names["events"]])
    deadline_s = time.monotonic() + 120.0
    while not consumer.assignment():
        assert time.monotonic() < deadline_s, "no partition was given"
        consumer.poll(0.05)
    yield consumer
    consumer.close()


def _offsets(settings: Settings, offset: int) -> list[TopicPartition]:
    return [TopicPartition(settings.names["events"], 0, offset)]


def _committed(settings: Settings, group: Consumer) -> int:
    [found] = group.committed(_offsets(settings, 0), 10)
    return int(found.offset)


def _values(settings: Settings, name: str) -> list[bytes | None]:
    """Committed values of a topic's partition 0."""
    key = (settings.names[name], 0)
    end = watermarks(settings, [key], isolation="read_committed")[key][1]
    reader = PartitionReader(settings, {key: 0})
    found: list[bytes | None] = []
    reader.read_to({key: end}, lambda record: found.append(record.value()))
    reader.close()
    return found


def _record(settings: Settings, value: bytes) -> OutputRecord:
    return OutputRecord(settings.names["interactions"], None, value, partition=0, headers=[("a", b"1")])


def test_records_and_offsets_come_together(settings: Settings, group: Consumer) -> None:
    transactions = Transactions(settings, f"{settings.topics.prefix}a")
    transactions.commit([_record(settings, b"1"), _record(settings, b"2")], group, _offsets(settings, 7))
    transactions.commit([_record(settings, b"3")], group, _offsets(settings, 9))
    assert (_values(settings, "interactions"), _committed(settings, group)) == ([b"1", b"2", b"3"], 9)
    assert transactions.committed == 2
    transactions.close()


def test_of_a_batch_that_cannot_be_written_nothing_stays(settings: Settings, group: Consumer) -> None:
    transactions = Transactions(settings, f"{settings.topics.prefix}a")
    transactions.commit([_record(settings, b"good")], group, _offsets(settings, 3))
    large = OutputRecord(settings.names["interactions"], None, TOO_LARGE, partition=0)
    with pytest.raises(FreshetError, match=r"record of 1500000 bytes.*raise max\.message\.bytes"):
        transactions.commit([_record(settings, b"beside"), large], group, _offsets(settings, 8))
    transactions.close()
    again = Transactions(settings, f"{settings.topics.prefix}a")
    again.commit([_record(settings, b"after")], group, _offsets(settings, 4))
    again.close()
    assert (_values(settings, "interactions"), _committed(settings, group)) == ([b"good", b"after"], 4)


def test_who_is_fenced_commits_nothing(settings: Settings, group: Consumer) -> None:
    first = Transactions(settings, f"{settings.topics.prefix}a")
    first.commit([_record(settings, b"1")], group, _offsets(settings, 1))
    second = Transactions(settings, f"{settings.topics.prefix}a")
    with pytest.raises(WorkerFencedError, match=r"was fenced.*--id of its own"):
        first.commit([_record(settings, b"zombie")], group, _offsets(settings, 5))
    second.commit([_record(settings, b"2")], group, _offsets(settings, 2))
    assert (_values(settings, "interactions"), _committed(settings, group)) == ([b"1", b"2"], 2)
    first.close()
    second.close()


def test_who_is_no_member_commits_nothing(settings: Settings) -> None:
    """Without a member id the broker would take offsets unchecked while the group is empty."""
    stranger = make_consumer(consumer_config(settings, group=f"{settings.topics.prefix}g"))
    stranger.assign([TopicPartition(settings.names["events"], 0, 0)])
    transactions = Transactions(settings, f"{settings.topics.prefix}a")
    with pytest.raises(TransactionLostError, match="thrown this worker out"):
        transactions.commit([_record(settings, b"zombie")], stranger, _offsets(settings, 5))
    assert (_values(settings, "interactions"), _committed(settings, stranger)) == ([], -1001)
    transactions.close()
    stranger.close()


def test_fencing_ends_a_transaction_that_was_left_open(settings: Settings) -> None:
    key = (settings.names["interactions"], 0)
    dead = Transactions(settings, f"{settings.topics.prefix}dead")
    stands = -1  # what `dead` ended as it came is written in its own time
    while stands != watermarks(settings, [key], isolation="read_committed")[key][1]:
        stands = watermarks(settings, [key])[key][1]
    dead._producer.begin_transaction()
    dead._producer.produce(settings.names["interactions"], b"open", partition=0)
    dead._producer.flush(10)
    assert watermarks(settings, [key], isolation="read_committed")[key][1] == stands
    fence(settings, f"{settings.topics.prefix}dead")
    ends = [
        watermarks(settings, [key], isolation=how)[key][1] for how in ("read_committed", "read_uncommitted")
    ]
    assert ends[0] == ends[1] > stands + 1  # nothing is open: the record and its marker are behind
    assert _values(settings, "interactions") == []
    dead.close()


def test_at_least_once_writes_first_and_commits_offsets_after(settings: Settings, group: Consumer) -> None:
    topics = {"prefix": settings.topics.prefix, "partitions": 4}
    plain = settings_for(settings.bootstrap_servers, topics=topics, worker={"delivery": "at_least_once"})
    transactions = Transactions(plain, "unused")
    transactions.commit([_record(plain, b"1")], group, _offsets(plain, 6))
    assert (_values(plain, "interactions"), _committed(plain, group)) == ([b"1"], 6)
    large = OutputRecord(plain.names["interactions"], None, TOO_LARGE, partition=0)
    with pytest.raises(FreshetError, match=r"record of 1500000 bytes"):
        transactions.commit([large], group, _offsets(plain, 9))
    assert _committed(plain, group) == 6
    transactions.close()
