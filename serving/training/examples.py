"""Lists that could have been served, with what was used next: what a fused ranker is fitted and judged on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.training.dataset import InteractionLog

__all__ = ["Examples"]

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Examples:
    """n events by columns, in log order, each with the C candidates of its user just before it.

    Events whose user had the item before are none: it is never served again.
    """

    item_ids: Sequence[str]
    """What `candidates` and `target_items` index."""
    candidates: Int32
    """[n, C], -1 padded: what retrieval gave, then, where the target was not among it, the target."""
    length: Int32
    """[n]: candidates that retrieval gave."""
    targets: Int32
    """[n]: column of the item that was used; -1 where it had no row in the item state yet, so that nothing
    could serve it."""
    target_items: Int32
    """[n]"""
    features: Float32
    """[n, C, len(FEATURES)] as served; a target that retrieval did not give has those that it would have had
    beside the others."""
    online: Float32
    """[n, C]: the blend's scores without a ranker, -inf behind what retrieval gave."""
    context: Float32
    """[n, len(CONTEXT)]"""
    users: npt.NDArray[np.uint64]
    times_ms: Int64
    offsets: Int64
    """[n]: of the log's record."""
    rows: Int64
    """[n]: row in the `InteractionLog` that `located` was asked about; -1 before."""

    def __len__(self) -> int:
        return len(self.length)

    @property
    def retrieved(self) -> Bool:
        """bool[n]: the target is among what retrieval gave; all else is a miss, whoever ranks."""
        return (self.targets >= 0) & (self.targets < self.length)

    def slice(self, rows: Any) -> Examples:
        """Some of the examples, by a mask, numbers or a slice of them."""
        return replace(self, **{name: getattr(self, name)[rows] for name in _COLUMNS})

    def located(self, log: InteractionLog) -> Examples:
        """The examples whose events are in `log`, with their rows there; those taken back since are
        left out. `EvaluationSlice.at(rows)` gives their users' histories."""
        from_offset = int(self.offsets.min(initial=np.iinfo(np.int64).max))
        near = np.flatnonzero(log.column("offset") >= from_offset)
        names, columns = log.item_ids, [log.column(name)[near] for name in ("user", "time_ms", "item")]
        row_of: dict[tuple[int, int, str], int] = {}
        for row, user, time_ms, item in zip(near.tolist(), *(c.tolist() for c in columns), strict=True):
            row_of.setdefault((user, time_ms, names[item]), row)
        ids = [self.item_ids[item] for item in self.target_items.tolist()]
        keys = zip(self.users.tolist(), self.times_ms.tolist(), ids, strict=True)
        rows = np.array([row_of.get(key, -1) for key in keys], dtype=np.int64)
        return replace(self, rows=rows).slice(rows >= 0)


_COLUMNS = tuple(f.name for f in fields(Examples) if f.name != "item_ids")
