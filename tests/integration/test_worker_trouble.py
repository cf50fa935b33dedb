"""What a worker does when something goes wrong beside the data: bad moments, a disk that refuses."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from streams.broker import BrokerInfo
from streams.dumps import dump_state
from streams.topic_admin import create_topics
from tests.conftest import settings_for
from tests.integration.worker_process import PATIENCE_S, Deployment, Input, deployment, stream_of


@pytest.mark.parametrize(
    "after_s",
    [0.0, pytest.param(1.0, marks=pytest.mark.slow), 2.0, pytest.param(3.0, marks=pytest.mark.slow)],
)
def test_sigterm_while_starting_ends_cleanly(fleet: Deployment, after_s: float) -> None:
    """Before, in and after the restore of a changelog: exit 0 within 10 s, nothing taken."""
    fleet.produce("events", stream_of(300, seed=2))
    first = fleet.worker("w1")
    fleet.wait_handled()
    first.stop()
    again = fleet.worker("w1")
    again.wait_for_handler()
    time.sleep(after_s)
    assert again.stop() < 10.0
    assert "Traceback" not in again.log


def test_a_snapshot_that_fails_is_told_and_serving_goes_on(fleet: Deployment, tmp_path: Path) -> None:
    not_a_folder = tmp_path / "occupied"
    not_a_folder.write_text("a file where the folder should be")
    worker = fleet.worker("w1", STATE__DIR=str(not_a_folder / "in"), WORKER__SNAPSHOT_INTERACTIONS="50")
    fleet.produce("events", stream_of(400, seed=3))
    fleet.wait_handled()
    deadline = time.monotonic() + PATIENCE_S
    while "snapshot at offset" not in worker.log and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "snapshot at offset" in worker.log
    assert worker.exited() is None
    worker.stop()


def test_a_broken_producer_gets_no_new_window_from_a_restart(fleet: Deployment) -> None:
    """Each restart may take a few records more, not another half window."""
    fleet.produce("events", [Input(b"user-1", b"not json")] * 1500)
    rejected = []
    for _ in range(3):
        worker = fleet.worker("w1", VALIDATION__REJECT_WINDOW="200", WORKER__MAX_BATCH="20")
        assert worker.wait() == 1
        assert "a producer has broken" in worker.log
        rejected.append(sum(r["rejected"] for r in dump_state(fleet.settings) if r["kind"] == "partition"))
    assert 90 <= rejected[0] <= 200
    assert rejected[2] - rejected[0] <= 60


@pytest.mark.timeout(120)
def test_sigterm_while_the_broker_hangs(
    kafka_broker: Callable[..., BrokerInfo], freshet_env: dict[str, str], tmp_path: Path
) -> None:
    """A frozen broker with its connections open: the worker still ends within 10 s."""
    broker = kafka_broker()
    settings = settings_for(broker.bootstrap_servers, topics={"partitions": 2})
    create_topics(settings)
    env = {
        **freshet_env,
        "FRESHET_KAFKA__BOOTSTRAP_SERVERS": broker.bootstrap_servers,
        "FRESHET_TOPICS__PREFIX": "",
        "FRESHET_TOPICS__PARTITIONS": "2",
    }
    with deployment(settings, env, tmp_path) as fleet:
        fleet.produce("events", stream_of(500, seed=9))
        worker = fleet.worker("w1", WORKER__MAX_BATCH="10", WORKER__RPC_TIMEOUT_S="30")
        fleet.wait_for(fleet.tail("recommendations"), 100)
        frozen = signal_broker(broker, signal.SIGSTOP)
        try:
            time.sleep(0.5)
            started = time.monotonic()
            worker.signal(signal.SIGTERM)
            assert worker.wait() == 0, worker.log
            assert time.monotonic() - started < 10.0
        finally:
            signal_broker(frozen, signal.SIGCONT)


def signal_broker(broker: BrokerInfo, number: signal.Signals) -> BrokerInfo:
    import os

    os.kill(broker.pid, number)
    return broker
