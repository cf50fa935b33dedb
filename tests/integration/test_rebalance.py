"""Who takes a partition over, how soon, and what a rebalance may never do.

Times are measured from the kill, or from the moment at which a started worker knows the learned item state
(its log says so) and joins the group.
"""

from __future__ import annotations

import math
import re
import time
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from streams.clients import consumer_config, make_consumer, make_producer, producer_config
from streams.errors import BrokerUnavailableError, TopicLayoutError, TransactionLostError
from streams.settings import Settings
from streams.shards import INPUTS, Shards
from streams.source import Source
from streams.transaction import transactional_id
from tests.integration.auditor import assert_exactly_once, read_run
from tests.integration.tuned_broker import deployed, log_times, tuned_broker
from tests.integration.worker_process import (
    PATIENCE_S,
    START_MS,
    Deployment,
    Input,
    WorkerProcess,
    event,
    stream_of,
)

SMALL = {"WORKER__MAX_BATCH": "20"}
SESSION_S = 6.0
"""worker_process.FAST: the shortest that a broker takes by default."""


def _one_each(name: str, partitions: int = 4) -> list[Input]:
    """One event for each partition."""
    return [
        event(f"{name}{p}", f"{name}-user-{p}", f"item-{p}", START_MS + p)._replace(partition=p)
        for p in range(partitions)
    ]


TRIES = 3
"""A promise of seconds is one about the worker: that other processes had the processor once, or twice,
breaks none."""


def _takeover_s(worker: WorkerProcess) -> tuple[float, float]:
    """Seconds from joining to having restored, and what of it was the restore."""
    joined, restored = log_times(worker, "item state:")[-1], log_times(worker, "restored partitions")[-1]
    restore_s = float(re.findall(r"restored partitions .* in ([\d.]+) s", worker.log)[-1])
    return restored - joined, restore_s


def test_the_same_id_restarted_takes_over_at_once(fleet: Deployment) -> None:
    """Within 2 s and its restore after kill -9; the other worker does not even notice."""
    patient = {**SMALL, "WORKER__SESSION_TIMEOUT_S": "60"}  # the process may take long to start, not to join
    again, other = (fleet.worker(name, **patient) for name in ("w1", "w2"))
    fleet.wait_shared(2)
    lists, taken_s = fleet.tail("recommendations"), [math.inf]
    assigned = other.log.count("assigned")
    while taken_s[-1] >= 2.0 and len(taken_s) <= TRIES:
        sent = 600 * len(taken_s)
        fleet.produce("events", stream_of(600, seed=41, name=f"e{sent}-"))
        fleet.wait_for(lists, sent - 500)
        again.kill()
        again = fleet.worker("w1", **patient)
        fleet.wait_handled()
        whole_s, restore_s = _takeover_s(again)
        taken_s.append(whole_s - restore_s)
    assert taken_s[-1] < 2.0, f"{taken_s}\n{again.log}"
    assert other.log.count("assigned") == assigned
    for worker in (other, again):
        worker.stop()
    assert len(assert_exactly_once(fleet.settings).rows) == 600 * (len(taken_s) - 1)


class Ghost:
    """A dead worker's open transaction: records on `user-state` and offsets, sent under its transactional id
    and never committed."""

    def __init__(self, settings: Settings, worker_id: str, partitions: list[int]) -> None:
        config = producer_config(settings, transactional_id=transactional_id(settings, worker_id))
        self.producer: Producer = make_producer({**config, "transaction.timeout.ms": 60_000})
        self.producer.init_transactions(10)
        self.producer.begin_transaction()
        self.producer.produce(settings.names["user-state"], b"not read", b"ghost", partition=partitions[0])
        self.producer.produce(settings.names["interactions"], b"not read", partition=0)
        assert self.producer.flush(10) == 0
        stranger: Consumer = make_consumer(consumer_config(settings, group=settings.worker_group))
        places = [TopicPartition(settings.names["events"], p, 1) for p in partitions]
        self.producer.send_offsets_to_transaction(places, stranger.consumer_group_metadata(), 10)
        stranger.close()


def test_a_lost_machine_is_replaced_and_its_open_transaction_fenced(fleet: Deployment) -> None:
    """Within the session timeout and 3 s, and the restore, though the dead worker's transaction, open for a
    minute to come, holds the changelog of one of its partitions and the group's offsets of all of them."""
    heir, taken_s = fleet.worker("heir"), [math.inf]
    while taken_s[-1] >= SESSION_S + 3.0 and len(taken_s) <= TRIES:
        taken_s.append(_replaced_s(fleet, heir, len(taken_s)))
    assert taken_s[-1] < SESSION_S + 3.0, f"{taken_s}\n{heir.log}"
    heir.stop()
    run = assert_exactly_once(fleet.settings)
    names = [
        f"{when}{n}-{p}" for when in ("before", "after") for n in range(1, len(taken_s)) for p in range(4)
    ]
    assert sorted(row.event_id for row in run.rows) == sorted(names)


def _replaced_s(fleet: Deployment, heir: WorkerProcess, number: int) -> float:
    """Seconds from the loss of a machine until `heir` has its partitions, without the restore."""
    lost = fleet.worker("lost")
    fleet.wait_shared(2)
    fleet.produce("events", _one_each(f"before{number}-"))
    fleet.wait_handled()
    given = re.findall(r"events\[(\d)\]", lost.log[lost.log.rindex("assigned") :])
    killed = time.time()
    lost.kill()
    ghost = Ghost(fleet.settings, "lost", sorted({int(number) for number in given}))
    fleet.produce("events", _one_each(f"after{number}-"))
    fleet.wait_handled()
    restored = log_times(heir, "restored partitions")[-1]
    assert heir.log.count("fencing transactional id") >= number
    with pytest.raises(KafkaException, match=r"(?i)fenced|epoch"):
        ghost.producer.commit_transaction(10)
    return restored - killed - _takeover_s(heir)[1]


def test_an_assignment_that_parts_a_user_is_fatal(fleet: Deployment) -> None:
    """A stranger in the workers' group that reads `events` alone: users' events and requests would part."""
    settings = fleet.worker_settings()
    stranger = make_consumer(consumer_config(settings, group=settings.worker_group))
    stranger.subscribe([settings.names["events"]])
    deadline = time.monotonic() + PATIENCE_S
    while not stranger.assignment():
        assert time.monotonic() < deadline
        stranger.poll(0.1)
    worker = fleet.worker("w1")
    while worker.exited() is None and time.monotonic() < deadline:
        stranger.poll(0.1)
    stranger.close()
    assert worker.wait(10) == 1
    assert "other partitions of one input than of the other" in worker.log
    assert "Something else consumes in this group" in worker.log
    assert log_times(worker, "restored") == []


def test_a_changelog_that_cannot_be_read_ends_the_worker(fleet: Deployment) -> None:
    """An exception in a rebalance callback: the process ends, and no partition stays without an owner."""
    fleet.produce("user-state", [Input(b"\x00partition", b"not a record", partition=2)])
    worker = fleet.worker("w1")
    assert worker.wait() == 1
    assert re.search(r"freshet: .*user-state\[2\]@0", worker.log)
    assert "Traceback" not in worker.log


class Failing(Shards):
    """Shards whose restore fails as told."""

    failure: Exception

    def restore(self, *_: object, **__: object) -> bool:
        raise self.failure


def _poll_until(source: Source, deadline: float) -> None:
    while time.monotonic() < deadline:
        source.poll(10, 0.1)


def test_rebalances_come_while_a_commit_is_on_its_way(fleet: Deployment) -> None:
    """Behind, a worker computes the next batch while the broker commits the last; a member that comes and
    goes takes partitions away at any moment of that."""
    fleet.produce("events", stream_of(6000, seed=23, users=60))
    worker = fleet.worker("w1", WORKER__MAX_BATCH="20", TRIGGER__EVENTS="false")
    tail = fleet.tail("interactions")
    fleet.wait_for(tail, 1)
    topics = [fleet.settings.names[name] for name in INPUTS]
    config = consumer_config(fleet.settings, group=fleet.settings.worker_group)
    for _ in range(5):
        guest = make_consumer(config)
        guest.subscribe(topics)
        for _ in range(20):
            guest.consume(1, 0.05)  # it joins, and commits nothing
        guest.close()
    fleet.wait_handled()
    assert worker.exited() is None
    assert worker.stop() < 10.0
    rows = read_run(fleet.settings).rows
    assert sorted(row.event_id for row in rows) == sorted(f"e{k}" for k in range(6000))


@pytest.mark.parametrize(
    ("failure", "comes_out"),
    [
        (BrokerUnavailableError("gone"), TransactionLostError),
        (TopicLayoutError("added"), TopicLayoutError),
        (RuntimeError("a bug"), RuntimeError),
    ],
    ids=["passing", "an operator's", "a bug"],
)
def test_what_a_callback_raises_comes_out_of_poll(
    settings: Settings, failure: Exception, comes_out: type[Exception]
) -> None:
    """What passes begins a new session, and all else ends the process; no partition is taken in between."""
    shards = Failing(settings, "id", ["click"])
    shards.failure = failure
    source = Source(settings, shards, "w1", static=True, should_stop=lambda: False, on_state=lambda _: None)
    deadline = time.monotonic() + PATIENCE_S
    try:
        with pytest.raises(comes_out, match=str(failure)):
            _poll_until(source, deadline)
        assert source.consumer.assignment() == []
        assert shards.owned == {}
    finally:
        source.close()


KIP_848 = {"KAFKA__GROUP_PROTOCOL": "consumer", "KAFKA__GROUP_REMOTE_ASSIGNOR": "range"}
BROKER_SESSION_S = 3.0
TUNED = {
    "group.consumer.min.session.timeout.ms": "1000",
    "group.consumer.session.timeout.ms": str(int(BROKER_SESSION_S * 1000)),
    "group.consumer.min.heartbeat.interval.ms": "100",
    "group.consumer.heartbeat.interval.ms": "500",
}


@pytest.mark.kafka
@pytest.mark.slow
def test_the_new_group_protocol_works_end_to_end(tmp_path: Path) -> None:
    """KIP-848: two workers share, one is killed with its partitions, one is restarted, one is stopped; the
    broker's session timeout, not ours, says how long a lost worker keeps its partitions."""
    with tuned_broker(TUNED) as broker, deployed(broker, tmp_path) as fleet:
        lost, heir = (fleet.worker(name, **KIP_848, **SMALL) for name in ("lost", "heir"))
        fleet.wait_shared(2)
        fleet.produce("events", stream_of(300, seed=42))
        fleet.wait_for(fleet.tail("recommendations"), 50)
        killed = time.time()
        lost.kill()
        fleet.wait_handled()
        failover_s = log_times(heir, "restored partitions")[-1] - killed
        assert failover_s < BROKER_SESSION_S + 3.0, heir.log
        again = fleet.worker("lost", **KIP_848, **SMALL)
        fleet.wait_shared(2)
        fleet.produce("events", stream_of(300, seed=43, name="more"))
        fleet.wait_handled()
        for worker in (again, heir):
            worker.stop()
        assert len(assert_exactly_once(fleet.settings).rows) == 600
