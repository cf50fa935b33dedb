"""The learning log: what every replica learns from, packed many interactions to a binary record.

`interactions` has one partition, so its offsets are one total order. A record is a msgpack array: a table of
the item ids that it spells out, then one byte string per column (little-endian, n interactions). It carries
the settings digest of the models that wrote it: a replica with other models or kernels would not stay
bit-for-bit equal, so it refuses.

An event's own item is spelled out; recent items and negatives that the writer's replica knew are named by
their row in the item table, which is the same on every replica at the table's epoch that the record gives.

Users stand in the log as random 64-bit tokens; only `user-state` knows whose they are.

Each row says what it does (`Interactions.kind`): most of them that an event happened; others withdraw what an
earlier one taught, or make every replica forget a user or an item (docs/decisions/0010-corrections.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from online_models.learning_batch import LEARN, PAIR, UNCOUNT, UNPAIR, WITHDRAW, LearningBatch
from streams import log_kernels as kernels
from streams.errors import LearningLogError
from streams.id_table import IdTable
from streams.log_columns import joined_bytes, packed_contexts, split_ids, unpacked_contexts
from streams.log_kinds import DISMISS, FORGET_ITEM, FORGET_USER, ChangesItems, change_items

__all__ = [
    "FORGET_ITEM",
    "FORGET_USER",
    "Interactions",
    "Learns",
    "LogRecord",
    "LogWriter",
    "decode_record",
    "in_phases",
    "learn_record",
    "learning_batches",
]

FORMAT_VERSION = 3
FORMAT_WITHOUT_KINDS = 2
"""The format before it, still read: all its rows are events that happened."""
MAX_RECORD_BYTES = 512 * 1024
"""A record above this is split, so that it stays well under the broker's limit of 1 MB."""
_NO_EXPOSURE = ("search", "follow", "retract")
"""Event types of weight 0 whose item, if any, was not shown."""
_ROW_BYTES = 60
"""Fixed columns of one interaction without its vectors and ids; used to decide where to split."""

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]


@dataclass(slots=True)
class Interactions:
    """n accepted events, in log order, with the user context that the item models need.

    Shapes: event int32[n, 2] (start and length of the event id in `data`); code int32[n], the item's code or
    -1; recent int32[n, R], the user's items before this event, newest first, and negatives int32[n, m]:
    -row - 2 for a row of the item table at `table_epoch`, -1 none; recent also an item's code where it has no
    row; before and after
    float32[n, d], the user's factor around this event; value float64[n], NaN = none; kind uint8[n], what the
    row does. context float32[n, HASHED] or [n, 0]: `ContextHash` of the event's own.
    """

    data: npt.NDArray[np.uint8]
    event: Int32
    code: Int32
    event_type: npt.NDArray[np.uint8]
    token: npt.NDArray[np.uint64]
    time_ms: npt.NDArray[np.int64]
    weight: Float32
    value: npt.NDArray[np.float64]
    partition: Int32
    offset: npt.NDArray[np.int64]
    recent: Int32
    negatives: Int32
    before: Float32
    after: Float32
    kind: npt.NDArray[np.uint8]
    table_epoch: int
    context: Float32 = field(default_factory=lambda: np.empty((0, 0), np.float32))

    def __post_init__(self) -> None:
        if len(self.context) != len(self.code):
            self.context = np.empty((len(self.code), 0), np.float32)

    def __len__(self) -> int:
        return len(self.code)


_PHASES = np.zeros(DISMISS + 1, np.uint8)
_PHASES[[UNPAIR, WITHDRAW, PAIR, UNCOUNT, FORGET_USER, FORGET_ITEM]] = range(6)


def in_phases(rows: Interactions) -> Interactions:
    """Rows that take back, kind by kind, each user's in the order in which they must be applied: a replica
    takes neighbours of one kind at once, and each change of kind costs it as much as many rows."""
    order = np.argsort(_PHASES[rows.kind], kind="stable")
    columns = {
        name: getattr(rows, name)[order]
        for name in Interactions.__slots__
        if name not in ("data", "table_epoch")
    }
    return Interactions(data=rows.data, table_epoch=rows.table_epoch, **columns)


class LogRecord(msgspec.Struct, array_like=True):
    """One record of `interactions`; columns as bytes, one value (or row of values) per interaction."""

    format: int
    settings_digest: str
    n: int
    widths: tuple[int, int, int]
    """recent items, factor, negatives per interaction"""
    table_epoch: int
    """State of the item table by which `recent` and `negatives` name rows."""
    item_lengths: bytes
    item_bytes: bytes
    """The item ids spelled out: lengths uint16, UTF-8 one behind the other."""
    event_lengths: bytes
    event_bytes: bytes
    """The n event ids, likewise."""
    event_types: list[str]
    topics: list[str]
    item: bytes
    event_type: bytes
    topic: bytes
    token: bytes
    time_ms: bytes
    weight: bytes
    value: bytes
    partition: bytes
    offset: bytes
    recent: bytes
    negatives: bytes
    before: bytes
    after: bytes
    kind: bytes = b""
    """What each interaction does; empty where all of them happened."""
    context: bytes = b""
    """`streams.log_columns.packed_contexts`; empty where no event said anything."""

    @property
    def contexts(self) -> Float32 | None:
        """float32[n, HASHED]; None where no event said anything; raises as `column`."""
        return unpacked_contexts(self.context, self.n)

    @property
    def kinds(self) -> npt.NDArray[np.uint8]:
        """What each interaction does, uint8[n]; raises LearningLogError as `column`."""
        return self.column("kind", "u1") if self.kind else np.full(self.n, LEARN, np.uint8)

    @property
    def item_ids(self) -> list[str]:
        """The ids that `item`, and `recent` where it is not negative, index into."""
        return split_ids(self.item_bytes, self.item_lengths, "item")

    @property
    def event_ids(self) -> list[str]:
        return split_ids(self.event_bytes, self.event_lengths, "event")

    def column(self, name: str, dtype: str, width: int | None = None) -> npt.NDArray[Any]:
        """Column `name` as an array [n], or [n, width] (which may be 0 wide); raises LearningLogError when
        its length is wrong."""
        raw: bytes = getattr(self, name)
        expected = np.dtype(dtype).itemsize * self.n * (1 if width is None else width)
        if len(raw) != expected:
            raise LearningLogError(
                f"learning log: column {name} has {len(raw)} bytes, {expected} expected for {self.n} "
                "interactions"
            )
        values = np.frombuffer(raw, dtype)
        return values if width is None else values.reshape(self.n, width)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(LogRecord)


class LogWriter:
    """Packs interactions whose items have codes in `items`; `kinds` names the event types, `topics` where
    rows come from: `events`, or `users` and `items` for who and what is forgotten."""

    def __init__(
        self,
        items: IdTable,
        kinds: IdTable,
        topics: tuple[str, str, str],
        widths: tuple[int, int, int],
        settings_digest: str,
        context_digest: bytes = b"",
    ) -> None:
        self._items = items
        self._kinds = kinds
        self._topics = list(topics)
        self._widths = widths
        self._digest, self._context_digest = settings_digest, context_digest
        self._place = np.zeros(0, np.int64)
        self._stamp = 0

    def pack(self, rows: Interactions) -> Iterator[bytes]:
        """Binary records that hold `rows` in their order, each at most about `MAX_RECORD_BYTES`."""
        ids = self._items.ids
        recent, width, negatives = self._widths
        size = _ROW_BYTES + 8 * width + 4 * (recent + negatives) + rows.event[:, 1].astype(np.int64)
        size += 2 * (rows.context.shape[1] + 1)
        size += _spelled(ids.length, rows.code)
        size += _spelled(ids.length, rows.recent).sum(axis=1, dtype=np.int64)
        part = np.cumsum(size) // MAX_RECORD_BYTES
        cuts = [0, *(np.flatnonzero(np.diff(part)) + 1).tolist(), len(rows)] if len(rows) else [0]
        for start, end in pairwise(cuts):
            yield self._record(rows, start, end)

    def _record(self, rows: Interactions, start: int, end: int) -> bytes:
        if len(self._place) < self._items.capacity:
            self._place = np.zeros(self._items.capacity, np.int64)
        self._stamp += 1
        item, recent = rows.code[start:end].copy(), rows.recent[start:end].copy()
        table = np.empty(item.size + recent.size, np.int32)
        n = kernels.renumber(item, recent, self._place, self._stamp, table)
        codes = table[:n]
        ids = self._items.ids
        kinds = [self._kinds.id_of(code).decode() for code in range(self._kinds.codes)]
        does = rows.kind[start:end]
        record = LogRecord(
            format=FORMAT_VERSION,
            settings_digest=self._digest,
            n=end - start,
            widths=self._widths,
            table_epoch=rows.table_epoch,
            item_lengths=ids.length[codes].astype("<u2").tobytes(),
            item_bytes=joined_bytes(ids.arena, ids.start[codes], ids.length[codes]),
            event_lengths=rows.event[start:end, 1].astype("<u2").tobytes(),
            event_bytes=joined_bytes(rows.data, rows.event[start:end, 0], rows.event[start:end, 1]),
            event_types=kinds,
            topics=self._topics,
            item=item.tobytes(),
            event_type=rows.event_type[start:end].tobytes(),
            topic=(1 * (does >= UNCOUNT) + (does >= FORGET_ITEM)).astype(np.uint8).tobytes(),
            token=rows.token[start:end].tobytes(),
            time_ms=rows.time_ms[start:end].tobytes(),
            weight=rows.weight[start:end].tobytes(),
            value=rows.value[start:end].tobytes(),
            partition=rows.partition[start:end].tobytes(),
            offset=rows.offset[start:end].tobytes(),
            recent=recent.tobytes(),
            negatives=rows.negatives[start:end].tobytes(),
            before=rows.before[start:end].tobytes(),
            after=rows.after[start:end].tobytes(),
            kind=does.tobytes() if does.any() else b"",
            context=packed_contexts(rows.context[start:end], self._context_digest),
        )
        return _encoder.encode(record)


def _spelled(lengths: Int32, codes: Int32) -> npt.NDArray[np.int64]:
    """Bytes that item codes may take in a record's table of ids; rows of the item table take none there."""
    return np.where(codes >= 0, 3 + lengths[np.maximum(codes, 0)].astype(np.int64), 0)


def decode_record(value: bytes | None, where: str) -> LogRecord:
    """Read one record of the log.

    Raises:
        LearningLogError: not a record of this format; `where` is its topic[partition]@offset.
    """
    if value is None:
        raise LearningLogError(
            f"{where}: a tombstone in the learning log, which is not compacted. Who wrote it?"
        )
    try:
        record = _decoder.decode(value)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise LearningLogError(
            f"{where}: not a learning-log record ({error}). Only workers may write this topic; see its ACLs."
        ) from error
    if record.format not in (FORMAT_VERSION, FORMAT_WITHOUT_KINDS):
        raise LearningLogError(
            f"{where}: format {record.format}, this version reads {FORMAT_VERSION}. Upgrade every worker "
            "first."
        )
    return record


class Learns(ChangesItems, Protocol):
    """What can follow the learning log: an `ItemState`, or what holds one."""

    @property
    def settings_digest(self) -> str: ...
    def apply(self, batch: LearningBatch) -> None: ...
    def expose(self, item_ids: Sequence[str], item: Int32) -> None: ...
    def forget_users(self, tokens: npt.NDArray[np.uint64]) -> None: ...


def learn_record(items: Learns, record: LogRecord, where: str) -> None:
    """Every replica's step for one record of the log: its rows in their order, then what it says was shown.

    Raises:
        LearningLogError: the record was written under other model settings, kernels or CPU target.
    """
    for kind, start, end, batch in _steps(record, items.settings_digest, where):
        if batch is not None:
            items.apply(batch)
        elif kind == FORGET_USER:
            items.forget_users(record.column("token", "<u8")[start:end])
        elif kind > FORGET_USER:
            item_ids = record.item_ids
            named = [item_ids[index] for index in record.column("item", "<i4")[start:end].tolist()]
            change_items(items, kind, named, where)
    if len(shown := _shown(record)):
        items.expose(record.item_ids, shown)


def _shown(record: LogRecord) -> Int32:
    """Items of the rows that say no more than that an item was shown: those of weight 0, places int32[n] in
    `record.item_ids`."""
    item = record.column("item", "<i4")
    rows = np.flatnonzero((item >= 0) & (record.column("weight", "<f4") == 0) & (record.kinds == LEARN))
    others = [code for code, name in enumerate(record.event_types) if name in _NO_EXPOSURE]
    shown: Int32 = item[rows[~np.isin(record.column("event_type", "u1")[rows], others)]]
    return shown


def learning_batches(record: LogRecord, settings_digest: str, where: str) -> list[LearningBatch]:
    """What the item models learn and take back of `record`, in order: its interactions with an item and a
    weight, neighbours of one kind together.

    Raises:
        LearningLogError: as `learn_record`.
    """
    return [batch for *_, batch in _steps(record, settings_digest, where) if batch is not None]


def _steps(
    record: LogRecord, settings_digest: str, where: str
) -> Iterator[tuple[int, int, int, LearningBatch | None]]:
    """Rows of one kind that stand together: the kind, the first of them, the one behind the last, and the
    batch of those with an item and a weight, if any."""
    if record.settings_digest != settings_digest:
        raise LearningLogError(
            f"{where}: learned under settings {record.settings_digest[:12]}, this worker runs "
            f"{settings_digest[:12]}. All workers need the same [models] settings, kernel version and CPU "
            "target; to change them, stop all workers and start on a new topic prefix, or replay the events."
        )
    keep, whole = _teaching(record)
    if not record.kind:
        yield LEARN, 0, record.n, whole
        return
    kinds = record.kinds
    cuts = np.array([0, *(np.flatnonzero(np.diff(kinds)) + 1).tolist(), record.n])
    for (start, end), (first, last) in zip(
        pairwise(cuts.tolist()), pairwise(np.searchsorted(keep, cuts).tolist()), strict=True
    ):
        batch = None if whole is None or first == last else whole.slice(first, last)
        if batch is not None:
            batch.kind = int(kinds[start])
        yield int(kinds[start]), start, end, batch


def _teaching(record: LogRecord) -> tuple[npt.NDArray[np.intp], LearningBatch | None]:
    """The rows with an item and a weight, and their columns; None when there are none."""
    recent_width, factor_width, negatives_width = record.widths
    item, weight = record.column("item", "<i4"), record.column("weight", "<f4")
    keep = np.flatnonzero((item >= 0) & (weight != 0) & (record.kinds <= UNCOUNT))
    if not len(keep):
        return keep, None
    contexts = record.contexts
    return keep, LearningBatch(
        table_epoch=record.table_epoch,
        item_ids=record.item_ids,
        item=item[keep],
        recent=record.column("recent", "<i4", recent_width)[keep],
        time_ms=record.column("time_ms", "<i8")[keep],
        weight=weight[keep],
        event_type=record.column("event_type", "u1")[keep],
        user_before=record.column("before", "<f4", factor_width)[keep],
        user_after=record.column("after", "<f4", factor_width)[keep],
        negatives=record.column("negatives", "<i4", negatives_width)[keep],
        user=record.column("token", "<u8")[keep],
        value=record.column("value", "<f8")[keep].astype(np.float32),
        context=None if contexts is None else contexts[keep],
    )
