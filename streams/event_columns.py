"""A batch of `events` as columns: what the learning path reads, without an object per event.

The usual record is parsed, checked and hashed by `streams.event_kernels`, at native speed and without the
interpreter lock. Every other one goes to `EventValidator.decode_event` by itself, which rejects it or
accepts it: outcome, values and messages are the validator's in all cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
from numpy.typing import NDArray

from streams.clients import partition_for
from streams.errors import SettingsError
from streams.event_kernels import (
    FIELDS,
    MOST_TYPES,
    PADDING_BYTES,
    SLOTS,
    EventTypes,
    Rows,
    hash_bytes,
    read_events,
)
from streams.records import Record
from streams.rejects import Rejected
from streams.settings import ValidationSettings
from streams.validation import NEEDED_FIELD, AcceptedEvent, EventValidator

__all__ = ["EventColumns", "EventReader"]

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Words = NDArray[np.uint64]
Doubles = NDArray[np.float64]

IDS, OTHERS = FIELDS[:3], FIELDS[3:9]
MOST_BYTES = 1 << 30
"""Of a batch: starts are 32-bit, and what the validator decodes is written behind."""
MOST_MS = 2**63 - 1


@dataclass(slots=True)
class EventColumns:
    """n accepted events in order of arrival. A text is (start, length) in `data`; length 0 = absent."""

    data: NDArray[np.uint8]  # [bytes], PADDING_BYTES zeros at the end
    index: Ints  # int32[n], place in the batch of messages
    user: Ints  # int32[n, 2]
    event: Ints  # int32[n, 2]
    item: Ints  # int32[n, 2]
    others: Ints  # int32[n, 6, 2]: session_id, request_id, domain, query, target_user_id, retracts
    user_hash: Words  # uint64[n], `hash_bytes` of the id
    event_hash: Words  # uint64[n], `streams.validation.event_hash`
    item_hash: Words  # uint64[n], `hash_bytes` of the id; of no bytes where there is no item
    event_type: NDArray[np.uint8]  # [n], place in `EventReader.type_names`
    time_ms: Longs  # int64[n]
    weight: Doubles  # float64[n]
    value: Doubles  # float64[n], NaN = none
    partition: Ints  # int32[n]
    offset: Longs  # int64[n]
    kafka_time_ms: Longs  # int64[n]
    unknown_fields: Ints  # int32[n]
    misplaced: NDArray[np.bool_]  # [n]

    def __len__(self) -> int:
        return len(self.index)

    def text(self, span: Ints) -> str | None:
        """The text at `span`, int32[2]."""
        start, length = span.tolist()
        return bytes(self.data[start : start + length]).decode() if length else None


@dataclass(slots=True)
class _Batch:
    """The messages' parts, in columns."""

    values: list[bytes | None]
    keys: list[bytes | None]
    partition: Ints
    offset: Longs
    kafka_time_ms: Longs


class EventReader:
    """Reads batches of `events` records into columns. Lateness depends on the state and is not judged here.

    Args:
        settings: limits, event types and their weights.
        partitions: of the topic, to find records in another partition than their key's.

    Raises:
        SettingsError: more than 256 event types.
    """

    def __init__(self, settings: ValidationSettings, partitions: int) -> None:
        weights = settings.weights()
        self.type_names = tuple(weights)
        """`EventColumns.event_type` is a place in it."""
        self.fallbacks = 0
        """Events so far that the kernel left to the validator."""
        if len(weights) > MOST_TYPES:
            raise SettingsError(
                f"setting validation.event_types: with the built-in ones {len(weights)} types, at most"
                f" {MOST_TYPES}. Remove some."
            )
        self._validator = EventValidator(settings, partial(partition_for, partitions=partitions))
        self._codes = {name: code for code, name in enumerate(weights)}
        self._kinds = _event_types(weights)
        self._max_bytes = settings.max_bytes
        self._limits = (
            settings.max_depth,
            int(settings.future_s * 1000),
            partitions,
            settings.partitioning == "strict",
        )

    def read(self, messages: Sequence[Record]) -> tuple[EventColumns, list[tuple[int, Rejected]]]:
        """The good events of `messages`, all of `events`, and the rejected ones with their places.

        Reading no messages compiles what is not yet compiled.

        Raises:
            ValueError: values and keys have more than 1 GiB.
        """
        n = len(messages)
        batch = _parts(messages)
        data, lengths = _joined(batch, self._max_bytes)
        rows = _new_rows(n)
        slots = np.empty(SLOTS, np.int64)
        left = read_events(
            data, lengths, batch.partition, batch.kafka_time_ms, rows, self._kinds, slots, *self._limits
        )
        rejected: list[tuple[int, Rejected]] = []
        if left:
            self.fallbacks += left
            data, rejected = self._decode(np.flatnonzero(~rows.good).tolist(), batch, data, rows)
        if rejected:
            return _columns(data, batch, rows, np.flatnonzero(rows.good)), rejected
        return _columns(data, batch, rows, None), rejected

    def _decode(
        self, places: list[int], batch: _Batch, data: NDArray[np.uint8], rows: Rows
    ) -> tuple[NDArray[np.uint8], list[tuple[int, Rejected]]]:
        """Let the validator decode the events at `places`; the good ones' texts go behind `data`."""
        rejected: list[tuple[int, Rejected]] = []
        texts = bytearray()
        for place in places:
            found = self._validator.decode_event(
                batch.values[place],
                batch.keys[place],
                int(batch.partition[place]),
                int(batch.offset[place]),
                int(batch.kafka_time_ms[place]),
            )
            if isinstance(found, Rejected):
                rejected.append((place, found))
            else:
                self._fill(rows, place, found, texts, len(data))
        texts += bytes(PADDING_BYTES)
        return np.concatenate([data, np.frombuffer(texts, np.uint8)]), rejected

    def _fill(self, rows: Rows, row: int, found: AcceptedEvent, texts: bytearray, base: int) -> None:
        event = found.event
        rows.good[row] = True
        for code, name in enumerate(IDS):
            rows.ids[code, row], rows.hashes[code, row] = _append(texts, base, getattr(event, name))
        for code, name in enumerate(OTHERS):
            rows.others[row, code] = _append(texts, base, getattr(event, name))[0]
        rows.hashes[1, row] = found.event_hash
        rows.event_type[row] = self._codes[event.event_type]
        rows.time_ms[row] = min(found.time_ms, MOST_MS)
        rows.numbers[0, row] = found.weight
        rows.numbers[1, row] = np.nan if event.value is None else event.value
        rows.unknown[row] = found.unknown_fields
        rows.misplaced[row] = found.misplaced


def _append(texts: bytearray, base: int, text: str | None) -> tuple[tuple[int, int], int]:
    """The span of `text` once it is appended, and its `hash_bytes`."""
    encoded = b"" if text is None else text.encode()
    span = base + len(texts), len(encoded)
    texts += encoded
    return span, hash_bytes(np.frombuffer(bytearray(encoded), np.uint8), 0, len(encoded))


def _event_types(weights: dict[str, float]) -> EventTypes:
    names = [name.encode("utf-8", "surrogatepass") for name in weights]
    lengths = np.array([len(name) for name in names], np.int64)
    needed = [NEEDED_FIELD.get(name, "item_id") for name in weights]
    return EventTypes(
        names=np.frombuffer(bytearray(b"".join(names) + bytes(PADDING_BYTES)), np.uint8),
        spans=np.stack([np.cumsum(lengths) - lengths, lengths], axis=1),
        needs=np.array([FIELDS.index(name) for name in needed], np.int64),
        weight=np.array(list(weights.values()), np.float64),
    )


def _parts(messages: Sequence[Record]) -> _Batch:
    """One pass per part over messages of one class: its methods are called without looking them up."""
    n = len(messages)
    kind = type(messages[0]) if n else Record
    return _Batch(
        values=list(map(kind.value, messages)),
        keys=list(map(kind.key, messages)),
        partition=np.fromiter(map(kind.partition, messages), np.int32, n),
        offset=np.fromiter(map(kind.offset, messages), np.int64, n),
        kafka_time_ms=np.fromiter([time_ms for _, time_ms in map(kind.timestamp, messages)], np.int64, n),
    )


def _joined(batch: _Batch, max_bytes: int) -> tuple[NDArray[np.uint8], Longs]:
    """All values and keys as `read_events` wants them; what it can't take anyway stands as empty."""
    n = len(batch.values)
    lengths = np.empty((2, n), np.int64)
    values = _measured(batch.values, max_bytes, lengths[0])
    keys = _measured(batch.keys, MOST_BYTES, lengths[1])
    if (size := int(lengths.sum()) + 2 * n) > MOST_BYTES:
        raise ValueError(f"a batch of {n} events has {size} bytes, at most {MOST_BYTES}: read it in parts")
    return np.frombuffer(bytearray(b"\0").join([*values, *keys, bytes(PADDING_BYTES)]), np.uint8), lengths


def _measured(parts: list[bytes | None], most: int, lengths: Longs) -> list[bytes]:
    """The parts, empty in place of None and of those of more than `most` bytes; `lengths` gets theirs."""
    whole = cast(list[bytes], parts)
    try:
        lengths[:] = np.fromiter(map(len, whole), np.int64, len(whole))
        fit = lengths.max(initial=0) <= most
    except TypeError:  # cheaper than to look for None first
        fit = False
    if not fit:
        whole = [part if part is not None and len(part) <= most else b"" for part in parts]
        lengths[:] = np.fromiter(map(len, whole), np.int64, len(whole))
    return whole


def _new_rows(n: int) -> Rows:
    return Rows(
        good=np.empty(n, np.bool_),
        ids=np.zeros((3, n, 2), np.int32),
        others=np.zeros((n, 6, 2), np.int32),
        hashes=np.empty((3, n), np.uint64),
        event_type=np.empty(n, np.uint8),
        time_ms=np.empty(n, np.int64),
        numbers=np.empty((2, n)),
        unknown=np.empty(n, np.int32),
        misplaced=np.empty(n, np.bool_),
    )


def _columns(data: NDArray[np.uint8], batch: _Batch, rows: Rows, kept: Longs | None) -> EventColumns:
    """The columns of the rows at `kept`, of all rows without it."""
    good = slice(None) if kept is None else kept
    return EventColumns(
        data=data,
        index=np.arange(len(rows.good), dtype=np.int32)[good],
        user=rows.ids[0][good],
        event=rows.ids[1][good],
        item=rows.ids[2][good],
        others=rows.others[good],
        user_hash=rows.hashes[0][good],
        event_hash=rows.hashes[1][good],
        item_hash=rows.hashes[2][good],
        event_type=rows.event_type[good],
        time_ms=rows.time_ms[good],
        weight=rows.numbers[0][good],
        value=rows.numbers[1][good],
        partition=batch.partition[good],
        offset=batch.offset[good],
        kafka_time_ms=batch.kafka_time_ms[good],
        unknown_fields=rows.unknown[good],
        misplaced=rows.misplaced[good],
    )
