"""A worker started on logs and snapshots in every bad state: it restores all that was committed, or it says
what is missing and ends; it never goes on with less and keeps quiet."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its re-exports are not marked
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
)

from online_models.item_state import ItemState
from streams.clients import admin, make_producer, producer_config
from streams.reading import PartitionReader, watermarks
from streams.settings import Settings
from streams.topic_admin import create_topics
from tests.integration.auditor import assert_exactly_once, read_run, replayed_digests
from tests.integration.tuned_broker import deployed, tuned_broker
from tests.integration.worker_process import (
    PATIENCE_S,
    Deployment,
    Input,
    WorkerProcess,
    stream_of,
)


def _served(fleet: Deployment, n: int, seed: int, **env: str) -> list[Input]:
    """`n` events, handled by a worker that has stopped since."""
    stream = stream_of(n, seed=seed, name=f"s{seed}-")
    fleet.produce("events", stream)
    worker = fleet.worker("w1", **env)
    fleet.wait_handled()
    worker.stop()
    return stream


def _delete_before(settings: Settings, name: str, keep: int = 0) -> dict[int, int]:
    """Delete all but the last `keep` offsets of each partition of a topic; the new starts by partition."""
    topic = settings.names[name]
    count = 1 if name == "interactions" else settings.topics.partitions
    ends = watermarks(settings, [(topic, p) for p in range(count)])
    cuts = {p: max(low, end - keep) for (_, p), (low, end) in ends.items()}
    wanted = [TopicPartition(topic, p, cut) for p, cut in cuts.items()]
    client = admin(settings)
    for future in client.delete_records(wanted).values():
        future.result(10)
    return cuts


def _restored(worker: WorkerProcess) -> int:
    """Records that the worker's last restore read."""
    return int(re.findall(r"users from (\d+) records", worker.log)[-1])


def _transaction(settings: Settings, name: str, timeout_s: float = 60.0) -> Producer:
    config = producer_config(settings, transactional_id=f"{settings.topics.prefix}{name}")
    producer = make_producer({**config, "transaction.timeout.ms": int(timeout_s * 1000)})
    producer.init_transactions(10)
    producer.begin_transaction()
    return producer


def _append(producer: Producer, settings: Settings) -> None:
    """A record to each partition of `user-state`, which the transaction's end decides about."""
    for partition in range(settings.topics.partitions):
        producer.produce(settings.names["user-state"], b"never committed", b"x", partition=partition)
    assert producer.flush(10) == 0


def test_an_open_transaction_on_the_changelog_hides_nothing_behind_it(fleet: Deployment) -> None:
    """The case of KAFKA-10167: what was committed behind a stranger's open transaction is restored too, so
    the restore waits until that one is decided. Events sent again are known as duplicates."""
    first = stream_of(150, seed=51, name="a")
    fleet.produce("events", first)
    worker = fleet.worker("w1")
    fleet.wait_for(fleet.tail("recommendations"), 150)
    open_one = _transaction(fleet.settings, "stranger")
    _append(open_one, fleet.settings)
    second = stream_of(150, seed=52, name="b")
    fleet.produce("events", second)
    fleet.wait_for(fleet.tail("recommendations"), 300)
    worker.stop()
    again = fleet.worker("w1")
    deadline = time.monotonic() + PATIENCE_S
    while "assigned" not in again.log:
        assert time.monotonic() < deadline, again.log
        time.sleep(0.05)
    time.sleep(1.5)
    assert "restored partitions" not in again.log, "all of it is not readable yet"
    open_one.abort_transaction(10)
    fleet.produce("events", [*first, *second])
    fleet.wait_handled()
    again.stop()
    run = assert_exactly_once(fleet.settings)
    assert len(run.rows) == 300
    assert sum(shard.stats.duplicate for shard in run.shards.values()) == 300


def test_a_changelog_emptied_by_retention_starts_anew_and_says_so(fleet: Deployment) -> None:
    """Nothing is waited for that never comes; the group's offsets say where to read on, and no event is
    learned twice."""
    _served(fleet, 200, 53)
    _alter(fleet.settings, "user-state", cleanup_policy="compact,delete")  # else nothing may be deleted
    _delete_before(fleet.settings, "user-state")
    fleet.produce("events", stream_of(80, seed=54, name="later"))
    worker = fleet.worker("w1")
    fleet.wait_handled()
    worker.stop()
    assert _restored(worker) == 0
    assert worker.log.count("without any state in user-state") == 4
    ids = [row.event_id for row in read_run(fleet.settings).rows]
    assert len(ids) == len(set(ids)) == 280


def test_events_that_expired_unread_are_counted_or_refused(fleet: Deployment) -> None:
    _served(fleet, 100, 55)
    ends = fleet.ends()
    fleet.produce("events", stream_of(200, seed=56, name="later"))
    cuts = _delete_before(fleet.settings, "events", keep=10)
    lost = sum(cut - ends["events", p] for p, cut in cuts.items())
    assert lost > 100
    strict = fleet.worker("w1", WORKER__ON_DATA_LOSS="fail")
    assert strict.wait() == 1
    assert "were removed by retention before they were read" in strict.log
    assert 'worker.on_data_loss = "continue"' in " ".join(strict.log.split())
    worker = fleet.worker("w1")
    fleet.wait_handled()
    worker.stop()
    run = read_run(fleet.settings)
    assert sum(shard.stats.lost for shard in run.shards.values()) == lost
    assert len(run.rows) == 300 - lost


def test_a_recreated_topic_is_refused(fleet: Deployment) -> None:
    """Offsets of the old topic mean nothing in the new one, even where they lie within it."""
    _served(fleet, 40, 57)
    client, name = admin(fleet.settings), fleet.settings.names["events"]
    client.delete_topics([name], operation_timeout=10)[name].result()
    deadline = time.monotonic() + PATIENCE_S
    while name in client.list_topics(timeout=10).topics:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    create_topics(fleet.settings)
    fleet.produce("events", stream_of(400, seed=58, name="new"))
    worker = fleet.worker("w1")
    assert worker.wait() == 1
    said = " ".join(worker.log.split())
    assert "a topic that was deleted and created anew since" in said
    assert "Use a new topic prefix" in said


EACH = {"WORKER__SNAPSHOT_INTERACTIONS": "40", "WORKER__MAX_BATCH": "20"}


def _latest_is_true(fleet: Deployment, folder: Path) -> None:
    """The newest snapshot is what a replay of the whole log gives at its offset."""
    newest = max(folder.rglob("items-*"))
    state = ItemState.from_bytes(fleet.settings.models, newest.read_bytes())
    assert state.offset == int(newest.name.split("-")[1])
    assert replayed_digests(fleet.settings, [state.offset]) == {state.offset: state.digest()}


def test_bad_snapshots_cost_time_and_never_the_state(fleet: Deployment, tmp_path: Path) -> None:
    """Two of three damaged: the third and the log behind it. All damaged: the whole log. And its start gone
    too: refused, with the remedy."""
    folder = tmp_path / "snapshots"
    _served(fleet, 300, 59, **EACH)
    files = sorted(folder.rglob("items-*"), reverse=True)
    assert len(files) == 3
    flipped = bytearray(files[0].read_bytes())
    flipped[len(flipped) // 2] ^= 16
    files[0].write_bytes(flipped)
    files[1].write_bytes(b"")
    _served(fleet, 60, 60, **EACH)
    used = fleet.workers[-1]
    for bad in files[:2]:
        assert f"snapshot {bad.name}: its bytes do not have its digest" in used.log
    whole = _learned_from_log(used)
    assert 0 < whole < _end(fleet)
    _latest_is_true(fleet, folder)
    for file in folder.rglob("items-*"):
        file.write_bytes(file.read_bytes()[:-3])
    _served(fleet, 60, 61, **EACH)
    assert _learned_from_log(fleet.workers[-1]) > whole
    for file in folder.rglob("items-*"):
        file.unlink()
    _served(fleet, 60, 62)
    assert len(assert_exactly_once(fleet.settings).rows) == 480
    _delete_before(fleet.settings, "interactions", keep=3)
    worker = fleet.worker("w1")
    assert worker.wait() == 1
    said = " ".join(worker.log.split())
    assert "no usable snapshot reaches it" in said
    assert "Copy a snapshot from another worker into" in said


def _learned_from_log(worker: WorkerProcess) -> int:
    """Offsets of the learning log that the worker read at its start."""
    return int(re.findall(r"learning-log offset \d+, (\d+) records", worker.log)[0])


def _end(fleet: Deployment) -> int:
    key = (fleet.settings.names["interactions"], 0)
    return watermarks(fleet.settings, [key])[key][1]


def _alter(settings: Settings, name: str, **values: str) -> None:
    entries = [
        ConfigEntry(key.replace("_", "."), value, incremental_operation=AlterConfigOpType.SET)
        for key, value in values.items()
    ]
    resource = ConfigResource(ConfigResource.Type.TOPIC, settings.names[name], incremental_configs=entries)
    client = admin(settings)
    client.incremental_alter_configs([resource])[resource].result(10)


def _held(settings: Settings) -> tuple[int, int]:
    """Committed records of `user-state`, and the sum of its ends."""
    keys = [(settings.names["user-state"], p) for p in range(settings.topics.partitions)]
    targets = {key: end for key, (_, end) in watermarks(settings, keys).items()}
    reader, count = PartitionReader(settings, dict.fromkeys(keys, 0)), 0

    def one(_: object) -> None:
        nonlocal count
        count += 1

    reader.read_to(targets, one)
    reader.close()
    return count, sum(targets.values())


@pytest.mark.kafka
@pytest.mark.slow
def test_a_changelog_whose_control_records_are_compacted_away(tmp_path: Path) -> None:
    """Gaps everywhere, and behind the last record an aborted one with its marker: the end is no record."""
    with (
        tuned_broker({"log.cleaner.backoff.ms": "200"}) as broker,
        deployed(broker, tmp_path, partitions=2) as fleet,
    ):
        first = _served(fleet, 400, 63, WORKER__MAX_BATCH="10")
        before, end = _held(fleet.settings)
        _alter(
            fleet.settings, "user-state", segment_ms="50", min_cleanable_dirty_ratio="0.0",
            delete_retention_ms="0", max_compaction_lag_ms="1",
        )  # fmt: skip
        deadline = time.monotonic() + 90.0
        while _held(fleet.settings)[0] > 3 * 40:  # 40 users, and what the last segment holds
            assert time.monotonic() < deadline, f"{before} records, still {_held(fleet.settings)}"
            aborted = _transaction(fleet.settings, "roller")  # an append rolls the segment
            _append(aborted, fleet.settings)
            aborted.abort_transaction(10)
            time.sleep(0.5)
        after, end_after = _held(fleet.settings)
        assert after < before < end < end_after
        fleet.produce("events", first)
        worker = fleet.worker("w1")
        fleet.wait_handled()
        worker.stop()
        assert _restored(worker) == after
        run = assert_exactly_once(fleet.settings, compacted=True)
        assert len(run.rows) == 400
        assert sum(shard.stats.duplicate for shard in run.shards.values()) == 400
