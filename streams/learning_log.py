"""The learning log: what every replica learns from, packed many interactions to a binary record.

`interactions` has one partition, so its offsets are one total order. A record is a msgpack array: a table of
the item ids that it uses, then one byte string per column (little-endian, n interactions). It carries the
settings digest of the models that wrote it: a replica with other models or kernels would not stay bit-for-bit
equal, so it refuses.

Users stand in the log as random 64-bit tokens; only `user-state` knows whose they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from online_models.learning_batch import LearningBatch
from streams.errors import LearningLogError

__all__ = ["Interaction", "LogRecord", "decode_record", "learning_batch", "pack"]

FORMAT_VERSION = 1
MAX_RECORD_BYTES = 512 * 1024
"""A record above this is split, so that it stays well under the broker's limit of 1 MB."""
_ROW_BYTES = 96
"""Fixed columns of one interaction without its vectors and ids; used to decide where to split."""


@dataclass(slots=True)
class Interaction:
    """One accepted event with the user context that the item models need.

    Shapes: `before` and `after` float32 [d], the user's factor around this event. `recent` holds the user's
    items before this event, newest first. `item_id` is None for events without an item.
    """

    event_id: str
    token: int
    item_id: str | None
    event_type: str
    time_ms: int
    weight: float
    value: float | None
    recent: Sequence[str]
    before: npt.NDArray[np.float32]
    after: npt.NDArray[np.float32]
    negatives: Sequence[str]
    topic: str
    partition: int
    offset: int


class LogRecord(msgspec.Struct, array_like=True):
    """One record of `interactions`; columns as bytes, one value (or row of values) per interaction."""

    format: int
    settings_digest: str
    n: int
    widths: tuple[int, int, int]
    """recent items, factor, negatives per interaction"""
    item_ids: list[str]
    event_ids: list[str]
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


class _Columns:
    """Columns of one record in the making."""

    def __init__(self, widths: tuple[int, int, int]) -> None:
        self.widths = widths
        self.items: dict[str, int] = {}
        self.types: dict[str, int] = {}
        self.topics: dict[str, int] = {}
        self.rows: list[Interaction] = []
        self.index: list[tuple[int, int, int]] = []
        self.recent: list[list[int]] = []
        self.negatives: list[list[int]] = []
        self.bytes = 0

    def _id(self, item_id: str) -> int:
        index = self.items.get(item_id)
        if index is None:
            index = self.items[item_id] = len(self.items)
            self.bytes += 3 * len(item_id) + 5
        return index

    def _ids(self, ids: Sequence[str], width: int) -> list[int]:
        row = [self._id(i) for i in ids[:width]]
        row.extend([-1] * (width - len(row)))
        return row

    def add(self, row: Interaction) -> None:
        item = -1 if row.item_id is None else self._id(row.item_id)
        kind = self.types.setdefault(row.event_type, len(self.types))
        topic = self.topics.setdefault(row.topic, len(self.topics))
        self.index.append((item, kind, topic))
        recent_width, factor_width, negatives_width = self.widths
        self.recent.append(self._ids(row.recent, recent_width))
        self.negatives.append(self._ids(row.negatives, negatives_width))
        self.rows.append(row)
        self.bytes += (
            _ROW_BYTES + 8 * factor_width + 4 * (recent_width + negatives_width) + 3 * len(row.event_id)
        )

    def is_full(self) -> bool:
        """As large as a record may be, or with as many event types or topics as one byte can tell apart."""
        return self.bytes >= MAX_RECORD_BYTES or max(len(self.types), len(self.topics)) >= 255

    def encode(self, settings_digest: str) -> bytes:
        rows = self.rows
        index = np.array(self.index, np.int32)
        values = [np.nan if r.value is None else r.value for r in rows]
        record = LogRecord(
            format=FORMAT_VERSION,
            settings_digest=settings_digest,
            n=len(rows),
            widths=self.widths,
            item_ids=list(self.items),
            event_ids=[r.event_id for r in rows],
            event_types=list(self.types),
            topics=list(self.topics),
            item=index[:, 0].tobytes(),
            event_type=index[:, 1].astype(np.uint8).tobytes(),
            topic=index[:, 2].astype(np.uint8).tobytes(),
            token=np.array([r.token for r in rows], np.uint64).tobytes(),
            time_ms=np.array([r.time_ms for r in rows], np.int64).tobytes(),
            weight=np.array([r.weight for r in rows], np.float32).tobytes(),
            value=np.array(values, np.float64).tobytes(),
            partition=np.array([r.partition for r in rows], np.int32).tobytes(),
            offset=np.array([r.offset for r in rows], np.int64).tobytes(),
            recent=np.array(self.recent, np.int32).tobytes(),
            negatives=np.array(self.negatives, np.int32).tobytes(),
            before=np.concatenate([r.before for r in rows]).tobytes(),
            after=np.concatenate([r.after for r in rows]).tobytes(),
        )
        return _encoder.encode(record)


def pack(rows: Sequence[Interaction], widths: tuple[int, int, int], settings_digest: str) -> Iterator[bytes]:
    """Binary records that hold `rows` in their order, each at most about `MAX_RECORD_BYTES`."""
    columns = _Columns(widths)
    for row in rows:
        columns.add(row)
        if columns.is_full():
            yield columns.encode(settings_digest)
            columns = _Columns(widths)
    if columns.rows:
        yield columns.encode(settings_digest)


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
    if record.format != FORMAT_VERSION:
        raise LearningLogError(
            f"{where}: format {record.format}, this version reads {FORMAT_VERSION}. Upgrade every worker "
            "first."
        )
    return record


def learning_batch(record: LogRecord, settings_digest: str, where: str) -> LearningBatch | None:
    """What the item models learn from `record`: its interactions with an item and a weight; None when there
    are none.

    Raises:
        LearningLogError: the record was written under other model settings, kernels or CPU target.
    """
    if record.settings_digest != settings_digest:
        raise LearningLogError(
            f"{where}: learned under settings {record.settings_digest[:12]}, this worker runs "
            f"{settings_digest[:12]}. "
            "All workers need the same [models] settings, kernel version and CPU target; to change them, "
            "stop all "
            "workers and start on a new topic prefix, or replay the events."
        )
    recent_width, factor_width, negatives_width = record.widths
    item = record.column("item", "<i4")
    weight = record.column("weight", "<f4")
    keep = np.flatnonzero((item >= 0) & (weight != 0))
    if not len(keep):
        return None
    return LearningBatch(
        item_ids=record.item_ids,
        item=item[keep],
        recent=record.column("recent", "<i4", recent_width)[keep],
        time_ms=record.column("time_ms", "<i8")[keep],
        weight=weight[keep],
        event_type=record.column("event_type", "u1")[keep],
        user_before=record.column("before", "<f4", factor_width)[keep],
        user_after=record.column("after", "<f4", factor_width)[keep],
        negatives=record.column("negatives", "<i4", negatives_width)[keep],
    )
