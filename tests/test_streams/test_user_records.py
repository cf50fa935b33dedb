"""Records of `user-state`: what a worker writes is what it reads; anything else is refused with its key,
or is sound once it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.errors import ChangelogError
from streams.events import PartitionStats
from streams.settings import UserStateSettings
from streams.shards import Shard
from streams.user_kernels import FORMAT, FORMAT_WITHOUT_EVENTS
from streams.user_records import COLD_PREFIX, PARTITION_KEY, ShardRecords, UserRecord
from streams.user_table import UserTable
from tests.test_streams.user_model import DIMENSION, T0, Ev, Worker, check_table, live_users, settings_of

LIMITS = UserStateSettings(recent=6, seen=7, dedupe_entries=9)
TYPES, RECENT_TYPES, LENGTHS, IDS, SEEN, RECENT, LAST = 6, 7, 8, 9, 10, 11, 16
"""Fields of a user's record, by place."""


@cache
def written() -> dict[bytes, bytes]:
    """Hot records of three users; u has a cold one too."""
    worker = Worker(settings_of(user_state={"recent": 6, "seen": 7, "dedupe_entries": 9}))
    worker.take([Ev("u", f"e{n}", n, f"item-{n % 9}", ["good", "half"][n % 2]) for n in range(40)])
    worker.commit()
    worker.take([Ev("u", "late", 50, "item-1"), Ev("v", "e", 0, "item-3"), Ev("w", "e", 0)])
    worker.show("u", ["item-3", "new-item"])
    worker.commit()
    assert worker.log[0][0][0] == COLD_PREFIX + b"u"
    return worker.records(0).hot


def _fields(key: bytes = b"u") -> list[Any]:
    return list(msgspec.msgpack.decode(written()[key]))


def _n_ids() -> int:
    return len(_fields()[LENGTHS]) // 2


def _encode(fields: list[Any]) -> bytes:
    """A record as the kernel has them: every number in 8 bytes, every length in 4."""
    parts = [b"\xdc\x00", bytes([len(fields), fields[0]]), b"\xcf" + fields[1].to_bytes(8, "big")]
    for field in fields[2:]:
        if isinstance(field, list):
            names = [b"\xda" + len(n).to_bytes(2, "big") + n for n in map(str.encode, field)]
            parts.append(b"\xdc" + len(names).to_bytes(2, "big") + b"".join(names))
        elif isinstance(field, int):
            parts.append(b"\xd3" + field.to_bytes(8, "big", signed=True))
        else:
            parts.append(b"\xc6" + len(field).to_bytes(4, "big") + field)
    return b"".join(parts)


def _with(changes: dict[int, Any]) -> bytes:
    fields = _fields()
    for place, value in changes.items():
        fields[place] = value
    return _encode(fields)


def _load(key: bytes, value: bytes) -> UserTable:
    """The record, between two good ones."""
    table = UserTable(LIMITS, DIMENSION, ["good"])
    records = ShardRecords(0, LIMITS)
    for one, its in ((b"a", written()[b"v"]), (key, value), (b"z", written()[b"v"])):
        records.add(one, its, "here")
    table.restore(records)
    return table


def _check_sound(table: UserTable) -> None:
    """What was loaded can be held, written, and read again."""
    check_table(table, (LIMITS.recent, LIMITS.seen, LIMITS.dedupe_entries))
    for row in table._ids.held().tolist():
        table.touch(row)
    records = ShardRecords(0, LIMITS)
    for _, keys, values in table.drain_touched():
        for key, value in zip(keys, values, strict=True):
            records.add(key, value, "here")
    assert len(records.hot) == len(table)
    again = UserTable(LIMITS, DIMENSION, ["good"])
    again.restore(records)
    assert len(again) == len(table)
    texts = (ids.id_of(code) for ids in (table.items, table.kinds) for code in ids.held().tolist())
    if all(text.decode(errors="replace").encode() == text for text in texts):
        assert live_users(again) == live_users(table)


def _check_refused_or_sound(key: bytes, value: bytes) -> None:
    try:
        table = _load(key, value)
    except ChangelogError as error:
        message = str(error)
    else:
        _check_sound(table)
        message = f"user-state[0], key {key!r}"
    assert message.startswith(f"user-state[0], key {key!r}")


def test_the_builder_of_foreign_records_builds_ours_too() -> None:
    for key, value in written().items():
        assert _encode(_fields(key)) == value
        assert _fields(key)[0] == FORMAT


edits = st.tuples(
    st.sampled_from(["set", "cut", "delete", "insert", "repeat"]),
    st.floats(0, 1, exclude_max=True),
    st.binary(min_size=1, max_size=9),
)


def _edited(value: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    for action, where, new in changes:
        place = int(where * len(value))
        head, tail = value[:place], value[place:]
        value = {
            "set": head + new[:1] + tail[1:],
            "cut": head,
            "delete": head + tail[len(new) :],
            "insert": head + new + tail,
            "repeat": head + tail + tail,
        }[action]
    return value


@given(key=st.sampled_from([b"u", b"v", b"w"]), changes=st.lists(edits, min_size=1, max_size=3))
@settings(deadline=None, max_examples=400)
def test_a_damaged_record_is_refused_or_sound(key: bytes, changes: list[tuple[str, float, bytes]]) -> None:
    _check_refused_or_sound(key, _edited(written()[key], changes))


@given(
    place=st.sampled_from([TYPES, RECENT_TYPES, LENGTHS, IDS, SEEN, RECENT, LAST, *range(12, 18)]),
    data=st.data(),
)
@settings(deadline=None, max_examples=200)
def test_a_foreign_field_is_refused_or_sound(place: int, data: st.DataObject) -> None:
    """Whole records by the book whose one field does not go with the others, or just does."""
    old = _fields()[place]
    kinds = {
        list: st.lists(st.text(max_size=300), max_size=300),
        int: st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 20),
        bytes: st.permutations(list(old)).map(bytes) if isinstance(old, bytes) else st.nothing(),
    }
    anything = st.binary(max_size=40) if isinstance(old, bytes) else st.nothing()
    value = data.draw(kinds[type(old)] | anything)
    _check_refused_or_sound(b"u", _with({place: value}))


FOREIGN: dict[str, tuple[Callable[[], bytes], str]] = {
    "text": (lambda: b"junk", "not a record of user-state"),
    "nothing": (lambda: b"", "not a record of user-state"),
    "cut": (lambda: _with({})[:-1], "not a record of user-state"),
    "behind it more": (lambda: _with({}) + b"\0", "not a record of user-state"),
    "another format": (lambda: _with({0: 1}), "format 1, this version reads 3. Upgrade every worker first"),
    "list past the ids": (
        lambda: _with({LAST: _n_ids().to_bytes(2, "little")}),
        "not a record of user-state",
    ),
    "list far past": (lambda: _with({LAST: b"\xff\xff"}), "not a record of user-state"),
    "recent past the ids": (
        lambda: _with({RECENT: _n_ids().to_bytes(2, "little") * (len(_fields()[RECENT]) // 2)}),
        "not a record of user-state",
    ),
    "types past the names": (lambda: _with({TYPES: []}), "not a record of user-state"),
    "more seen than ids": (lambda: _with({SEEN: _n_ids() + 1}), "can't take"),
    "less than none seen": (lambda: _with({SEEN: -1}), "can't take"),
    "empty ids": (lambda: _with({LENGTHS: bytes(2 * _n_ids()), IDS: b""}), "can't take"),
    "ids of 257 bytes": (
        lambda: _with({LENGTHS: b"\1\1" * _n_ids(), IDS: b"x" * 257 * _n_ids()}),
        "can't take",
    ),
    "too many ids": (lambda: _with({LENGTHS: b"\1\0" * 66_000, IDS: b"x" * 66_000}), "can't take"),
    "too many types": (lambda: _with({TYPES: [f"t{n}" for n in range(300)]}), "can't take"),
    "other msgpack": (lambda: msgspec.msgpack.encode(_fields()), "bytes that no worker writes"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_no_worker_writes_is_refused_by_key(name: str) -> None:
    make, why = FOREIGN[name]
    with pytest.raises(ChangelogError, match=rf"user-state\[0\], key b'u': .*{why}"):
        _load(b"u", make())


def test_records_of_the_format_before_are_read_without_what_they_lack() -> None:
    fields = [FORMAT_WITHOUT_EVENTS, *_fields()[1:17]]
    [old] = [user for (_, name), user in live_users(_load(b"u", _encode(fields))).items() if name == "u"]
    [new] = [user for (_, name), user in live_users(_load(b"u", _with({}))).items() if name == "u"]
    assert {hashed for hashed, _ in new["recent_events"]} - {0}
    assert old["recent_events"] == [(0, None)] * len(new["recent_events"])
    assert {**old, "recent_events": []} == {**new, "recent_events": []}
    records = ShardRecords(0, LIMITS)
    records.add(b"u", _encode(fields), "here")
    assert records.user(b"u").recent_hashes == [0] * len(old["recent"])
    _check_sound(_load(b"u", _encode(fields)))


def test_ids_of_one_and_of_256_bytes_are_taken() -> None:
    lengths = [1, 256, *[5] * (_n_ids() - 2)]
    text = "".join(chr(97 + k) * length for k, length in enumerate(lengths)).encode()
    packed = b"".join(length.to_bytes(2, "little") for length in lengths)
    table = _load(b"u", _with({LENGTHS: packed, IDS: text}))
    _check_sound(table)
    assert {"a", "b" * 256} <= {item.decode() for item in map(table.items.id_of, table.items.held().tolist())}


def test_long_type_names_of_many_records_find_room() -> None:
    table = UserTable(LIMITS, DIMENSION, [])
    records = ShardRecords(0, LIMITS)
    n_types = len(_fields()[TYPES])
    for n in range(40):
        value = _with({TYPES: [f"{n}-{k}-" + "y" * 20_000 for k in range(n_types)]})
        records.add(b"user-%d" % n, value, "here")
    table.restore(records)
    _check_sound(table)
    assert (len(table), len(table.kinds)) == (40, 40 * n_types)


def test_another_dimension_is_refused_with_both_numbers() -> None:
    table = UserTable(LIMITS, DIMENSION + 1, ["good"])
    records = ShardRecords(0, LIMITS)
    records.add(b"u", written()[b"u"], "here")
    with pytest.raises(ChangelogError, match=r"a factor of 3 numbers \(here 4\).*\[models.factors\]"):
        table.restore(records)


def test_a_tombstone_takes_the_user_away_and_reserved_keys_are_no_users() -> None:
    records = ShardRecords(0, LIMITS)
    value = written()[b"u"]
    for key in (b"u", COLD_PREFIX + b"u", b"v", COLD_PREFIX + b"v"):
        records.add(key, value, "here")
    records.add(PARTITION_KEY, None, "here")
    records.add(b"u", None, "here")
    records.add(COLD_PREFIX + b"u", None, "here")
    records.add(b"nobody", None, "here")
    assert records.users.keys() == {"v"}
    table = UserTable(LIMITS, DIMENSION, ["good"])
    table.restore(records)
    assert live_users(table).keys() == {(0, "v")}


@pytest.mark.parametrize(
    ("key", "value"),
    [(b"u", b"junk"), (b"\xff", b""), (b"\xff", None), (COLD_PREFIX + b"u", b"\x91\x01")],
)
def test_decoding_refuses_what_is_foreign_by_key(key: bytes, value: bytes | None) -> None:
    records = ShardRecords(3, LIMITS)
    records.add(key, value or written()[b"u"], "user-state[3]@12")
    with pytest.raises(ChangelogError, match=r"user-state\[3\], key b'.*': not a record of user-state"):
        records.user(key.removeprefix(COLD_PREFIX))


def test_a_user_is_described_as_plain_data() -> None:
    records = ShardRecords(2, LIMITS)
    records.add(b"u", written()[b"u"], "here")
    described = records.user(b"u").describe(2)
    assert msgspec.json.decode(msgspec.json.encode(described)) == described
    assert (described["partition"], described["user_id"], described["events"]) == (2, "u", 41)
    assert described["recent"][-1] == {
        "item_id": "item-1", "event_type": "good", "timestamp": T0 + 50, "weight": 1.0,
    }  # fmt: skip
    assert described["last_list"] == ["item-3", "new-item"]
    assert len(described["token"]) == 16
    empty = UserRecord("nobody")
    np.testing.assert_array_equal(empty.factor, [])


def test_the_partition_record_says_whose_it_is() -> None:
    shard = Shard(2, next_offsets={"events": 5}, newest_ms=99, stats=PartitionStats(accepted=4))
    shard.count_recent(3, 2, 100)
    records = ShardRecords(2, LIMITS)
    records.add(*shard.record("p.freshet-w1", "w1", 123, 8), "here")
    back = Shard(2)
    back.restore(records.record())
    assert (back.owner_transactional_id, back.owner_worker, back.written_for) == ("p.freshet-w1", "w1", 8)
    assert (back.next_offsets, back.newest_ms, back.stats.accepted) == ({"events": 5}, 99, 4)
    assert (back.recent_records, back.recent_rejected) == (5, 2)
    assert (records.stats.accepted, records.next_offsets) == (4, {"events": 5})


def test_before_the_first_transaction_a_partition_stands_nowhere() -> None:
    records = ShardRecords(2, LIMITS)
    assert records.record() is None
    assert (records.stats, records.next_offsets, records.users) == (PartitionStats(), {}, {})
    shard = Shard(2)
    shard.restore(None)
    assert shard == Shard(2)


@pytest.mark.parametrize("value", [b"{}", b"", b"[1]", b'{"format":1}', b"\xff"])
def test_a_foreign_partition_record_is_refused_by_place(value: bytes) -> None:
    records = ShardRecords(3, LIMITS)
    records.add(PARTITION_KEY, value, "user-state[3]@12")
    with pytest.raises(ChangelogError, match=r"user-state\[3\]@12: not a record of user-state"):
        records.record()


def test_a_partition_record_of_another_format_names_both() -> None:
    records = ShardRecords(3, LIMITS)
    key, value = Shard(3).record("t", "w", 1, 4)
    assert value is not None
    records.add(key, value.replace(b'"format":1', b'"format":7'), "user-state[3]@12")
    with pytest.raises(ChangelogError, match=r"@12: user-state format 7, this version reads 1. Upgrade"):
        records.record()


def test_the_window_of_recent_records_is_halved_when_full() -> None:
    shard = Shard(0)
    shard.count_recent(7, 2, 10)
    assert (shard.recent_records, shard.recent_rejected) == (9, 2)
    shard.count_recent(0, 1, 10)
    assert (shard.recent_records, shard.recent_rejected) == (5, 1)
    shard.count_recent(70, 0, 10)
    assert shard.recent_records < 10
