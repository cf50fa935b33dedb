"""Configuration of the clients, and Java's partitioner."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from streams.clients import (
    admin,
    consumer_config,
    make_consumer,
    make_producer,
    murmur2,
    partition_for,
    producer_config,
    tail_consumer_config,
)
from streams.errors import SettingsError
from streams.settings import Settings
from tests.conftest import settings_for

JAVA = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}
"""What Kafka's Java client gives, from its own unit test."""


def with_kafka(**keys: Any) -> Settings:
    named = {name.replace("_", "."): value for name, value in keys.items()}
    return settings_for("127.0.0.1:1", kafka={"bootstrap.servers": "127.0.0.1:1", **named})


@pytest.mark.parametrize(("key", "java"), JAVA.items())
def test_murmur2_is_javas(key: bytes, java: int) -> None:
    assert murmur2(key) == java % 2**32


@given(st.binary(max_size=64), st.integers(1, 512))
def test_every_key_has_a_partition(key: bytes, partitions: int) -> None:
    assert 0 <= partition_for(key, partitions) < partitions
    assert partition_for(key, partitions) == (murmur2(key) & 0x7FFFFFFF) % partitions


def test_librdkafka_places_keys_where_we_say(settings: Settings) -> None:
    producer = make_producer(producer_config(settings))
    keys = [f"{prefix}{number}" for prefix in ("", "user-", "ü") for number in range(100)]
    for key in keys:
        producer.produce(settings.names["events"], key=key, value=b"{}")
    assert producer.flush(10) == 0
    consumer = make_consumer(tail_consumer_config(settings))
    seen = read_all(consumer, settings, len(keys))
    assert Counter(seen.values()).keys() == set(range(settings.topics.partitions))
    assert seen == {key.encode(): partition_for(key.encode(), settings.topics.partitions) for key in keys}


def read_all(consumer: Consumer, settings: Settings, count: int) -> dict[bytes, int]:
    topic = settings.names["events"]
    consumer.assign([TopicPartition(topic, p, 0) for p in range(settings.topics.partitions)])
    placed: dict[bytes, int] = {}
    while len(placed) < count:
        messages = consumer.consume(count, timeout=10)
        assert messages, f"{len(placed)} of {count} records came"
        placed.update({message.key(): message.partition() for message in messages})
    consumer.close()
    return placed


def test_the_users_keys_win() -> None:
    chosen = with_kafka(fetch_wait_max_ms=77, linger_ms=33, security_protocol="PLAINTEXT", acks=-1)
    consumer = consumer_config(chosen, group="g")
    assert consumer["fetch.wait.max.ms"] == 77
    assert consumer["security.protocol"] == "PLAINTEXT"
    assert "linger.ms" not in consumer, "librdkafka warns about producer keys on a consumer"
    producer = producer_config(chosen)
    assert producer["linger.ms"] == 33
    assert "fetch.wait.max.ms" not in producer


def test_aliases_replace_defaults_instead_of_racing_them() -> None:
    producer = producer_config(with_kafka(compression_codec="zstd", queue_buffering_max_ms=9))
    assert (producer["compression.type"], producer["linger.ms"]) == ("zstd", 9)
    assert not {"compression.codec", "queue.buffering.max.ms"} & producer.keys()


FORBIDDEN_FOR_CONSUMERS = {
    "enable.auto.commit": True,
    "enable.auto.offset.store": "true",
    "isolation.level": "read_uncommitted",
    "enable.partition.eof": True,
    "group.id": "mine",
    "group.instance.id": "mine",
    "transactional.id": "mine",
    "partition.assignment.strategy": "cooperative-sticky",
}


@pytest.mark.parametrize(("key", "value"), FORBIDDEN_FOR_CONSUMERS.items())
def test_keys_that_break_a_promise_are_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(SettingsError, match=key.replace(".", r"\.")):
        consumer_config(with_kafka(**{key: value}), group="g")


@pytest.mark.parametrize(
    ("key", "value"), {"acks": 1, "enable.idempotence": False, "partitioner": "consistent_random"}.items()
)
def test_producers_refuse_what_loses_or_misplaces_records(key: str, value: object) -> None:
    with pytest.raises(SettingsError, match=key.replace(".", r"\.")):
        producer_config(with_kafka(**{key: value}))


def test_the_new_group_protocol_keeps_users_together() -> None:
    config = consumer_config(with_kafka(group_protocol="consumer"), group="g")
    assert config["group.remote.assignor"] == "range"
    assert (
        not {"session.timeout.ms", "heartbeat.interval.ms", "partition.assignment.strategy"} & config.keys()
    )
    with pytest.raises(SettingsError, match=r"group\.remote\.assignor"):
        consumer_config(with_kafka(group_protocol="consumer", group_remote_assignor="uniform"), group="g")


def test_static_membership_is_asked_for_only_with_an_id() -> None:
    assert "group.instance.id" not in consumer_config(with_kafka(), group="g")
    assert consumer_config(with_kafka(), group="g", instance_id="w1")["group.instance.id"] == "w1"
    modern = consumer_config(with_kafka(group_protocol="consumer"), group="g", instance_id="w1")
    assert "group.instance.id" not in modern, "a killed one would be refused until its session has expired"


def test_transactional_producers_retry_fast_and_give_up_in_time() -> None:
    config = producer_config(with_kafka(), transactional_id="w1")
    assert config["retry.backoff.ms"] == 5
    assert config["transaction.timeout.ms"] == 10_000
    assert config["transactional.id"] == "w1"
    assert "retry.backoff.ms" not in producer_config(with_kafka())


@pytest.mark.parametrize("session_s", [1.0, 10.0, 120.0])
def test_librdkafka_takes_every_configuration(session_s: float) -> None:
    chosen = settings_for("127.0.0.1:1", worker={"session_timeout_s": session_s})
    make_consumer(consumer_config(chosen, group="g", instance_id="w1")).close()
    make_consumer(consumer_config(with_kafka(group_protocol="consumer"), group="g")).close()
    make_consumer(consumer_config(chosen, group=None, isolation="read_uncommitted")).close()
    make_producer(producer_config(chosen))
    make_producer(producer_config(chosen, transactional_id="w1"))
    admin(chosen)


def test_an_unknown_key_is_named() -> None:
    with pytest.raises(SettingsError, match=r"no\.such\.key"):
        make_consumer(consumer_config(with_kafka(no_such_key=1), group="g"))
