"""Rows `memory_user`, `restore_partition` and `restore_start`: what a user costs to hold and to take over.

A real worker takes events of users whom it has never seen, 50 each, on items that it knows already: as many
again as it has met before, so that what its resident memory grows by is theirs, not that of clients and of an
allocator that have never been so busy. Divided by the users, it stands beside the same fields in packed
arrays. Another one is started again and again on what it left behind: the changelog of one partition, the
snapshot of the item state and the tail of the learning log.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.bench import Bench, Deployment
from benchmarks.report import Goal, Row, row_of
from benchmarks.workloads import START_MS, Stream, padding_events, user_name
from streams.errors import FreshetError
from streams.events import WorkerStats
from streams.reading import PartitionReader, watermarks
from streams.records import Record

__all__ = ["GOALS", "measure", "raw_user_bytes"]

GOALS = (
    Goal("memory_user", "resident memory a user: 50 recent items, 64 factors", "packed arrays", 1.5, "lower"),
    Goal("restore_partition", "taking a partition over: its users", "bare read of the same bytes", None),
    Goal("restore_start", "worker start: snapshot and log tail", "start on empty topics", None),
)
RECENT = 50
FACTORS = 64
ITEMS = 5_000
STATE = {
    "TRIGGER__EVENTS": "false",
    "WORKER__MAX_BATCH": "5000",
    "MODELS__FACTORS__DIMENSION": str(FACTORS),
    "WORKER__STATS_S": "0.2",
}
SETTLED_S = 2.0


def raw_user_bytes() -> dict[str, int]:
    """Bytes of one such user's fields in packed arrays, items as 4-byte rows.

    >>> raw_user_bytes()["factor"]
    256
    """
    return {
        "id": len(user_name(0)),
        "factor": 4 * FACTORS,
        "recent items, times, types, weights": RECENT * (4 + 8 + 1 + 4),
        "seen items": 4 * RECENT,
        "dedupe hashes, times": RECENT * (8 + 8),
        "token, count, first and last time": 4 * 8,
    }


@dataclass(frozen=True, slots=True)
class _Restore:
    """Seconds from the worker's own reports, and from the process's start to `running`."""

    partition_s: float
    start_s: float


def measure(bench: Bench, wanted: Collection[str]) -> list[Row]:
    users = bench.size(100_000, 1_000)
    rows: list[Row] = []
    if "memory_user" in wanted:
        with bench.deployment(STATE, partitions=1) as deployment:
            rows.append(_memory_row(_fill(bench, deployment, [users, users]), users))
    if {"restore_partition", "restore_start"} & set(wanted):
        with bench.deployment(STATE, partitions=1) as deployment:
            _fill(bench, deployment, [users])
            rows += _restore_rows(bench, deployment, users, wanted)
    return rows


def _fill(bench: Bench, deployment: Deployment, rounds: Sequence[int]) -> list[int]:
    """Resident bytes before and after each round of so many new users with 50 events each."""
    known = Stream(bench.size(200_000, 10_000), 500, ITEMS, skew=0.3)
    child = deployment.worker()
    handled = deployment.fill(deployment.topic("events"), known.records())
    bench.drain(deployment, deployment.handled, handled)
    resident = [_settled_rss(deployment, handled)]
    rng, met = np.random.default_rng(9), known.users
    for users in rounds:
        numbers = np.concatenate([rng.permutation(users) for _ in range(RECENT)]) + met
        items = rng.integers(0, ITEMS, size=len(numbers))
        start_ms = START_MS + handled * known.spacing_ms
        events = padding_events(numbers, items, seed=9 + met, start_ms=start_ms)
        handled, met = handled + deployment.fill(deployment.topic("events"), events), met + users
        bench.drain(deployment, deployment.handled, handled)
        resident.append(_settled_rss(deployment, handled))
    deployment.stop(child)
    return resident


def _settled_rss(deployment: Deployment, handled: int) -> int:
    """Resident memory, as the worker reports it, once it has been idle for `SETTLED_S`."""
    deployment.totals(handled)
    time.sleep(SETTLED_S)
    return deployment.reports()[-1].rss_bytes


def _memory_row(resident: Sequence[int], users: int) -> Row:
    raw = raw_user_bytes()
    factor_and_recent = raw["factor"] + 4 * RECENT
    each = (resident[2] - resident[1]) / users
    return row_of(
        GOALS[0],
        "bytes",
        [each],
        [float(sum(raw.values()))],
        users=users,
        resident_bytes=resident,
        first_users_bytes_each=round((resident[1] - resident[0]) / users),
        raw_bytes=raw,
        against_factor_and_recent_rows_alone=round(each / factor_and_recent, 3),
    )


def _restore_rows(bench: Bench, deployment: Deployment, users: int, wanted: Collection[str]) -> list[Row]:
    loaded: list[_Restore] = []
    empty: list[_Restore] = []
    bare: list[float] = []
    read_bytes = records = 0
    for _ in range(bench.rounds):
        loaded.append(_restore(deployment))
        seconds, records, read_bytes = _bare_read(deployment)
        bare.append(seconds)
        with bench.deployment(STATE, partitions=1) as fresh:
            empty.append(_restore(fresh))
    [(_, log_end)] = watermarks(deployment.settings, [(deployment.topic("interactions"), 0)]).values()
    size = {"users": users, "changelog_records": records, "changelog_bytes": read_bytes}
    rows = []
    if "restore_partition" in wanted:
        ours = [one.partition_s for one in loaded]
        per_s = round(users / statistics.median(ours))
        rows.append(row_of(GOALS[1], "s", ours, bare, **size, users_per_s=per_s))
    if "restore_start" in wanted:
        ours, theirs = [one.start_s for one in loaded], [one.start_s for one in empty]
        rows.append(row_of(GOALS[2], "s", ours, theirs, **size, log_end=log_end))
    return rows


def _restore(deployment: Deployment) -> _Restore:
    """Start a worker, wait until it runs, end it; the times are its own reports'."""
    begun_ms = time.time() * 1000
    known = len(deployment.reports())
    child = deployment.worker()

    def running(reports: list[WorkerStats]) -> bool:
        return any(report.state == "running" for report in reports[known:])

    reports = deployment.wait_reports(running, "a worker that runs")[known:]
    deployment.stop(child)
    ready = next(report for report in reports if report.state == "running")
    restoring = [report for report in reports if report.state == "restoring" and report.at <= ready.at]
    if not restoring:
        raise FreshetError(f"{deployment.prefix}: the worker never said that it restores")
    return _Restore((ready.at - restoring[-1].at) / 1000, (ready.at - begun_ms) / 1000)


def _bare_read(deployment: Deployment) -> tuple[float, int, int]:
    """Seconds, records and bytes of reading the changelog's partition and doing nothing with it."""
    key = (deployment.topic("user-state"), 0)
    [(low, end)] = watermarks(deployment.settings, [key]).values()
    sizes: list[int] = []

    def take(message: Record) -> None:
        sizes.append(len(message.value() or b"") + len(message.key() or b""))

    started = time.perf_counter()
    reader = PartitionReader(deployment.settings, {key: low})
    reader.read_to({key: end}, take)
    reader.close()
    return time.perf_counter() - started, len(sizes), sum(sizes)
