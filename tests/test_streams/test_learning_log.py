"""The learning log's records: what is packed is what every replica reads, however it was split."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams import learning_log
from streams.errors import LearningLogError
from streams.learning_log import Interaction, LogRecord, decode_record, learning_batch, pack

DIGEST = "d" * 64
IDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=20)


@st.composite
def interactions(draw: st.DrawFn, widths: tuple[int, int, int]) -> Interaction:
    recent, dimension, negatives = widths
    vector = st.lists(st.floats(-10, 10, width=32), min_size=dimension, max_size=dimension)
    return Interaction(
        event_id=draw(IDS),
        token=draw(st.integers(0, 2**64 - 1)),
        item_id=draw(st.none() | IDS),
        event_type=draw(st.sampled_from(["click", "rating", "search"])),
        time_ms=draw(st.integers(0, 253_402_300_799_999)),
        weight=draw(st.sampled_from([-1.0, 0.0, 0.5, 2.0])),
        value=draw(st.none() | st.floats(-1e9, 1e9)),
        recent=draw(st.lists(IDS, max_size=recent + 2)),
        before=np.array(draw(vector), np.float32),
        after=np.array(draw(vector), np.float32),
        negatives=draw(st.lists(IDS, max_size=negatives)),
        topic=draw(st.sampled_from(["events", "t.events"])),
        partition=draw(st.integers(0, 2**31 - 1)),
        offset=draw(st.integers(0, 2**63 - 1)),
    )


@st.composite
def logs(draw: st.DrawFn) -> tuple[tuple[int, int, int], list[Interaction]]:
    widths = draw(st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(0, 3)))
    return widths, draw(st.lists(interactions(widths), min_size=1, max_size=12))


def _names(record: LogRecord, column: str, width: int) -> list[list[str]]:
    rows = record.column(column, "<i4", width).tolist()
    return [[record.item_ids[index] for index in row if index >= 0] for row in rows]


def _check(record: LogRecord, rows: list[Interaction]) -> None:
    """Every field of every row, through the columns."""
    recent, dimension, negatives = record.widths
    items = [None if i < 0 else record.item_ids[i] for i in record.column("item", "<i4").tolist()]
    assert record.n == len(rows)
    assert record.event_ids == [r.event_id for r in rows]
    assert items == [r.item_id for r in rows]
    assert [record.event_types[k] for k in record.column("event_type", "u1")] == [r.event_type for r in rows]
    assert [record.topics[k] for k in record.column("topic", "u1")] == [r.topic for r in rows]
    assert _names(record, "recent", recent) == [list(r.recent[:recent]) for r in rows]
    assert _names(record, "negatives", negatives) == [list(r.negatives) for r in rows]
    for name, kind in (("token", "<u8"), ("time_ms", "<i8"), ("partition", "<i4"), ("offset", "<i8")):
        assert record.column(name, kind).tolist() == [getattr(r, name) for r in rows], name
    np.testing.assert_array_equal(record.column("weight", "<f4"), np.float32([r.weight for r in rows]))
    values = [np.nan if r.value is None else r.value for r in rows]
    np.testing.assert_array_equal(record.column("value", "<f8"), values)
    for name in ("before", "after"):
        np.testing.assert_array_equal(
            record.column(name, "<f4", dimension), [getattr(r, name) for r in rows], name
        )


@given(log=logs())
@settings(deadline=None)
def test_packed_rows_read_back_in_order(log: tuple[tuple[int, int, int], list[Interaction]]) -> None:
    widths, rows = log
    [value] = pack(rows, widths, DIGEST)
    _check(decode_record(value, "here"), rows)


@given(log=logs())
@settings(deadline=None)
def test_a_batch_holds_what_teaches_and_nothing_else(
    log: tuple[tuple[int, int, int], list[Interaction]],
) -> None:
    widths, rows = log
    [value] = pack(rows, widths, DIGEST)
    batch = learning_batch(decode_record(value, "here"), DIGEST, "here")
    teaching = [r for r in rows if r.item_id is not None and r.weight != 0]
    if not teaching:
        assert batch is None
        return
    assert batch is not None
    batch.validate()
    assert [batch.item_ids[i] for i in batch.item.tolist()] == [r.item_id for r in teaching]
    assert batch.negatives.shape == (len(teaching), widths[2])
    assert batch.time_ms.tolist() == [r.time_ms for r in teaching]
    np.testing.assert_array_equal(batch.user_after, [r.after for r in teaching])


def _row(k: int, item: str | None = None) -> Interaction:
    vector = np.full(32, k, np.float32)
    return Interaction(
        f"e{k}", k, item or f"item-{k}" + "ü" * 100, "click", k, 1.0, None, [f"item-{k - 1}"], vector, vector,
        [f"n{k}"], "events", 0, k,
    )  # fmt: skip


def test_large_batches_are_split_below_the_limit_and_lose_nothing() -> None:
    rows = [_row(k) for k in range(5000)]
    values = list(pack(rows, (10, 32, 8), DIGEST))
    assert len(values) > 2
    assert max(map(len, values)) < 1.3 * learning_log.MAX_RECORD_BYTES
    start = 0
    for value in values:
        record = decode_record(value, "here")
        _check(record, rows[start : start + record.n])
        start += record.n
    assert start == 5000


def test_nothing_to_log_is_no_record() -> None:
    assert list(pack([], (10, 32, 8), DIGEST)) == []


@pytest.mark.parametrize("value", [None, b"", b"\x00", b"{}", msgspec.msgpack.encode([1, "x"])])
def test_what_is_no_record_is_refused_by_place(value: bytes | None) -> None:
    with pytest.raises(LearningLogError, match=r"interactions\[0\]@7"):
        decode_record(value, "interactions[0]@7")


def test_other_formats_settings_and_lengths_are_refused() -> None:
    [value] = pack([_row(1)], (10, 32, 8), DIGEST)
    record = decode_record(value, "here")
    with pytest.raises(
        LearningLogError, match=r"@9: learned under settings dddddddddddd, this worker runs eee"
    ):
        learning_batch(record, "e" * 64, "interactions[0]@9")
    record.offset = record.offset[:-1]
    with pytest.raises(LearningLogError, match="column offset has 7 bytes, 8 expected"):
        record.column("offset", "<i8")
    record.format = 2
    with pytest.raises(LearningLogError, match="format 2, this version reads 1"):
        decode_record(msgspec.msgpack.encode(record), "here")
