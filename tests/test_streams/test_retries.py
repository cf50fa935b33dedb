"""What was tried again is counted by kind, reported by the worker, and shown with its kind."""

from __future__ import annotations

import threading

import msgspec

from streams.events import WorkerStats
from streams.monitor.metric_specs import METRICS
from streams.monitor.report import state_report
from streams.monitor.state import MonitorState
from streams.retries import KINDS, Retries
from tests.test_streams.monitor_records import worker_stats


def test_no_count_is_lost_between_threads() -> None:
    retries = Retries()
    threads = [
        threading.Thread(target=lambda: [retries.count("read") for _ in range(2000)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert retries.counts() == {"read": 16_000}


def test_the_metric_shows_each_kind_of_each_worker() -> None:
    state = MonitorState(10, now=lambda: 1000.0, clock=lambda: 1000.0)
    stats = worker_stats("a", retries=dict.fromkeys(KINDS, 3))
    state.take_stats(msgspec.json.decode(msgspec.json.encode(stats), type=WorkerStats))
    state.take_stats(worker_stats("b", at=1_000_001, retries={}))
    [spec] = [spec for spec in METRICS if spec.name == "freshet_worker_retries_total"]
    assert dict(spec.samples(state)) == {("a", kind): 3 for kind in KINDS}
    assert state_report(state)["workers"][0]["retries"] == dict.fromkeys(KINDS, 3)
    for kind in KINDS:
        assert kind in spec.help
