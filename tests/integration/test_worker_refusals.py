"""What a worker refuses, what it says then, and what it takes though it is odd."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from confluent_kafka.admin import NewPartitions  # type: ignore[attr-defined]  # its re-exports are not marked

from streams.clients import admin, partition_for
from streams.errors import BrokerUnavailableError, TopicLayoutError
from streams.settings import Settings, load_settings
from streams.topics import CO_PARTITIONED
from streams.worker import Worker
from tests.chaos.records import read_topic
from tests.integration.auditor import Record, assert_exactly_once, read_run
from tests.integration.worker_process import (
    PATIENCE_S,
    START_MS,
    Deployment,
    Input,
    event,
    stream_of,
)


def _reason(record: Record) -> str:
    return (dict(record.headers)["freshet.errors.reason"] or b"").decode()


def _add_partitions(settings: Settings, topics: tuple[str, ...], count: int) -> None:
    new = [NewPartitions(settings.names[topic], count) for topic in topics]
    client = admin(settings)
    for future in client.create_partitions(new).values():
        future.result(10)
    wanted = {settings.names[topic] for topic in topics}
    deadline = time.monotonic() + PATIENCE_S
    while any(len(client.list_topics(name, 10).topics[name].partitions) < count for name in wanted):
        assert time.monotonic() < deadline, "the broker does not show the new partitions"


def test_a_broken_producer_stops_the_worker(fleet: Deployment) -> None:
    good = stream_of(400, seed=31)
    bad = [Input(b"user-1", b'{"event_id": "cut off') for _ in range(1500)]
    fleet.produce("events", [*good, *bad])
    worker = fleet.worker(None, WORKER__MAX_BATCH="100")
    assert worker.wait() == 1
    assert "of the last 1000 records of" in worker.log
    assert "a producer has broken" in worker.log
    assert "invalid_json" in worker.log
    stopped = read_run(fleet.settings)
    assert 300 < len(stopped.dead) < 1000
    again = fleet.worker(None, WORKER__MAX_BATCH="100", VALIDATION__REJECT_LIMIT="1")
    fleet.wait_handled()
    again.stop()
    run = assert_exactly_once(fleet.settings)
    assert (len(run.rows), len(run.dead)) == (400, 1500)


def test_rejected_items_reach_the_dead_letters_once(fleet: Deployment) -> None:
    """On a quiet deployment too, and not again after a restart."""
    fleet.produce("items", [Input(b"item-1", b"{"), Input(b"item-2", b'{"item_id": "other"}')])
    dead = fleet.tail("events-dlq")
    fleet.worker(None)
    fleet.wait_for(dead, 2)
    fleet.workers[-1].stop()
    fleet.produce("items", [Input(b"item-3", b"[]")])
    fleet.worker(None)
    fleet.wait_for(dead, 3)
    fleet.workers[-1].stop()
    assert not dead.more(0.5)
    found = [Record(0, 0, 0, m.key(), m.value(), tuple(m.headers() or ())) for m in dead.records]
    assert {(r.key, r.value, _reason(r)) for r in found} == {
        (b"item-1", b"{", "invalid_json"),
        (b"item-2", b'{"item_id": "other"}', "key_mismatch"),
        (b"item-3", b"[]", "wrong_type"),
    }


def _elsewhere(n: int, name: str) -> list[Input]:
    """Events of one user in the partition behind their own."""
    made = [event(f"{name}{k}", f"{name}-user", f"item-{k}", START_MS + k) for k in range(n)]
    return [i._replace(partition=(partition_for(i.key or b"", 4) + 1) % 4) for i in made]


@pytest.mark.slow
def test_at_least_once_misplaced_records_and_partitions_added(fleet: Deployment) -> None:
    fleet.produce("events", [*stream_of(300, seed=32), *_elsewhere(20, "lenient")])
    fleet.worker(None, WORKER__DELIVERY="at_least_once")
    fleet.wait_handled()
    fleet.workers[-1].stop()
    run = assert_exactly_once(fleet.settings)
    assert len(run.rows) == 320
    assert sum(shard.stats.misplaced for shard in run.shards.values()) == 20
    fleet.produce("events", _elsewhere(30, "strict"))
    fleet.worker(None, VALIDATION__PARTITIONING="strict")
    fleet.wait_handled()
    fleet.workers[-1].stop()
    strict = read_run(fleet.settings)
    assert Counter(map(_reason, strict.dead)) == {"wrong_partition": 30}
    assert len(strict.rows) == 320
    _add_partitions(fleet.settings, CO_PARTITIONED, 6)
    late = fleet.worker(None)
    assert late.wait() == 1
    assert "has 6 partitions, but the state of partition" in late.log
    assert "written when it had 4" in late.log
    assert "new [topics] prefix" in " ".join(late.log.split())


def test_wrong_partition_counts_and_missing_topics_are_refused(settings: Settings) -> None:
    _add_partitions(settings, ("requests",), 5)
    with pytest.raises(TopicLayoutError, match=r"requests has 5.*stop the workers"):
        Worker(settings).run()
    elsewhere = msgspec.structs.replace(
        settings, topics=msgspec.structs.replace(settings.topics, prefix="nowhere.")
    )
    with pytest.raises(TopicLayoutError, match=r"topics missing.*nowhere\.events.*freshet topics create"):
        Worker(elsewhere).run()


def test_no_broker_is_said_in_time(tmp_path: Path) -> None:
    overrides = {"kafka": {"bootstrap.servers": "127.0.0.1:1"}, "worker": {"rpc_timeout_s": 1.0}}
    started = time.monotonic()
    with pytest.raises(BrokerUnavailableError, match=r"127\.0\.0\.1:1 within 1 s.*freshet kafka start"):
        Worker(load_settings(environ={}, overrides=overrides)).run()
    assert time.monotonic() - started < 10.0


def test_a_session_that_the_broker_does_not_take_ends_the_worker(fleet: Deployment) -> None:
    worker = fleet.worker(None, WORKER__SESSION_TIMEOUT_S="1")
    assert worker.wait() == 1
    assert "freshet: setting worker.session_timeout_s: the broker does not take 1 s" in worker.log
    assert "group.min.session.timeout.ms" in worker.log


def test_stats_say_what_was_done(fleet: Deployment) -> None:
    """The reports of one worker's seconds add up to its work, and the last one says that it stopped."""
    fleet.produce("events", stream_of(200, seed=33))
    worker = fleet.worker("reporter", WORKER__STATS_S="0.2")
    fleet.wait_handled()
    worker.stop()
    reports = [json.loads(record.value or b"") for record in read_topic(fleet.settings, "worker-stats")]
    assert sum(r["events"] for r in reports) == 200
    assert sum(r["recommendations"] for r in reports) == 200
    assert reports[-1]["state"] == "stopping"
    assert {r["worker"] for r in reports} == {"reporter"}
    assert all(0 <= (r["lag"] or 0) <= 200 for r in reports)
