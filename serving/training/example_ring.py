"""The newest examples, in memory of a fixed size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.ranker.inputs import CONTEXT, FEATURES
from serving.training.examples import Examples

__all__ = ["ExampleRing"]

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]


class ExampleRing:
    """Up to `capacity` examples of up to `room` candidates; the oldest give way. Memory is taken as it
    fills."""

    def __init__(self, capacity: int, room: int) -> None:
        self._capacity = capacity
        self._taken = 0
        self._columns: dict[str, npt.NDArray[Any]] = {
            "candidates": np.empty((capacity, room), dtype=np.int32),
            "length": np.empty(capacity, dtype=np.int32),
            "targets": np.empty(capacity, dtype=np.int32),
            "target_items": np.empty(capacity, dtype=np.int32),
            "features": np.empty((capacity, room, len(FEATURES)), dtype=np.float32),
            "online": np.empty((capacity, room), dtype=np.float32),
            "context": np.empty((capacity, len(CONTEXT)), dtype=np.float32),
            "users": np.empty(capacity, dtype=np.uint64),
            "times_ms": np.empty(capacity, dtype=np.int64),
            "offsets": np.empty(capacity, dtype=np.int64),
        }

    def __len__(self) -> int:
        return min(self._taken, self._capacity)

    def put(
        self,
        *,
        candidates: Int32,
        features: Float32,
        online: Float32,
        missed: npt.NDArray[np.intp],
        missed_features: Float32,
        **columns: npt.NDArray[Any],
    ) -> None:
        """Append n examples: columns as in `Examples`, without the targets that retrieval did not give, at
        the places missed int[m], whose features are missed_features float32[m, F]."""
        keep = slice(max(0, len(candidates) - self._capacity), None)
        at = (self._taken + np.arange(len(candidates))[keep]) % self._capacity
        for name, values in columns.items():
            self._columns[name][at] = values[keep]
        for name, values, empty in (
            ("candidates", candidates, -1),
            ("features", features, 0.0),
            ("online", online, -np.inf),
        ):
            column = self._columns[name]
            column[at, : values.shape[1]] = values[keep]
            column[at, values.shape[1] :] = empty
        self._taken += len(candidates)
        inside = missed >= keep.start
        extra = at[missed[inside] - keep.start]
        length = self._columns["length"][extra]
        self._columns["candidates"][extra, length] = self._columns["target_items"][extra]
        self._columns["features"][extra, length] = missed_features[inside]

    def codes(self) -> Int32:
        """int32: codes that the examples name, -1 among them, some more than once."""
        kept = slice(len(self))
        return np.concatenate(
            [np.unique(self._columns[name][kept]) for name in ("candidates", "target_items")]
        )

    def renumber(self, new: Int32) -> None:
        """Items got other codes: new int32[old codes + 1], as `ItemRows.keep_only` gives them."""
        for name in ("candidates", "target_items"):
            column = self._columns[name]
            column[: len(self)] = new[column[: len(self)]]

    def examples(self, item_ids: Sequence[str]) -> Examples:
        """All of them, oldest first, as copies; `item_ids` is what the columns of items index."""
        n = len(self)
        order = (self._taken - n + np.arange(n)) % self._capacity
        kept = {name: column[order] for name, column in self._columns.items()}
        width = int((kept["candidates"] >= 0).sum(axis=1).max(initial=0))
        for name in ("candidates", "features", "online"):
            kept[name] = np.ascontiguousarray(kept[name][:, :width])
        return Examples(item_ids=item_ids, rows=np.full(n, -1, dtype=np.int64), **kept)
