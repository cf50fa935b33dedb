"""A tombstone of a user waits for the events that were sent before it, however long the backlog."""

from __future__ import annotations

import time

import pytest
from confluent_kafka import TopicPartition

from streams.clients import make_producer, producer_config
from streams.records import Record
from streams.settings import Settings
from streams.shards import Shards
from streams.source import Source
from tests.integration.worker_process import PATIENCE_S, START_MS, event

EVENTS, TOMBSTONES = 60, 3


def _send(settings: Settings) -> None:
    """Events, then tombstones between profiles, all in partition 1, in one transaction: its marker is the
    last thing in either."""
    producer = make_producer({**producer_config(settings), "transactional.id": "sender"})
    producer.init_transactions()
    producer.begin_transaction()
    for k in range(EVENTS):
        one = event(f"e{k}", "u", "i", START_MS + k)
        producer.produce(settings.names["events"], one.value, one.key, partition=1)
    for k in range(TOMBSTONES):
        producer.produce(settings.names["users"], b'{"user_id": "v"}', b"v", partition=1)
        producer.produce(settings.names["users"], None, f"u{k}", partition=1)
    producer.commit_transaction()


def test_tombstones_wait_for_the_events_before_them(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order, with the position before what is held, and no more fetched than can be held."""
    monkeypatch.setattr("streams.held.MOST", 2)
    monkeypatch.setattr("streams.held.AGAIN_S", 0.0)
    _send(settings)
    events, users = (TopicPartition(settings.names[name], 1) for name in ("events", "users"))
    shards = Shards(settings, "id", ["click"])
    source = Source(settings, shards, "w1", static=False, should_stop=lambda: False, on_state=lambda _: None)
    came: list[Record] = []
    read: dict[tuple[str, int], int] = {}
    stalled = False
    deadline = time.monotonic() + PATIENCE_S
    try:
        while len(came) < EVENTS + 2 * TOMBSTONES and time.monotonic() < deadline:
            came += source.poll(7, 0.02)
            read |= {(tp.topic, tp.partition): tp.offset for tp in source.positions()}
            if came and not stalled:
                source.consumer.pause([events])
                stalled = True
            if source._held._paused:
                assert read[users.topic, 1] == 1, "the profile before the first tombstone"
                source.consumer.resume([events])
    finally:
        source.close()
    tombstone = next(n for n, record in enumerate(came) if record.value() is None)
    assert sum(record.topic() == events.topic for record in came[:tombstone]) == EVENTS
    for topic, n in ((events.topic, EVENTS), (users.topic, 2 * TOMBSTONES)):
        assert [record.offset() for record in came if record.topic() == topic] == list(range(n))
