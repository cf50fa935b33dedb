"""Snapshots on a real small_log: the newest whole one that fits is taken, all else is passed over by name."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import TopicPartition

from online_models.errors import SnapshotMismatchError
from online_models.item_state import ModelSettings
from streams.clients import admin
from streams.errors import DataLossError, TopicLayoutError
from streams.settings import Settings
from streams.snapshots import SnapshotStore
from tests.test_streams.snapshot_log import state_at


def _cut_off(settings: Settings, before: int) -> None:
    client = admin(settings)
    for future in client.delete_records([TopicPartition(settings.names["interactions"], 0, before)]).values():
        future.result(10)


def test_the_newest_comes_back_and_old_ones_go(small_log: Settings) -> None:
    store = SnapshotStore(small_log)
    assert store.names() == []
    assert (store.newest_or_empty().offset, len(store.newest_or_empty().items)) == (0, 0)
    for n in range(1, 6):
        store.save(state_at(10 * n, n))
    assert [int(name.split("-")[1]) for name in store.names()] == [5, 4, 3]
    found = store.newest_or_empty()
    assert (found.offset, found.digest()) == (5, state_at(50, 5).digest())
    assert store.save(state_at(50, 5)) == store.names()[0]
    folders = [path for path in Path(small_log.state.dir).iterdir() if path.is_dir()]
    assert len(folders) == 1, "a topic id is one folder"
    assert not list(folders[0].glob(".*")), "nothing half written is left"
    assert not [path for path in folders[0].iterdir() if path.is_dir()]


def test_a_damaged_snapshot_is_passed_over_and_named(
    small_log: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    store = SnapshotStore(small_log)
    names = [store.save(state_at(10 * n, n)) for n in (1, 2, 3)]
    truncated, altered = (next(Path(small_log.state.dir).rglob(name)) for name in names[1:])
    truncated.write_bytes(truncated.read_bytes()[:-1])
    data = bytearray(altered.read_bytes())
    data[-1] ^= 1
    altered.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert store.newest_or_empty().offset == 1
    assert f"{truncated.name}: its bytes do not have its digest" in caplog.text
    assert f"{altered.name}: its bytes do not have its digest" in caplog.text


def test_one_beyond_the_log_or_behind_its_start_is_not_used(
    small_log: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    store = SnapshotStore(small_log)
    for n, offset in ((1, 20), (2, 50), (3, 200)):
        store.save(state_at(10 * n, offset))
    assert store.newest_or_empty().offset == 50
    assert "the log holds offsets 0 to 100; not used" in caplog.text
    _cut_off(small_log, 60)
    with pytest.raises(DataLossError, match="starts at offset 60 and no usable snapshot reaches it"):
        store.newest_or_empty()


def test_one_of_other_models_is_passed_over_while_the_whole_log_is_there(small_log: Settings) -> None:
    store = SnapshotStore(small_log)
    store.save(state_at(10, 30))
    other = msgspec.structs.replace(small_log, models=ModelSettings(seed=5))
    assert SnapshotStore(other).newest_or_empty().offset == 0
    _cut_off(small_log, 10)
    with pytest.raises(SnapshotMismatchError):
        SnapshotStore(other).newest_or_empty()
    assert store.newest_or_empty().offset == 30


def test_a_log_that_is_not_there_is_said(settings: Settings) -> None:
    nowhere = msgspec.structs.replace(settings.topics, prefix="nowhere.")
    with pytest.raises(TopicLayoutError, match=r"nowhere\.interactions.*freshet topics create"):
        SnapshotStore(msgspec.structs.replace(settings, topics=nowhere))
