"""Rows `lists_ranker`, `lists_online` and `two_workers`: committed lists a second.

The workers stand ready, with all partitions and the ranker in service, before the events come, all at once:
what is measured is then a worker that is behind. The first third of the events, which fills an empty state
with candidates, is not counted. Every event must have been answered, none coalesced and none degraded.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from benchmarks.bench import Bench, Deployment, Rate
from benchmarks.learning import drain_echo
from benchmarks.ort_alone import load_feeds
from benchmarks.ranker_model import VERSION, announce_random, model_path, publish_random
from benchmarks.report import Goal, Row, row_of
from benchmarks.workloads import Stream, item_name
from streams.errors import FreshetError
from streams.events import WorkerStats
from streams.processes import Child
from streams.reading import PartitionReader, watermarks
from streams.records import Record

__all__ = ["GOALS", "LISTS", "drain_ready", "measure", "wait_ready"]

GOALS = (
    Goal("lists_ranker", "lists with the ONNX ranker, committed", "ONNX Runtime alone, same inputs", 0.8),
    Goal("lists_online", "lists from online scores, committed", "bare echo, as many bytes", 0.5),
    Goal("two_workers", "two workers of one thread, scoring-bound", "one worker", 1.5),
)
LISTS = {"TRIGGER__EVENTS": "true", "RANKER__PROVIDER": "cpu"}
FROM_SHARE = 1 / 3
KEPT_CALLS = 100
SAMPLE = 2000
"""Lists that the echo produces in turn."""


def measure(bench: Bench, wanted: Collection[str]) -> list[Row]:
    rows = []
    stream = Stream(bench.size(30_000, 3_000), bench.size(5_000, 500), bench.size(2_000, 500))
    even = Stream(stream.count, stream.users, stream.items, skew=0.0)
    if {"lists_ranker", "two_workers"} & set(wanted):
        publish_random(bench, [item_name(number) for number in range(stream.items)])
    if "lists_ranker" in wanted:
        rows.append(_beside_onnx_runtime(bench, stream))
    if "lists_online" in wanted:
        rows.append(_beside_the_echo(bench, stream))
    if "two_workers" in wanted:
        rows.append(_two_beside_one(bench, even))
    return rows


def wait_ready(deployment: Deployment, workers: int, ranker: str | None) -> None:
    """Wait until `workers` own all partitions and have `ranker` in service."""
    deployment.wait_owned(workers)

    def loaded(reports: list[WorkerStats]) -> bool:
        newest = {report.worker: report for report in reports}
        refused = [reason for report in newest.values() for reason in report.refused]
        if refused:
            raise FreshetError(f"the ranker was refused: {refused[0]}")
        return sum(report.ranker == ranker for report in newest.values()) >= workers

    deployment.wait_reports(loaded, f"{workers} workers with ranker {ranker}")


def drain_ready(bench: Bench, deployment: Deployment, stream: Stream, *, to_share: float = 1.0) -> Rate:
    """Send `stream` to workers that are ready, and watch them work it off, each event answered.

    Raises:
        FreshetError: lists are missing, or degraded.
    """
    records = list(stream.records())
    deployment.fill(deployment.topic("events"), records)
    rate = bench.drain(deployment, deployment.handled, stream.count, from_share=FROM_SHARE, to_share=to_share)
    total = deployment.totals(stream.count)
    if total.recommendations != stream.count or total.degraded:
        raise FreshetError(
            f"{deployment.prefix}: {total.recommendations} lists for {stream.count} events, "
            f"{total.degraded} of them degraded"
        )
    return rate


def _answer(bench: Bench, stream: Stream, workers: int = 1, to_share: float = 1.0) -> float:
    """Lists a second of `workers` workers with the ranker, in a deployment of their own."""
    with bench.deployment(LISTS) as deployment:
        announce_random(deployment)
        for number in range(workers):
            deployment.worker(f"bench-{number}")
        wait_ready(deployment, workers, VERSION)
        return drain_ready(bench, deployment, stream, to_share=to_share).per_s


def _record(bench: Bench, stream: Stream, feeds: Path) -> dict[str, Any]:
    """Run the workload once with a worker that keeps its last inputs to ONNX Runtime; their shapes."""
    with bench.deployment(LISTS) as deployment:
        announce_random(deployment)
        command = ["benchmarks.recording_worker", str(feeds), str(KEPT_CALLS), "bench"]
        child: Child = deployment.spawn("bench", command)
        wait_ready(deployment, 1, VERSION)
        drain_ready(bench, deployment, stream)
        deployment.stop(child)
    calls = load_feeds(feeds)
    if not calls:
        raise FreshetError("the recording worker never called ONNX Runtime")
    users = sum(len(call.history) for call in calls)
    return {
        "recorded_calls": len(calls),
        "users_a_call": round(users / len(calls), 1),
        "history": calls[-1].history.shape[1],
        "candidates_a_user": round(sum(call.candidates.size for call in calls) / users, 1),
    }


def _beside_onnx_runtime(bench: Bench, stream: Stream) -> Row:
    feeds = bench.folder / "feeds.npz"
    shapes = _record(bench, stream, feeds)
    seconds = str(bench.size(4, 1))
    command = [sys.executable, "-m", "benchmarks.ort_alone", str(model_path(bench)), str(feeds), "1", seconds]
    ours: list[float] = []
    alone: list[float] = []
    for _ in range(bench.rounds):
        ours.append(_answer(bench, stream))
        said = subprocess.run(command, env=bench.env, capture_output=True, text=True, check=True).stdout
        alone.append(json.loads(said)["users_per_s"])
    about = {"workload": stream.describe(), "threads": 1, "max_batch": bench.base_settings().worker.max_batch}
    return row_of(GOALS[0], "lists/s", ours, alone, **about, inputs=shapes)


def _beside_the_echo(bench: Bench, stream: Stream) -> Row:
    values = bench.folder / "lists.json"
    ours: list[float] = []
    echo: list[float] = []
    list_bytes = 0.0
    for _ in range(bench.rounds):
        with bench.deployment(LISTS) as deployment:
            child = deployment.worker()
            wait_ready(deployment, 1, None)
            ours.append(drain_ready(bench, deployment, stream).per_s)
            deployment.stop(child)
            lists = _newest_lists(deployment)
            list_bytes = sum(map(len, lists)) / len(lists)
            values.write_text(json.dumps([value.decode() for value in lists]), "utf-8")
            rate = drain_echo(bench, deployment, stream.count, values, from_share=FROM_SHARE)
            echo.append(rate.per_s)
    about = {"workload": stream.describe(), "list_bytes": round(list_bytes, 1)}
    return row_of(GOALS[1], "lists/s", ours, echo, **about, max_batch=bench.base_settings().worker.max_batch)


def _newest_lists(deployment: Deployment) -> list[bytes]:
    """The last lists of one partition, at most `SAMPLE`."""
    key = (deployment.topic("recommendations"), 0)
    [(low, end)] = watermarks(deployment.settings, [key]).values()
    found: list[bytes] = []

    def take(message: Record) -> None:
        found.append(message.value() or b"")

    reader = PartitionReader(deployment.settings, {key: low})
    reader.read_to({key: end}, take)
    reader.close()
    return found[-SAMPLE:]


def _two_beside_one(bench: Bench, stream: Stream) -> Row:
    one: list[float] = []
    two: list[float] = []
    for _ in range(bench.rounds):
        one.append(_answer(bench, stream, 1, to_share=0.9))
        two.append(_answer(bench, stream, 2, to_share=0.9))
    return row_of(GOALS[2], "lists/s", two, one, workload=stream.describe(), threads_a_worker=1)
