"""What every exported network reads and gives: one signature, so that one runtime serves them all.

Shapes: B users, L recent items (oldest first, 0 on the left), C candidates, N places of items. Place 0 is
padding, 1 to V are the vocabulary, V + 1 is any item that the export has never seen, and places above it are
such items with a content vector of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
import numpy.typing as npt

__all__ = [
    "CONTEXT",
    "FEATURES",
    "HASHED",
    "INPUTS",
    "OUTPUT",
    "OWN_CONTEXT",
    "WIDTHS",
    "Contents",
    "RankerInputs",
    "context_of",
    "gap_buckets",
]

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]

OWN_CONTEXT = ("hour_sin", "hour_cos", "weekday_sin", "weekday_cos", "log_idle", "log_seen")
"""Time of day and of week (UTC) of the request, ln(1 + seconds since the newest event) / 16, ln(1 + items
seen) / 8."""
HASHED = 16
"""Columns of what the producer said in `context`; see `serving.ranker.hashing`."""
CONTEXT = (*OWN_CONTEXT, *(f"hashed_{column}" for column in range(HASHED)))
FEATURES = ("covisitation", "popularity", "factor", "count", "exposure", "recency")
"""What the online models say of a candidate as the list is made; see `serving.features`."""
INPUTS: dict[str, tuple[str, int]] = {
    "history": ("int64", 2),
    "history_types": ("int64", 2),
    "history_gaps_s": ("float32", 2),
    "context": ("float32", 2),
    "candidates": ("int64", 2),
    "features": ("float32", 3),
    "item_vectors": ("float32", 2),
}
"""Element type and number of dimensions of each input, in the graph's order."""
WIDTHS = {"context": len(CONTEXT), "features": len(FEATURES)}
"""Size of the last dimension of the inputs where it is fixed."""
OUTPUT = "scores"
DAY_S = 86_400.0
GAP_BUCKETS = 16
"""Gaps between neighbouring events: 0 is none, then doubling fourfold from a second to years."""


class Contents(Protocol):
    """Content vectors of items; `spec` says what they are made of, by name and dimension."""

    @property
    def spec(self) -> tuple[tuple[str, int], ...]: ...

    def of(self, item_ids: Sequence[str]) -> Float32:
        """float32[n, E], zeros for an item that has none."""
        ...


@dataclass(slots=True)
class RankerInputs:
    """One call: history int64[B, L] of places; history_types int64[B, L], 0 where unknown; history_gaps_s
    float32[B, L], seconds since the event before it, 0 for the first; context float32[B, len(CONTEXT)];
    candidates int64[B, C] of places; features float32[B, C, len(FEATURES)]; item_vectors float32[N, E], row 0
    zeros."""

    history: Int64
    history_types: Int64
    history_gaps_s: Float32
    context: Float32
    candidates: Int64
    features: Float32
    item_vectors: Float32

    def feeds(self) -> dict[str, npt.NDArray[np.generic]]:
        """By name, contiguous, in the types that the graph takes."""
        return {
            name: np.ascontiguousarray(getattr(self, name), dtype=kind) for name, (kind, _) in INPUTS.items()
        }

    def part(self, start: int, stop: int) -> RankerInputs:
        """The users from `start` up to `stop`, as views."""
        per_user = [f.name for f in fields(self) if f.name != "item_vectors"]
        return RankerInputs(
            **{name: getattr(self, name)[start:stop] for name in per_user}, item_vectors=self.item_vectors
        )


def context_of(
    now_ms: Int64, idle_s: Float32, seen: npt.NDArray[np.int32], hashed: Float32 | None = None
) -> Float32:
    """float32[n, len(CONTEXT)] of request times int64[n] (ms since the epoch), seconds since the newest event
    float32[n], items seen int32[n], and hashed float32[n, HASHED]; None, or [n, 0], is zeros.

    >>> context_of(np.array([0]), np.zeros(1, np.float32), np.zeros(1, np.int32))[:, :6].round(2).tolist()
    [[0.0, 1.0, -0.43, -0.9, 0.0, 0.0]]
    """
    days = np.asarray(now_ms, dtype=np.float64) / (1000.0 * DAY_S)
    hour = 2.0 * np.pi * (days % 1.0)
    weekday = 2.0 * np.pi * (np.floor(days + 4.0) % 7.0) / 7.0  # the epoch was a Thursday; Sunday is 0
    whole = np.zeros((len(days), len(CONTEXT)), dtype=np.float32)
    own = (
        np.sin(hour),
        np.cos(hour),
        np.sin(weekday),
        np.cos(weekday),
        np.log1p(np.maximum(idle_s, 0.0)) / 16.0,
        np.log1p(np.maximum(seen, 0)) / 8.0,
    )
    for column, values in enumerate(own):
        whole[:, column] = values
    if hashed is not None and hashed.shape[1]:
        whole[:, len(OWN_CONTEXT) :] = hashed
    return whole


def gap_buckets(gaps_s: Float32) -> Int64:
    """int64, of the shape given: 0 for no gap, else 1 + floor(log4(seconds)), at most GAP_BUCKETS - 1.

    >>> gap_buckets(np.array([0, 0.5, 1, 3.9, 4, 1e12], np.float32)).tolist()
    [0, 1, 1, 1, 2, 15]
    """
    gaps = np.maximum(np.asarray(gaps_s, dtype=np.float32), np.float32(0))
    buckets = 1 + np.floor(np.log2(np.maximum(gaps, 1.0)) / 2.0)
    return np.where(gaps > 0, np.minimum(buckets, GAP_BUCKETS - 1), 0).astype(np.int64)
