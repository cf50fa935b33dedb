"""What is done to a run, and when: all of it from the seed, before the run begins."""

from __future__ import annotations

import random
from typing import NamedTuple

__all__ = ["Action", "schedule"]

KILL_EVERY_S = (3.4, 4.9)
"""A worker is back in 3 to 4 s on a busy machine: shorter, and none would get anything done."""
BLOCK_S = 60.0
"""Each of the rarer faults comes in every block of this length."""
RARE = {
    "zombie": [(0.04, 0.40), (0.45, 0.80)],
    "term": [(0.10, 0.90)],
    "broker_kill": [(0.15, 0.35)],
    "broker_stop": [(0.50, 0.75)],
}
"""When, as a share of a block. Not at its very end: a sleeper must have the time to outsleep its session."""
SIZES = (
    ("add", "remove"),
    ("remove", "add"),
    ("add", "add", "remove", "remove"),
    ("remove", "remove", "add", "add"),
)
"""How the number of workers moves in a block."""


class Action(NamedTuple):
    """One fault, `at_s` seconds into the run. `draw`, in [0, 1), decides all that is left open."""

    at_s: float
    kind: str
    draw: float


def schedule(seed: int, seconds: float) -> list[Action]:
    """All faults of a run in order of time: `kill`, `zombie`, `term`, `add`, `remove`, `broker_kill`,
    `broker_stop`.

    >>> kinds = [action.kind for action in schedule(seed=1, seconds=60)]
    >>> kinds.count("kill") >= 10, kinds.count("zombie"), kinds.count("broker_kill")
    (True, 2, 1)
    """
    rng = random.Random(f"schedule {seed}")
    actions = []
    at_s = rng.uniform(*KILL_EVERY_S)
    while at_s < seconds:
        actions.append(Action(at_s, "kill", rng.random()))
        at_s += rng.uniform(*KILL_EVERY_S)
    blocks = max(1, round(seconds / BLOCK_S))
    length_s = seconds / blocks
    for block in range(blocks):
        begin_s = block * length_s
        for kind, windows in RARE.items():
            for low, high in windows:
                actions.append(Action(begin_s + rng.uniform(low, high) * length_s, kind, rng.random()))
        sizes = rng.choice(SIZES)
        moments = sorted(rng.uniform(0.05, 0.95) * length_s for _ in sizes)
        actions += [
            Action(begin_s + moment_s, kind, rng.random())
            for kind, moment_s in zip(sizes, moments, strict=True)
        ]
    return sorted(actions)
