"""What the learning log carries: interactions in log order, by columns, with their users' context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEARN", "PAIR", "UNCOUNT", "UNPAIR", "WITHDRAW", "BatchRows", "LearningBatch"]

LEARN, WITHDRAW, UNPAIR, PAIR, UNCOUNT = range(5)
"""What a record does, `LearningBatch.kind`. LEARN: its events happened. WITHDRAW: all models take them back.
UNPAIR and PAIR: what models learn from an event's recent items is taken back, and learned anew with
other recent items; models that don't read these pass over both. UNCOUNT: taken back by models that count,
passed over by factor models, when a user is forgotten. All but LEARN give no item a row."""

MAX_TIME_MS = 253_402_300_799_999
"""End of the year 9999, in ms since the epoch: a time beyond it is a unit mistaken (microseconds for ms)."""
MAX_ABS_WEIGHT = 1e6
"""Keeps float32 sums of 1e6 such weights, forward decay's growth of 2**20 included, below overflow."""


@dataclass(slots=True)
class BatchRows:
    """Rows of an `ItemTable`, -1 = none: item int32[n], recent int32[n, R], negatives int32[n, m]."""

    item: NDArray[np.int32]
    recent: NDArray[np.int32]
    negatives: NDArray[np.int32]
    changes: NDArray[np.int32] = field(default_factory=lambda: np.empty((0, 4), dtype=np.int32))
    """int32[c, 4]: rows given and freed, each before its event, in order; see `table_kernels.GIVEN`."""


@dataclass(slots=True)
class LearningBatch:
    """n interactions in log order, with R recent items, m negatives and d factor dimensions (each may be 0).

    item_ids: distinct ids that the columns index into; item int32[n]; recent int32[n, R], the user's items
    before this event, newest first, -1 padded; time_ms int64[n]; weight float32[n], may be negative;
    event_type uint8[n]; user_before and user_after float32[n, d], the user's factor before and after the
    owner learned this event; negatives int32[n, m], -1 = none; user uint64[n], a token of the user that says
    nothing else of him, 0 where the writer gave none; value float32[n], the rating or what else the event
    stated, NaN where it stated none.

    `recent` and `negatives` may also name items by row: a value v <= -2 means row -v - 2 of the item table
    as the writer's replica had it when its `ItemState.epoch` was `table_epoch` (a count of row assignments,
    the same on every replica at the same place of the log; not a log offset). A row that was freed or given
    to another item since then counts as unknown. One epoch holds for all events, or int64[n] one for each;
    -1 = no rows are named.
    """

    item_ids: list[str]
    item: NDArray[np.int32]
    recent: NDArray[np.int32]
    time_ms: NDArray[np.int64]
    weight: NDArray[np.float32]
    event_type: NDArray[np.uint8]
    user_before: NDArray[np.float32]
    user_after: NDArray[np.float32]
    negatives: NDArray[np.int32]
    table_epoch: int | NDArray[np.int64] = -1
    user: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, dtype=np.uint64))
    value: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    kind: int = LEARN
    context: NDArray[np.float32] | None = None
    """float32[n, H], what was said beside each event, hashed; None is nothing. No item model reads it."""

    def __post_init__(self) -> None:
        if not len(self.user):
            self.user = np.zeros(len(self.item), dtype=np.uint64)
        if not len(self.value):
            self.value = np.full(len(self.item), np.nan, dtype=np.float32)

    def __len__(self) -> int:
        return len(self.item)

    def validate(self) -> None:
        """Check types, shapes, ranges and finiteness. Raises ValueError naming the column and the numbers."""
        if self.kind not in range(5):
            raise ValueError(f"kind is {self.kind}, outside 0 to 4")
        self._check_types()
        if len(set(self.item_ids)) != len(self.item_ids):
            raise ValueError(
                f"item_ids: {len(self.item_ids)} ids, but only {len(set(self.item_ids))} of them distinct"
            )
        from online_models.table_kernels import batch_in_range  # numba: not wanted by who only reads the log

        ids, lowest = len(self.item_ids), -1 - self._newest_epoch()
        good = batch_in_range(
            self.item, self.recent, self.negatives, self.time_ms, self.weight,
            self.user_before, self.user_after, ids, lowest, MAX_TIME_MS, MAX_ABS_WEIGHT,
        )  # fmt: skip
        if not good:
            _check_range("item", self.item, 0, ids - 1)
            _check_range("recent", self.recent, lowest, ids - 1)
            _check_range("negatives", self.negatives, lowest, ids - 1)
            _check_range("time_ms", self.time_ms, 0, MAX_TIME_MS)
            _check_range("weight", self.weight, -MAX_ABS_WEIGHT, MAX_ABS_WEIGHT)
            _check_finite("user_before", self.user_before)
            _check_finite("user_after", self.user_after)

    def _check_types(self) -> None:
        n = len(self.item)
        _check_type("item", self.item, np.int32, (n,))
        _check_type("recent", self.recent, np.int32, (n, None))
        _check_type("time_ms", self.time_ms, np.int64, (n,))
        _check_type("weight", self.weight, np.float32, (n,))
        _check_type("event_type", self.event_type, np.uint8, (n,))
        _check_type("user_before", self.user_before, np.float32, (n, None))
        _check_type("user_after", self.user_after, np.float32, self.user_before.shape)
        _check_type("negatives", self.negatives, np.int32, (n, None))
        _check_type("user", self.user, np.uint64, (n,))
        _check_type("value", self.value, np.float32, (n,))
        if self.context is not None:
            _check_type("context", self.context, np.float32, (n, None))
        if not isinstance(self.table_epoch, int):
            _check_type("table_epoch", self.table_epoch, np.int64, (n,))

    def slice(self, start: int, stop: int) -> LearningBatch:
        """Interactions start to stop - 1, in the same order; the id list is cut to what they use."""
        columns = [self.item[start:stop], self.recent[start:stop], self.negatives[start:stop]]
        used = np.unique(np.concatenate([column.ravel() for column in columns]))
        used = used[used >= 0]
        new_index = np.full(len(self.item_ids), -1, dtype=np.int32)
        new_index[used] = np.arange(len(used), dtype=np.int32)
        epoch = self.table_epoch
        return LearningBatch(
            item_ids=[self.item_ids[index] for index in used.tolist()],
            item=new_index[columns[0]],
            recent=_renamed(new_index, columns[1]),
            time_ms=self.time_ms[start:stop],
            weight=self.weight[start:stop],
            event_type=self.event_type[start:stop],
            user_before=self.user_before[start:stop],
            user_after=self.user_after[start:stop],
            negatives=_renamed(new_index, columns[2]),
            table_epoch=epoch if isinstance(epoch, int) else epoch[start:stop],
            user=self.user[start:stop],
            value=self.value[start:stop],
            kind=self.kind,
            context=None if self.context is None else self.context[start:stop],
        )

    def take(self, keep: NDArray[np.intp]) -> LearningBatch:
        """Interactions at the places `keep`, int[m]; the id list stays as it is."""
        epoch = self.table_epoch
        return LearningBatch(
            item_ids=self.item_ids, item=self.item[keep], recent=self.recent[keep],
            time_ms=self.time_ms[keep], weight=self.weight[keep], event_type=self.event_type[keep],
            user_before=self.user_before[keep], user_after=self.user_after[keep],
            negatives=self.negatives[keep], table_epoch=epoch if isinstance(epoch, int) else epoch[keep],
            user=self.user[keep], value=self.value[keep], kind=self.kind,
            context=None if self.context is None else self.context[keep],
        )  # fmt: skip

    @classmethod
    def concat(cls, batches: Sequence[LearningBatch]) -> LearningBatch:
        """One batch of all of them, in order. Raises ValueError when kind, R, m or d differ, or there is
        none."""
        if not batches:
            raise ValueError("concat needs at least one batch, got 0")
        if len(kinds := {batch.kind for batch in batches}) > 1:
            raise ValueError(f"concat needs batches of one kind, got {sorted(kinds)}")
        index_of: dict[str, int] = {}
        maps = [
            np.array(
                [index_of.setdefault(item_id, len(index_of)) for item_id in batch.item_ids], dtype=np.int32
            )
            for batch in batches
        ]
        epochs = np.concatenate([batch.epochs() for batch in batches])
        same = bool((epochs == epochs[:1]).all())
        pairs = list(zip(maps, batches, strict=True))
        return cls(
            item_ids=list(index_of),
            item=np.concatenate([index[batch.item] for index, batch in pairs]),
            recent=np.concatenate([_renamed(index, batch.recent) for index, batch in pairs]),
            time_ms=np.concatenate([batch.time_ms for batch in batches]),
            weight=np.concatenate([batch.weight for batch in batches]),
            event_type=np.concatenate([batch.event_type for batch in batches]),
            user_before=np.concatenate([batch.user_before for batch in batches]),
            user_after=np.concatenate([batch.user_after for batch in batches]),
            negatives=np.concatenate([_renamed(index, batch.negatives) for index, batch in pairs]),
            table_epoch=int(epochs.max(initial=-1)) if same else epochs,
            user=np.concatenate([batch.user for batch in batches]),
            value=np.concatenate([batch.value for batch in batches]),
            kind=batches[0].kind,
            context=_joined_contexts(batches),
        )

    def epochs(self) -> NDArray[np.int64]:
        """`table_epoch` of each event, int64[n]."""
        return np.full(len(self.item), self.table_epoch, dtype=np.int64)

    def _newest_epoch(self) -> int:
        """The newest table state that rows are named by; 0 where none are."""
        epoch = self.table_epoch
        newest = epoch if isinstance(epoch, int) else int(epoch.max(initial=-1))
        return max(newest, 0)


def _joined_contexts(batches: Sequence[LearningBatch]) -> NDArray[np.float32] | None:
    """One behind the other, zeros for a batch without; None where none has any."""
    width = max((batch.context.shape[1] for batch in batches if batch.context is not None), default=0)
    if not width:
        return None
    none = [np.zeros((len(batch), width), dtype=np.float32) for batch in batches]
    given = [batch.context for batch in batches]
    return np.concatenate([n if one is None else one for one, n in zip(given, none, strict=True)])


def _renamed(index: NDArray[np.int32], column: NDArray[np.int32]) -> NDArray[np.int32]:
    """The column with another index for each item; rows (values below 0) stay as they are."""
    renamed = column.copy()
    named = column >= 0
    renamed[named] = index[column[named]]
    return renamed


def _check_type(
    name: str, column: NDArray[np.generic], dtype: type[np.generic], shape: tuple[int | None, ...]
) -> None:
    fits = len(column.shape) == len(shape)
    for have, want in zip(column.shape, shape, strict=False):
        fits = fits and (want is None or have == want)
    if column.dtype != dtype or not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(
            f"{name}: {column.dtype}{list(column.shape)}, but {np.dtype(dtype)}[{wanted}] is needed"
        )


def _check_range(name: str, column: NDArray[Any], low: float, high: float) -> None:
    bad = ~((column >= low) & (column <= high))  # negated, so that NaN is bad too
    if bad.any():
        where = tuple(int(position) for position in np.argwhere(bad)[0])
        raise ValueError(
            f"{name}{list(where)} is {column[where]}, outside {low:.15g} to {high:.15g} "
            f"({int(bad.sum())} of {bad.size} values are)"
        )


def _check_finite(name: str, column: NDArray[np.float32]) -> None:
    finite = np.isfinite(column)
    if not finite.all():
        where = [int(position) for position in np.argwhere(~finite)[0]]
        raise ValueError(f"{name}{where} is not finite ({int((~finite).sum())} of {finite.size} are not)")
