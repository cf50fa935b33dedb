"""The log's columns split by time, and the sequences a network learns from.

Order of events is the log's order; the split is by event time. What is held out as newest is never in a
training sequence, and the history of a held-out event is what stood before it in the log, which is what
serving had.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from serving.ranker.inputs import Contents, context_of
from serving.training.as_served import upon_event
from serving.training.interaction_log import InteractionLog
from serving.training.settings import TrainerSettings

__all__ = [
    "Bool",
    "EvaluationSlice",
    "Float32",
    "Int32",
    "Int64",
    "InteractionLog",
    "LogSplit",
    "NotEnoughDataError",
    "Sequences",
    "split_by_time",
]

Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]


class NotEnoughDataError(Exception):
    """The log holds too little to train on; says how much there is and how much is asked for."""


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
    context: Int32 | None = None  # [N] row of `contexts`, what was said beside the event; 0 is nothing
    contexts: Float32 | None = None  # [K, HASHED]; None where nothing was said anywhere
    upon_event: Bool | None = None  # [N] the list that the event answers was made upon the event before it

    def chosen(self, rows: Int64 | Bool, starts: Int64) -> Sequences:
        """The rows of a mask or in an order; `starts` int64[U + 1] says where the users then begin."""
        return Sequences(
            starts=starts,
            items=self.items[rows],
            types=self.types[rows],
            times_ms=self.times_ms[rows],
            targets=self.targets[rows],
            values=None if self.values is None else self.values[rows],
            context=None if self.context is None else self.context[rows],
            contexts=self.contexts,
            upon_event=None if self.upon_event is None else self.upon_event[rows],
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
    said: Sequences | None = None
    """The same rows, for what was said beside them and which list they answer; None is nothing, requests."""

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
        """float32[n, len(CONTEXT)] of the lists that the events held out answer."""
        now_ms, seen = self.times_ms[self.positions], self.positions - self.starts
        newest_ms = np.where(seen > 0, self.times_ms[np.maximum(self.positions - 1, 0)], now_ms)
        asked, said = self.positions, self.said
        if said is not None and said.upon_event is not None:
            before = said.upon_event[asked] & (seen > 0)
            now_ms, asked = np.where(before, newest_ms, now_ms), asked - before
        hashed = None
        if said is not None and said.context is not None and said.contexts is not None:
            hashed = said.contexts[said.context[asked]]
        idle_s = ((now_ms - newest_ms) / 1000.0).astype(np.float32)
        return context_of(now_ms, idle_s, seen.astype(np.int32), hashed)

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
    context_keys: tuple[str, ...] = ()  # whose values `train.contexts` hashes; none where it has none


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
    users, codes = log.column("user")[rows], log.column("context")[rows]
    columns = Sequences(
        starts, items, types, times_ms, positive, values if has_values else None,
        codes if (said := bool(codes.any())) else None, log.contexts.rows if said else None,
        upon_event(users, times_ms, settings.examples),
    )  # fmt: skip
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
        context_keys=log.context_keys if said else (),
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
        ids, items, columns.types, columns.times_ms, rows, begin[fresh], held_out[fresh], starts, columns
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
