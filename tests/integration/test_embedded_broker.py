"""The embedded broker as a process: it starts, detaches, keeps its data, stops, and touches nobody else's."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil
import pytest

from streams.broker import BrokerInfo, broker_status, running_broker, start_broker, stop_broker
from streams.broker_java import find_java, kafka_jars
from streams.clients import admin, make_producer, producer_config
from streams.errors import EmbeddedBrokerError
from streams.topic_admin import check_layout, create_topics, describe_topics
from tests.conftest import settings_for
from tests.integration.worker_process import PATIENCE_S, Tail

Start = Callable[..., BrokerInfo]


@pytest.fixture
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of the test's own, which borrows the jars that are already there."""
    jars = kafka_jars(find_java())
    home = tmp_path / "home"
    (home / "kafka" / jars.parent.name).mkdir(parents=True)
    (home / "kafka" / jars.parent.name / "libs").symlink_to(jars)
    monkeypatch.setenv("FRESHET_HOME", str(home))
    return home


def test_data_survives_a_restart_and_the_process_is_gone_after_it(
    kafka_broker: Start, tmp_path: Path
) -> None:
    first = kafka_broker(tmp_path / "data")
    settings = settings_for(first.bootstrap_servers)
    create_topics(settings)
    producer = make_producer(producer_config(settings, transactional_id="t"))
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(settings.names["events"], key="u", value=b"kept")
    producer.commit_transaction(30)
    assert stop_broker(first)
    assert not psutil.pid_exists(first.pid)
    assert not stop_broker(first), "it is gone already"
    second = kafka_broker(tmp_path / "data", int(first.bootstrap_servers.rpartition(":")[2]))
    assert second.bootstrap_servers == first.bootstrap_servers
    assert check_layout(settings)["events"] == 8
    # A commit is durable before its marker is: what a stopping coordinator left, the restarted one writes.
    reader = Tail(settings, "events")
    deadline_s = time.monotonic() + PATIENCE_S
    while not reader.more():
        assert time.monotonic() < deadline_s, "committed before the restart, and not readable after it"
    assert [message.value() for message in reader.records] == [b"kept"]
    reader.close()
    events = next(entry for entry in describe_topics(settings) if entry["topic"] == "events")
    assert events["high_watermarks"] == 2, "the record and its commit marker"


def test_it_listens_on_loopback_only_and_makes_no_topic_unasked(kafka_broker: Start) -> None:
    info = kafka_broker()
    listening = [
        c.laddr.ip for c in psutil.Process(info.pid).net_connections() if c.status == psutil.CONN_LISTEN
    ]
    assert len(listening) == 2
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}
    client = admin(settings_for(info.bootstrap_servers))
    client.list_topics("unasked", timeout=5)
    assert "unasked" not in client.list_topics(timeout=5).topics
    assert Path(info.log_file).exists()


START = """
import sys
from streams.broker import start_broker
print(start_broker(die_with_parent={die}).pid, flush=True)
{then}
"""


def run_starter(die: bool, then: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", START.format(die=die, then=then)], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.usefixtures("own_state", "kafka_broker")
def test_the_remembered_broker_outlives_its_caller_and_holds_no_pipe_of_his() -> None:
    output, _ = run_starter(die=False).communicate(timeout=120)
    info = running_broker()
    assert info is not None
    try:
        assert info.pid == int(output)
        assert broker_status()["answers"]
        assert start_broker() == info, "a second start returns the running one"
        assert os.getsid(info.pid) == info.pid
    finally:
        assert stop_broker()
    assert running_broker() is None
    assert not broker_status()["running"]
    assert not stop_broker()


@pytest.mark.usefixtures("own_state", "kafka_broker")
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_a_broker_that_shall_not_outlive_its_caller_is_gone_when_he_is_killed() -> None:
    starter = run_starter(die=True, then="sys.stdin.read()")
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())
    assert psutil.pid_exists(pid)
    starter.send_signal(signal.SIGKILL)
    starter.communicate()
    deadline_s = time.monotonic() + PATIENCE_S
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline_s, f"broker {pid} still runs"
        time.sleep(0.05)


def test_a_stranger_with_the_same_pid_is_never_touched(own_state: Path) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        info = BrokerInfo(
            bootstrap_servers="127.0.0.1:9", data_dir="/", pid=stranger.pid, log_file="", started="long ago"
        )
        (own_state / "kafka" / "broker.json").write_bytes(msgspec.json.encode(info))
        assert running_broker() is None
        assert not stop_broker()
        assert not stop_broker(info)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_port_in_use_is_said_before_anything_is_started(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(EmbeddedBrokerError, match=rf"127\.0\.0\.1:{port} is in use.*--port"):
            start_broker(tmp_path / "data", port, remember=False)
    assert not (tmp_path / "data").exists()


def test_a_damaged_folder_is_said_with_the_log_and_nothing_is_left_running(
    kafka_broker: Start, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    (data / "log").mkdir(parents=True)
    (data / "log" / "meta.properties").write_text("version=1\nnode.id=77\ncluster.id=another\n")
    with pytest.raises(EmbeddedBrokerError, match=r"did not come up.*77.*--data-dir"):
        start_broker(data, remember=False)
    running = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert not [command for command in running if str(data) in command]
