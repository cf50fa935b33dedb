"""A word for how a consumer does on one partition, by Burrow's rules: no thresholds, only a sliding window.

A fixed limit in records alarms on every burst and sleeps through a consumer stuck on a quiet topic; how lag
and committed offset move says both. Burrow's STOP (no commits at all) can't be told from its STALL (commits
that don't advance) here, because Kafka's admin API gives no commit times: both are STALL.

Reference: T. Palino, "Burrow: Kafka Consumer Monitoring Reinvented", LinkedIn Engineering (2015).
"""

from __future__ import annotations

from collections import deque
from itertools import pairwise

__all__ = ["STATUSES", "StatusWindow"]

STATUSES = {
    "OK": "read to the end within the window, or too little seen yet",
    "WARN": "advancing, but lag never fell in the window: slower than its producers",
    "STALL": "an owner and lag, but the committed offset stood still through the window",
    "REWIND": "the committed offset went back in the window",
    "UNOWNED": "no member of the group owns the partition",
    "DATA_LOSS": "retention removed records that the group had not read",
    "UNKNOWN": "nothing committed yet, or the broker did not say",
}
"""The status words and what each tells."""


class StatusWindow:
    """The last `size` observations of one partition (committed offset and lag), judged as a word."""

    __slots__ = ("_points", "_size")

    def __init__(self, size: int) -> None:
        if size < 2:
            raise ValueError(f"a status window of {size} observations shows no trend: at least 2")
        self._size = size
        self._points: deque[tuple[int, int]] = deque(maxlen=size)

    def add(self, committed: int | None, lag: int | None, *, lost: int, owned: bool) -> str:
        """Take one observation and return the status word (see `STATUSES`)."""
        if committed is None or lag is None:
            self._points.clear()
            return "OK" if lag == 0 and owned else "UNOWNED" if not owned else "UNKNOWN"
        self._points.append((committed, lag))
        if lost:
            return "DATA_LOSS"
        if not owned:
            return "UNOWNED"
        return self._trend()

    def _trend(self) -> str:
        offsets = [committed for committed, _ in self._points]
        lags = [lag for _, lag in self._points]
        if offsets[-1] < max(offsets):
            return "REWIND"
        if min(lags) == 0 or len(self._points) < self._size:
            return "OK"
        if offsets[-1] == offsets[0]:
            return "STALL"
        falling = any(after < before for before, after in pairwise(lags))
        return "OK" if falling else "WARN"
