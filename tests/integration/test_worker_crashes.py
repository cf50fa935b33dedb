"""Whoever dies when: every committed event is learned exactly once. Kills are by progress, seeded, never by
the clock."""

from __future__ import annotations

import copy
import random
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from online_models.item_state import ItemState, ModelSettings
from streams.clients import make_producer, producer_config
from tests.integration.auditor import Run, assert_exactly_once, read_run, replayed_digests, violations
from tests.integration.worker_process import Deployment, Input, WorkerProcess, stream_of

SMALL = {"WORKER__MAX_BATCH": "20"}
"""Many transactions, so that a kill falls into one."""


def _kill_along(fleet: Deployment, n: int, kills: int, seed: int, worker_id: str | None) -> None:
    """Kill the one worker `kills` times on its way through `n` events, and start it again each time."""
    fleet.produce("events", stream_of(n, seed=seed))
    lists = fleet.tail("recommendations")
    rng = random.Random(seed)
    for count in sorted(rng.sample(range(n // 20, n * 9 // 10), kills)):
        worker = fleet.worker(worker_id, **SMALL)
        fleet.wait_for(lists, count)
        worker.kill()
    last = fleet.worker(worker_id, **SMALL)
    fleet.wait_handled()
    last.stop()
    run = assert_exactly_once(fleet.settings)
    assert len(run.rows) == n
    epochs = {dict(record.headers)["epoch"] for record in run.lists}
    assert len(epochs) == kills + 1


@pytest.mark.slow
def test_kill_9_and_restart_under_the_same_id(fleet: Deployment) -> None:
    _kill_along(fleet, 1500, kills=3, seed=11, worker_id="w1")


def test_kill_9_and_restart_under_another_id(fleet: Deployment) -> None:
    _kill_along(fleet, 800, kills=1, seed=12, worker_id=None)


@pytest.mark.slow
def test_kill_9_many_times(fleet: Deployment) -> None:
    _kill_along(fleet, 10_000, kills=15, seed=13, worker_id="w1")


def snapshots(folder: Path, whole: Callable[[Path], bool] = lambda path: True) -> dict[int, ItemState]:
    """The item state of each snapshot under `folder`, by learning-log offset; of those that `whole` lets
    pass."""
    paths = filter(whole, folder.rglob("items-*.safetensors"))
    return {int(p.name.split("-")[1]): ItemState.from_bytes(ModelSettings(), p.read_bytes()) for p in paths}


def _check_replicas(fleet: Deployment, folders: list[Path]) -> None:
    """At every offset at which a replica took a snapshot, its state is what one replay of the log gives."""
    for folder in folders:
        states = snapshots(folder)
        assert len(states) > 2
        digests = replayed_digests(fleet.settings, states)
        assert len(set(digests.values())) == len(digests)
        assert {offset: state.digest() for offset, state in states.items()} == digests


@pytest.mark.slow
def test_two_workers_one_stopped_one_killed(fleet: Deployment, tmp_path: Path) -> None:
    folders = [tmp_path / "snapshots-a", tmp_path / "snapshots-b"]
    often = {"WORKER__SNAPSHOT_INTERACTIONS": "100", "WORKER__SNAPSHOT_S": "0"}
    common = {**SMALL, **often, "WORKER__SNAPSHOTS_KEPT": "100"}
    workers: list[WorkerProcess] = [
        fleet.worker(None, **common, STATE__DIR=str(folder)) for folder in folders
    ]
    stream = stream_of(1500, seed=14)
    fleet.wait_shared(2)
    fleet.produce("events", stream[:700])
    lists = fleet.tail("recommendations")
    fleet.wait_for(lists, 300)
    workers[0].stop()
    fleet.wait_for(lists, 700)
    heir = fleet.worker(None, **common, STATE__DIR=str(folders[0]))
    fleet.wait_shared(2)
    fleet.produce("events", stream[700:])
    fleet.wait_for(lists, 1000)
    workers[1].kill()
    fleet.wait_handled()
    heir.stop()
    run = assert_exactly_once(fleet.settings)
    assert len(run.rows) == 1500
    _check_replicas(fleet, folders)


def test_a_transaction_that_a_dead_worker_left_open_holds_nobody_back(fleet: Deployment) -> None:
    """Records of an open transaction stand in the learning log, and their owner is gone: lists go on all
    the same."""
    config = producer_config(fleet.settings, transactional_id=f"{fleet.settings.topics.prefix}gone")
    gone = make_producer({**config, "transaction.timeout.ms": 120_000})
    gone.init_transactions(10)
    gone.begin_transaction()
    gone.produce(fleet.settings.names["interactions"], b"never committed", partition=0)
    gone.flush(10)
    fleet.produce("events", stream_of(100, seed=18))
    worker = fleet.worker(None)
    fleet.wait_handled()
    gone.abort_transaction(10)
    fleet.produce("events", stream_of(100, seed=19, name="later"))
    fleet.wait_handled()
    worker.stop()
    assert len(assert_exactly_once(fleet.settings).rows) == 200


@pytest.mark.slow
def test_a_worker_that_slept_through_its_session_is_fenced(fleet: Deployment) -> None:
    """SIGSTOP for longer than the session: its partitions go on elsewhere, and what it still held in memory
    is refused."""
    fleet.produce("events", stream_of(1500, seed=15))
    lists = fleet.tail("recommendations")
    sleeper = fleet.worker(None, **SMALL)
    fleet.wait_for(lists, 100)
    sleeper.signal(signal.SIGSTOP)
    other = fleet.worker(None, **SMALL)
    fleet.wait_handled()
    fleet.produce("events", stream_of(500, seed=16, name="more"))
    sleeper.signal(signal.SIGCONT)
    fleet.wait_handled()
    other.stop()
    sleeper.signal(signal.SIGTERM)
    assert sleeper.wait() in (0, 1), "it restores and goes on, or says that it was fenced"
    assert len(assert_exactly_once(fleet.settings).rows) == 2000


def _twice(run: Run) -> Run:
    return replace(run, lists=[*run.lists, run.lists[0]])


def _learned_twice(run: Run) -> Run:
    return replace(run, rows=[*run.rows, run.rows[-1]])


def _unlearned(run: Run) -> Run:
    return replace(run, rows=run.rows[1:])


def _unanswered(run: Run) -> Run:
    return replace(run, lists=run.lists[1:])


def _behind(run: Run) -> Run:
    return replace(run, committed={key: max(0, end - 1) for key, end in run.committed.items()})


def _swapped(run: Run) -> Run:
    """Two lists of one user change places."""
    first = run.lists[0]
    second = next(r for r in run.lists[1:] if r.key == first.key)
    lists = [second if r is first else first if r is second else r for r in run.lists]
    return replace(run, lists=lists)


def _forgotten(run: Run) -> Run:
    """The changelog without one of its users."""
    partition, full = next((p, records) for p, records in run.shards.items() if records.hot)
    cut = copy.copy(full)
    gone = next(iter(cut.hot))
    cut.hot, cut.cold = ({k: v for k, v in kept.items() if k != gone} for kept in (full.hot, full.cold))
    return replace(run, shards={**run.shards, partition: cut})


DOCTORED: dict[str, Callable[[Run], Run]] = {
    "a list twice": _twice,
    "an event learned twice": _learned_twice,
    "an event not learned": _unlearned,
    "an event not answered": _unanswered,
    "offsets behind": _behind,
    "lists out of order": _swapped,
    "a user forgotten": _forgotten,
}


def test_the_auditor_sees_what_a_crash_without_transactions_does(fleet: Deployment) -> None:
    """The control: offsets committed after the records instead of with them, and a kill in between, is not
    exactly once, and the audit says so. Then a clean run, doctored in every way, is seen through each
    time."""
    fleet.produce("events", stream_of(300, seed=17, users=8))
    worker = fleet.worker(None)
    fleet.wait_handled()
    worker.stop()
    run = assert_exactly_once(fleet.settings)
    for name, doctor in DOCTORED.items():
        assert violations(doctor(run), fleet.settings), name
    _repeat_last_batch(fleet)
    found = violations(read_run(fleet.settings), fleet.settings)
    assert any("too many" in line for line in found), found


def _repeat_last_batch(fleet: Deployment) -> None:
    """What a worker leaves that has produced its last batch again but never committed offsets for it."""
    tail = fleet.tail("recommendations", "interactions")
    fleet.wait_for(tail, 301)
    for name in ("recommendations", "interactions"):
        last = [m for m in tail.records if m.topic() == fleet.settings.names[name]][-1]
        fleet.produce(name, [Input(last.key(), last.value(), tuple(last.headers() or ()), last.partition())])
