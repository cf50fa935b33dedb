"""How long a ranker takes for one call of a worker's usual size."""

from __future__ import annotations

import time

import numpy as np

from serving.ranker.ranker import Ranker

__all__ = ["median_latency_ms"]


def median_latency_ms(ranker: Ranker, *, users: int = 16, candidates: int = 200, calls: int = 9) -> float:
    """Median milliseconds of `calls` calls with full histories, after two that are not counted."""
    rng = np.random.default_rng(0)
    top = ranker.unseen
    history = rng.integers(1, top, (users, ranker.history_length))
    inputs = ranker.plain_inputs(history, rng.integers(1, top, (users, candidates)))
    timings_ms = []
    for _ in range(calls + 2):
        started = time.perf_counter()
        ranker.score_inputs(inputs)
        timings_ms.append(1e3 * (time.perf_counter() - started))
    return float(np.median(timings_ms[2:]))
