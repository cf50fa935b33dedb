"""Replaying into a real broker: everything arrives, in order, at the rate asked for."""

from __future__ import annotations

import itertools
import threading
from collections import defaultdict

import msgspec
import pytest
from confluent_kafka import TopicPartition

from streams.clients import make_consumer, partition_for, tail_consumer_config
from streams.datasets import Dataset
from streams.errors import BrokerUnavailableError, SettingsError
from streams.events import Event, Item
from streams.replay import encode_record, replay
from streams.settings import Settings
from streams.synthetic import synthetic
from tests.conftest import settings_for


def small(events: int = 2_000) -> Dataset:
    made = synthetic(events, users=50, items=400, seed=1)
    return Dataset("small", made.events, made.items, made.truth)


def read(settings: Settings, topic: str, count: int) -> list[tuple[int, bytes, bytes]]:
    consumer = make_consumer(tail_consumer_config(settings))
    consumer.assign([TopicPartition(settings.names[topic], p, 0) for p in range(settings.topics.partitions)])
    found: list[tuple[int, bytes, bytes]] = []
    while len(found) < count:
        messages = consumer.consume(count, timeout=10)
        assert messages, f"{len(found)} of {count} records came"
        found += [(m.partition(), m.key(), m.value()) for m in messages]
    assert not consumer.consume(1, timeout=0.2), "and no more than these"
    consumer.close()
    return found


def test_everything_arrives_with_each_users_order_kept(settings: Settings) -> None:
    dataset = small()
    steps: list[tuple[str, int, int]] = []
    report = replay(settings, dataset, progress=lambda *step: steps.append(step))
    assert (report.items, report.events, report.stopped) == (400, 2_000, False)
    assert steps[0] == ("items", 400, 400)
    assert steps[-1] == ("events", 2_000, 2_000)
    arrived: dict[str, list[str]] = defaultdict(list)
    for partition, key, value in read(settings, "events", 2_000):
        event = msgspec.json.decode(value, type=Event)
        assert key.decode() == event.user_id
        assert partition == partition_for(key, settings.topics.partitions)
        arrived[event.user_id].append(event.event_id)
    sent: dict[str, list[str]] = defaultdict(list)
    for event in dataset.events:
        sent[event.user_id].append(event.event_id)
    assert arrived == sent
    items = {
        key.decode(): msgspec.json.decode(value, type=Item) for _, key, value in read(settings, "items", 400)
    }
    assert items == dataset.items


def test_the_rate_is_kept_and_the_limit_too(settings: Settings) -> None:
    report = replay(settings, small(), rate=500, limit=400)
    assert report.events == 400
    assert 399 / 500 <= report.seconds < 3.0


def test_the_data_sets_own_gaps_faster(settings: Settings) -> None:
    events = [
        Event(event_id=str(n), user_id="u", event_type="view", timestamp=n * 60_000, item_id="i")
        for n in range(4)
    ]
    report = replay(settings, Dataset("gaps", events), speedup=600)
    assert 0.3 <= report.seconds < 2.0


def test_it_stops_when_told_and_says_so(settings: Settings) -> None:
    stop = threading.Event()

    def stop_after_some(kind: str, sent: int, _: int) -> None:
        if kind == "events" and sent >= 20:
            stop.set()

    report = replay(settings, small(), rate=100, progress=stop_after_some, stop=stop)
    assert report.stopped
    assert 20 <= report.events < 2_000
    assert len(read(settings, "events", report.events)) == report.events


def test_records_that_are_not_taken_are_an_error_with_the_count(settings: Settings) -> None:
    elsewhere = settings_for(settings.bootstrap_servers, topics={"prefix": "no-such-topics."})
    quick = msgspec.structs.replace(elsewhere, kafka={**elsewhere.kafka, "message.timeout.ms": 500})
    with pytest.raises(BrokerUnavailableError, match=r"400 of 400 records .*freshet topics create"):
        replay(quick, small())


@pytest.mark.parametrize("pace", [{"rate": 0}, {"rate": -1.0}, {"speedup": 0}, {"rate": 1, "speedup": 1}])
def test_impossible_paces_are_refused(pace: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match="rate"):
        replay(settings_for("127.0.0.1:1"), small(10), **pace)


def test_records_are_short_and_decode_to_themselves() -> None:
    item = Item(item_id="i", title="T", price=0.0, categories=["a"])
    assert encode_record(item) == b'{"item_id":"i","title":"T","categories":["a"],"price":0.0}'
    for event in itertools.islice(small(100).events, 20):
        text = encode_record(event)
        assert b"null" not in text
        assert msgspec.json.decode(text, type=Event) == event
