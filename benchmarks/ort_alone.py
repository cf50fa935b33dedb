"""ONNX Runtime alone, on recorded inputs: users scored per second, printed as JSON.

python -m benchmarks.ort_alone MODEL.onnx FEEDS.npz THREADS SECONDS
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serving.ranker.session import RankerSession

__all__ = ["load_feeds", "users_per_s"]

Feeds = list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]


def load_feeds(path: str | Path) -> Feeds:
    """Recorded calls, oldest first: (history int64[B, L], candidates int64[B, C])."""
    with np.load(path, allow_pickle=False) as stored:
        calls = sorted({int(name.partition(".")[0]) for name in stored.files})
        return [(stored[f"{n}.history"], stored[f"{n}.candidates"]) for n in calls]


def users_per_s(session: RankerSession, feeds: Feeds, seconds: float) -> float:
    """Score all recorded calls again and again for at least `seconds`, after one round that does not
    count."""
    for history, candidates in feeds:
        session.score(history, candidates)
    users, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        for history, candidates in feeds:
            session.score(history, candidates)
            users += len(history)
    return users / (time.perf_counter() - started)


def main(model: str, feeds: str, threads: int, seconds: float) -> None:
    session = RankerSession(model, "cpu", threads)
    print(json.dumps({"users_per_s": users_per_s(session, load_feeds(feeds), seconds)}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
