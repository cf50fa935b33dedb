"""Where a control dies: at a place that only the control has, never the product."""

from __future__ import annotations

import os
import signal

__all__ = ["CRASH_AT", "CrashPoint"]

CRASH_AT = "FRESHET_CONTROL_CRASH_AT"
"""Environment variable: at which passage of the crash point the process kills itself; unset: at none."""


class CrashPoint:
    """Counts how often it is passed, and ends the process with SIGKILL when it is time: no handler runs, no
    buffer is flushed, as in a power cut."""

    def __init__(self) -> None:
        self._left = int(os.environ.get(CRASH_AT, "0"))

    def passed(self) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
