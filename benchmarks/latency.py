"""Latency from the append of an event to its list being readable, beside a bare transactional echo.

    python -m benchmarks.latency [--rate 500] [--seconds 15] [--rounds 5] [--json PATH]

Both run on one broker, in turn, round by round: the worker with all it does (validate, learn, rank, explain),
and `benchmarks.echo`, which copies bytes in the same kind of transaction. Both are read with read_committed
by one reader in this process. The events are the seeded synthetic generator's, made before anything is timed.
Quote the ratio: the times belong to the machine.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
from confluent_kafka.admin import NewTopic

from streams.broker import start_broker
from streams.clients import admin, make_producer, producer_config, wait_for_broker
from streams.processes import ProcessGroup
from streams.reading import PartitionReader, watermarks
from streams.replay import encode_record
from streams.settings import Settings, load_settings
from streams.synthetic import synthetic
from streams.topic_admin import create_topics

WARM_UP_S = 5.0
DRAIN_S = 15.0
Sent = dict[bytes, float]


def _environment(bootstrap: str, folder: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FRESHET_")}
    return {
        **inherited,
        "FRESHET_KAFKA__BOOTSTRAP_SERVERS": bootstrap,
        "FRESHET_STATE__DIR": str(folder / "snapshots"),
        "FRESHET_REGISTRY__URL": str(folder / "models"),
        "FRESHET_TRIGGER__COALESCE_LAG": "0",
        "OMP_NUM_THREADS": "1",
    }


class Lane:
    """One system under test: a topic in, a topic out."""

    def __init__(self, settings: Settings, name: str, source: str, target: str, partitions: int) -> None:
        self.name = name
        self._settings = settings
        self._source = source
        self._keys = [(target, partition) for partition in range(partitions)]
        self._producer = make_producer({**producer_config(settings), "linger.ms": 0})
        self.p50_ms: list[float] = []
        self.p99_ms: list[float] = []

    def run(self, events: list[tuple[bytes, bytes]], rate: float, keep: bool = True) -> None:
        """Send `events` (key, value) at `rate` per second and time each list's arrival; order within a user
        holds."""
        ends = {key: end for key, (_, end) in watermarks(self._settings, self._keys).items()}
        reader = PartitionReader(self._settings, ends)
        waiting: dict[bytes, list[float]] = {}
        latencies: list[float] = []
        started = time.perf_counter()
        sent = 0
        while len(latencies) < len(events):
            now = time.perf_counter() - started
            while sent < len(events) and sent / rate <= now:
                key, value = events[sent]
                waiting.setdefault(key, []).append(time.perf_counter())
                self._producer.produce(self._source, value, key)
                sent += 1
            self._producer.poll(0)
            for message in reader.poll(1000, 0.002):
                latencies.append(time.perf_counter() - waiting[message.key() or b""].pop(0))
            if now > len(events) / rate + DRAIN_S:
                raise SystemExit(f"{self.name}: {len(latencies)} of {len(events)} answers after {now:.0f} s")
        reader.close()
        if keep:
            self.p50_ms.append(float(np.quantile(latencies, 0.5) * 1000))
            self.p99_ms.append(float(np.quantile(latencies, 0.99) * 1000))


def _events(count: int) -> list[tuple[bytes, bytes]]:
    users = max(200, count // 50)
    made = synthetic(events=count, users=users, items=max(400, 8 * count // users), seed=11).events
    return [(event.user_id.encode(), encode_record(event)) for event in made]


@contextmanager
def _broker(processes: ProcessGroup, folder: Path) -> Iterator[str]:
    """The address in FRESHET_KAFKA__BOOTSTRAP_SERVERS, else an embedded broker that ends with this one."""
    given = os.environ.get("FRESHET_KAFKA__BOOTSTRAP_SERVERS")
    if given:
        yield given
        return
    info = start_broker(folder / "kafka", remember=False)
    processes.owns_process(info.pid)
    yield info.bootstrap_servers


def measure(rate: float, seconds: float, rounds: int) -> dict[str, Any]:
    """Run both lanes in turn; medians over the rounds, and their ratio."""
    folder = Path(tempfile.mkdtemp(prefix="freshet-bench-"))
    per_round = int(rate * seconds)
    warm = int(rate * WARM_UP_S)
    events = _events(warm + rounds * per_round)
    with ProcessGroup() as processes, _broker(processes, folder) as bootstrap:
        processes.owns_folder(folder)
        env = _environment(bootstrap, folder) | {"FRESHET_TOPICS__PREFIX": f"bench{int(time.time())}."}
        with tempfile.NamedTemporaryFile(suffix=".toml") as empty:
            settings = load_settings(empty.name, environ=env)
        wait_for_broker(settings, 30.0)
        create_topics(settings)
        partitions = settings.topics.partitions
        echo_in, echo_out = settings.names["events"] + ".echo-in", settings.names["events"] + ".echo-out"
        client = admin(settings)
        for future in client.create_topics(
            [NewTopic(t, partitions, 1) for t in (echo_in, echo_out)]
        ).values():
            future.result()
        python = [sys.executable, "-m"]
        processes.spawn(
            "worker",
            [*python, "streams.cli", "worker", "--id", "bench"],
            env=env,
            cwd=Path.cwd(),
            log=folder / "worker.log",
        )
        processes.spawn(
            "echo",
            [*python, "benchmarks.echo", echo_in, echo_out],
            env=env,
            cwd=Path.cwd(),
            log=folder / "echo.log",
        )
        lists = settings.names["recommendations"]
        lanes = [
            Lane(settings, "freshet", settings.names["events"], lists, partitions),
            Lane(settings, "echo", echo_in, echo_out, partitions),
        ]
        for lane in lanes:
            _first_answer(processes, lane, events[:1])
            lane.run(events[1:warm], rate, keep=False)
        for number in range(rounds):
            part = events[warm + number * per_round : warm + (number + 1) * per_round]
            for lane in lanes:
                processes.check()
                lane.run(part, rate)
    ours, echo = lanes
    result: dict[str, Any] = {"rate_per_s": rate, "seconds": seconds, "rounds": rounds}
    for name in ("p50_ms", "p99_ms"):
        mine, bare = getattr(ours, name), getattr(echo, name)
        result[f"freshet_{name}"] = round(statistics.median(mine), 2)
        result[f"echo_{name}"] = round(statistics.median(bare), 2)
        ratios = [a / b for a, b in zip(mine, bare, strict=True)]
        result[f"ratio_{name.removesuffix('_ms')}"] = round(statistics.median(ratios), 2)
    return result


def _first_answer(processes: ProcessGroup, lane: Lane, event: list[tuple[bytes, bytes]]) -> None:
    """Wait, through start-up and first compilation, until the lane answers at all."""
    for attempt in range(10):
        processes.check()
        try:
            lane.run(event, 1000.0, keep=False)
            return
        except SystemExit:
            if attempt == 9:
                raise


@click.command()
@click.option("--rate", default=500.0, show_default=True, help="Events per second.")
@click.option("--seconds", default=15.0, show_default=True, help="Length of a round.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the result here too.")
def main(rate: float, seconds: float, rounds: int, path: Path | None) -> None:
    """Measure and print one line a figure."""
    result = measure(rate, seconds, rounds)
    result["machine"] = subprocess.run(
        ["uname", "-sm"], capture_output=True, text=True, check=True
    ).stdout.strip()
    result["cpus"] = os.cpu_count()
    text = json.dumps(result, indent=2)
    click.echo(text)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


if __name__ == "__main__":
    main()
