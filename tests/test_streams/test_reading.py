"""Reading whole partitions on a real broker: control records, open and aborted transactions, what is gone."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest
from confluent_kafka import Producer, TopicPartition

from streams.clients import admin, make_consumer, make_producer, producer_config, tail_consumer_config
from streams.errors import BrokerUnavailableError, DataLossError, TopicLayoutError
from streams.reading import PartitionReader, partitions_of, watermarks, where
from streams.records import Record
from streams.settings import Settings
from tests.conftest import settings_for


def _write(producer: Producer, topic: str, first: int, n: int) -> None:
    for k in range(first, first + n):
        producer.produce(topic, str(k).encode(), partition=0)
    assert producer.flush(10) == 0


def _transactional(settings: Settings) -> Producer:
    config = producer_config(settings, transactional_id=f"{settings.topics.prefix}{uuid.uuid4().hex}")
    producer = make_producer({**config, "transaction.timeout.ms": 60_000})
    producer.init_transactions(10)
    return producer


def _collect(into: list[int]) -> Callable[[Record], None]:
    return lambda record: into.append(int(record.value() or b"-1"))


def test_committed_records_are_read_to_the_end_over_markers_and_aborted_ones(settings: Settings) -> None:
    topic = settings.names["interactions"]
    producer = _transactional(settings)
    for first, commit in ((0, True), (10, False), (20, True), (30, False)):
        producer.begin_transaction()
        _write(producer, topic, first, 10)
        _ = producer.commit_transaction(10) if commit else producer.abort_transaction(10)
    [(low, end)] = watermarks(settings, [(topic, 0)]).values()
    assert (low, end) == (0, 44)  # 40 records, 4 markers
    found: list[int] = []
    reader = PartitionReader(settings, {(topic, 0): 0})
    assert reader.read_to({(topic, 0): end}, _collect(found))
    assert found == [*range(10), *range(20, 30)]
    assert reader.positions == {(topic, 0): 44}
    assert reader.lag((topic, 0)) == 0
    reader.close()


def test_an_open_transaction_is_told_of_and_waited_for(settings: Settings) -> None:
    topic = settings.names["interactions"]
    producer = _transactional(settings)
    _write(make_producer(producer_config(settings)), topic, 0, 5)
    producer.begin_transaction()
    _write(producer, topic, 5, 5)
    assert watermarks(settings, [(topic, 0)])[topic, 0] == (0, 10)
    assert watermarks(settings, [(topic, 0)], isolation="read_committed")[topic, 0] == (0, 5)
    told: list[set[tuple[str, int]]] = []
    found: list[int] = []

    def stuck(behind: set[tuple[str, int]]) -> None:
        told.append(set(behind))
        producer.abort_transaction(10)

    reader = PartitionReader(settings, {(topic, 0): 0})
    assert reader.read_to({(topic, 0): 10}, _collect(found), stuck=stuck)
    assert (found, told) == (list(range(5)), [{(topic, 0)}])
    with pytest.raises(BrokerUnavailableError, match=rf"{topic}\[0\]@11 of 99.*transaction open"):
        reader.read_to({(topic, 0): 99}, _collect(found), timeout_s=0.3)
    assert not reader.read_to({(topic, 0): 99}, _collect(found), should_stop=lambda: True)
    reader.close()


def test_an_offset_that_is_gone_is_an_error_where_nothing_may_be_missed(settings: Settings) -> None:
    topic = settings.names["interactions"]
    _write(make_producer(producer_config(settings)), topic, 0, 20)
    client = admin(settings)
    for future in client.delete_records([TopicPartition(topic, 0, 15)]).values():
        future.result(10)
    lossless = PartitionReader(settings, {(topic, 0): 3}, lossy=False)
    with pytest.raises(DataLossError, match=rf"{topic}\[0\]@3: this offset is no longer in the log"):
        lossless.read_to({(topic, 0): 20}, _collect([]), timeout_s=10.0)
    lossless.close()
    lossy, found = PartitionReader(settings, {(topic, 0): 3}), []
    assert lossy.read_to({(topic, 0): 20}, _collect(found))
    assert found == [15, 16, 17, 18, 19]
    lossy.close()


def test_places_partitions_and_absent_things(settings: Settings) -> None:
    topic = settings.names["events"]
    _write(make_producer(producer_config(settings)), topic, 0, 1)
    reader = PartitionReader(settings, {(topic, 0): 0})
    places: list[str] = []
    reader.read_to({(topic, 0): 1}, lambda record: places.append(where(record)))
    reader.close()
    assert places == [f"{topic}[0]@0"]
    consumer = make_consumer(tail_consumer_config(settings))
    assert partitions_of(consumer, topic, 10.0) == [0, 1, 2, 3]
    with pytest.raises(TopicLayoutError, match="nowhere is not there"):
        partitions_of(consumer, "nowhere", 10.0)
    consumer.close()
    nowhere = settings_for("127.0.0.1:1", worker={"rpc_timeout_s": 0.3})
    with pytest.raises(BrokerUnavailableError, match=r"127\.0\.0\.1:1: no watermarks"):
        watermarks(nowhere, [("events", 0)])
