"""The auditor can see: workers that are not exactly once fail the audit that the product passes.

Each control is a real process on the real broker that kills itself between two steps which the product has
in one transaction. Before that the same program, not killed, is clean in the very respect in which it then
fails.
"""

from __future__ import annotations

import dataclasses
import signal
from pathlib import Path

import pytest

from tests.chaos.controls.crash import CRASH_AT
from tests.chaos.drain import output_ends
from tests.chaos.ownership import superseded
from tests.chaos.process import CommandProcess
from tests.chaos.records import Commit, Finding
from tests.chaos.witness import WATCHED, Witness
from tests.integration.auditor import Run, assert_exactly_once, count, findings, read_run, violations
from tests.integration.worker_process import Deployment, stream_of

SMALL_BATCHES = "20"


@pytest.fixture
def partitions() -> int:
    return 2


def _control(fleet: Deployment, name: str, folder: Path, crash_at: int = 0) -> CommandProcess:
    env = {**fleet.env, "FRESHET_WORKER__MAX_BATCH": SMALL_BATCHES, CRASH_AT: str(crash_at)}
    worker_id = None if name == "faust_agent" else "w1"
    log = folder / f"{name}.log"
    process = CommandProcess(env, worker_id, log, ("-m", f"tests.chaos.controls.{name}"))
    fleet.workers.append(process)
    return process


def _killed_between_two_steps(fleet: Deployment, name: str, folder: Path) -> list[Finding]:
    """The audit's findings after control `name` died in the middle of a batch and was started again."""
    fleet.produce("events", stream_of(100, seed=21))
    first = _control(fleet, name, folder, crash_at=1000)
    fleet.wait_handled()
    first.stop()
    clean = violations(read_run(fleet.settings), fleet.settings)
    assert not clean, f"not killed, {name} must pass the audit: {clean[:5]}"
    fleet.produce("events", stream_of(200, seed=22, name="later"))
    assert _control(fleet, name, folder, crash_at=3).wait() == -signal.SIGKILL
    last = _control(fleet, name, folder)
    fleet.wait_handled()
    last.stop()
    return findings(read_run(fleet.settings), fleet.settings)


def test_offsets_committed_first_lose_events(fleet: Deployment, tmp_path: Path) -> None:
    found = _killed_between_two_steps(fleet, "offsets_first", tmp_path)
    assert count(found, "lost") > 0, found
    assert count(found, "duplicated") == 0, found
    texts = [finding.text for finding in found if finding.kind == "lost"]
    assert any(text.startswith("learning log: missing") for text in texts), texts
    assert any(text.startswith("lists of") for text in texts), texts


def test_no_transactions_duplicate_events(fleet: Deployment, tmp_path: Path) -> None:
    found = _killed_between_two_steps(fleet, "no_transactions", tmp_path)
    assert count(found, "duplicated") > 0, found
    assert count(found, "lost") == 0, found
    texts = [finding.text for finding in found if finding.kind == "duplicated"]
    assert any(text.startswith("learning log: 1 too many") for text in texts), texts
    assert any(text.startswith("lists of") for text in texts), texts


def _list_findings(fleet: Deployment, kind: str) -> list[str]:
    """Of all findings those that a program which only makes lists can be judged by."""
    found = findings(read_run(fleet.settings), fleet.settings)
    return [f.text for f in found if f.kind == kind and f.text.startswith("lists of")]


@pytest.mark.slow
def test_a_plain_faust_agent_duplicates_lists(fleet: Deployment, tmp_path: Path) -> None:
    fleet.produce("events", stream_of(100, seed=23))
    killed = _control(fleet, "faust_agent", tmp_path, crash_at=250)
    lists = fleet.tail("recommendations")
    fleet.wait_for(lists, 100)
    assert _list_findings(fleet, "duplicated") == _list_findings(fleet, "lost") == []
    fleet.produce("events", stream_of(200, seed=24, name="later"))
    assert killed.wait() == -signal.SIGKILL, killed.log
    last = _control(fleet, "faust_agent", tmp_path)
    fleet.wait_for(lists, 301)
    last.kill()
    assert _list_findings(fleet, "duplicated"), last.log


def _by_a_stranger(run: Run) -> Run:
    """One list carries an epoch that never owned its partition."""
    changed = dataclasses.replace(run.lists[5], headers=(("worker", b"w1"), ("epoch", b"1")))
    return dataclasses.replace(run, lists=[*run.lists[:5], changed, *run.lists[6:]])


def _gone_back(run: Run) -> Run:
    """A transaction of an earlier owner was committed after its successor's."""
    first, last = run.commits[0], run.commits[-1]
    late = Commit(last.partition, last.offset + 1, first.worker, first.epoch, {"events": 0})
    return dataclasses.replace(run, commits=[*run.commits, late])


@pytest.mark.slow
def test_a_zombie_and_a_changed_reading_are_seen(fleet: Deployment) -> None:
    """A clean run, doctored in the ways that no program at hand would do."""
    witness = Witness(fleet.settings)
    witness.start()
    for part in range(2):
        fleet.produce("events", stream_of(60, seed=25 + part, name=f"p{part}-"))
        worker = fleet.worker("w1")
        fleet.wait_handled()
        worker.stop()
    ends = output_ends(fleet.settings, "read_committed")
    assert witness.finish({key: end for key, end in ends.items() if key[0] in WATCHED}, 20.0) == []
    run = assert_exactly_once(fleet.settings)
    assert any("zombie" in text for text in violations(_by_a_stranger(run), fleet.settings))
    doctored = _gone_back(run)
    assert any("goes back" in text for text in violations(doctored, fleet.settings))
    assert superseded(run.commits) == []
    assert superseded(doctored.commits)
    read = {"interactions": run.log, "recommendations": run.lists, "events-dlq": run.dead}
    assert witness.differences(read) == []
    assert witness.differences({**read, "recommendations": run.lists[1:]})
    changed = dataclasses.replace(run.lists[0], value=b"{}")
    assert witness.differences({**read, "recommendations": [changed, *run.lists[1:]]})
