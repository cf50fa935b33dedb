"""What a batch sends: the log names items before their codes are given back."""

from __future__ import annotations

import pytest
from confluent_kafka import TopicPartition

from streams.learning_log import decode_record
from streams.outbox import Outbox
from streams.settings import load_settings
from streams.transaction import OutputRecord, OutputRecords
from streams.user_records import PARTITION_KEY
from tests.test_streams.user_model import PARTITIONS, Ev, Worker

SIGNATURE = ("freshet-w", "w", 7)


def test_the_log_still_names_items_that_nobody_will_name_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """An impression's item is in no list of its user, so its code is free again once the batch is learned;
    the one user too many expires in the batch in which she came."""
    monkeypatch.setattr("streams.user_table.ITEM_GARBAGE", 0)
    settings = load_settings(environ={}, overrides={"user_state": {"max_users": 1}})
    worker = Worker(settings)
    events = [
        Ev("ann", "e1", 1, "only-shown", "impression"),
        Ev("ann", "e2", 2, "tea", "click"),
        Ev("bob", "e3", 3, "nails", "click"),
    ]
    batch, learned = worker.take(events)
    outbox = Outbox(settings, worker.shards, worker.learner, SIGNATURE, PARTITIONS)
    places = [
        TopicPartition(settings.names["events"], 0, 3),
        TopicPartition(settings.names["requests"], 0, 0),
    ]
    records = outbox.records(batch, learned, places, {"0": 5})
    [log] = [r for r in records if isinstance(r, OutputRecord) and r.topic == settings.names["interactions"]]
    row = decode_record(log.value, "here")
    items = row.item_ids
    assert [items[k] for k in row.column("item", "<i4").tolist()] == ["only-shown", "tea", "nails"]
    keyed = {
        key: value
        for r in records
        if isinstance(r, OutputRecords)
        for key, value in zip(r.keys, r.values, strict=True)
    }
    assert keyed[b"ann"] is None
    assert keyed[b"bob"] is not None
    own = next(r for r in records if isinstance(r, OutputRecord) and r.key == PARTITION_KEY)
    assert own is records[-1]  # a takeover looks for it at the changelog's end
    shard = worker.shards[0]
    assert shard.next_offsets == {"events": 3, "requests": 0}
    assert shard.item_offsets == {"0": 5}
    assert shard.stats.expired == 1
