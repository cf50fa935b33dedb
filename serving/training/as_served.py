"""For which list an event counts as an example: the one made upon the event before it, or one asked for just
before the event itself (decision 0019)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serving.training.settings import ExamplesOf

__all__ = ["upon_event"]

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]


def upon_event(users: UInt64, times_ms: Int64, examples: ExamplesOf) -> npt.NDArray[np.bool_]:
    """bool[n]: the event's list is that made upon its user's event before, if there is one; else it was asked
    for by a request just before the event. `examples` is `trainer.examples`; where it is "both", a hash of
    user token uint64[n] and time int64[n] decides, so that whoever reads the log decides alike.

    >>> upon_event(np.array([1, 1], np.uint64), np.array([5, 6]), "events").tolist()
    [True, True]
    """
    if examples != "both":
        return np.full(len(users), examples == "events", dtype=np.bool_)
    mixed = _mixed(users ^ _mixed(np.asarray(times_ms).astype(np.uint64)))
    return (mixed & np.uint64(1)).astype(np.bool_)


def _mixed(words: UInt64) -> UInt64:
    """SplitMix64's finaliser (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
