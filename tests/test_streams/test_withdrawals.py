"""Retracted, rated anew, forgotten: the models stand where they would without what was taken back, on every
replica alike, and the user's own state says so after any restart."""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online_models.corrections import Past, forgetting, withdrawal
from online_models.item_state import ItemState
from online_models.learning_batch import LEARN, PAIR, UNCOUNT, UNPAIR, WITHDRAW
from serving.training.dataset import InteractionLog
from streams.clients import partition_for
from streams.learning_log import (
    FORGET_ITEM,
    FORGET_USER,
    LogRecord,
    decode_record,
    learn_record,
    learning_batches,
)
from streams.trainer_log import TakenBack, append_record
from streams.user_records import COLD_PREFIX
from streams.validation import Tombstone
from tests.test_streams.user_model import (
    PARTITIONS,
    T0,
    TYPES,
    Ev,
    Worker,
    live_users,
    record,
    settings_of,
)

WINDOW = 4  # of `settings_of`


def _logged(worker: Worker, events: Sequence[Ev], *, in_waves: bool = True) -> list[LogRecord]:
    """The log's records of one batch, applied and committed."""
    _, rows = worker.take(events, in_waves=in_waves)
    values = list(worker.learner.log.pack(rows)) if rows is not None else []
    worker.follow(values)
    worker.commit()
    return [decode_record(value, "here") for value in values]


def _rows(record: LogRecord) -> Iterator[tuple[int, str | None, list[str]]]:
    """Kind, item, and recent items, newest first, of each row; without those named by their row."""
    ids = record.item_ids
    recent = record.column("recent", "<i4", record.widths[0]).tolist()
    for kind, item, line in zip(
        record.kinds.tolist(), record.column("item", "<i4").tolist(), recent, strict=True
    ):
        yield kind, ids[item] if item >= 0 else None, [ids[k] for k in line if k >= 0]


def _forget(worker: Worker, user: str, partition: int = 0) -> list[LogRecord]:
    batch = worker.admit([])
    rows = worker.learner.withdrawals.forget_user(Tombstone(user, partition, 7, T0), batch.events)
    assert rows is not None
    values = list(worker.learner.log.pack(rows))
    worker.follow(values)
    return [decode_record(value, "here") for value in values]


# --- what stands in the log ---


def test_the_rows_are_those_of_the_models_own_withdrawal() -> None:
    """The rows of a retract, against `online_models.corrections`, which standalone models follow."""
    worker = Worker(settings_of())
    items = [f"i{k}" for k in range(9)]
    _logged(worker, [Ev("u", f"e{k}", k, item) for k, item in enumerate(items)])
    [log] = _logged(worker, [Ev("u", "back", 50, retracts="e3")])
    pasts = [Past(item, f"e{k}", T0 + k, 1.0, 0, 1.0) for k, item in enumerate(items)][::-1]
    wanted = []
    for one in withdrawal(1, pasts, 5):
        recent = [one.item_ids[k] for k in one.recent[0].tolist() if k >= 0][:WINDOW]
        if one.kind == WITHDRAW or "i3" in _window(items, one.item_ids[one.item[0]]):
            wanted.append((one.kind, one.item_ids[one.item[0]], recent))
    *rows, retract = _rows(log)
    assert rows == wanted
    assert [kind for kind, *_ in rows] == [UNPAIR] * 4 + [WITHDRAW] + [PAIR] * 4
    assert retract[:2] == (LEARN, None)
    assert log.event_ids == ["back"] * 10
    before, after = (log.column(name, "<f4", log.widths[1]) for name in ("before", "after"))
    np.testing.assert_array_equal(after[:-1], before[1:])
    assert not np.array_equal(before[4], after[4]), (
        "the user's factor steps back with the event, and only then"
    )
    np.testing.assert_array_equal(before[:4], after[:4])
    np.testing.assert_array_equal(after[-1], worker.users.users.factor[worker.users.row("u", 0)])
    batches = learning_batches(log, worker.items.settings_digest, "here")
    assert [(batch.kind, len(batch)) for batch in batches] == [(UNPAIR, 4), (WITHDRAW, 1), (PAIR, 4)]


def _window(items: list[str], item: str) -> list[str]:
    """The items that `item` was learned with."""
    at = items.index(item)
    return items[max(0, at - WINDOW) : at]


def test_ordinary_records_say_nothing_of_kinds() -> None:
    worker = Worker(settings_of())
    [log] = _logged(worker, [Ev("u", "e", 0, "i"), Ev("v", "f", 0, "i")])
    assert log.kind == b""
    assert log.kinds.tolist() == [LEARN, LEARN]
    assert log.topics[log.column("topic", "u1")[0]] == "events"


# --- counts ---

ITEMS = [f"item-{k}" for k in range(6)]
work = st.lists(
    st.builds(
        Ev,
        user=st.sampled_from(["u", "v"]),
        event=st.just(""),
        item=st.sampled_from(ITEMS),
        type=st.sampled_from(["good", "half", "bad", "rating"]),
        partition=st.integers(0, 1),
        retracts=st.none() | st.none() | st.integers(0, 30).map(lambda n: f"e{n}"),
        rates=st.none() | st.just(3.5),
    ),
    min_size=1,
    max_size=30,
).map(lambda events: [_numbered(event, n) for n, event in enumerate(events)])


def _numbered(event: Ev, n: int) -> Ev:
    return Ev(
        event.user, f"e{n}", 10 * n, event.item, event.type, event.partition, event.retracts, event.rates
    )


def _survivors(events: Sequence[Ev]) -> list[Ev]:
    """The events without those that were withdrawn later, and without the retracts."""
    left: list[Ev] = []
    for event in events:
        same = [one for one in left if (one.user, one.partition) == (event.user, event.partition)]
        for one in same:
            if event.retracts is not None:
                gone = one.event == event.retracts
            else:
                gone = one.type == event.type == "rating" and one.item == event.item
            if gone:
                left.remove(one)
        if event.retracts is None:
            left.append(event)
    return left


def _counts(items: ItemState) -> dict[Any, float]:
    """What the counting models say of every item and pair of items, by id."""
    row = items.items.row
    known = [item for item in ITEMS if row(item) >= 0]
    rows = np.array([row(item) for item in known], np.int32)
    said: dict[Any, float] = dict.fromkeys(itertools.chain(ITEMS, itertools.product(ITEMS, ITEMS)), 0.0)
    plain, decayed = items.popularity.score_plain(rows), items.popularity.score(rows)
    for item, count, score in zip(known, plain.tolist(), decayed.tolist(), strict=True):
        said[item] = 1000 * count + score
    for source, line in zip(
        known, items.covisitation.score(rows[:, None], np.tile(rows, (len(rows), 1))), strict=True
    ):
        for target, score in zip(known, line.tolist(), strict=True):
            said[source, target] = score
    return said


@given(events=work, cut=st.integers(1, 30), in_waves=st.booleans())
@settings(deadline=None, max_examples=40)
def test_counts_are_those_of_a_stream_without_what_was_withdrawn(
    events: list[Ev], cut: int, in_waves: bool
) -> None:
    """And whoever replays the log, however it is cut, or restarts, stands at the same bytes."""
    worker, clean, restarted = (Worker(settings_of()) for _ in range(3))
    log: list[LogRecord] = []
    for start in range(0, len(events), cut):
        log += _logged(worker, events[start : start + cut], in_waves=in_waves)
    for event in _survivors(events):
        _logged(clean, [event])
    assert _counts(worker.items) == pytest.approx(_counts(clean.items), rel=1e-5, abs=1e-5)
    replica = ItemState(worker.settings.models)
    for one in log:
        learn_record(replica, one, "here")
    assert replica.digest() == worker.items.digest()
    restarted.items, restarted.log = worker.items, worker.log
    restarted.restart()
    states = [
        {key: {**user, "token": ""} for key, user in live_users(one.users).items()}
        for one in (worker, restarted)
    ]
    assert states[0] == states[1]
    kept = live_users(clean.users)
    for key, user in live_users(worker.users).items():
        alone = kept.get(key, {"recent": [], "seen": []})
        assert user["recent"] == alone["recent"]
        assert set(user["seen"]) == set(alone["seen"])


def test_long_streams_with_corrections_restart_bit_for_bit() -> None:
    rng = random.Random(3)
    whole, restarted = Worker(settings_of()), Worker(settings_of())
    n = 0
    for turn in range(12):
        events = []
        for _ in range(25):
            back = f"e{rng.randrange(n)}" if n and rng.random() < 0.2 else None
            kind = rng.choice(["good", "rating", "rating", "bad"])
            events.append(
                Ev(f"u{rng.randrange(3)}", f"e{n}", n, f"item-{rng.randrange(20)}", kind, 0, back, 4.0)
            )
            n += 1
        logs = [
            [msg for one in _logged(worker, events) for msg in _rows(one)] for worker in (whole, restarted)
        ]
        assert logs[0] == logs[1]
        if turn % 3 == 0:
            restarted.restart()
    assert whole.items.digest() == restarted.items.digest()
    stats = [worker.shards[0].stats for worker in (whole, restarted)]
    assert stats[0] == stats[1]
    assert min(stats[0].retracted, stats[0].retracts_unknown, stats[0].replaced) > 5


@pytest.mark.parametrize("in_waves", [True, False])
def test_what_many_users_take_back_stands_kind_by_kind_in_the_log(in_waves: bool) -> None:
    """Or each correction would cost every replica four batches of its own."""
    worker, clean, users = Worker(settings_of()), Worker(settings_of()), [f"u{k}" for k in range(30)]
    for k in range(3):
        _logged(worker, [Ev(user, f"{user}-{k}", k, f"i{k}", "rating", rates=2.0) for user in users])
    again = [Ev(user, f"{user}-4", 9, "i0", "rating", rates=4.0) for user in users]
    batch = [Ev(user, f"{user}-3", 8, retracts=f"{user}-1") for user in users] + again
    [log] = _logged(worker, batch, in_waves=in_waves)
    assert (np.diff(log.kinds.astype(int)) != 0).sum() <= 8
    assert (log.kinds == WITHDRAW).sum() == 60
    for user in users:
        _logged(clean, [Ev(user, "c2", 2, "i2", "rating"), Ev(user, "c4", 9, "i0", "rating")])
    assert _counts(worker.items) == pytest.approx(_counts(clean.items), rel=1e-5, abs=1e-5)
    stats = worker.shards[0].stats
    assert (stats.retracted, stats.replaced, stats.retracts_unknown) == (30, 30, 0)


# --- retract, rating ---


def test_a_retracted_item_may_be_recommended_again() -> None:
    worker = Worker(settings_of())
    _logged(worker, [Ev("u", "e1", 1, "a"), Ev("u", "e2", 2, "a"), Ev("u", "e3", 3, "b", "bad")])
    _logged(worker, [Ev("u", "r1", 4, retracts="e3")])
    [user] = live_users(worker.users).values()
    assert user["seen"] == ["a"]
    _logged(worker, [Ev("u", "r2", 5, retracts="e1")])
    [user] = live_users(worker.users).values()
    assert user["seen"] == ["a"], "another event names it still"
    _logged(worker, [Ev("u", "r3", 6, retracts="e2")])
    [user] = live_users(worker.users).values()
    assert (user["seen"], user["recent"], user["events"]) == ([], [], 6)
    worker.restart()
    assert list(live_users(worker.users).values()) == [user]
    assert worker.shards[0].stats.retracted == 3


def test_what_can_not_be_retracted_is_accepted_counted_and_changes_nothing() -> None:
    worker = Worker(settings_of(user_state={"recent": 3}))
    _logged(worker, [Ev("u", f"e{k}", k, f"i{k}") for k in range(5)] + [Ev("v", "w", 9, "i1")])
    digest = worker.items.digest()
    retracts = ["never", "e0", "w", "r0"]  # unknown, too old, another user's, itself
    for k, event in enumerate(retracts):
        batch, rows = worker.take([Ev("u", f"r{3 - k}", 20 + k, retracts=event)])
        assert rows is not None
        assert (len(batch.dead), rows.kind.tolist(), len(rows)) == (0, [LEARN], 1)
        worker.apply(rows)
    assert worker.items.digest() == digest
    stats = worker.shards[0].stats
    assert (stats.retracted, stats.retracts_unknown, stats.accepted) == (0, 4, 10)


def test_a_repeated_retract_does_nothing() -> None:
    worker = Worker(settings_of())
    _logged(worker, [Ev("u", "e1", 1, "a"), Ev("u", "e2", 2, "b"), Ev("u", "r", 3, retracts="e1")])
    digest = worker.items.digest()
    _logged(worker, [Ev("u", "r", 3, retracts="e1"), Ev("u", "again", 4, retracts="e1")])
    stats = worker.shards[0].stats
    assert worker.items.digest() == digest
    assert (stats.duplicate, stats.retracted, stats.retracts_unknown) == (1, 1, 1)


def test_a_retract_teaches_nothing_of_itself() -> None:
    types = {"good": 1.0, "half": 0.5, "bad": -1.0, "nothing": 0.0, "retract": 5.0}
    worker = Worker(settings_of(validation={"event_types": types}))
    _logged(worker, [Ev("u", "r", 1, "a", retracts="e1")])
    assert len(worker.items.items) == 0
    assert next(iter(live_users(worker.users).values()))["seen"] == []


def test_the_newest_rating_of_an_item_is_the_one_that_counts() -> None:
    worker = Worker(settings_of())
    first = [Ev("u", "e1", 1, "a", "rating", rates=1.0), Ev("u", "e2", 2, "b"), Ev("u", "e3", 3, "a")]
    [log, *_] = _logged(worker, [*first, Ev("u", "e4", 4, "a", "rating", rates=5.0)])
    [user] = live_users(worker.users).values()
    assert [(item, kind) for item, kind, *_ in user["recent"]] == [
        ("b", "good"),
        ("a", "good"),
        ("a", "rating"),
    ]
    assert [value for _, value in user["recent_events"]] == [None, None, 5.0]
    assert user["seen"] == ["a", "b"]
    withdrawn = log.kinds.tolist().index(WITHDRAW)
    assert log.column("value", "<f8")[withdrawn] == 1.0
    assert log.column("time_ms", "<i8")[withdrawn] == T0 + 1
    assert worker.shards[0].stats.replaced == 1
    plain = worker.items.popularity.score_plain(worker.items.items.rows(["a", "b"]))
    assert plain.tolist() == [2.0, 1.0]


# --- forgetting ---


def test_a_forgotten_user_is_gone_and_the_counts_are_as_without() -> None:
    worker, clean = Worker(settings_of()), Worker(settings_of())
    mine = [Ev("gone", f"g{k}", 2 * k, ITEMS[k % 5], ["good", "bad", "half"][k % 3]) for k in range(8)]
    others = [Ev("stays", f"s{k}", 2 * k + 1, ITEMS[(2 * k) % 6]) for k in range(8)]
    for pair in zip(mine, others, strict=True):
        _logged(worker, pair)
    for event in others:
        _logged(clean, [event])
    token = int(worker.users.users.long[worker.users.row("gone", 0), 0])
    [log] = _forget(worker, "gone")
    assert log.kinds.tolist() == [UNCOUNT] * 8 + [FORGET_USER]
    assert log.column("token", "<i8").tolist() == [token] * 9
    assert [log.topics[k] for k in log.column("topic", "u1")] == ["users"] * 9
    pasts = [Past(one.item or "", one.event, T0 + one.time_ms, one.weight, 0, 1.0) for one in mine[::-1]]
    assert [item for kind, item, _ in _rows(log) if kind == UNCOUNT] == [
        one.item_ids[one.item[0]] for one in forgetting(1, pasts)
    ]
    assert _counts(worker.items) == pytest.approx(_counts(clean.items), rel=1e-5, abs=1e-5)
    worker.commit()
    assert dict(worker.log[0][-2:]) == {b"gone": None, COLD_PREFIX + b"gone": None}
    assert {user for _, user in live_users(worker.users)} == {"stays"}
    assert worker.users.population[0] == 1
    worker.restart()
    assert {user for _, user in live_users(worker.users)} == {"stays"}
    _logged(worker, [Ev("gone", "g0", 90, "item-1")])
    again = live_users(worker.users)[0, "gone"]
    assert (again["events"], again["seen"]) == (1, ["item-1"])
    assert again["token"] != f"{token % 2**64:016x}"
    assert worker.shards[0].stats.forgotten == 1


def test_who_is_unknown_need_not_be_forgotten() -> None:
    worker = Worker(settings_of())
    _logged(worker, [Ev("u", "e", 0, "a")])
    batch = worker.admit([])
    for partition in (0, 1):
        stranger = Tombstone("u" if partition else "v", partition, 7, T0)
        assert worker.learner.withdrawals.forget_user(stranger, batch.events) is None
    assert not worker.commit()


def test_tombstones_and_profiles_of_users_are_told_apart() -> None:
    worker = Worker(settings_of())
    messages = [
        record(None, b"u", 1, 5, T0, "users"),
        record(b'{"user_id": "v", "labels": {"age": 30}}', b"v", 1, 6, T0, "users"),
        record(b"[]", b"w", 2, 7, T0, "users"),
        *worker.messages([Ev("u", "e", 0, "a")]),
    ]
    batch = worker.intake.admit(messages, worker.shards)
    assert [(one.key, one.partition, one.offset) for one in batch.forgotten] == [("u", 1, 5)]
    assert batch.requests == []
    assert [one.key for one in batch.dead] == [b"w"]
    assert worker.shards[2].stats.users_rejected == 1
    assert set(batch.shards) == {0, 1, 2}


def test_a_tombstone_in_another_partition_is_counted_or_refused() -> None:
    """It finds nobody there, unless the user's events stand there too."""
    key, own = b"u", partition_for(b"u", PARTITIONS)
    messages = [record(None, key, p, 5, T0, "users") for p in range(PARTITIONS)]
    lenient = Worker(settings_of())
    assert len(lenient.intake.admit(messages, lenient.shards).forgotten) == PARTITIONS
    assert [lenient.shards[p].stats.misplaced for p in range(PARTITIONS)] == [
        int(p != own) for p in range(PARTITIONS)
    ]
    strict = Worker(settings_of(validation={"event_types": TYPES, "partitioning": "strict"}))
    batch = strict.intake.admit(messages, strict.shards)
    assert [one.partition for one in batch.forgotten] == [own]
    assert [dict(one.headers or ())["freshet.errors.reason"] for one in batch.dead] == [
        b"wrong_partition"
    ] * 2


def test_a_removed_item_is_forgotten_by_every_replica_at_the_same_place() -> None:
    worker, replica = Worker(settings_of()), ItemState(settings_of().models)
    fans = [Ev(f"u{k % 3}", f"e{k}", k, ITEMS[k % 4]) for k in range(12)]
    log = _logged(worker, fans)
    batch = worker.admit([])
    removed = [Tombstone(item, 0, 40 + n, T0) for n, item in enumerate(["item-1", "never-heard-of"])]
    rows = worker.learner.withdrawals.forget_items(removed, batch.events)
    assert worker.learner.withdrawals.forget_items([], batch.events) is None
    assert rows is not None
    values = list(worker.learner.log.pack(rows))
    worker.follow(values)
    log += [decode_record(value, "here") for value in values]
    assert log[-1].kinds.tolist() == [FORGET_ITEM, FORGET_ITEM]
    assert log[-1].topics[log[-1].column("topic", "u1")[0]] == "items"
    assert learning_batches(log[-1], worker.items.settings_digest, "here") == []
    assert worker.items.items.row("item-1") == worker.items.items.row("never-heard-of") == -1
    assert worker.learner.codes.row_of[worker.users.items.codes_of([b"item-1"])[0]] == -1
    log += _logged(worker, [Ev("u0", "new", 99, "item-1")])
    for one in log:
        learn_record(replica, one, "here")
    assert replica.digest() == worker.items.digest()
    assert replica.popularity.score_plain(replica.items.rows(["item-1"])).tolist() == [1.0]


# --- what is trained on ---


def test_nothing_that_was_taken_back_is_trained_on() -> None:
    worker, data, taken_back = Worker(settings_of()), InteractionLog(), TakenBack()
    events = [
        Ev("u", "e1", 1, "a", "rating"), Ev("u", "e2", 2, "b"), Ev("v", "f1", 3, "a"),
        Ev("u", "e3", 4, "a", "rating"),
        Ev("u", "e4", 5, "c"), Ev("u", "e5", 6, retracts="e4"), Ev("w", "h", 7, "c"), Ev("w", "h2", 8, "d"),
    ]  # fmt: skip
    log = [*_logged(worker, events), *_forget(worker, "v")]
    rows = worker.learner.withdrawals.forget_items([Tombstone("d", 0, 1, T0)], worker.admit([]).events)
    assert rows is not None
    log += [decode_record(value, "here") for value in worker.learner.log.pack(rows)]
    log += _logged(worker, [Ev("w", "h3", 9, "d")])
    for offset, record_ in enumerate(log):
        append_record(data, record_, offset)
        taken_back.add(record_, offset)
    rest = taken_back.rest_of(data)
    assert len(data) == 8
    found = zip(rest.column("item").tolist(), rest.column("time_ms").tolist(), strict=True)
    assert sorted((rest.item_ids[item], time_ms - T0) for item, time_ms in found) == [
        ("a", 4),
        ("b", 2),
        ("c", 7),
        ("d", 9),
    ]
    assert TakenBack().rest_of(data) is data


def test_what_a_user_takes_back_all_the_time_is_left_out_in_good_time() -> None:
    """Linear, not by the product of what was done and what was taken back: that took minutes."""
    n = 40_000
    data, taken_back = InteractionLog(), TakenBack()
    columns = {"time_ms": np.arange(n) // 2, "event_type": np.zeros(n), "weight": np.ones(n)}
    data.append(user=np.full(n, 7), item_ids=["a"], item=np.zeros(n, int), offset=0, **columns)
    gone = Counter({("a", k): 1 for k in range(0, n // 2, 2)})
    taken_back._withdrawn[7] = gone
    started = time.process_time()
    rest = taken_back.rest_of(data)
    assert time.process_time() - started < 1.0
    times, counts = np.unique(rest.column("time_ms"), return_counts=True)
    assert times.tolist() == list(range(n // 2))
    assert counts.tolist() == [1, 2] * (n // 4)
    assert gone.total() == n // 4, "the next training needs it again"
