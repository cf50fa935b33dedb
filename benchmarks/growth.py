"""Rows `growth_users`, `growth_items`, `growth_partitions`: what an event costs as the deployment grows.

One worker that only learns. Its state is first filled so that every one of the users (or items) has been met
once; only what follows, drawn evenly from all of them, is timed. `reached` is the cost of an event at the
largest size in units of its cost at the smallest; by partitions, the echo's cost stands beside.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterator
from itertools import chain

import numpy as np

from benchmarks.bench import Bench
from benchmarks.learning import FROM_SHARE, LEARN_ONLY, drain_echo, drain_worker
from benchmarks.plots import IMAGES, line_plot
from benchmarks.report import Goal, Row, row_of
from benchmarks.workloads import START_MS, Record, Stream, padding_events

__all__ = ["GOALS", "measure"]

GOALS = (
    Goal("growth_users", "cost of an event, most users", "fewest users", None, "lower"),
    Goal("growth_items", "cost of an event, most items", "fewest items", None, "lower"),
    Goal("growth_partitions", "cost of an event, most partitions", "fewest partitions", None, "lower"),
)
ROUNDS = 3
"""At most: a point takes up to a minute, and a plot shows what a median of five would."""


def measure(bench: Bench, wanted: Collection[str]) -> list[Row]:
    rows = []
    if "growth_users" in wanted:
        sizes = [1_000, 4_000] if bench.quick else [10_000, 100_000, 1_000_000]
        rows.append(_grow(bench, GOALS[0], sizes, by="users"))
    if "growth_items" in wanted:
        sizes = [500, 2_000] if bench.quick else [1_000, 10_000, 100_000, 1_000_000]
        rows.append(_grow(bench, GOALS[1], sizes, by="items"))
    if "growth_partitions" in wanted:
        rows.append(_partitions(bench, [1, 8] if bench.quick else [1, 4, 16, 64]))
    return rows


def _rounds(bench: Bench) -> int:
    return min(bench.rounds, ROUNDS)


def _grow(bench: Bench, goal: Goal, sizes: list[int], *, by: str) -> Row:
    timed = bench.size(400_000, 20_000)
    cost_us: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(_rounds(bench)):
        for size in sizes:
            users, items = (size, bench.size(5_000, 1_000)) if by == "users" else (20_000, size)
            cost_us[size].append(_cost_us(bench, users, items, timed))
    _plot(bench, goal.name, by, {"freshet worker": cost_us})
    return _row(goal, cost_us, timed_events=timed, by=by)


def _cost_us(bench: Bench, users: int, items: int, timed: int) -> float:
    """Microseconds an event, once every user and every item has been met."""
    met = max(users, items)
    stream = Stream(timed, users, items, skew=0.0, start_ms=START_MS + met)
    with bench.deployment(LEARN_ONLY) as deployment:
        records = chain(_meeting_all(users, items), stream.records())
        total = deployment.fill(deployment.topic("events"), records)
        share = (met + FROM_SHARE * timed) / total
        return 1e6 / drain_worker(bench, deployment, total, from_share=share).per_s


def _meeting_all(users: int, items: int) -> Iterator[Record]:
    """One event for each of the larger of the two, with the other repeating."""
    numbers = np.arange(max(users, items))
    return padding_events(numbers % users, numbers % items, seed=12, start_ms=START_MS)


def _partitions(bench: Bench, counts: list[int]) -> Row:
    stream = Stream(bench.size(400_000, 20_000), 20_000, 5_000)
    ours: dict[int, list[float]] = {count: [] for count in counts}
    echo: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(_rounds(bench)):
        for count in counts:
            with bench.deployment(LEARN_ONLY, partitions=count) as deployment:
                deployment.fill(deployment.topic("events"), stream.records())
                ours[count].append(1e6 / drain_worker(bench, deployment, stream.count).per_s)
                echo[count].append(1e6 / drain_echo(bench, deployment, stream.count).per_s)
    _plot(bench, "growth_partitions", "partitions", {"freshet worker": ours, "bare echo": echo})
    beside = {str(count): round(statistics.median(values), 3) for count, values in echo.items()}
    return _row(GOALS[2], ours, timed_events=stream.count, echo_us=beside)


def _row(goal: Goal, cost_us: dict[int, list[float]], **details: object) -> Row:
    first, last = min(cost_us), max(cost_us)
    points = {str(size): round(statistics.median(values), 3) for size, values in cost_us.items()}
    return row_of(goal, "µs/event", cost_us[last], cost_us[first], cost_us=points, **details)


def _plot(bench: Bench, name: str, by: str, costs: dict[str, dict[int, list[float]]]) -> None:
    lines = {
        title: [(float(size), statistics.median(values)) for size, values in sorted(cost_us.items())]
        for title, cost_us in costs.items()
    }
    folder = bench.folder if bench.quick else IMAGES
    line_plot(
        folder / f"{name}.svg", f"Cost of an event by {by}", by, "µs of wall time an event", lines, log_x=True
    )
