"""`freshet monitor` as a process on a real broker: what goes into Kafka comes out as metrics and JSON."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import TopicPartition
from prometheus_client.parser import text_string_to_metric_families

from streams.broker import start_broker, stop_broker
from streams.clients import make_consumer, make_producer, producer_config, tail_consumer_config
from streams.settings import Settings, load_settings
from streams.topic_admin import create_topics
from tests.test_streams.monitor_records import model_record, partition_stats, worker_stats

START_S = 120.0
RUN = """
import logging, sys, msgspec
from streams.monitor.app import run_monitor
from streams.settings import Settings
logging.basicConfig(level=logging.INFO)
settings = msgspec.json.decode(sys.argv[1], type=Settings)
run_monitor(settings, lambda url: print("ready", url, flush=True))
"""


class Monitor:
    """A monitor process, its output in a file, and questions to it."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self.folder = folder
        self.output = folder / f"monitor-{uuid.uuid4().hex[:6]}.log"
        self.url = f"http://127.0.0.1:{settings.monitor.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Start, wait until it reads Kafka, and return how many seconds that took."""
        started_s = time.monotonic()
        path = os.pathsep.join(p for p in (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")) if p)
        with self.output.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", RUN, msgspec.json.encode(self.settings).decode()],
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": path},
            )
        self.wait(lambda: "ready http" in self.output.read_text() or self.process.poll() is not None)  # type: ignore[union-attr]
        assert self.process.poll() is None, self.output.read_text()
        return time.monotonic() - started_s

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout=20)

    def wait(self, done: Callable[[], bool], limit_s: float = START_S) -> None:
        deadline_s = time.monotonic() + limit_s
        while not done():
            assert time.monotonic() < deadline_s, self.output.read_text()[-3000:]
            time.sleep(0.1)

    def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        request = urllib.request.Request(self.url + path, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), error.read()

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.get("/api/state")[2])
        return found

    def samples(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        families = text_string_to_metric_families(self.get("/metrics")[2].decode())
        return {(s.name, frozenset(s.labels.items())): s.value for f in families for s in f.samples}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def with_port(settings: Settings) -> Settings:
    monitor = msgspec.structs.replace(settings.monitor, port=free_port(), poll_s=0.3)
    return msgspec.structs.replace(settings, monitor=monitor)


@pytest.fixture
def monitor(settings: Settings, tmp_path: Path) -> Iterator[Monitor]:
    folder = tmp_path / "cwd"
    folder.mkdir()
    running = Monitor(with_port(settings), folder)
    yield running
    if running.process is not None:
        running.stop()


def send(settings: Settings, topic: str, *records: Any, headers: dict[str, bytes] | None = None) -> None:
    """Produce records, each of them confirmed by the broker (a compacted topic takes none without a key)."""
    failed: list[Any] = []
    producer = make_producer(producer_config(settings))
    for record in records:
        value = record if isinstance(record, bytes) else msgspec.json.encode(record)
        producer.produce(
            settings.names[topic],
            key=b"key",
            value=value,
            headers=headers or {},
            on_delivery=lambda error, _: failed.append(error) if error else None,
        )
    assert producer.flush(10) == 0
    assert not failed


def now_ms() -> int:
    return int(time.time() * 1000)


def test_what_goes_in_comes_out(monitor: Monitor) -> None:
    settings = monitor.settings
    send(settings, "models", model_record("v1"), model_record("v2", published_at=2_000), b"{not json")
    send(settings, "events-dlq", b"x", b"y", headers={"freshet.errors.reason": b"invalid_json"})
    send(settings, "events", *[b"e%d" % number for number in range(40)])
    assert monitor.start() < START_S
    send(
        settings,
        "worker-stats",
        worker_stats("w1", at=now_ms(), partitions={"0": partition_stats(accepted=600)}),
        worker_stats("w2", at=now_ms(), partitions={"1": partition_stats(accepted=400)}),
        b"[]",
    )
    send(settings, "events-dlq", b"z", headers={"freshet.errors.reason": b"too_large"})
    monitor.wait(lambda: monitor.state()["totals"]["accepted"] == 1000)
    monitor.wait(lambda: len(monitor.state()["dead_letters"]) == 2 and len(monitor.state()["models"]) == 2)
    state = monitor.state()
    assert state["events_per_s"] == 200
    assert state["hit_rate_at_10"] == pytest.approx(0.2)
    assert state["dead_letters"] == {"invalid_json": 2, "too_large": 1}
    assert [(m["version"], m["status"]) for m in state["models"]] == [("v2", "live"), ("v1", "superseded")]
    assert sorted(state["bad_records"].values()) == [1, 1]
    assert state["lag"] is None, "nobody has committed, so nobody knows"
    monitor.wait(lambda: any(name == "freshet_dead_letters_total" for name, _ in monitor.samples()))
    samples = monitor.samples()
    assert samples["freshet_events_total", frozenset({("outcome", "accepted")})] == 1000
    assert samples["freshet_recommendation_latency_seconds_count", frozenset()] == 160
    assert "not json" not in monitor.get("/api/state")[2].decode() + monitor.output.read_text()


def test_lag_is_kafkas_and_a_takeover_is_seen(monitor: Monitor) -> None:
    settings = monitor.settings
    topic = settings.names["events"]
    producer = make_producer(producer_config(settings))
    sent_s = time.monotonic()
    for number in range(40):
        producer.produce(topic, value=b"x", partition=number % 4)
    assert producer.flush(10) == 0
    consumer = make_consumer({**tail_consumer_config(settings), "group.id": settings.worker_group})
    ends = {n: consumer.get_watermark_offsets(TopicPartition(topic, n), timeout=10)[1] for n in range(4)}
    assert sum(ends.values()) == 40
    consumer.commit(
        offsets=[TopicPartition(topic, number, end // 2) for number, end in ends.items()], asynchronous=False
    )
    consumer.close()
    monitor.start()
    expected = sum(end - end // 2 for end in ends.values())
    monitor.wait(lambda: monitor.state()["lag"] == expected)
    state = monitor.state()
    assert {p["status"] for p in state["partitions"]} == {"UNOWNED"}
    assert 0 < state["lag_s"] < time.monotonic() - sent_s + 1.0
    labels = frozenset({("consumergroup", settings.worker_group), ("topic", topic)})
    assert monitor.samples()["kafka_consumergroup_lag_sum", labels] == expected


def test_restart_rebuilds_and_sigterm_is_clean(monitor: Monitor) -> None:
    settings = monitor.settings
    send(settings, "events-dlq", b"x", b"y", headers={"freshet.errors.reason": b"late"})
    monitor.start()
    send(settings, "worker-stats", worker_stats("w1", at=now_ms()))
    monitor.wait(lambda: monitor.state()["totals"]["accepted"] == 1000)
    monitor.wait(lambda: monitor.state()["dead_letters"] == {"late": 2})
    time.sleep(3)  # Faust commits about every 3 s: the restart must not go on from there
    begun_s = time.monotonic()
    assert monitor.stop() == 0, monitor.output.read_text()[-3000:]
    assert time.monotonic() - begun_s < 10
    monitor.start()
    monitor.wait(lambda: monitor.state()["totals"]["accepted"] == 1000)
    monitor.wait(lambda: monitor.state()["dead_letters"] == {"late": 2})
    assert monitor.stop(signal.SIGINT) == 0
    assert [path.name for path in monitor.folder.iterdir() if not path.name.endswith(".log")] == []
    assert "Traceback" not in monitor.output.read_text()


def test_aborted_dead_letters_do_not_count(monitor: Monitor) -> None:
    settings = monitor.settings
    producer = make_producer(producer_config(settings, transactional_id=f"t{uuid.uuid4().hex}"))
    producer.init_transactions(10)
    for commit in (False, True, True):
        producer.begin_transaction()
        producer.produce(settings.names["events-dlq"], b"x", headers={"freshet.errors.reason": b"late"})
        producer.flush(10)
        if commit:
            producer.commit_transaction(10)
        else:
            producer.abort_transaction(10)
    monitor.start()
    monitor.wait(lambda: sum(monitor.state()["dead_letters"].values()) >= 2)
    time.sleep(2)
    assert monitor.state()["dead_letters"] == {"late": 2}


def test_web_guards(monitor: Monitor) -> None:
    monitor.start()
    status, headers, body = monitor.get("/")
    assert status == 200
    assert body.startswith(b"<!doctype html>")
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'sha256-")
    for path in ("/", "/metrics", "/api/state", "/healthz"):
        assert monitor.get(path, Host="evil.example")[0] == 403
    request = urllib.request.Request(monitor.url + "/api/state", data=b"{}", method="POST")
    with pytest.raises(urllib.error.HTTPError, match="405"):
        urllib.request.urlopen(request, timeout=10)
    for path in ("/table/", "/router/", "/graph/", "/performance/", "/stats"):
        assert monitor.get(path)[0] == 404, "none of Faust's own pages"
    with socket.socket() as outside:
        outside.settimeout(2)
        assert outside.connect_ex((own_address(), monitor.settings.monitor.port)) != 0


def own_address() -> str:
    """An address of this machine that is not the loopback, or one that can't be reached."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
            return str(probe.getsockname()[0])
        except OSError:
            return "192.0.2.1"


def test_missing_topics_and_a_taken_port_are_said(
    kafka: Settings, settings: Settings, tmp_path: Path
) -> None:
    worker = msgspec.structs.replace(settings.worker, rpc_timeout_s=1.0)
    topics = msgspec.structs.replace(settings.topics, prefix="missing.")
    absent = Monitor(with_port(msgspec.structs.replace(settings, worker=worker, topics=topics)), tmp_path)
    with pytest.raises(AssertionError, match="freshet topics create"):
        absent.start()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monitor = msgspec.structs.replace(settings.monitor, port=int(taken.getsockname()[1]))
        second = Monitor(msgspec.structs.replace(settings, monitor=monitor), tmp_path)
        with pytest.raises(AssertionError, match=r"monitor\.port"):
            second.start()
        assert second.stop() == 1


@pytest.mark.slow
def test_broker_down_is_said_and_recovered_from(tmp_path: Path) -> None:
    """A broker of its own, since it is stopped and started again."""
    info = start_broker(data_dir=tmp_path / "kafka", remember=False, die_with_parent=True)
    port = int(info.bootstrap_servers.rpartition(":")[2])
    kafka = {"bootstrap.servers": info.bootstrap_servers}
    settings = with_port(load_settings(environ={}, overrides={"kafka": kafka}))
    create_topics(settings)
    running = Monitor(settings, tmp_path)
    try:
        running.start()
        running.wait(lambda: running.state()["broker_up"] is True)
        stop_broker(info, now=True)
        running.wait(lambda: running.state()["broker_up"] is False)
        assert running.get("/healthz")[0] == 503
        names = {name for name, _ in running.samples()}
        assert "freshet_broker_up" in names
        assert not [name for name in names if name.startswith("kafka_")]
        info = start_broker(data_dir=tmp_path / "kafka", port=port, remember=False, die_with_parent=True)
        running.wait(lambda: running.state()["broker_up"] is True)
        send(settings, "worker-stats", worker_stats("w1", at=now_ms()))
        running.wait(lambda: running.state()["totals"]["accepted"] == 1000)
        assert running.stop() == 0
    finally:
        running.stop()
        stop_broker(info, now=True)
