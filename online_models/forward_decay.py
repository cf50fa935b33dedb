"""Forward decay: weights grow from a landmark instead of all old ones fading (Cormode, Shkapenyuk,
Srivastava and Xu, Forward Decay: A Practical Time Decay Model for Streaming Systems, ICDE 2009).

A weight w at event time t is stored as w 2**((t - landmark) / half-life); its value at the newest event time
T is the stored sum times 2**(-(T - landmark) / half-life). A clock is int64[1 + n]: landmark, then the n
newest event times, newest first; ms, -1 = none yet. With n > 1 events can be withdrawn, and T goes back.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from online_models.kernels import RESCALE_HALF_LIVES

__all__ = ["half_lives_since", "halvings_due", "new_clock", "require_half_life"]

_TIMES_KEPT = 8


def new_clock() -> NDArray[np.int64]:
    """A clock before the first event, int64[9]: of the newest eight, seven can be withdrawn."""
    return np.full(1 + _TIMES_KEPT, -1, dtype=np.int64)


def require_half_life(half_life_s: float) -> None:
    """Raises ValueError unless 0 (no decay) or at least 1 s: the landmark moves in whole ms."""
    if half_life_s != 0.0 and not 1.0 <= half_life_s <= 1e12:
        raise ValueError(f"half_life_s is {half_life_s}, but 0 (no decay) or 1 to 1e12 seconds is needed")


def halvings_due(time_ms: int, clock: NDArray[np.int64], half_life_s: float) -> int:
    """Whole half-lives by which the landmark must move before an event at time_ms; 0 = not yet."""
    half_life_ms, age_ms = half_life_s * 1000.0, time_ms - int(clock[0])
    due = half_life_ms > 0.0 and clock[0] >= 0 and age_ms >= RESCALE_HALF_LIVES * half_life_ms
    return int(age_ms // half_life_ms) if due else 0


def half_lives_since(clock: NDArray[np.int64], half_life_s: float) -> float:
    """Half-lives from the landmark to the newest event; 0 without decay or before the first event."""
    if half_life_s == 0.0 or clock[0] < 0:
        return 0.0
    return float(clock[1] - clock[0]) / (half_life_s * 1000.0)
