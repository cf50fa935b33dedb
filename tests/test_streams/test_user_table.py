"""Users in columns: live state, changelog and plain Python say the same, whatever happens in between."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams import user_kernels, user_table
from streams.errors import ChangelogError
from streams.settings import UserStateSettings
from streams.user_records import COLD_PREFIX, ShardRecords
from streams.user_table import UserTable
from streams.validation import event_hash
from tests.test_streams.user_model import (
    DIMENSION,
    T0,
    TYPES,
    Ev,
    PlainUser,
    PlainUsers,
    Worker,
    check_table,
    live_users,
    record,
    settings_of,
    written_users,
)

USERS = ["u", "v", "w" * 256, "ü€𝄞", "x1", "x2"]
ITEMS = ["i", "j", "k" * 256, "é", "l1", "l2", "l3", "l4"]

events = st.builds(
    Ev,
    user=st.sampled_from(USERS),
    event=st.integers(0, 40).map(lambda n: f"e{n}"),
    time_ms=st.integers(0, 40_000),
    item=st.none() | st.sampled_from(ITEMS),
    type=st.sampled_from(["good", "half", "bad", "nothing", "rating"]),
    partition=st.integers(0, 2),
    retracts=st.none() | st.none() | st.integers(0, 40).map(lambda n: f"e{n}"),
    rates=st.none() | st.sampled_from([1.0, 4.5]),
)
steps = st.lists(
    st.lists(events, max_size=40)
    | st.tuples(st.just("move"), st.integers(0, 2))
    | st.tuples(st.just("expire"), st.integers(0, 2), st.integers(0, 40), st.integers(0, 40_000))
    | st.tuples(st.just("drop and restore"), st.integers(0, 2))
    | st.tuples(st.just("show"), st.sampled_from(USERS), st.lists(st.sampled_from(ITEMS), max_size=10))
    | st.just(("restart",)),
    min_size=1,
    max_size=12,
)
caps = st.fixed_dictionaries(
    {
        "recent": st.integers(1, 9),
        "seen": st.integers(1, 9),
        "dedupe_entries": st.integers(1, 40),
        "dedupe_window_s": st.just(9.0),
    }
)


def _as_plain(user: dict[str, Any]) -> dict[str, Any]:
    return {
        **{k: user[k] for k in ("events", "first_ms", "last_ms", "recent", "seen", "dedupe")},
        "recent_ids": [hashed for hashed, _ in user["recent_events"]],
    }


def _plain(user: PlainUser) -> dict[str, Any]:
    dedupe = [(event_hash(event), time_ms) for event, time_ms in user.dedupe.items()]
    return {
        **{k: getattr(user, k) for k in ("events", "first_ms", "last_ms", "recent", "seen")},
        "dedupe": dedupe,
        "recent_ids": [event_hash(event) for event in user.recent_ids],
    }


def _check(worker: Worker, model: PlainUsers) -> None:
    """Live and written state are equal to the last bit, and to the model where it knows better."""
    limits = worker.settings.user_state
    check_table(worker.users, (limits.recent, limits.seen, limits.dedupe_entries))
    live = live_users(worker.users)
    assert {key: _as_plain(user) for key, user in live.items()} == {
        key: _plain(user) for key, user in model.users.items()
    }
    assert written_users(worker.records(p) for p in worker.log) == live


def _step(worker: Worker, model: PlainUsers, step: Any) -> None:
    if isinstance(step, list):
        verdicts = [model.take(event) for event in step]
        batch, _ = worker.take(step, in_waves=len(step) % 2 == 0)
        assert batch.accepted.tolist() == [n for n, v in enumerate(verdicts) if v == "accepted"]
    elif step[0] == "move":
        worker.move(step[1])
    elif step[0] == "restart":
        worker.restart()
    elif step[0] == "show":
        worker.show(*step[1:])
    elif step[0] == "drop and restore":
        worker.users.drop_partitions([step[1]])
        assert not [key for key in live_users(worker.users) if key[0] == step[1]]
        worker.users.restore(worker.records(step[1]))
    else:
        _, partition, most, idle = step
        n = worker.users.expire(partition, most, T0 + idle)
        kept = {user for p, user in live_users(worker.users) if p == partition}
        assert model.expire(partition, kept, most, T0 + idle) == n


@given(limits=caps, work=steps)
@settings(deadline=None, max_examples=120)
def test_live_written_and_plain_users_are_the_same(limits: dict[str, Any], work: list[Any]) -> None:
    worker = Worker(settings_of(user_state=limits, validation={"lateness_s": 25.0, "event_types": TYPES}))
    model = PlainUsers(worker.settings)
    for step in work:
        _step(worker, model, step)
        worker.commit()
        _check(worker, model)
        for (partition, user), plain in model.users.items():
            row = worker.users.row(user, partition)
            assert worker.users.id_of(row) == user.encode()
            assert plain.events == worker.users.users.long[row, 1]
    stats = [worker.shards[p].stats for p in range(3)]
    assert sum(s.accepted for s in stats) >= sum(user.events for user in model.users.values())


@given(limits=caps, work=st.lists(events, min_size=1, max_size=60), data=st.data())
@settings(deadline=None, max_examples=40)
def test_however_the_stream_is_cut_the_users_are_the_same(
    limits: dict[str, Any], work: list[Ev], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(work)), max_size=6)))
    one, many = (Worker(settings_of(user_state=limits)) for _ in range(2))
    one.take(work, in_waves=True)
    for start, end in zip([0, *cuts], [*cuts, len(work)], strict=True):
        many.take(work[start:end])
        many.commit()
    for user in (found := live_users(one.users)).values():
        user["token"] = "random"
    assert found == {key: {**user, "token": "random"} for key, user in live_users(many.users).items()}


def test_many_users_in_every_class_of_room_and_back() -> None:
    """Pools grow, segments are given again, and memory does not grow when the users are the same again."""
    rng = random.Random(5)
    worker = Worker(settings_of(user_state={"recent": 20, "seen": 50, "dedupe_entries": 33}))
    model = PlainUsers(worker.settings)
    sizes = []
    for turn in range(4):
        for n in range(12):
            batch = [
                Ev(f"user-{rng.randrange(40) ** 2 // 12}", f"e{turn}-{n}-{k}", n, f"item-{rng.randrange(90)}")
                for k in range(200)
            ]
            for event in batch:
                model.take(event)
            worker.take(batch)
            worker.commit()
        _check(worker, model)
        for _ in range(3):
            worker.move(0)
        _check(worker, model)
        sizes.append(worker.users.nbytes)
    assert len(set(sizes[1:])) == 1, sizes


def test_the_hot_record_stays_small_and_the_cold_one_is_rare() -> None:
    worker = Worker(settings_of())
    for number in range(1500):
        worker.take([Ev("user", f"e{number}", number, f"item-{number}")])
        worker.commit()
    cold = [key for key, _ in worker.log[0] if key.startswith(COLD_PREFIX)]
    hot = [len(value or b"") for key, value in worker.log[0] if not key.startswith(COLD_PREFIX)]
    assert len(cold) == 1500 // 32
    assert max(hot) < 3000
    [user] = live_users(worker.users).values()
    assert (len(user["seen"]), len(user["dedupe"]), len(user["recent"])) == (1500, 256, 50)


def test_a_short_dedupe_window_does_not_make_hot_records_long() -> None:
    worker = Worker(settings_of(user_state={"dedupe_entries": 3, "seen": 4000}))
    for number in range(400):
        worker.take([Ev("user", f"e{number}", number, f"item-{number}")])
        worker.commit()
    assert max(len(v or b"") for k, v in worker.log[0] if not k.startswith(COLD_PREFIX)) < 3000


def test_evicted_and_seen_again_is_the_newest_after_a_restore() -> None:
    worker = Worker(settings_of(user_state={"seen": 3}))
    worker.take([Ev("u", f"e{n}", n, item) for n, item in enumerate("abc" + "x" * 29)])
    worker.commit()
    assert worker.log[0][0][0].startswith(COLD_PREFIX)
    worker.take([Ev("u", f"f{n}", n, item) for n, item in enumerate("db")])
    worker.commit()
    worker.restart()
    [user] = live_users(worker.users).values()
    assert user["seen"] == ["x", "d", "b"]


def test_larger_caps_bring_no_item_twice() -> None:
    worker = Worker(settings_of(user_state={"seen": 3}))
    worker.take([Ev("u", f"e{n}", n, item) for n, item in enumerate("abc" + "x" * 29)])
    worker.commit()
    worker.take([Ev("u", f"f{n}", n, item) for n, item in enumerate("db")])
    worker.commit()
    wide = UserStateSettings(seen=10)
    records = ShardRecords(0, wide)
    for key, value in worker.log[0]:
        records.add(key, value, "here")
    table = UserTable(wide, DIMENSION, ["good"])
    table.restore(records)
    [user] = live_users(table).values()
    assert user["seen"] == list(records.user(b"u").seen) == ["c", "x", "d", "b"]
    check_table(table, (wide.recent, wide.seen, wide.dedupe_entries))


def test_touched_users_of_a_partition_that_went_away_are_not_written() -> None:
    worker = Worker(settings_of())
    worker.take([Ev("u", "e1", partition=0), Ev("u", "e2", partition=1), Ev("v", "e3", partition=1)])
    worker.users.drop_partitions([1])
    assert worker.commit() == {0: 1}
    assert worker.users.row("u", 1) == worker.users.row("v", 1) == -1
    assert worker.users.row("u", 0) >= 0


def test_who_expired_is_not_buried_in_a_partition_that_went_away() -> None:
    worker = Worker(settings_of())
    worker.take([Ev("u", "e1"), Ev("v", "e2", partition=1)])
    worker.commit()
    assert worker.users.expire(0, 0, 0) == worker.users.expire(1, 10, T0 + 1) == 1
    worker.users.drop_partitions([0])
    assert worker.commit() == {1: 2}
    assert worker.log[1][-2:] == [(b"v", None), (COLD_PREFIX + b"v", None)]
    assert worker.records(0).users.keys() == {"u"}
    assert worker.records(1).users == {}


def test_who_expired_and_came_back_at_once_is_new() -> None:
    worker = Worker(settings_of())
    worker.take([Ev("u", "e1", 1, "i")])
    worker.commit()
    [before] = live_users(worker.users).values()
    worker.users.expire(0, 0, 0)
    batch, _ = worker.take([Ev("u", "e1", 1, "j")])
    assert batch.new.tolist() == [0]
    worker.commit()
    worker.restart()
    [after] = live_users(worker.users).values()
    assert after["token"] != before["token"]
    assert (after["events"], after["seen"]) == (1, ["j"])


def test_one_in_thirty_two_goes_too_when_there_are_too_many() -> None:
    worker = Worker(settings_of())
    worker.take([Ev(f"u{n}", "e", n) for n in range(110)])
    worker.commit()
    assert worker.users.expire(0, 100, 0) == 10 + 100 // 32
    assert {user for _, user in live_users(worker.users)} == {f"u{n}" for n in range(13, 110)}
    assert worker.users.expire(0, 100, 0) == 0


def test_event_types_keep_their_names_under_other_settings() -> None:
    worker = Worker(settings_of())
    worker.take([Ev("u", f"e{n}", n, "i", kind) for n, kind in enumerate(["half", "good", "half"])])
    worker.commit()
    other = UserTable(worker.settings.user_state, DIMENSION, ["good", "new"])
    other.restore(worker.records(0))
    [user] = live_users(other).values()
    assert [kind for _, kind, *_ in user["recent"]] == ["half", "good", "half"]
    assert live_users(other) == live_users(worker.users)
    row = other.row("u", 0)
    other.touch(row)
    again = ShardRecords(0, worker.settings.user_state)
    for _, keys, values in other.drain_touched():
        for key, value in zip(keys, values, strict=True):
            again.add(key, value, "here")
    assert again.user(b"u").recent_types == ["half", "good", "half"]


def test_all_256_event_types_restore_and_one_more_is_refused_by_name() -> None:
    names = [f"type-{n}-" + "é" * 100 for n in range(244)]
    worker = Worker(settings_of(validation={"event_types": dict.fromkeys(names, 1.0)}))
    assert len(worker.intake.reader.type_names) == 256
    worker.take([Ev("u", "e0", 0, "i", "like")])
    values = [
        msgspec.json.decode(Ev("u", f"e{n}", n, "i").value()) | {"event_type": name}
        for n, name in enumerate(names, 1)
    ]
    _take_raw(worker, values)
    worker.commit()
    worker.restart()
    limits = worker.settings.user_state
    [user] = live_users(worker.users).values()
    assert [kind for _, kind, *_ in user["recent"]] == names[-limits.recent :]
    other = UserTable(limits, DIMENSION, [f"other-{n}" for n in range(256 - limits.recent)])
    other.restore(worker.records(0))
    assert live_users(other) == live_users(worker.users)
    full = UserTable(limits, DIMENSION, [f"other-{n}" for n in range(257 - limits.recent)])
    with pytest.raises(ChangelogError, match=r"user-state\[0\], key b'u': .* 207 event types .*at most 256"):
        full.restore(worker.records(0))


def _take_raw(worker: Worker, values: list[dict[str, Any]]) -> None:
    messages = [record(msgspec.json.encode(value), b"u", 0, n) for n, value in enumerate(values)]
    batch = worker.intake.admit(messages, worker.shards)
    assert len(batch.accepted) == len(values)
    worker.learner.learn(batch, batch.accepted)


def test_users_whose_lists_grow_in_step_leave_no_room_unused() -> None:
    """All need the next larger segments at once, and nobody takes the small ones that they leave."""
    worker = Worker(settings_of())
    users, rounds = 400, 48
    for n in range(rounds):
        worker.take([Ev(f"u{k}", f"e{k}-{n}", n, f"item-{n}") for k in range(users)])
    lists = worker.users.users
    used = lists.small[:, user_kernels.COUNT : user_kernels.COUNT + 3].astype(int).sum(axis=0)
    assert used.min() >= users * 5
    pools = [len(pool) for pool in (lists.recent_item, lists.seen_item, lists.dedupe_hash)]
    assert all(pool < 2.2 * count for pool, count in zip(pools, used.tolist(), strict=True)), (pools, used)
    found = live_users(worker.users)
    assert len(found) == users
    for user in found.values():
        assert [item for item, *_ in user["recent"]] == [
            f"item-{n}" for n in range(rounds - len(user["recent"]), rounds)
        ]


def test_a_restored_user_whose_items_the_map_of_rows_never_met_gets_a_list() -> None:
    worker = Worker(settings_of())
    worker.take([Ev("u", f"e{n}", n, f"item-{n}") for n in range(40)])
    worker.commit()
    worker.restart()
    row = worker.users.row("u", 0)
    found = worker.users.gather(np.array([row], np.int32), np.zeros(0, np.int32), 5)
    assert found.recent.tolist() == [[-1] * 5]
    assert found.blocked.tolist() == [-1] * 40
    assert (found.seen_count.tolist(), found.blocked_end.tolist()) == ([40], [40])


def test_what_lists_need_is_gathered_user_by_user() -> None:
    worker = Worker(settings_of())
    worker.take([Ev("u", f"e{n}", n, f"i{n}") for n in range(3)] + [Ev("v", "e", 0, "i1")])
    worker.take([Ev("w", "e")])
    row_of = np.full(worker.users.items.capacity, -1, np.int32)
    row_of[worker.users.items.codes_of([b"i0", b"i1"])] = [70, 71]
    rows = np.array([worker.users.row(u, 0) for u in "uvwu"], np.int32)
    found = worker.users.gather(rows, row_of, 2)
    assert found.recent.tolist() == [[-1, 71], [71, -1], [-1, -1], [-1, 71]]
    assert found.blocked.tolist() == [70, 71, -1, 71, 70, 71, -1]
    assert found.blocked_end.tolist() == [3, 4, 4, 7]
    assert found.seen_count.tolist() == [3, 1, 0, 3]
    np.testing.assert_array_equal(found.factors, worker.users.users.factor[rows])


def test_smaller_caps_keep_the_newest() -> None:
    worker = Worker(settings_of())
    worker.take([Ev("u", f"e{n}", n, f"i{n}") for n in range(40)])
    worker.commit()
    small = UserTable(UserStateSettings(recent=3, seen=4, dedupe_entries=5), DIMENSION, ["good"])
    small.restore(worker.records(0))
    check_table(small, (3, 4, 5))
    [user] = live_users(small).values()
    assert user["seen"] == ["i36", "i37", "i38", "i39"]
    assert [item for item, *_ in user["recent"]] == ["i37", "i38", "i39"]
    assert [time_ms - T0 for _, time_ms in user["dedupe"]] == [35, 36, 37, 38, 39]


def test_more_users_than_one_turn_loads_or_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(settings_of())
    worker.take([Ev("u", f"e{n}", n, f"i{n}") for n in range(20)])
    worker.commit()
    value = worker.records(0).hot[b"u"]
    records = ShardRecords(1, worker.settings.user_state)
    for n in range(10_050):
        records.add(b"user-%d" % n, value, "here")
    monkeypatch.setattr(user_table, "OUT_BYTES", 1 << 12)
    table = UserTable(worker.settings.user_state, DIMENSION, ["good"])
    table.restore(records)
    assert len(table) == 10_050
    for n in range(0, 10_050, 7):
        table.touch(table.row(f"user-{n}", 1))
    [(partition, keys, values)] = list(table.drain_touched())
    assert partition == 1
    assert keys == [b"user-%d" % n for n in range(0, 10_050, 7)]
    assert set(values) == {value}
