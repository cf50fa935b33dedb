"""The commands, as a user types them, against a broker that they start themselves."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streams.broker_java import find_java, kafka_jars
from streams.errors import EmbeddedBrokerError
from streams.settings import default_state_dir

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]

EVENTS = 400


class Shell:
    """Runs `freshet …` with a state folder of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        own = {name: value for name, value in os.environ.items() if not name.startswith("FRESHET_")}
        self.env = {**own, "FRESHET_HOME": str(home)}

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "streams.cli", "--log-level", "warning", *arguments]

    def run(self, *arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            self.command(*arguments), env=self.env, capture_output=True, text=True, timeout=120, cwd=ROOT
        )
        assert done.returncode == code, f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout if code == 0 else done.stderr

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json"))

    def lines(self, *arguments: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.run(*arguments).splitlines()]


ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A machine of one's own, with the broker's jars shared, and one broker running on it."""
    try:
        jars = kafka_jars(find_java(), None)
    except EmbeddedBrokerError as error:
        if os.environ.get("REQUIRE_KAFKA") == "1":
            pytest.fail(f"REQUIRE_KAFKA=1, and the embedded broker can't be had: {error}")
        pytest.skip(str(error))
    home = tmp_path_factory.mktemp("home")
    assert jars.is_relative_to(default_state_dir())
    (home / "kafka").mkdir()
    (home / "kafka" / jars.parent.name).symlink_to(jars.parent)
    shell = Shell(home)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    try:
        started = shell.json("kafka", "start", "--port", port)
        assert started["bootstrap_servers"] == f"127.0.0.1:{port}"
        assert Path(started["data_dir"]).is_dir()
        assert started["pid"] > 0
        yield shell
    finally:
        assert shell.json("kafka", "stop") == {"stopped": True}


@pytest.fixture(scope="module")
def served(shell: Shell) -> Iterator[Shell]:
    """Topics made, a worker running, synthetic events answered; the worker ends with exit 0 on SIGTERM."""
    created = shell.json("topics", "create")
    assert {row["status"] for row in created} == {"created"}
    worker = subprocess.Popen(shell.command("worker", "--id", "cli-1"), env=shell.env, cwd=ROOT)
    try:
        sent = shell.json("replay", "--dataset", "synthetic", "--events", str(EVENTS), "--rate", "400")
        assert sent["events"] == EVENTS
        deadline = time.monotonic() + 90
        while _learned(shell) < EVENTS:
            assert worker.poll() is None, "the worker ended by itself"
            assert time.monotonic() < deadline, f"{_learned(shell)} of {EVENTS} learned after 90 s"
        yield shell
    finally:
        asked = time.monotonic()
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0
        assert time.monotonic() - asked < 10


def _learned(shell: Shell) -> int:
    return sum(row["accepted"] for row in shell.lines("state", "dump") if row["kind"] == "partition")


def test_status_says_where_the_broker_is(shell: Shell) -> None:
    status = shell.json("kafka", "status")
    assert status["running"]
    assert status["answers"]
    again = shell.json("kafka", "start")
    assert again["pid"] == status["pid"], "a second start finds the first broker"


def test_topics_are_there_once_created(served: Shell) -> None:
    assert {row["status"] for row in served.json("topics", "create")} == {"exists"}
    described = {row["topic"]: row for row in served.json("topics", "describe")}
    assert described["events"]["partitions"] == described["user-state"]["partitions"] == 8
    assert described["interactions"]["partitions"] == 1
    assert described["events"]["high_watermarks"] == EVENTS


def test_log_dump_has_every_event_once_with_its_origin(served: Shell) -> None:
    rows = served.lines("log", "dump")
    assert len(rows) == EVENTS
    assert len({row["event_id"] for row in rows}) == EVENTS
    assert len({(row["topic"], row["partition"], row["offset"]) for row in rows}) == EVENTS
    assert all(row["user_id"] and row["item_id"] and row["timestamp"] > 0 for row in rows)
    assert {row["topic"] for row in rows} == {"events"}


def test_state_dump_agrees_with_the_log(served: Shell) -> None:
    rows = served.lines("state", "dump")
    partitions = [row for row in rows if row["kind"] == "partition"]
    users = {row["user_id"]: row for row in rows if row["kind"] == "user"}
    assert sum(row["accepted"] for row in partitions) == EVENTS
    assert sum(row["next_offsets"]["events"] for row in partitions) == EVENTS
    assert {row["transactional_id"] for row in partitions} == {"freshet-cli-1"}
    log = served.lines("log", "dump")
    for user_id, row in users.items():
        used = [r["item_id"] for r in log if r["user_id"] == user_id and r["weight"] != 0]
        assert [entry["item_id"] for entry in row["recent"]] == used[-50:]


def test_recommend_asks_the_running_worker(served: Shell) -> None:
    user = next(row for row in served.lines("state", "dump") if row["kind"] == "user" and row["recent"])
    answer = served.json("recommend", user["user_id"], "--count", "5")
    items = [item["item_id"] for item in answer["items"]]
    assert answer["user_id"] == user["user_id"]
    assert len(items) == 5
    assert not set(items) & set(user["seen"])
    text = served.run("recommend", user["user_id"], "--count", "5")
    assert len(text.splitlines()) == 5
    assert all(item["reason"]["text"] for item in answer["items"])


def test_doctor_finds_nothing_wrong(served: Shell) -> None:
    findings = {row["check"]: row["status"] for row in served.json("doctor")}
    assert findings["broker"] == findings["topics"] == findings["worker group"] == "ok"
    assert "failed" not in findings.values()


def test_forget_waits_until_the_user_is_gone(served: Shell) -> None:
    users = [row for row in served.lines("state", "dump") if row["kind"] == "user"]
    gone = users.pop(0)
    told = served.json("forget", gone["user_id"])
    assert told == {**told, "user_id": gone["user_id"], "partition": gone["partition"], "done": True}
    after = [row["user_id"] for row in served.lines("state", "dump") if row["kind"] == "user"]
    assert after == [row["user_id"] for row in users]
    log = served.lines("log", "dump", "--corrections")
    mine = Counter(row["kind"] for row in log if row["user_token"] == gone["token"])
    assert mine == {"learn": gone["events"], "uncount": len(gone["recent"]), "forget_user": 1}
    assert len(served.lines("log", "dump")) == EVENTS
    assert "USER has 0 bytes" in served.run("forget", "", code=1)


def test_models_without_any(served: Shell) -> None:
    assert served.json("models", "list") == []
    assert "nothing to roll back" in served.run("models", "rollback", code=1)
    assert "freshet:" in served.run("models", "promote", "20990101T000000.000Z-00000000", code=1)


def test_a_wrong_setting_is_named(shell: Shell) -> None:
    shell.env["FRESHET_WORKER__MAX_BATCH"] = "0"
    try:
        said = shell.run("topics", "describe", code=1)
    finally:
        del shell.env["FRESHET_WORKER__MAX_BATCH"]
    assert "worker.max_batch" in said
    assert "FRESHET_WORKER__MAX_BATCH" in said
