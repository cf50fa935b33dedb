"""When the trainer trains: after so many interactions, after so long, or when the online models miss more."""

from __future__ import annotations

import time
from collections.abc import Callable

from streams.settings import Settings
from streams.trainer_drift import DriftWatch

__all__ = ["Schedule"]


class Schedule:
    """Asked between two reads of the learning log; `drift` is told of hits by the replay of that log."""

    def __init__(self, settings: Settings, now_s: Callable[[], float] = time.monotonic) -> None:
        """`now_s` is a clock in seconds."""
        self._settings = settings.schedule
        self._least = settings.trainer.min_interactions
        self._now_s = now_s
        self._trained_at, self._trained_s = 0, now_s()
        self.drift = DriftWatch(settings.schedule.drift_detector)

    def reason(self, seen: int) -> str:
        """Why to train now that the log held `seen` interactions, in words and numbers; "" for not yet."""
        new = seen - self._trained_at
        if new == 0 or seen < self._least:
            return ""
        if new >= self._settings.every_interactions:
            return f"{new} new interactions (schedule.every_interactions={self._settings.every_interactions})"
        waited_s = self._now_s() - self._trained_s
        if waited_s >= self._settings.every_s > 0:
            return (
                f"{new} new interactions after {waited_s:.0f} s (schedule.every_s={self._settings.every_s:g})"
            )
        return self.drift.why if self._settings.on_drift else ""

    def began(self, seen: int) -> None:
        """A training on `seen` interactions begins: whatever asked for it is answered."""
        self._trained_at, self._trained_s = seen, self._now_s()
        self.drift.trained()
