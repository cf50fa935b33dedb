"""The learning log as columns, its split by time, and the sequences a network learns from.

Order of events is the log's order; the split is by event time. What is held out as newest is never in a
training sequence, and the history of a held-out event is what stood before it in the log, which is what
serving had.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.ranker.inputs import Contents, context_of
from serving.training.settings import TrainerSettings

Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

_COLUMNS: dict[str, type[np.generic]] = {
    "user": np.uint64,
    "item": np.int32,
    "time_ms": np.int64,
    "event_type": np.uint8,
    "weight": np.float32,
    "offset": np.int64,
    "value": np.float32,
}


_MOST_TYPES = 255
"""Event types that a byte tells apart, less one for "unknown"."""


class NotEnoughDataError(Exception):
    """The log holds too little to train on; says how much there is and how much is asked for."""


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
    ) -> None:
        """Append n interactions. `item` indexes `item_ids`, the caller's own table; `offset` may be one for
        all, and so may `value`, what an event says of its item (rating, dwell seconds; NaN is nothing).

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
        columns["item"] = self._intern(item_ids, local)
        self._reserve(n)
        for name, values in columns.items():
            self._columns[name][self._length : self._length + n] = values
        self._length += n

    def column(self, name: str) -> npt.NDArray[Any]:
        """The used part of one column, a view: user uint64, item int32, time_ms int64, event_type uint8,
        weight, offset, value."""
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
        rest.append(item_ids=self.item_ids, **{name: self.column(name)[rows] for name in _COLUMNS})
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


@dataclass(frozen=True, slots=True)
class Sequences:
    """Interactions grouped by user, in log order within a user; user u's are rows `starts[u]:starts[u +
    1]`."""

    starts: Int64  # [U + 1]
    items: Int64  # [N] index, in the vocabulary (1..V) or in the log's item table, as the owner says
    types: Int64  # [N] event type, from 1
    times_ms: Int64  # [N]
    targets: Bool  # [N] may be learned as the next item: weight > 0
    values: Float32 | None = None  # [N], NaN where an event has none; None where no event has one

    def chosen(self, rows: Int64 | Bool, starts: Int64) -> Sequences:
        """The rows of a mask or in an order; `starts` int64[U + 1] says where the users then begin."""
        return Sequences(
            starts=starts,
            items=self.items[rows],
            types=self.types[rows],
            times_ms=self.times_ms[rows],
            targets=self.targets[rows],
            values=None if self.values is None else self.values[rows],
        )

    def __len__(self) -> int:
        return len(self.starts) - 1


@dataclass(frozen=True, slots=True)
class EvaluationSlice:
    """The newest events, each with all that its user did before it. Items are indices in `item_ids`."""

    item_ids: Sequence[str]
    items: Int64  # [N] of all users, grouped by user, in log order
    types: Int64  # [N] event type, from 1
    times_ms: Int64  # [N]
    rows: Int64  # [N] row in the log
    starts: Int64  # [n] where the event's user begins in `items`
    positions: Int64  # [n] where the event itself stands in `items`
    users: Int64 = field(default_factory=lambda: np.zeros(1, np.int64))
    """[U + 1]: where each user begins in `items`; needed by `at` alone."""

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def targets(self) -> Int64:
        """int64[n], index in `item_ids`."""
        return self.items[self.positions]

    def seen(self, event: int) -> Int64:
        """All items of the event's user before it, oldest first."""
        return self.items[self.starts[event] : self.positions[event]]

    def histories(self, table: Int64, length: int) -> Int64:
        """int64[n, length] of `table[item]`, oldest first, 0 on the left where there was nothing."""
        columns, inside = self._before(length)
        return np.where(inside, table[self.items[columns]], 0)

    def at(self, rows: Int64) -> EvaluationSlice:
        """Other events of the same log by their rows int64[n] in it, in that order. Raises ValueError when
        one is not there."""
        order = np.argsort(self.rows)
        place = np.minimum(np.searchsorted(self.rows, rows, sorter=order), len(order) - 1)
        positions = order[place].astype(np.int64)
        if missing := int((self.rows[positions] != rows).sum()):
            raise ValueError(
                f"{missing} of {len(rows)} rows are not in this log: it was cut or filtered since"
            )
        starts = self.users[np.searchsorted(self.users, positions, side="right") - 1]
        return replace(self, starts=starts, positions=positions)

    def history_types(self, length: int) -> Int64:
        """int64[n, length], as `histories`."""
        columns, inside = self._before(length)
        return np.where(inside, self.types[columns], 0)

    def history_gaps_s(self, length: int) -> Float32:
        """float32[n, length]: seconds since the event before, 0 for the oldest of the history and on the
        left."""
        columns, inside = self._before(length)
        inside[:, 1:] &= inside[:, :-1]
        inside[:, :1] = False
        gaps_ms = self.times_ms[columns] - self.times_ms[np.maximum(columns - 1, 0)]
        return np.where(inside, np.maximum(gaps_ms, 0) / 1000.0, 0.0).astype(np.float32)

    def context(self) -> Float32:
        """float32[n, len(CONTEXT)] as of the events held out."""
        now_ms, seen = self.times_ms[self.positions], self.positions - self.starts
        newest_ms = np.where(seen > 0, self.times_ms[np.maximum(self.positions - 1, 0)], now_ms)
        return context_of(now_ms, ((now_ms - newest_ms) / 1000.0).astype(np.float32), seen.astype(np.int32))

    def _before(self, length: int) -> tuple[Int64, Bool]:
        columns = self.positions[:, None] - np.arange(length, 0, -1)[None, :]
        inside = columns >= self.starts[:, None]
        return np.where(inside, columns, 0), inside


@dataclass(frozen=True, slots=True)
class LogSplit:
    """What one training run sees."""

    vocabulary: tuple[str, ...]  # item id of index 1, 2, ...; 0 is padding
    train: Sequences  # items as places: rare ones are V + 1, and no targets
    event_types: int  # types are 1 to this
    contents: Float32  # [V + 2, E] content vectors by place; rows 0 and V + 1 are zeros
    newest: EvaluationSlice
    popularity: dict[str, float]  # positive interactions per item id in the training part
    from_offset: int
    to_offset: int
    interactions: int
    event_type_names: tuple[str, ...] = ()  # of types 1, 2, ...
    content: tuple[tuple[str, int], ...] = ()  # (name, components) of what `contents` is made of
    judged: Bool | None = None  # [N] rows of `train` for early stopping; None: the newest


def split_by_time(
    log: InteractionLog,
    settings: TrainerSettings,
    contents: Contents | None = None,
) -> LogSplit:
    """Hold out the newest positive interactions by event time (ties in log order); the rest before them is
    `train`.

    Interactions of weight 0 are no behaviour and are left out. The vocabulary is counted on the training part
    alone. Raises NotEnoughDataError below `settings.min_interactions`.
    """
    rows = _rows_by_user(log, settings.min_interactions)
    items = log.column("item")[rows].astype(np.int64)
    times_ms = log.column("time_ms")[rows]
    types = log.column("event_type")[rows].astype(np.int64) + 1
    positive = log.column("weight")[rows] > 0
    starts = _group_starts(log.column("user")[rows])
    held_out, in_train = _hold_out(rows, times_ms, positive, settings)
    learned = in_train & positive
    counts = np.bincount(items[learned], minlength=len(log.item_ids))
    first_row = np.full(len(log.item_ids), len(log))
    np.minimum.at(first_row, items[learned], rows[learned])
    known = np.flatnonzero(counts >= settings.min_count)
    known = known[np.argsort(first_row[known], kind="stable")]
    if not len(known):
        raise NotEnoughDataError(
            f"none of {len(log.item_ids)} items was met {settings.min_count} times (trainer.min_count)"
        )
    table = np.full(len(log.item_ids), len(known) + 1, dtype=np.int64)
    table[known] = np.arange(1, len(known) + 1)
    offsets = log.column("offset")
    vocabulary = tuple(log.item_ids[row] for row in known)
    values = log.column("value")[rows]
    has_values = bool(np.isfinite(values).any())
    columns = Sequences(starts, items, types, times_ms, positive, values if has_values else None)
    return LogSplit(
        vocabulary=vocabulary,
        train=_sequences(columns, table[items], in_train, len(known) + 1),
        newest=_evaluation_slice(log, columns, rows, held_out),
        event_types=int(log.column("event_type").max()) + 1,
        contents=_contents_of(vocabulary, contents),
        popularity={log.item_ids[row]: float(counts[row]) for row in np.flatnonzero(counts)},
        from_offset=int(offsets.min()),
        to_offset=int(offsets.max()),
        interactions=len(log),
        event_type_names=tuple(log.event_types[: int(log.column("event_type").max()) + 1]),
        content=contents.spec if contents is not None else (),
    )


def _rows_by_user(log: InteractionLog, at_least: int) -> Int64:
    """Log rows of weight other than 0, grouped by user, in log order within one."""
    kept = np.flatnonzero(log.column("weight") != 0)
    if len(kept) < at_least:
        raise NotEnoughDataError(
            f"{len(kept)} interactions in the log, {at_least} asked for (trainer.min_interactions): "
            "wait for more events, or lower the setting"
        )
    order = np.argsort(log.column("user")[kept], kind="stable")
    return kept[order].astype(np.int64)


def _group_starts(keys: npt.NDArray[np.uint64]) -> Int64:
    changes = np.flatnonzero(keys[1:] != keys[:-1]) + 1
    return np.concatenate([[0], changes, [len(keys)]]).astype(np.int64)


def _hold_out(
    log_rows: Int64, times_ms: Int64, positive: Bool, settings: TrainerSettings
) -> tuple[Int64, Bool]:
    """The newest positive rows, oldest first, and for every row whether it stands before them in time."""
    order = np.lexsort((log_rows, times_ms)).astype(np.int64)
    positives = np.flatnonzero(positive[order])
    wanted = min(settings.slice_max_events, int(len(positives) * settings.slice_fraction))
    if wanted < 1:
        raise NotEnoughDataError(
            f"{len(positives)} positive interactions give no held-out slice at "
            f"trainer.slice_fraction={settings.slice_fraction}"
        )
    in_train = np.ones(len(order), dtype=np.bool_)
    in_train[order[positives[-wanted] :]] = False
    return order[positives[-wanted:]], in_train


def _evaluation_slice(
    log: InteractionLog, columns: Sequences, rows: Int64, held_out: Int64
) -> EvaluationSlice:
    """Leaves out a target that its user had before: it is masked for every model, so it can't tell them
    apart."""
    items, starts = columns.items, columns.starts
    begin = starts[np.searchsorted(starts, held_out, side="right") - 1]
    fresh = np.fromiter(
        (items[p] not in items[s:p] for s, p in zip(begin.tolist(), held_out.tolist(), strict=True)),
        dtype=np.bool_,
        count=len(held_out),
    )
    ids = tuple(log.item_ids)
    return EvaluationSlice(
        ids, items, columns.types, columns.times_ms, rows, begin[fresh], held_out[fresh], starts
    )


def _sequences(columns: Sequences, places: Int64, in_train: Bool, unseen: int) -> Sequences:
    lengths = np.add.reduceat(in_train.astype(np.int64), columns.starts[:-1])
    starts = np.concatenate([[0], np.cumsum(lengths[lengths > 0])]).astype(np.int64)
    learned = columns.targets & (places < unseen)
    return replace(columns, items=places, targets=learned).chosen(in_train, starts)


def _contents_of(vocabulary: tuple[str, ...], contents: Contents | None) -> Float32:
    """float32[V + 2, E]: zeros [V + 2, 1] where there is no content."""
    if contents is None:
        return np.zeros((len(vocabulary) + 2, 1), dtype=np.float32)
    vectors = contents.of(vocabulary)
    table = np.zeros((len(vocabulary) + 2, vectors.shape[1]), dtype=np.float32)
    table[1:-1] = vectors
    return table
