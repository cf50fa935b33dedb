"""Rows `learn` and `faust`: one worker that only learns, beside a bare echo and beside a Faust agent.

The three drain the same prefilled records from one broker in turn, round by round, in topics of that round.
Worker and echo have the same client settings and at most 5,000 records in a transaction. The first three
tenths are not counted: that much may wait in the client's queue (32 MiB) before the first commit.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from benchmarks.bench import Bench, Deployment, Rate
from benchmarks.echo import group_of
from benchmarks.report import Goal, Row, row_of
from benchmarks.workloads import Stream
from streams.reading import PartitionReader, watermarks
from streams.records import Record

__all__ = ["GOALS", "LEARN_ONLY", "drain_echo", "drain_worker", "measure"]

GOALS = (
    Goal("learn", "learn only, one worker", "bare transactional echo", 0.6),
    Goal("faust", "learn only, one worker", "Faust agent: one table, one output", 30.0),
)
FROM_SHARE = 0.3
LEARN_ONLY = {"WORKER__MAX_BATCH": "5000", "TRIGGER__EVENTS": "false"}


def measure(bench: Bench, wanted: Collection[str]) -> list[Row]:
    stream = Stream(bench.size(500_000, 20_000), bench.size(20_000, 4_000), bench.size(5_000, 1_000))
    peer = Stream(bench.size(20_000, 1_500), stream.users, stream.items)
    records, peer_records = list(stream.records()), list(peer.records())
    worker: list[float] = []
    echo: list[float] = []
    faust: list[float] = []
    written: dict[str, float] = {}
    sizes: dict[str, list[float]] = {"worker": [], "echo": []}
    for _ in range(bench.rounds):
        with bench.deployment(LEARN_ONLY) as deployment:
            deployment.fill(deployment.topic("events"), records)
            worker.append(drain_worker(bench, deployment, stream.count).per_s)
            written = written or _written(deployment, stream.count)
            sizes["worker"].append(_records_a_transaction(deployment))
            if "learn" in wanted:
                echo.append(drain_echo(bench, deployment, stream.count).per_s)
                sizes["echo"].append(_echoed_a_transaction(deployment))
            if "faust" in wanted:
                source = deployment.create("faust-in")
                deployment.fill(source, peer_records)
                faust.append(_drain_faust(bench, deployment, source, peer.count).per_s)
    about: dict[str, Any] = {
        "workload": stream.describe(),
        "value_bytes": _mean_bytes(records),
        "max_batch": 5000,
        "written_bytes_an_event": written,
        "records_a_transaction": sizes,
    }
    rows = []
    if echo:
        rows.append(row_of(GOALS[0], "events/s", worker, echo, **about))
    if faust:
        rows.append(row_of(GOALS[1], "events/s", worker, faust, **about, faust_events=peer.count))
    return rows


def drain_worker(bench: Bench, deployment: Deployment, total: int, *, from_share: float = FROM_SHARE) -> Rate:
    """One worker over all of `events`; every record must have been accepted."""
    child = deployment.worker()
    rate = bench.drain(deployment, deployment.handled, total, from_share=from_share)
    deployment.totals(total)
    deployment.stop(child)
    return rate


def drain_echo(
    bench: Bench,
    deployment: Deployment,
    total: int,
    values: Path | None = None,
    *,
    from_share: float = FROM_SHARE,
) -> Rate:
    """The echo over the same records, its output in a topic of its own."""
    source, target = deployment.topic("events"), deployment.create("echo-out")
    command = ["benchmarks.echo", source, target, *([] if values is None else [str(values)])]
    child = deployment.spawn("echo", command)
    rate = bench.drain(
        deployment,
        lambda: deployment.committed(group_of(source), source),
        total,
        from_share=from_share,
    )
    deployment.stop(child)
    return rate


def _drain_faust(bench: Bench, deployment: Deployment, source: str, total: int) -> Rate:
    target = deployment.create("faust-out")
    changelog = f"faust-{source}-counts-changelog"
    child = deployment.spawn(
        "faust", ["benchmarks.faust_agent", source, target, str(deployment.folder / "faust")]
    )
    rate = bench.drain(deployment, lambda: deployment.written(target), total)
    deployment.stop(child)
    deployment.remove(changelog)
    return rate


def _records_a_transaction(deployment: Deployment) -> float:
    """Of the worker, by its own reports; those on an empty topic are not counted."""
    busy = [report for report in deployment.reports() if report.events]
    transactions = sum(report.transactions for report in busy)
    return round(sum(report.events for report in busy) / max(1, transactions), 1)


def _echoed_a_transaction(deployment: Deployment) -> float:
    last = (deployment.folder / "echo.log").read_text("utf-8").splitlines()[-1]
    said: dict[str, int] = json.loads(last)
    return round(said["records"] / max(1, said["transactions"]), 1)


def _written(deployment: Deployment, events: int) -> dict[str, float]:
    """Bytes that the worker wrote for an event, keys and values uncompressed, by topic."""
    sizes: dict[str, float] = {}
    for name, count in (("interactions", 1), ("user-state", deployment.partitions)):
        keys = [(deployment.topic(name), partition) for partition in range(count)]
        spans = watermarks(deployment.settings, keys)
        total = [0]

        def take(message: Record, total: list[int] = total) -> None:
            total[0] += len(message.value() or b"") + len(message.key() or b"")

        reader = PartitionReader(deployment.settings, {key: low for key, (low, _) in spans.items()})
        reader.read_to({key: end for key, (_, end) in spans.items()}, take)
        reader.close()
        sizes[name] = round(total[0] / events, 1)
    return sizes


def _mean_bytes(records: list[tuple[bytes, bytes]]) -> float:
    return round(sum(len(value) for _, value in records) / len(records), 1)
