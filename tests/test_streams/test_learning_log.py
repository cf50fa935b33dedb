"""The learning log's records: what is packed is what every replica reads, however it was split."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online_models.learning_batch import LEARN, UNCOUNT, LearningBatch
from streams import learning_log
from streams.errors import LearningLogError
from streams.id_table import IdTable
from streams.learner import joined
from streams.learning_log import (
    FORGET_ITEM,
    FORGET_USER,
    Interactions,
    LogRecord,
    LogWriter,
    decode_record,
    learning_batches,
)
from streams.log_kinds import DISMISS, INTRODUCE

DIGEST = "d" * 64
TOPICS = ("t.events", "t.users", "t.items")
KINDS = ("click", "rating", "search")
IDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=20)
ITEMS = IDS.map(lambda text: f"i{text}")


@dataclass(frozen=True)
class Row:
    """One interaction as a test writes it: `recent` holds ids, and rows of the item table as numbers."""

    event_id: str
    item_id: str | None
    event_type: int
    token: int
    time_ms: int
    weight: float
    value: float
    partition: int
    offset: int
    recent: list[str | int]
    negatives: list[int]
    before: list[float]
    after: list[float]
    kind: int = LEARN


@dataclass
class Log:
    """A writer, and the tables that it names ids by."""

    widths: tuple[int, int, int]
    items: IdTable = field(default_factory=IdTable)
    kinds: IdTable = field(default_factory=IdTable)

    def __post_init__(self) -> None:
        self.kinds.codes_of([kind.encode() for kind in KINDS], ensure=True)
        self.items.codes_of([b"never named %d" % n for n in range(7)], ensure=True)
        self.writer = LogWriter(self.items, self.kinds, TOPICS, self.widths, DIGEST)

    def _code(self, item: str | int | None) -> int:
        if isinstance(item, str):
            return int(self.items.codes_of([item.encode()], ensure=True)[0])
        return -1 if item is None else -item - 2

    def columns(self, rows: list[Row]) -> Interactions:
        recent, width, drawn = self.widths
        n = len(rows)
        ids = [row.event_id.encode() for row in rows]
        ends = np.cumsum([0, *map(len, ids)])

        def padded(lists: list[list[int]], length: int) -> Any:
            return np.array([(one + [-1] * length)[:length] for one in lists], np.int32).reshape(n, length)

        def column(name: str, dtype: Any, *shape: int) -> Any:
            return np.array([getattr(row, name) for row in rows], dtype).reshape(n, *shape)

        return Interactions(
            data=np.frombuffer(b"behind" + b"".join(ids) + b" ", np.uint8),
            event=np.stack([6 + ends[:-1], np.diff(ends)], axis=1).astype(np.int32),
            code=np.array([self._code(row.item_id) for row in rows], np.int32),
            recent=padded([list(map(self._code, row.recent)) for row in rows], recent),
            negatives=padded([[-row - 2 for row in one.negatives] for one in rows], drawn),
            before=column("before", np.float32, width),
            after=column("after", np.float32, width),
            kind=column("kind", np.uint8),
            event_type=column("event_type", np.uint8),
            token=column("token", np.uint64),
            time_ms=column("time_ms", np.int64),
            weight=column("weight", np.float32),
            value=column("value", np.float64),
            partition=column("partition", np.int32),
            offset=column("offset", np.int64),
            table_epoch=77,
        )

    def pack(self, rows: list[Row]) -> list[bytes]:
        return list(self.writer.pack(self.columns(rows)))


@st.composite
def logs(draw: st.DrawFn) -> tuple[Log, list[Row]]:
    recent, width, drawn = draw(st.tuples(st.integers(0, 4), st.integers(1, 4), st.integers(0, 3)))
    items = draw(st.lists(ITEMS, min_size=1, max_size=6))
    vectors = st.lists(st.floats(-10, 10, width=32), min_size=width, max_size=width)
    rows = st.integers(0, 2**31 - 3)
    kinds = draw(st.sampled_from([st.just(LEARN), st.integers(LEARN, DISMISS)]))
    row = st.builds(
        Row,
        event_id=IDS,
        item_id=st.none() | st.sampled_from(items),
        event_type=st.integers(0, len(KINDS) - 1),
        token=st.integers(0, 2**64 - 1),
        time_ms=st.integers(0, 253_402_300_799_999),
        weight=st.sampled_from([-1.0, 0.0, 0.5, 2.0]),
        value=st.just(float("nan")) | st.floats(-1e9, 1e9),
        partition=st.integers(0, 2**31 - 1),
        offset=st.integers(0, 2**63 - 1),
        recent=st.lists(st.sampled_from(items) | rows, max_size=recent),
        negatives=st.lists(rows, max_size=drawn),
        before=vectors,
        after=vectors,
        kind=kinds,
    )
    return Log((recent, width, drawn)), draw(st.lists(row, min_size=1, max_size=12))


def _named(index: int, item_ids: list[str]) -> str | int | None:
    """What an index of a record stands for."""
    return item_ids[index] if index >= 0 else None if index == -1 else -index - 2


def _lists(record: LogRecord, column: str, width: int) -> list[list[str | int]]:
    """A column of lists, without its padding, which stands last."""
    item_ids, found = record.item_ids, []
    for line in record.column(column, "<i4", width).tolist():
        names = [_named(index, item_ids) for index in line]
        found.append([name for name in names if name is not None])
        assert names[len(found[-1]) :] == [None] * (width - len(found[-1]))
    return found


def _check(record: LogRecord, rows: list[Row], widths: tuple[int, int, int]) -> None:
    """Every field of every row, through the columns."""
    recent, width, drawn = widths
    assert (record.n, record.widths, record.table_epoch) == (len(rows), widths, 77)
    assert len(set(record.item_ids)) == len(record.item_ids)
    used = {row.item_id for row in rows} | {i for row in rows for i in row.recent if isinstance(i, str)}
    assert set(record.item_ids) == used - {None}, "only what is named is spelled out"
    assert record.event_ids == [row.event_id for row in rows]
    assert [_named(i, record.item_ids) for i in record.column("item", "<i4").tolist()] == [
        row.item_id for row in rows
    ]
    assert record.event_types == list(KINDS)
    assert record.kinds.tolist() == [row.kind for row in rows]
    assert bool(record.kind) == any(row.kind for row in rows)
    origin = {UNCOUNT: "t.users", FORGET_USER: "t.users"}
    origin |= dict.fromkeys((FORGET_ITEM, INTRODUCE, DISMISS), "t.items")
    assert [record.topics[k] for k in record.column("topic", "u1")] == [
        origin.get(row.kind, "t.events") for row in rows
    ]
    assert _lists(record, "recent", recent) == [row.recent for row in rows]
    assert _lists(record, "negatives", drawn) == [row.negatives for row in rows]
    for name, kind in (
        ("event_type", "u1"), ("token", "<u8"), ("time_ms", "<i8"), ("partition", "<i4"), ("offset", "<i8"),
        ("weight", "<f4"), ("value", "<f8"),
    ):  # fmt: skip
        np.testing.assert_array_equal(
            record.column(name, kind), np.array([getattr(row, name) for row in rows], kind), name
        )
    for name in ("before", "after"):
        expected = np.array([getattr(row, name) for row in rows], "<f4")
        np.testing.assert_array_equal(record.column(name, "<f4", width), expected, name)


@given(log=logs())
@settings(deadline=None, max_examples=60)
def test_packed_rows_read_back_in_order(log: tuple[Log, list[Row]]) -> None:
    writer, rows = log
    for _ in range(2):  # a second record owes nothing to the first
        [value] = writer.pack(rows)
        _check(decode_record(value, "here"), rows, writer.widths)


@given(log=logs())
@settings(deadline=None, max_examples=50)
def test_batches_hold_what_teaches_those_of_one_kind_together(log: tuple[Log, list[Row]]) -> None:
    writer, rows = log
    [value] = writer.pack(rows)
    batches = learning_batches(decode_record(value, "here"), DIGEST, "here")
    runs = [(kind, list(run)) for kind, run in groupby(rows, lambda row: row.kind) if kind <= UNCOUNT]
    wanted = [
        (kind, [row for row in run if row.item_id is not None and row.weight != 0]) for kind, run in runs
    ]
    wanted = [(kind, run) for kind, run in wanted if run]
    assert [batch.kind for batch in batches] == [kind for kind, _ in wanted]
    for batch, (_, run) in zip(batches, wanted, strict=True):
        assert batch.table_epoch == 77
        _check_batch(batch, run, writer.widths)


def _check_batch(batch: LearningBatch, rows: list[Row], widths: tuple[int, int, int]) -> None:
    recent, _, drawn = widths
    named = max((i for row in rows for i in [*row.recent, *row.negatives] if isinstance(i, int)), default=0)
    if named < 77:  # no more rows than there were assignments
        batch.validate()
    assert [batch.item_ids[i] for i in batch.item.tolist()] == [row.item_id for row in rows]
    assert (batch.recent.shape, batch.negatives.shape) == ((len(rows), recent), (len(rows), drawn))
    for column, name in ((batch.recent, "recent"), (batch.negatives, "negatives")):
        found = [[_named(i, batch.item_ids) for i in line] for line in column.tolist()]
        assert [[i for i in line if i is not None] for line in found] == [getattr(r, name) for r in rows]
    assert batch.time_ms.tolist() == [row.time_ms for row in rows]
    assert batch.weight.tolist() == [row.weight for row in rows]
    assert batch.event_type.tolist() == [row.event_type for row in rows]
    np.testing.assert_array_equal(batch.user_before, np.array([row.before for row in rows], np.float32))
    np.testing.assert_array_equal(batch.user_after, np.array([row.after for row in rows], np.float32))


def _row(k: int, **changes: Any) -> Row:
    vector = [float(k)] * 32
    fields: dict[str, Any] = {
        "event_id": f"e{k}", "item_id": f"item-{k}" + "ü" * 100, "event_type": 0, "token": k, "time_ms": k,
        "weight": 1.0, "value": float("nan"), "partition": 0, "offset": k, "recent": [f"item-{k - 1}"],
        "negatives": [k], "before": vector, "after": vector,
    }  # fmt: skip
    return Row(**{**fields, **changes})


WIDE = (10, 32, 8)


@pytest.mark.parametrize("id_bytes", [1, 256])
def test_large_batches_are_split_below_the_limit_and_lose_nothing(id_bytes: int) -> None:
    def name(n: int) -> str:
        return f"{n:x}".rjust(id_bytes, "x")

    log = Log(WIDE)
    rows = [
        _row(
            k, item_id=name(k), event_id=f"{k}".rjust(id_bytes, "e"), recent=[name(k + j) for j in range(10)]
        )
        for k in range(3000)
    ]
    values = log.pack(rows)
    assert len(values) > 2
    assert max(map(len, values)) <= learning_log.MAX_RECORD_BYTES + 5000
    start = 0
    for value in values:
        record = decode_record(value, "here")
        _check(record, rows[start : start + record.n], WIDE)
        start += record.n
    assert start == len(rows)


def test_one_interaction_too_large_for_its_share_is_a_record_all_the_same() -> None:
    log = Log((1000, 32, 8))
    rows = [_row(k, recent=[f"{k}-{j}".rjust(256, "x") for j in range(1000)]) for k in range(4)]
    values = log.pack(rows)
    assert len(values) >= 2
    assert max(map(len, values)) < 1_000_000, "the broker's limit"
    records = [decode_record(value, "here") for value in values]
    assert [event for record in records for event in record.event_ids] == [f"e{k}" for k in range(4)]
    assert [line for r in records for line in _lists(r, "recent", 1000)] == [row.recent for row in rows]


def test_rows_of_the_item_table_take_no_room_among_the_ids() -> None:
    log = Log(WIDE)
    [value] = log.pack([_row(1, recent=list(range(10)), item_id=None)])
    record = decode_record(value, "here")
    assert (record.item_ids, record.item_bytes, record.item_lengths) == ([], b"", b"")
    assert record.column("recent", "<i4", 10).tolist() == [[-2 - row for row in range(10)]]


def test_codes_given_again_name_the_new_item() -> None:
    log = Log(WIDE)
    old = _row(1, item_id="old", recent=[])
    log.pack([old])
    log.items.remove(log.items.codes_of([b"old"]))
    new = _row(2, item_id="new", recent=[])
    [value] = log.pack([new])
    assert log.columns([new]).code.tolist() == [7]
    assert decode_record(value, "here").item_ids == ["new"]


def test_parts_are_joined_in_their_order() -> None:
    log = Log(WIDE)
    rows = [_row(k) for k in range(9)]
    whole = log.columns(rows)
    cut = [
        Interactions(
            data=whole.data,
            table_epoch=whole.table_epoch,
            **{
                name: getattr(whole, name)[start:end]
                for name in Interactions.__slots__
                if name not in ("data", "table_epoch")
            },
        )
        for start, end in ((0, 4), (4, 4), (4, 9))
    ]
    together = joined(cut)
    assert together is not None
    assert len(together) == 9
    assert list(log.writer.pack(together)) == list(log.writer.pack(whole))
    assert joined([]) is None
    assert joined([whole]) is whole


def test_nothing_to_log_is_no_record() -> None:
    assert Log(WIDE).pack([]) == []


@pytest.mark.parametrize("value", [None, b"", b"\x00", b"{}", msgspec.msgpack.encode([1, "x"])])
def test_what_is_no_record_is_refused_by_place(value: bytes | None) -> None:
    with pytest.raises(LearningLogError, match=r"interactions\[0\]@7"):
        decode_record(value, "interactions[0]@7")


def test_other_settings_and_formats_are_refused() -> None:
    [value] = Log(WIDE).pack([_row(1)])
    record = decode_record(value, "here")
    with pytest.raises(
        LearningLogError, match=r"@9: learned under settings dddddddddddd, this worker runs eee"
    ):
        learning_batches(record, "e" * 64, "interactions[0]@9")
    record.format = 1
    with pytest.raises(LearningLogError, match=r"here: format 1, this version reads 3\. Upgrade every"):
        decode_record(msgspec.msgpack.encode(record), "here")


LEARNED = ("item", "recent", "time_ms", "weight", "event_type", "before", "after", "negatives")


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("by", [-1, 1])
def test_columns_of_wrong_length_are_refused_by_name(name: str, by: int) -> None:
    [value] = Log(WIDE).pack([_row(1), _row(2)])
    record = decode_record(value, "here")
    raw: bytes = getattr(record, name)
    setattr(record, name, raw[:-1] if by < 0 else raw + b"\0")
    damaged = decode_record(msgspec.msgpack.encode(record), "here")
    expected = f"column {name} has {len(raw) + by} bytes, {len(raw)} expected for 2 interactions"
    with pytest.raises(LearningLogError, match=expected):
        learning_batches(damaged, DIGEST, "here")


@pytest.mark.parametrize("kind", ["item", "event"])
def test_ids_that_do_not_add_up_are_refused(kind: str) -> None:
    [value] = Log(WIDE).pack([_row(1), _row(2)])
    record = decode_record(value, "here")
    raw: bytes = getattr(record, f"{kind}_bytes")
    setattr(record, f"{kind}_bytes", raw[:-1])
    with pytest.raises(LearningLogError, match=f"{len(raw) - 1} bytes of {kind} ids, {len(raw)} expected"):
        getattr(record, f"{kind}_ids")


def test_records_of_the_format_before_are_events_that_happened() -> None:
    [value] = Log(WIDE).pack([_row(1), _row(2)])
    fields = msgspec.msgpack.decode(value)
    fields[0] = 2
    [batch] = learning_batches(decode_record(msgspec.msgpack.encode(fields[:-1]), "here"), DIGEST, "here")
    assert (batch.kind, len(batch)) == (LEARN, 2)


@pytest.mark.parametrize("by", [-1, 1])
def test_kinds_that_do_not_add_up_are_refused(by: int) -> None:
    [value] = Log(WIDE).pack([_row(1, kind=UNCOUNT), _row(2)])
    record = decode_record(value, "here")
    record.kind = record.kind[:-1] if by < 0 else record.kind + b"\0"
    with pytest.raises(LearningLogError, match=f"column kind has {2 + by} bytes, 2 expected"):
        learning_batches(record, DIGEST, "here")
