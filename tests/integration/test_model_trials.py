"""Versions swapped under full load, tried beside the live one, and rolled back: real workers, real files."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import msgspec
import numpy as np
import pytest

from serving.registry.manifest import MODEL_FILE
from streams.events import ModelRecord, WorkerStats
from streams.model_commands import list_models, promote
from streams.model_records import model_records
from streams.settings import Settings
from tests.chaos.records import read_topic
from tests.integration.auditor import assert_exactly_once, lists_of
from tests.integration.worker_process import (
    PATIENCE_S,
    START_MS,
    Deployment,
    Input,
    event,
    stream_of,
)
from tests.test_serving.version_cases import publish_table, successor_table

ITEMS = 300
STEP = 7
VOCABULARY = [f"item-{n}" for n in range(ITEMS)]
BACKLOG = 400
"""Events that are always waiting: the worker is never idle."""
FLAT_BYTES = 48 << 20


def walks(users: int) -> Iterator[list[Input]]:
    """Each user's next event in turn: all walk the same circle of items in steps of STEP."""
    for turn in itertools.count():
        yield [
            event(
                f"e{turn}-{user}",
                f"user-{user}",
                f"item-{(user * 13 + turn * STEP) % ITEMS}",
                START_MS + 1000 * turn,
            )
            for user in range(users)
        ]


def became(settings: Settings) -> dict[str, str]:
    return {row["version"]: row["status"] for row in list_models(settings)}


def flow_until(
    fleet: Deployment, turns: Iterator[list[Input]], reached: Callable[[], bool], what: str
) -> None:
    lists = fleet.tail("recommendations")
    sent, looked = len(read_topic(fleet.settings, "recommendations")), 0.0
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        chunk = next(turns)
        fleet.produce("events", chunk)
        sent += len(chunk)
        fleet.wait_for(lists, sent)
        if time.monotonic() - looked > 0.5:
            looked = time.monotonic()
            if reached():
                return
    raise AssertionError(f"{what}: not reached; {became(fleet.settings)}\n{fleet.logs()}")


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_better_shadow_is_promoted_and_a_worse_version_rolled_back_by_the_workers(
    fleet: Deployment, workers: int
) -> None:
    settings = fleet.settings
    folder = Path(settings.registry.url)
    better = successor_table(ITEMS, STEP)
    for version, table in (("v1", 0 * better), ("v2", better), ("v3", -better)):
        publish_table(folder, version, VOCABULARY, table)
    for number in range(workers):
        fleet.worker(
            f"worker-{number}",
            RANKER__SHADOW_SHARE="1.0",
            RANKER__SHADOW_MIN_EVENTS="60",
            RANKER__SHADOW_MAX_EVENTS="100000",
            RANKER__PROBATION_EVENTS="100000",
        )
    fleet.wait_shared(workers)
    promote(settings, "v1")
    turns = walks(40)
    flow_until(fleet, turns, lambda: _served(fleet) == {"v1"}, "v1 in service")
    promote(settings, "v2", shadow=True)
    flow_until(fleet, turns, lambda: became(settings)["v2"] == "live", "v2 promoted")
    flow_until(fleet, turns, lambda: _served(fleet) == {"v2"}, "v2 in service")
    promote(settings, "v3")
    flow_until(fleet, turns, lambda: became(settings)["v3"] == "dropped", "v3 rolled back")
    flow_until(fleet, turns, lambda: _served(fleet) == {"v2"}, "v2 in service again")
    for worker in fleet.workers:
        worker.stop()
    _check_trials(model_records(settings), settings)
    assert_exactly_once(settings)


def _check_trials(records: Sequence[ModelRecord], settings: Settings) -> None:
    said = [(record.version, record.status) for record in records]
    assert said == [
        ("v1", "live"), ("v2", "shadow"), ("v2", "live"), ("v2", "promoted"), ("v3", "live"),
        ("v2", "live"), ("v3", "dropped"),
    ]  # fmt: skip
    promoted, dropped = records[3], records[6]
    assert promoted.metrics["shadow_hr_at_10"] > promoted.metrics["live_hr_at_10"]
    assert dropped.metrics["former_hr_at_10"] > dropped.metrics["live_hr_at_10"]
    assert dropped.metrics["trial_events"] >= 60
    assert records[5].reason == f"v3 was rolled back: {dropped.reason}"
    assert became(settings) == {"v1": "superseded", "v2": "live", "v3": "dropped"}


def _served(fleet: Deployment) -> set[str | None]:
    """The versions that running workers serve, as they last reported."""
    newest: dict[str, WorkerStats] = {}
    for message in _reports(fleet):
        newest[message.worker] = message
    return {report.ranker for report in newest.values()}


def _reports(fleet: Deployment) -> list[WorkerStats]:
    records = read_topic(fleet.settings, "worker-stats")
    return [msgspec.json.decode(one.value or b"", type=WorkerStats) for one in records]


@pytest.mark.parametrize(
    "swaps", [10, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])]
)
def test_swaps_under_full_load(fleet: Deployment, swaps: int) -> None:
    """Every tenth announced version is one that must be refused, and every fourth is on probation."""
    settings = fleet.settings
    folder = Path(settings.registry.url)
    names = [f"v{number:03d}" for number in range(10)]
    for number, version in enumerate(names):
        publish_table(folder, version, VOCABULARY, successor_table(ITEMS, number + 1))
    _publish_bad(folder)
    worker = fleet.worker("one", RANKER__SHADOW_SHARE="0.25")
    flow = Flow(fleet, stream_of(150 * 1000, seed=swaps, users=300, items=ITEMS - 1))
    flow.until(lambda: flow.answered > 100)
    expected: list[str | None] = [None]
    for swap in range(swaps):
        if swap % 10 == 5:
            bad = ("cut", "nan")[swap // 10 % 2]
            refused = worker.log.count(f"{bad} refused")
            promote(settings, bad)
            flow.until(lambda bad=bad, n=refused: worker.log.count(f"{bad} refused") > n)  # type: ignore[misc]
        version = names[swap % len(names)]
        record = promote(settings, version)
        assert record.against is None or swap > 0
        expected.append(version)
        flow.until(lambda version=version: flow.newest_ranker() == version)  # type: ignore[misc]
    fleet.wait_handled()
    worker.stop()
    reports = _reports(fleet)
    run = assert_exactly_once(settings)
    assert len(run.rows) == flow.sent
    made = sorted(lists_of(run), key=lambda m: m.generated_at)
    assert [ranker for ranker, _ in groupby(m.ranker for m in made)] == expected
    assert not any(m.degraded for m in made)
    assert reports[-1].swaps == swaps
    _check_refusals(reports[-1].refusals, {"digest": -(-swaps // 20), "not_finite": swaps // 20})
    _check_memory(reports, swaps)


def _publish_bad(folder: Path) -> None:
    """`cut` lost its end on the way, `nan` gives scores that are no numbers."""
    publish_table(folder, "cut", VOCABULARY, successor_table(ITEMS, 1))
    damaged = folder / "ranker" / "cut" / MODEL_FILE
    damaged.write_bytes(damaged.read_bytes()[:-50])
    nothing = np.full((ITEMS + 2, ITEMS + 2), np.nan, np.float32)
    golden = np.zeros((2, ITEMS), np.float32)
    publish_table(folder, "nan", VOCABULARY, nothing, golden_scores=golden)


def _check_refusals(found: dict[str, int], bad: dict[str, int]) -> None:
    """Each bad version was refused, and once more where the next one came so soon that it was announced as
    the one after the bad one, to be scored beside it."""
    assert set(found) == {kind for kind, times in bad.items() if times}
    assert all(bad[kind] <= times <= 2 * bad[kind] for kind, times in found.items()), found


def _check_memory(reports: list[WorkerStats], swaps: int) -> None:
    """From a fifth of the swaps on, resident memory stays where it is."""
    settled = next(report.rss_bytes for report in reports if report.swaps >= max(2, swaps // 5))
    grown = max(report.rss_bytes for report in reports) - settled
    assert grown < FLAT_BYTES, f"{grown >> 20} MiB more than the {settled >> 20} after the first swaps"


class Flow:
    """Events that never let a worker wait."""

    def __init__(self, fleet: Deployment, stream: list[Input]) -> None:
        self.sent = 0
        self.answered = 0
        self._newest = b"{}"
        self._lists = fleet.tail("recommendations")
        self._fleet = fleet
        self._stream = stream

    def until(self, reached: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not reached():
            assert time.monotonic() < deadline, f"not reached\n{self._fleet.logs()}"
            self._fleet.check_alive(self._fleet.workers)
            if self.sent - self.answered < BACKLOG:
                more = self._stream[self.sent : self.sent + BACKLOG]
                assert more, "the stream is over"
                self._fleet.produce("events", more)
                self.sent += len(more)
            for message in self._lists.more(0.05):
                self.answered, self._newest = self.answered + 1, message.value() or b"{}"
            self._lists.records.clear()

    def newest_ranker(self) -> str | None:
        ranker: str | None = msgspec.json.decode(self._newest)["ranker"]
        return ranker
