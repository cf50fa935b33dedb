"""What a process measures of itself: latency in log-scaled buckets, time by stage, memory.

Every worker counts its latencies into the same fixed buckets, so that histograms of many workers and many
seconds add up exactly; a mean of percentiles would mean nothing. Bounds follow the Renard series R10 (ten
steps a decade, each about 1.26 times the last) from 0.1 ms to 100 s. A quantile is interpolated inside its
bucket, so it is off by less than the bucket's width.
"""

from __future__ import annotations

import math
import os
import resource
import sys
from bisect import bisect_left
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from types import TracebackType

import numpy as np
import numpy.typing as npt

__all__ = [
    "BUCKET_NAMES",
    "LATENCY_BOUNDS_MS",
    "OVERFLOW_BUCKET",
    "LatencyHistogram",
    "StageClock",
    "rss_bytes",
]

_R10 = (1.0, 1.25, 1.6, 2.0, 2.5, 3.15, 4.0, 5.0, 6.3, 8.0)

LATENCY_BOUNDS_MS: tuple[float, ...] = (
    *(round(step * 10.0**decade, 6) for decade in range(-1, 5) for step in _R10),
    100_000.0,
)
"""Upper bounds (inclusive) of the latency buckets, in ms; what is above the last one falls into `+Inf`."""

OVERFLOW_BUCKET = "+Inf"

BUCKET_NAMES: tuple[str, ...] = (*(f"{bound:g}" for bound in LATENCY_BOUNDS_MS), OVERFLOW_BUCKET)
"""Names of the buckets in `WorkerStats.latency_ms_buckets`: the upper bound in ms as text."""

_INDEX = {name: index for index, name in enumerate(BUCKET_NAMES)}
_BOUNDS_ARRAY = np.asarray(LATENCY_BOUNDS_MS)


class LatencyHistogram:
    """Counts of latencies in ms by fixed, log-scaled bucket; two of them merge without loss.

    A latency below 0 (a producer's clock runs ahead) counts in the first bucket, so counts stay complete.

    >>> histogram = LatencyHistogram()
    >>> for ms in (1.0, 2.0, 2.0, 40.0):
    ...     histogram.add(ms)
    >>> histogram.count, histogram.buckets()
    (4, {'1': 1, '2': 2, '40': 1})
    >>> round(histogram.quantile(0.5), 2)
    1.8
    """

    __slots__ = ("_counts",)

    def __init__(self, buckets: Mapping[str, int] | None = None) -> None:
        self._counts = [0] * len(BUCKET_NAMES)
        if buckets:
            self.merge(buckets)

    def add(self, ms: float) -> None:
        """Count one latency; raises ValueError when it is not a number."""
        if ms != ms:
            raise ValueError("latency is NaN ms: the caller subtracted a time that is not set")
        self._counts[bisect_left(LATENCY_BOUNDS_MS, ms)] += 1

    def add_many(self, ms: npt.ArrayLike) -> None:
        """Count latencies of shape (n,); raises ValueError when one is not a number."""
        values = np.asarray(ms, dtype=np.float64).ravel()
        if not values.size:
            return
        if np.isnan(values).any():
            raise ValueError(f"{int(np.isnan(values).sum())} of {values.size} latencies are NaN ms")
        found = np.bincount(np.searchsorted(_BOUNDS_ARRAY, values, side="left"))
        for index in np.flatnonzero(found).tolist():
            self._counts[index] += int(found[index])

    def merge(self, other: LatencyHistogram | Mapping[str, int]) -> None:
        """Add another histogram's counts; raises ValueError on an unknown bucket or a negative count."""
        if isinstance(other, LatencyHistogram):
            self._counts = [a + b for a, b in zip(self._counts, other._counts, strict=True)]
            return
        for name, count in other.items():
            index = _INDEX.get(name)
            if index is None or count < 0:
                raise ValueError(
                    f"latency bucket {name!r} with count {count} is not of this version's scheme "
                    f"({len(BUCKET_NAMES)} buckets, {BUCKET_NAMES[0]} to {BUCKET_NAMES[-2]} ms): "
                    "run workers and monitor of one version"
                )
        for name, count in other.items():
            self._counts[_INDEX[name]] += count

    @property
    def count(self) -> int:
        """Number of latencies counted."""
        return sum(self._counts)

    def buckets(self) -> dict[str, int]:
        """The buckets that are not empty, by name, in rising order."""
        return {name: n for name, n in zip(BUCKET_NAMES, self._counts, strict=True) if n}

    def cumulative(self) -> list[tuple[float, int]]:
        """(upper bound in ms, number of latencies up to it) by bucket, the last bound being infinity."""
        total, rows = 0, []
        for bound, n in zip((*LATENCY_BOUNDS_MS, math.inf), self._counts, strict=True):
            total += n
            rows.append((bound, total))
        return rows

    def quantile(self, p: float) -> float | None:
        """The latency in ms below which the share `p` (0 to 1) lies, linear in its bucket; None when empty.

        In the open last bucket the answer is its lower bound, 100 s: "at least".
        """
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"quantile {p} is not a share between 0 and 1")
        total = self.count
        if not total:
            return None
        rank, below = p * total, 0
        for index, n in enumerate(self._counts):
            if n and below + n >= rank:
                if index == len(LATENCY_BOUNDS_MS):
                    break
                lower = LATENCY_BOUNDS_MS[index - 1] if index else 0.0
                share = max(0.0, rank - below) / n
                return lower + (LATENCY_BOUNDS_MS[index] - lower) * share
            below += n
        return LATENCY_BOUNDS_MS[-1]

    def reset(self) -> None:
        """Forget all counts."""
        self._counts = [0] * len(BUCKET_NAMES)


class _Stage:
    __slots__ = ("_started", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started = 0.0

    def __enter__(self) -> None:
        self._started = perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds += perf_counter() - self._started


class StageClock:
    """Seconds spent by stage, in one thread. Stages of different names nest; the outer counts the inner too.

    >>> clock = StageClock()
    >>> with clock.stage("score"):
    ...     pass
    >>> list(clock.take())
    ['score']
    >>> clock.take()
    {}
    """

    __slots__ = ("_stages",)

    def __init__(self) -> None:
        self._stages: dict[str, _Stage] = {}

    def stage(self, name: str) -> _Stage:
        """The context manager whose time is added to stage `name`."""
        stage = self._stages.get(name)
        if stage is None:
            stage = self._stages[name] = _Stage()
        return stage

    def take(self) -> dict[str, float]:
        """Seconds by stage since the last call, without stages that took no time; starts again from zero."""
        spent = {name: stage.seconds for name, stage in self._stages.items() if stage.seconds > 0.0}
        for stage in self._stages.values():
            stage.seconds = 0.0
        return spent


def rss_bytes() -> int:
    """Resident memory of this process in bytes; where /proc is missing, its peak."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
