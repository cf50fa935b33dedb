"""The demo as a user runs it: from nothing to a summary, and nothing left behind whatever way it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from streams.errors import EmbeddedBrokerError

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]


@pytest.fixture(scope="module", autouse=True)
def embedded_broker_works() -> None:
    """The demo always brings its own broker."""
    from streams.broker_java import find_java, kafka_jars

    try:
        kafka_jars(find_java(), None)
    except EmbeddedBrokerError as error:
        if os.environ.get("REQUIRE_KAFKA") == "1":
            pytest.fail(f"REQUIRE_KAFKA=1, and the embedded broker can't be had: {error}")
        pytest.skip(str(error))


def start_demo(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "streams.cli", "demo", "--dataset", "synthetic", *arguments]
    env = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command,
        env=env,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def left_behind(folder: Path) -> list[str]:
    """Processes that work in the demo's folder, and what is left of the folder."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "cwd"]):
        try:
            if str(folder) in " ".join(process.cmdline()) or str(process.cwd()).startswith(str(folder)):
                found.append(f"{process.pid} {' '.join(process.cmdline())[:120]}")
        except psutil.Error:
            continue
    return found + [str(path) for path in folder.glob("freshet-demo-*")]


def wait_clean(folder: Path, seconds: float = 120.0) -> list[str]:
    deadline = time.monotonic() + seconds
    while (left := left_behind(folder)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    """Read the demo's output up to the line with `text`."""
    seen = ""
    assert process.stdout is not None
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"the demo ended without {text!r}:\n{seen}")


@pytest.fixture
def folder() -> Path:
    """A short path: it stands in the broker's command line, and in socket names."""
    with tempfile.TemporaryDirectory(prefix="fd-") as name:
        yield Path(name)


def test_small_demo_ends_with_a_summary_and_leaves_nothing(folder: Path) -> None:
    summary_file = folder / "summary.json"
    demo = start_demo(folder, "--events", "2000", "--rate", "250", "--json", str(summary_file))
    output, _ = demo.communicate(timeout=200)
    assert demo.returncode == 0, output
    summary = json.loads(summary_file.read_text())
    assert summary["events_in"] == summary["learned"] == 2000
    assert summary["recommendations_out"] == 2000
    assert summary["duplicates"] == summary["rejected"] == summary["coalesced"] == summary["lag"] == 0
    assert 0 < summary["latency_p50_ms"] <= summary["latency_p99_ms"]
    assert summary["hit_rate_at_10"] > summary["popularity_hit_rate_at_10"] > 0
    assert len(summary["examples"]) == 3
    assert all(example["history"] and example["list"] for example in summary["examples"])
    assert "live page: http://127.0.0.1:" in output
    assert wait_clean(folder) == []


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_interrupted_demo_leaves_nothing(folder: Path, number: signal.Signals) -> None:
    demo = start_demo(folder, "--rate", "200")
    try:
        wait_for(demo, " sent; ")
        assert left_behind(folder), "the demo runs, so its processes must be found by this test"
        demo.send_signal(number)
        demo.wait(120)
    finally:
        if demo.poll() is None:
            demo.kill()
        if demo.stdout is not None:
            demo.stdout.close()
    assert demo.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert wait_clean(folder) == []
