"""A small run of the latency benchmark: both lanes answer, and the figures belong together."""

from __future__ import annotations

import pytest

from benchmarks.latency import measure
from streams.settings import Settings


def test_the_worker_and_the_echo_are_measured_side_by_side(
    kafka: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRESHET_KAFKA__BOOTSTRAP_SERVERS", kafka.bootstrap_servers)
    result = measure(rate=100.0, seconds=2.0, rounds=1)
    for lane in ("freshet", "echo"):
        assert 0 < result[f"{lane}_p50_ms"] <= result[f"{lane}_p99_ms"] < 10_000
    for name in ("p50", "p99"):
        ratio = result[f"freshet_{name}_ms"] / result[f"echo_{name}_ms"]
        assert result[f"ratio_{name}"] == pytest.approx(ratio, rel=0.02, abs=0.02)
