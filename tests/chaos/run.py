"""One chaos run, from an empty broker to the audit's verdict.

1. A broker of its own, topics, a reader of committed records, three workers.
2. For so many seconds the producer sends while the schedule's faults come.
3. The faults stop. What was produced is acknowledged, and handled: a bounded wait that names what is stuck.
4. A last load in peace, long enough for a snapshot of every worker's item state; then SIGTERM to all.
5. The audit reads the topics, from the beginning.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from streams.clients import wait_for_broker
from streams.rejects import Reason
from streams.settings import Settings
from tests.chaos.deployment import BrokerKeeper, environment, make_topics, settings_of
from tests.chaos.drain import (
    await_true,
    open_transactions,
    output_ends,
    unhandled,
    unread_items,
    unstable_offsets,
)
from tests.chaos.fleet import Fleet
from tests.chaos.load import Load
from tests.chaos.ownership import superseded
from tests.chaos.process import WORKER
from tests.chaos.records import Finding, fingerprint
from tests.chaos.replicas import check_replicas, newest_offset
from tests.chaos.schedule import schedule
from tests.chaos.witness import WATCHED, Witness
from tests.integration.auditor import Run, count, findings, model_of, read_run

__all__ = ["Plan", "Report", "run_chaos"]

FIRST_WORKERS = 3
START_S = 600.0
"""Until the first worker has handled something: on a fresh machine it compiles the kernels for all others,
and a worker that is killed while it compiles leaves the next one nothing."""


SLEEPER_S = 60.0
"""A worker that slept through the broker's restart may try its commit, then its abort, for `rpc_timeout_s`
each before it begins anew: only then does it learn what came meanwhile."""
PATIENCE_S = 5.0
"""On a machine of one's own a worker is in service again before this."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to do."""

    seed: int
    seconds: float
    rate: float = 150.0
    """Records a second."""
    partitions: int = 4
    drain_s: float = 60.0
    """Stuck is what has not moved for so long."""
    command: tuple[str, ...] = WORKER
    folder: Path | None = None

    @property
    def snapshot_interactions(self) -> int:
        """Some forty snapshots of each worker in a run."""
        return max(100, int(self.seconds * self.rate / 60))


class Report(msgspec.Struct, kw_only=True):
    """What came of it."""

    seed: int
    seconds: float
    kills: int = 0
    kills_in_service: int = 0
    zombies: int = 0
    stops: int = 0
    added: int = 0
    removed: int = 0
    ended: int = 0
    broker_kills: int = 0
    broker_stops: int = 0
    events: int = 0
    requests: int = 0
    accepted: int = 0
    rejected: int = 0
    duplicates: int = 0
    late: int = 0
    lists: int = 0
    dead_letters: int = 0
    users: int = 0
    snapshots: int = 0
    shared_offsets: int = 0
    """Learning-log offsets at which several workers' snapshots could be compared with each other too."""
    digest: str = ""
    stuck: bool = False
    """Not everything was handled in time: what was not then counts as lost."""
    lost: int = 0
    duplicated: int = 0
    wrong: int = 0
    drain_s: float = 0.0
    audit_s: float = 0.0
    findings: list[str] = []
    trouble: list[str] = []
    folder: str = ""

    @property
    def clean(self) -> bool:
        return not (self.lost or self.duplicated or self.wrong)


@dataclass
class _Scene:
    """All that runs."""

    plan: Plan
    folder: Path
    broker: BrokerKeeper
    settings: Settings
    fleet: Fleet
    load: Load
    witness: Witness
    found: list[Finding] = field(default_factory=list)
    stuck: bool = False

    def missing(self, what: str, texts: Sequence[str]) -> None:
        self.found += [Finding("wrong", 1, f"{what}: {text}") for text in texts]


def run_chaos(plan: Plan, say: Callable[[str], None] = lambda text: None) -> Report:
    """Do all of it; `say` is told now and then how far it is."""
    folder = plan.folder or Path(tempfile.mkdtemp(prefix="freshet-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    broker = BrokerKeeper(folder / "broker")
    scene = None
    broker.start()
    try:
        while not broker.ready.wait(0.2):
            if broker.error is not None:
                raise broker.error
        scene = _set_up(plan, folder, broker)
        say(f"broker at {broker.bootstrap}; seed {plan.seed}; logs in {folder}")
        _storm(scene, say)
        report = _peace(scene, say)
    finally:
        if scene is not None:
            (folder / "story.log").write_text("\n".join(scene.fleet.story) + "\n", "utf-8")
            scene.fleet.clean_up()
        broker.close()
    if report.clean and plan.folder is None:
        shutil.rmtree(folder, ignore_errors=True)
        report.folder = ""
    return report


def _set_up(plan: Plan, folder: Path, broker: BrokerKeeper) -> _Scene:
    settings = settings_of(broker.bootstrap, folder, plan.partitions, plan.snapshot_interactions)
    wait_for_broker(settings, 30.0)
    make_topics(settings)
    witness = Witness(settings)
    witness.start()
    fleet = Fleet(environment(settings), folder, Path(settings.state.dir), plan.command, broker.ready.is_set)
    load = Load(settings, plan.seed, plan.rate)
    return _Scene(plan, folder, broker, settings, fleet, load, witness)


class _Clock:
    """The schedule's time. It stands still while no worker has been in service for a while: on a machine that
    is slow to start them, faults would find nobody at work. In all it stands still for no longer than the
    run is meant to last."""

    def __init__(self, fleet: Fleet, seconds: float) -> None:
        self._fleet = fleet
        self._may_stand_s = seconds
        self._now_s = 0.0
        self._last = self._served = time.monotonic()

    def wait_for(self, at_s: float) -> None:
        """Look after the fleet until it is `at_s`."""
        while self._now_s < at_s:
            self._fleet.tick()
            time.sleep(0.05)
            now = time.monotonic()
            if self._fleet.serving():
                self._served = now
            if now - self._served < PATIENCE_S or self._may_stand_s <= 0:
                self._now_s += now - self._last
            else:
                self._may_stand_s -= now - self._last
            self._last = now


def _storm(scene: _Scene, say: Callable[[str], None]) -> None:
    """The faults, each at its time; the clock starts when the first workers serve."""
    fleet, broker = scene.fleet, scene.broker
    fleet.start("w1")
    scene.load.send(200)
    stuck = await_true(lambda: unhandled(scene.settings), fleet.tick, START_S)
    scene.missing(f"the first worker within {START_S:g} s", stuck)
    for _ in range(FIRST_WORKERS - 1):
        fleet.start()
    scene.load.start()
    clock = _Clock(fleet, scene.plan.seconds)
    told = 0.0
    for action in schedule(scene.plan.seed, scene.plan.seconds):
        clock.wait_for(action.at_s)
        if action.at_s - told > 10.0:
            told = action.at_s
            kills, workers = fleet.counts["kills"], len(fleet.members)
            say(f"{told:.0f} of {scene.plan.seconds:g} s: {kills} kills, {workers} workers")
        if action.kind.startswith("broker"):
            fleet.tell(action.kind)
            broker.order(action.kind, 0.2 + 2.0 * action.draw)
        else:
            fleet.act(action.kind, action.draw)
    clock.wait_for(scene.plan.seconds)
    while fleet.owes_kills():
        fleet.tick()
        time.sleep(0.05)
    scene.load.stop()


def _peace(scene: _Scene, say: Callable[[str], None]) -> Report:
    fleet, load, settings, plan = scene.fleet, scene.load, scene.settings, scene.plan
    fleet.calm()
    scene.broker.settle(60.0)
    began = time.monotonic()
    say("the faults are over")
    unsent = load.flush(30.0)
    scene.missing("the producer", [f"{unsent} records not acknowledged"] if unsent else [])
    scene.missing("the producer", load.refused)
    _drained(scene)
    before = {m.slot: newest_offset(fleet.snapshots_of(m.slot)) for m in fleet.members}
    load.send(plan.snapshot_interactions * 2)
    load.flush(30.0)
    _drained(scene)
    stale = await_true(
        lambda: [s for s, offset in before.items() if newest_offset(fleet.snapshots_of(s)) <= offset],
        fleet.tick,
        SLEEPER_S,
    )
    scene.missing("no new snapshot of the item state", stale)
    drain_s = time.monotonic() - began
    fleet.stop()
    scene.missing("did not end after SIGTERM", [member.slot for member in fleet.members])
    scene.missing("after the last worker", await_true(lambda: open_transactions(settings), fleet.tick, 15.0))
    fleet.trouble += await_true(lambda: unstable_offsets(settings), fleet.tick, 5.0)
    ends = {key: end for key, end in output_ends(settings, "read_committed").items() if key[0] in WATCHED}
    scene.found += scene.witness.finish(ends, 30.0)
    say("auditing")
    began = time.monotonic()
    report = _audit(scene)
    report.drain_s, report.audit_s = round(drain_s, 1), round(time.monotonic() - began, 1)
    return report


def _drained(scene: _Scene) -> None:
    """Everything in `events` and `requests` is committed, every bad `items` record is a dead letter."""
    settings = scene.settings

    def left() -> list[str]:
        return unhandled(settings) or unread_items(settings, scene.load.bad_items())

    stuck = await_true(left, scene.fleet.tick, scene.plan.drain_s)
    if stuck:
        scene.stuck = True
        (scene.folder / "stuck.log").write_text(scene.fleet.logs(60), "utf-8")
        scene.missing(f"stuck for {scene.plan.drain_s:g} s", stuck)


def _audit(scene: _Scene) -> Report:
    settings, fleet, load = scene.settings, scene.fleet, scene.load
    run = read_run(settings)
    model = model_of(run, settings)
    scene.found += findings(run, settings, model)
    scene.found += superseded(run.commits)
    watched = {"interactions": run.log, "recommendations": run.lists, "events-dlq": run.dead}
    scene.found += scene.witness.differences(watched)
    scene.found += _acknowledged(run, load)
    folders = sorted(path for path in Path(settings.state.dir).iterdir() if path.is_dir())
    replicas = check_replicas(settings, folders, run.log)
    scene.found += replicas.findings
    reasons = Counter("late" if why == Reason.LATE else name for name, _, why in model.rejected)
    return Report(
        seed=scene.plan.seed,
        seconds=scene.plan.seconds,
        **{name: fleet.counts[name] for name in _COUNTED},
        broker_kills=scene.broker.killed,
        broker_stops=scene.broker.stopped,
        events=len(run.events),
        requests=len(run.requests),
        accepted=len(model.accepted),
        rejected=reasons["events"],
        duplicates=sum(model.duplicates.values()),
        late=reasons["late"],
        lists=len(run.lists),
        dead_letters=len(run.dead),
        users=len(model.users),
        shared_offsets=replicas.shared,
        snapshots=replicas.snapshots,
        digest=replicas.digest,
        stuck=scene.stuck,
        lost=count(scene.found, "lost"),
        duplicated=count(scene.found, "duplicated"),
        wrong=count(scene.found, "wrong"),
        findings=[finding.text for finding in scene.found],
        trouble=fleet.trouble,
        folder=str(scene.folder),
    )


_COUNTED = ("kills", "kills_in_service", "zombies", "stops", "added", "removed", "ended")


def _acknowledged(run: Run, load: Load) -> list[Finding]:
    """Every record that the broker has acknowledged to the producer stands where it said, as it was sent."""
    inputs = {"events": run.events, "requests": run.requests, "items": run.items}
    found = {
        (name, record.partition, record.offset): fingerprint(record.key, record.value, record.headers)
        for name, records in inputs.items()
        for record in records
    }
    return [
        Finding("lost", 1, f"input: {place[0]}[{place[1]}]@{place[2]} was acknowledged and is not there")
        for place, mark in load.acknowledged.items()
        if found.get(place) != mark
    ]
