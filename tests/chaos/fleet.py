"""The workers of a chaos run: started, killed, put to sleep, replaced, and started again when they end."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.deployment import SESSION_S
from tests.chaos.process import CommandProcess

__all__ = ["Fleet", "Member"]

MOST = 4
STATIC = ("w1", "w2", "w3", "w4")
DYNAMIC = "dynamic"
DYNAMIC_SHARE = 0.15
"""Of the killed workers so many are replaced by one without a stable id. Each leaves a dead member behind,
and the group waits for that one's session to end: more of them, and the group would do nothing else."""
STOP_S = 10.0
"""Within this a worker ends after SIGTERM."""
GROWN_S = 1.5
"""A process younger than this has nothing yet that a kill could break."""
IN_SERVICE = "restored partitions"


@dataclass
class Member:
    """One worker process."""

    slot: str
    process: CommandProcess
    started: float
    log_from: int
    asleep_until: float | None = None
    leaving_since: float | None = None
    comes_back: bool = False
    served: bool = False

    def said(self) -> str:
        """What this process has logged; those before it under the same name are left out."""
        return self.process.log[self.log_from :]

    def in_service(self) -> bool:
        """It has taken partitions over at least once."""
        self.served = self.served or IN_SERVICE in self.said()
        return self.served


class Fleet:
    """At most one process a slot at any time, so that an epoch of an id that has ended never comes back.

    While the broker is away nobody is started: imports would take the processor from it, and all that a new
    process can do is wait.
    """

    def __init__(
        self,
        env: Mapping[str, str],
        folder: Path,
        snapshots: Path,
        command: Sequence[str],
        broker_is_up: Callable[[], bool],
    ) -> None:
        self._env = dict(env)
        self._folder = folder
        self._snapshots = snapshots
        self._command = command
        self._broker_is_up = broker_is_up
        self._due: list[str] = []
        """Slots whose worker is to be started as soon as the broker is there."""
        self.members: list[Member] = []
        self._owed: list[tuple[str, random.Random]] = []
        """Faults for which there was no process to have them."""
        self.counts: Counter[str] = Counter()
        self.story: list[str] = []
        """What was done, and what happened, with the second."""
        self.trouble: list[str] = []
        """What an operator would want to know: processes that ended by themselves, or would not end."""
        self._began = time.monotonic()

    def snapshots_of(self, slot: str) -> Path:
        return self._snapshots / slot

    def tell(self, text: str) -> None:
        self.story.append(f"{time.monotonic() - self._began:7.2f} {text}")

    def start(self, slot: str | None = None, rng: random.Random | None = None) -> None:
        """Start a worker in `slot`, else in a free one, which `rng` chooses."""
        taken = {member.slot for member in self.members} | set(self._due)
        if slot is None:
            rng = rng or random.Random(0)
            free = [name for name in STATIC if name not in taken]
            dynamic = DYNAMIC not in taken and rng.random() < DYNAMIC_SHARE
            slot = DYNAMIC if dynamic or not free else rng.choice(free)
        if self._broker_is_up():
            self._launch(slot)
        else:
            self._due.append(slot)

    def _launch(self, slot: str) -> None:
        log = self._folder / f"{slot}.log"
        log.touch()
        worker_id = None if slot == DYNAMIC else slot
        env = {**self._env, "FRESHET_STATE__DIR": str(self.snapshots_of(slot))}
        begin = len(log.read_text("utf-8", "replace"))
        process = CommandProcess(env, worker_id, log, self._command)
        self.members.append(Member(slot, process, time.monotonic(), begin))
        self.tell(f"start {slot} (pid {process.pid})")

    def act(self, kind: str, draw: float) -> None:
        """One fault: `kill`, `zombie`, `term`, `add` or `remove`."""
        rng = random.Random(draw)
        getattr(self, f"_{kind}")(rng)

    def tick(self) -> None:
        """What is due: sleepers wake up, leavers are looked after, whoever has ended is replaced."""
        now = time.monotonic()
        for member in list(self.members):
            if member.asleep_until is not None and now >= member.asleep_until:
                self.wake(member)
            code = member.process.exited()
            if code is not None:
                self._ended(member, code)
            elif member.leaving_since is not None and now - member.leaving_since > STOP_S:
                self.trouble.append(f"{member.slot}: still there {STOP_S:g} s after SIGTERM; killed")
                self._end(member)
        while self._due and self._broker_is_up():
            self._launch(self._due.pop(0))
        owed, self._owed = self._owed, []
        for kind, rng in owed:
            getattr(self, f"_{kind}")(rng)

    def wake(self, member: Member) -> None:
        member.asleep_until = None
        member.process.signal(signal.SIGCONT)
        self.tell(f"wake {member.slot}")

    def _ended(self, member: Member, code: int) -> None:
        self.members.remove(member)
        lines = [line for line in member.said().splitlines() if line.strip()]
        last = lines[-1][:300] if lines else ""
        asked = member.leaving_since is not None
        self.tell(f"{member.slot} ended with {code}: {last}")
        if asked and (code == 0 or not member.in_service()):
            seconds = time.monotonic() - (member.leaving_since or 0)
            self.tell(f"{member.slot} took {seconds:.1f} s to stop")
        else:
            self.counts["ended"] += 1
            self.trouble.append(f"{member.slot} ended by itself with {code}: {last}")
        if not asked or member.comes_back:
            self.start(member.slot)

    def _end(self, member: Member) -> None:
        member.process.kill()
        self.members.remove(member)

    def _awake(self) -> list[Member]:
        return [m for m in self.members if m.asleep_until is None and m.leaving_since is None]

    def serving(self) -> list[Member]:
        """Workers awake and in service."""
        return [member for member in self._awake() if member.in_service()]

    def _pick(self, rng: random.Random) -> Member | None:
        """A running worker that is in service."""
        serving = self.serving()
        return rng.choice(serving) if serving else None

    def _victim(self, rng: random.Random) -> Member | None:
        """Whom to kill: one in service; now and then, and where none is, the one that was started last, so
        that the others come to something."""
        serving = self._pick(rng) if rng.random() < 0.9 else None
        grown = [m for m in self._awake() or self.members if time.monotonic() - m.started > GROWN_S]
        return serving or max(grown, key=lambda m: m.started, default=None)

    def _kill(self, rng: random.Random) -> None:
        victim = self._victim(rng)
        if victim is None:
            self._owed.append(("kill", rng))
            return
        self.counts["kills"] += 1
        self.counts["kills_in_service"] += victim.in_service()
        self._end(victim)
        self.tell(f"kill -9 {victim.slot} (in service: {victim.in_service()})")
        stays = victim.slot != DYNAMIC and rng.random() > DYNAMIC_SHARE
        self.start(victim.slot if stays else None, rng)

    def _zombie(self, rng: random.Random) -> None:
        sleeper = self._pick(rng)
        if sleeper is None:
            self._owed.append(("zombie", rng))
            return
        self.counts["zombies"] += 1
        sleeper.process.signal(signal.SIGSTOP)
        sleeper.asleep_until = time.monotonic() + SESSION_S + rng.uniform(1.0, 3.0)
        self.tell(f"sleep {sleeper.slot} (in service: {sleeper.in_service()})")

    def _leave(self, kind: str, rng: random.Random, *, comes_back: bool) -> bool:
        leaver = self._pick(rng)
        if leaver is None:
            self._owed.append((kind, rng))
            return False
        leaver.leaving_since, leaver.comes_back = time.monotonic(), comes_back
        leaver.process.signal(signal.SIGTERM)
        self.tell(f"SIGTERM {leaver.slot} ({'to come back' if comes_back else 'for good'})")
        return True

    def _term(self, rng: random.Random) -> None:
        self.counts["stops"] += self._leave("term", rng, comes_back=True)

    def _add(self, rng: random.Random) -> None:
        if len(self.members) + len(self._due) < MOST:
            self.start(None, rng)
            self.counts["added"] += 1

    def _remove(self, rng: random.Random) -> None:
        if sum(member.leaving_since is None for member in self.members) > 1:
            self.counts["removed"] += self._leave("remove", rng, comes_back=False)

    def owes_kills(self) -> bool:
        return any(kind == "kill" for kind, _ in self._owed)

    def calm(self) -> None:
        """No more faults: sleepers wake up now."""
        self._owed.clear()
        for member in self.members:
            if member.asleep_until is not None:
                self.wake(member)

    def stop(self) -> None:
        """SIGTERM to all; each must end by itself, with exit code 0."""
        for member in self.members:
            member.leaving_since = time.monotonic()
            member.process.signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_S + 2.0
        while self.members and time.monotonic() < deadline:
            self.tick()
            time.sleep(0.05)

    def clean_up(self) -> None:
        for member in self.members:
            member.process.clean_up()

    def logs(self, lines: int = 8) -> str:
        """The end of every running worker's log."""
        return "\n".join(
            f"--- {m.slot} (pid {m.process.pid})\n" + "\n".join(m.said().splitlines()[-lines:])
            for m in self.members
        )
