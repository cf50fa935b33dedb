"""Latency from the append of an event to its list being readable, beside a bare transactional echo.

    python -m benchmarks.latency [--rate 500] [--seconds 15] [--rounds 5] [--json PATH]

Both run on one broker, in turn, round by round: the worker with all it does (validate, learn, rank, explain),
and `benchmarks.echo`, which copies bytes in the same kind of transaction. Both are read with read_committed
by one reader in this process. The events are seeded, and made before anything is timed. Quote the ratio: the
times belong to the machine.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.bench import Bench, Deployment, open_bench
from benchmarks.report import Goal, Row, row_of
from benchmarks.workloads import Stream
from streams.clients import make_producer, producer_config
from streams.errors import FreshetError
from streams.reading import PartitionReader, watermarks
from streams.settings import Settings

__all__ = ["GOALS", "measure", "measure_rows"]

RATES = (500, 5000)
GOALS = tuple(
    Goal(f"latency_{rate}_{name}", f"{rate:,} events/s, {name}", "bare echo, same batching", bar, "lower")
    for rate in RATES
    for name, bar in (("p50", 2.0), ("p99", 3.0))
)
WARM_UP_S = 5.0
DRAIN_S = 10.0
"""How long after the last event answers are waited for; what has not come by then counts with its age."""
SETTLE_S = 120.0
Record = tuple[bytes, bytes]


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
        self.unanswered = 0
        """Events without an answer when their round was given up: the lane can't carry the rate."""

    def run(self, events: list[Record], rate: float, *, keep: bool = True) -> None:
        """Send `events` at `rate` per second and time each answer; order within a user holds.

        Answers still missing `DRAIN_S` after the last event count with their age. `keep` says whether the
        round counts.
        """
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
                break
        missing = [time.perf_counter() - sent_at for times in waiting.values() for sent_at in times]
        self._settle(reader, len(missing))
        reader.close()
        if keep:
            self.p50_ms.append(float(np.quantile(latencies + missing, 0.5) * 1000))
            self.p99_ms.append(float(np.quantile(latencies + missing, 0.99) * 1000))
            self.unanswered += len(missing)

    def _settle(self, reader: PartitionReader, missing: int) -> None:
        """Wait for the answers of a round that was given up: they must not be taken for the next one's.

        Raises:
            FreshetError: they don't come.
        """
        deadline = time.monotonic() + SETTLE_S
        while missing > 0:
            missing -= len(reader.poll(1000, 0.1))
            if time.monotonic() > deadline:
                raise FreshetError(f"{self.name}: {missing} events have no answer after {SETTLE_S:g} s more")


def _events(count: int) -> list[Record]:
    users = max(200, count // 50)
    return list(Stream(count, users, max(400, 8 * count // users), seed=11, skew=0.6).records())


def _lanes(deployment: Deployment) -> list[Lane]:
    """The worker and the echo, started, each with topics of its own."""
    settings, partitions = deployment.settings, deployment.partitions
    source, target = deployment.create("echo-in"), deployment.create("echo-out")
    deployment.worker()
    deployment.spawn("echo", ["benchmarks.echo", source, target])
    lists = deployment.topic("recommendations")
    return [
        Lane(settings, "freshet", deployment.topic("events"), lists, partitions),
        Lane(settings, "echo", source, target, partitions),
    ]


def measure(rate: float, seconds: float, rounds: int, bench: Bench | None = None) -> dict[str, Any]:
    """Run both lanes in turn; medians over the rounds, and their ratio."""
    per_round = int(rate * seconds)
    warm = int(rate * min(WARM_UP_S, 2 * seconds))
    events = _events(warm + rounds * per_round)
    with ExitStack() as stack:
        bench = bench or stack.enter_context(open_bench(rounds=rounds))
        deployment = stack.enter_context(bench.deployment())
        lanes = _lanes(deployment)
        for lane in lanes:
            deployment.check()
            lane.run(events[:1], rate, keep=False)  # start-up and first compilation
            lane.run(events[1:warm], rate, keep=False)
        for number in range(rounds):
            part = events[warm + number * per_round : warm + (number + 1) * per_round]
            for lane in lanes:
                deployment.check()
                lane.run(part, rate)
    return _summary(rate, seconds, rounds, *lanes)


def _summary(rate: float, seconds: float, rounds: int, ours: Lane, echo: Lane) -> dict[str, Any]:
    result: dict[str, Any] = {"rate_per_s": rate, "seconds": seconds, "rounds": rounds}
    for name in ("p50_ms", "p99_ms"):
        mine, bare = getattr(ours, name), getattr(echo, name)
        result[f"freshet_{name}"] = round(statistics.median(mine), 2)
        result[f"echo_{name}"] = round(statistics.median(bare), 2)
        result[f"freshet_{name}_rounds"], result[f"echo_{name}_rounds"] = mine, bare
        ratios = [a / b for a, b in zip(mine, bare, strict=True)]
        result[f"ratio_{name.removesuffix('_ms')}"] = round(statistics.median(ratios), 2)
    result["unanswered"] = {lane.name: lane.unanswered for lane in (ours, echo)}
    return result


def measure_rows(bench: Bench, wanted: Collection[str]) -> list[Row]:
    """Rows `latency_<rate>_p50` and `_p99`."""
    rows = []
    for rate in RATES:
        goals = [goal for goal in GOALS if f"_{rate}_" in goal.name and goal.name in wanted]
        if not goals:
            continue
        found = measure(float(rate), float(bench.size(15, 2)), bench.rounds, bench)
        for goal in goals:
            name = goal.name.rpartition("_")[2]
            mine, bare = found[f"freshet_{name}_ms_rounds"], found[f"echo_{name}_ms_rounds"]
            rows.append(
                row_of(
                    goal,
                    "ms",
                    mine,
                    bare,
                    rate_per_s=rate,
                    seconds_a_round=found["seconds"],
                    unanswered=found["unanswered"],
                    max_batch=bench.base_settings().worker.max_batch,
                )
            )
    return rows


@click.command()
@click.option("--rate", default=500.0, show_default=True, help="Events per second.")
@click.option("--seconds", default=15.0, show_default=True, help="Length of a round.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the result here too.")
def main(rate: float, seconds: float, rounds: int, path: Path | None) -> None:
    """Measure and print one line a figure."""
    result = {**measure(rate, seconds, rounds), "cpus": os.cpu_count()}
    text = json.dumps(result, indent=2)
    click.echo(text)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


if __name__ == "__main__":
    main()
