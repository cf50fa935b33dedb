"""Recovery after a planted drift: the monitor's answer "forget" against every fixed half-life.

    python -m benchmarks.drift_recovery [--seeds 5] [--events 8000]

Streams with a known shift in the middle, one event a second: "popularity" (each user takes one item of a
skewed distribution, and all items change places) and "sequence" (users walk ten steps along a ring of items,
and the ring is dealt anew). Every event is judged as in `MonitoredModel`, hits at ten. Reported for each
model: hit rate before the shift; events after it until the mean of 100 events, over all seeds, is at 90% of
that; the same streams without the shift, and the alarms on them, all of them false. The best fixed half-life
is that which recovers soonest of those that lose at most 1% where nothing shifts. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from online_models import CoVisitation, DecayedPopularity, OnlineRanker
from online_models.drift import DriftMonitor, MonitoredModel

ITEMS = 500
RING = 100
STEPS = 10
WINDOW = 100
MOST_LOST = 0.01
HALF_LIVES_S = (125.0, 250.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0)

Stream = list[tuple[str, str]]


def popularity_stream(events: int, seed: int, shift: bool) -> Stream:
    rng = np.random.default_rng(seed)
    share = 1.0 / np.arange(1, ITEMS + 1)
    drawn, place = rng.choice(ITEMS, size=events, p=share / share.sum()), rng.permutation(ITEMS)
    if shift:
        drawn[events // 2 :] = place[drawn[events // 2 :]]
    return [(f"u{k}", f"i{item}") for k, item in enumerate(drawn.tolist())]


def sequence_stream(events: int, seed: int, shift: bool) -> Stream:
    """Sixteen walks at a time, which begin and end one after another, a fifth of the steps over two items."""
    rng, found = np.random.default_rng(seed), []
    rings = [rng.permutation(RING), rng.permutation(RING)]
    start, skips = rng.integers(0, RING, size=events), rng.random(events) < 0.2
    for k in range(events):
        lane, turn = k % 16, k // 16
        walk, step = divmod(turn + lane * STEPS // 16, STEPS)
        place = start[16 * walk + lane] + step + int(skips[k])
        found.append((f"u{16 * walk + lane}", f"i{rings[int(shift and k >= events // 2)][place % RING]}"))
    return found


def hits_of(model: OnlineRanker, stream: Stream, answer: str) -> tuple[NDArray[np.float64], list[int]]:
    """Hits float64[events], and at which of them there was an alarm for the worse."""
    monitor = DriftMonitor(answer=answer)
    watched, hits = MonitoredModel(model, monitor), []
    told = monitor.update

    def noted(value: float, time_ms: int = 0) -> Any:
        hits.append(value)
        return told(value, time_ms)

    monitor.update = noted  # type: ignore[method-assign]  # the monitor keeps only the last values
    for second, (user, item) in enumerate(stream):
        watched.learn_one(user, item, 1.0, {"timestamp": 1000 * second})
    return np.array(hits), [alarm.event for alarm in monitor.alarms if alarm.kind == "worse"]


def recovered_after(hits: NDArray[np.float64]) -> int | None:
    """Events after the middle until `WINDOW` of them have 90% of the hit rate of the quarter before it."""
    half = len(hits) // 2
    old = hits[half - half // 2 : half].mean()
    rates = np.convolve(hits[half:], np.ones(WINDOW) / WINDOW, "valid")
    reached = np.flatnonzero(rates >= 0.9 * old)
    return WINDOW + int(reached[0]) if len(reached) else None


def measured(make: Callable[[], OnlineRanker], stream: Any, answer: str, events: int, seeds: int) -> Any:
    moved = [hits_of(make(), stream(events, seed, True), answer) for seed in range(seeds)]
    stayed = [hits_of(make(), stream(events, seed, False), answer) for seed in range(seeds)]
    mean = np.mean([hits for hits, _ in moved], axis=0)
    half = events // 2
    return {
        "hit_rate_before": round(float(mean[half - half // 2 : half].mean()), 4),
        "recovered_after_events": recovered_after(mean),
        "hit_rate_after": round(float(mean[half:].mean()), 4),
        "hit_rate_stationary": round(float(np.mean([hits[half // 2 :] for hits, _ in stayed])), 4),
        "first_alarm_after_events": [
            min((alarm - half for alarm in alarms if alarm > half), default=None) for _, alarms in moved
        ],
        "false_alarms": sum(len(alarms) for _, alarms in stayed),
        "stationary_events": events * seeds,
    }


def compared(model: Any, stream: Any, events: int, seeds: int) -> dict[str, Any]:
    fixed = {
        half_life: measured(lambda h=half_life: model(half_life_s=h), stream, "none", events, seeds)
        for half_life in HALF_LIVES_S
    }
    top = max(one["hit_rate_stationary"] for one in fixed.values())
    good = {
        half_life: one
        for half_life, one in fixed.items()
        if one["hit_rate_stationary"] >= (1.0 - MOST_LOST) * top and one["recovered_after_events"]
    }
    best = min(good, key=lambda half_life: good[half_life]["recovered_after_events"])
    longest = HALF_LIVES_S[-1]
    answered = measured(lambda: model(half_life_s=longest), stream, "forget", events, seeds)
    return {
        "fixed": fixed,
        "best_fixed_half_life_s": best,
        "best_fixed_recovered_after_events": fixed[best]["recovered_after_events"],
        "forget": {"half_life_s": longest, **answered},
        "ratio": round(answered["recovered_after_events"] / fixed[best]["recovered_after_events"], 3),
        "lost_stationary": round(1.0 - answered["hit_rate_stationary"] / top, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--events", type=int, default=8000)
    given = parser.parse_args()
    found = {
        "popularity": compared(DecayedPopularity, popularity_stream, given.events, given.seeds),
        "sequence": compared(CoVisitation, sequence_stream, given.events, given.seeds),
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
