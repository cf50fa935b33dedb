"""ONNX Runtime alone, on recorded inputs: users scored per second, printed as JSON.

python -m benchmarks.ort_alone MODEL.onnx FEEDS.npz THREADS SECONDS
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from serving.ranker.inputs import INPUTS, RankerInputs
from serving.ranker.session import RankerSession

__all__ = ["load_feeds", "users_per_s"]


def load_feeds(path: str | Path) -> list[RankerInputs]:
    """Recorded calls, oldest first."""
    with np.load(path, allow_pickle=False) as stored:
        calls = sorted({int(name.partition(".")[0]) for name in stored.files})
        return [RankerInputs(**{name: stored[f"{n}.{name}"] for name in INPUTS}) for n in calls]


def users_per_s(session: RankerSession, feeds: list[RankerInputs], seconds: float) -> float:
    """Score all recorded calls again and again for at least `seconds`, after one round that does not
    count."""
    for inputs in feeds:
        session.score(inputs)
    users, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        for inputs in feeds:
            session.score(inputs)
            users += len(inputs.history)
    return users / (time.perf_counter() - started)


def main(model: str, feeds: str, threads: int, seconds: float) -> None:
    session = RankerSession(model, "cpu", threads)
    print(json.dumps({"users_per_s": users_per_s(session, load_feeds(feeds), seconds)}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
