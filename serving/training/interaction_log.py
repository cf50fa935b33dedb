"""The learning log as growable columns, as far as a network is trained on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.ranker.inputs import HASHED
from serving.training.contexts import ContextTable

__all__ = ["InteractionLog"]

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]

_COLUMNS: dict[str, type[np.generic]] = {
    "user": np.uint64,
    "item": np.int32,
    "time_ms": np.int64,
    "event_type": np.uint8,
    "weight": np.float32,
    "offset": np.int64,
    "value": np.float32,
    "context": np.int32,
}

_MOST_TYPES = 255
"""Event types that a byte tells apart, less one for "unknown"."""


class InteractionLog:
    """Growable columns of interactions, in log order.

    >>> log = InteractionLog()
    >>> log.append(user=[1, 1], item_ids=["a", "b"], item=[0, 1], time_ms=[10, 20], event_type=[0, 0],
    ...            weight=[1.0, -1.0], offset=5)
    >>> len(log), log.item_ids, log.column("offset").tolist()
    (2, ['a', 'b'], [5, 5])
    """

    def __init__(self) -> None:
        self.item_ids: list[str] = []
        self.event_types: list[str] = []
        """Names of the event types 0, 1, ..., where they have any."""
        self.context_keys: tuple[str, ...] = ()
        """What the hashed contexts are made of."""
        self.contexts = ContextTable()
        self._rows: dict[str, int] = {}
        self._columns = {name: np.empty(1024, dtype=dtype) for name, dtype in _COLUMNS.items()}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def append(
        self,
        *,
        user: npt.ArrayLike,
        item_ids: Sequence[str],
        item: npt.ArrayLike,
        time_ms: npt.ArrayLike,
        event_type: npt.ArrayLike,
        weight: npt.ArrayLike,
        offset: npt.ArrayLike,
        value: npt.ArrayLike = np.nan,
        context: Float32 | None = None,
    ) -> None:
        """Append n interactions. `item` indexes `item_ids`, the caller's own table; `offset` may be one for
        all, and so may `value`, what an event says of its item (rating, dwell seconds; NaN is nothing).
        `context` float32[n, HASHED] is what was said beside each event, hashed; None is nothing.

        Raises ValueError, and appends nothing, when a column's length differs, an index is out of range or a
        weight is not finite.
        """
        local = np.asarray(item, dtype=np.int64)
        n = len(local)
        if n and (local.min() < 0 or local.max() >= len(item_ids)):
            raise ValueError(
                f"item: indices {local.min()}..{local.max()} outside the {len(item_ids)} item ids given"
            )
        columns: dict[str, npt.NDArray[Any]] = {
            "user": np.asarray(user, dtype=np.uint64),
            "time_ms": np.asarray(time_ms, dtype=np.int64),
            "event_type": np.asarray(event_type, dtype=np.uint8),
            "weight": np.asarray(weight, dtype=np.float32),
            "offset": np.broadcast_to(np.asarray(offset, dtype=np.int64), (n,)),
            "value": np.broadcast_to(np.asarray(value, dtype=np.float32), (n,)),
        }
        for name, values in columns.items():
            if values.shape != (n,):
                raise ValueError(f"{name}: shape {values.shape}, expected ({n},) as `item` has")
        if not np.isfinite(columns["weight"]).all():
            raise ValueError("weight: holds a value that is not finite")
        if context is not None and context.shape != (n, HASHED):
            raise ValueError(f"context: shape {context.shape}, expected ({n}, {HASHED})")
        columns["context"] = self.contexts.codes_of(context, n)
        columns["item"] = self._intern(item_ids, local)
        self._reserve(n)
        for name, values in columns.items():
            self._columns[name][self._length : self._length + n] = values
        self._length += n

    def column(self, name: str) -> npt.NDArray[Any]:
        """The used part of one column, a view: user uint64, item int32, time_ms int64, event_type uint8,
        weight, offset, value, and context int32, by code in `contexts`."""
        return self._columns[name][: self._length]

    def type_codes(self, names: Sequence[str]) -> list[int]:
        """The number of each event type, a new one for a new name; types beyond 255 share the last."""
        for name in names:
            if name not in self.event_types and len(self.event_types) < _MOST_TYPES:
                self.event_types.append(name)
        return [
            self.event_types.index(name) if name in self.event_types else _MOST_TYPES - 1 for name in names
        ]

    def newest(self, count: int) -> InteractionLog:
        """The newest `count` interactions, in a log of their own; this one where it holds no more."""
        if len(self) <= count:
            return self
        return self.chosen(np.arange(len(self) - count, len(self)))

    def chosen(self, rows: npt.NDArray[Any]) -> InteractionLog:
        """Those rows, in a log of their own that knows their items alone."""
        rest = InteractionLog()
        rest.event_types = list(self.event_types)
        rest.context_keys = self.context_keys
        columns: dict[str, Any] = {name: self.column(name)[rows] for name in _COLUMNS}
        codes = columns.pop("context")
        rest.append(item_ids=self.item_ids, **columns)
        rest.column("context")[:] = rest.contexts.codes_from(self.contexts, codes)
        return rest

    def _intern(self, item_ids: Sequence[str], local: Int64) -> Int64:
        table = np.full(len(item_ids), -1, dtype=np.int64)
        for index in dict.fromkeys(local.tolist()):
            item_id = item_ids[index]
            row = self._rows.get(item_id)
            if row is None:
                row = self._rows[item_id] = len(self.item_ids)
                self.item_ids.append(item_id)
            table[index] = row
        return table[local]

    def _reserve(self, n: int) -> None:
        capacity = len(self._columns["item"])
        if self._length + n <= capacity:
            return
        grown = max(2 * capacity, self._length + n)
        for name, column in self._columns.items():
            fresh = np.empty(grown, dtype=column.dtype)
            fresh[: self._length] = column[: self._length]
            self._columns[name] = fresh
