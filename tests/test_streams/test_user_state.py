"""The changelog: what is restored is what was live, at every commit, compacted or not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.errors import ChangelogError
from streams.events import PartitionStats
from streams.settings import UserStateSettings
from streams.user_state import COLD_PREFIX, PARTITION_KEY, Shard, UserState, describe

WIDTH = 3
Records = list[tuple[bytes, bytes | None]]

caps = st.builds(
    UserStateSettings, recent=st.integers(1, 6), seen=st.integers(1, 6), dedupe_entries=st.integers(1, 40)
)
events = st.tuples(
    st.integers(0, 2),  # user
    st.integers(0, 9),  # item
    st.integers(0, 50),  # event hash
    st.integers(0, 10**6),  # time
    st.sampled_from([1.0, 0.5, -1.0, 0.0]),  # weight
)
batches = st.lists(st.lists(events, max_size=30), min_size=1, max_size=8)


def _live(shard: Shard) -> list[dict[str, Any]]:
    return [describe(shard, shard.users[user]) for user in sorted(shard.users)]


def _run(work: list[list[tuple[int, int, int, int, float]]], shard: Shard) -> Iterator[Records]:
    """Each batch's events into the shard, as the worker does it; yields the changelog records of its
    commit."""
    for number, batch in enumerate(work):
        for who, item, event_hash, time_ms, weight in batch:
            user = shard.user(f"user-{who}", np.zeros(WIDTH, np.float32))
            if user.is_duplicate(event_hash, time_ms, 1000.0):
                shard.stats.duplicate += 1
                continue
            user.admit(event_hash, time_ms, shard.settings.dedupe_entries)
            user.factor = user.factor + np.float32(weight)
            if weight:
                user.see(f"item-{item}", shard.settings.seen)
            if weight > 0:
                user.remember(f"item-{item}", "click", time_ms, weight, shard.settings.recent)
            user.last_list = [f"item-{item + k}" for k in range(3)]
            shard.touch(user)
            shard.stats.accepted += 1
        shard.next_offsets["events"] = number + 1
        yield [*shard.drain_touched(), shard.partition_record("t", "w", 1, 4)]


def _restored(records: Records, like: Shard) -> Shard:
    shard = Shard(like.partition, like.settings, WIDTH)
    for number, (key, value) in enumerate(records):
        shard.restore(key, value, f"user-state[0]@{number}")
    return shard


def _compacted(records: Records) -> Records:
    """Only the last record of each key, at its place."""
    last = {key: number for number, (key, _) in enumerate(records)}
    return [record for number, record in enumerate(records) if last[record[0]] == number]


def _same(restored: Shard, live: Shard) -> None:
    assert _live(restored) == _live(live)
    assert (restored.next_offsets, restored.stats) == (live.next_offsets, live.stats)
    for user_id, user in live.users.items():
        assert restored.users[user_id].tail_seen == user.tail_seen
        assert restored.users[user_id].tail_dedupe == user.tail_dedupe


@given(work=batches, limits=caps, cut=st.integers(0, 200))
@settings(deadline=None, max_examples=150)
def test_restored_is_live_at_every_commit_compacted_or_not(
    work: list[list[tuple[int, int, int, int, float]]], limits: UserStateSettings, cut: int
) -> None:
    live = Shard(0, limits, WIDTH)
    log: Records = []
    for records in _run(work, live):
        log += records
        _same(_restored(log, live), live)
        _same(_restored(_compacted(log), live), live)
        half = [*_compacted(log[:cut]), *log[cut:]]  # the cleaner has come this far
        _same(_restored(half, live), live)


@given(work=batches, limits=caps)
@settings(deadline=None, max_examples=50)
def test_a_worker_that_restores_between_batches_goes_on_alike(
    work: list[list[tuple[int, int, int, int, float]]], limits: UserStateSettings
) -> None:
    whole, restarted = Shard(0, limits, WIDTH), Shard(0, limits, WIDTH)
    log: Records = []
    for number, records in enumerate(_run(work, whole)):
        for user_id, user in whole.users.items():  # tokens are random: give both the same
            restarted.user(user_id, np.zeros(WIDTH, np.float32)).token = user.token
        [again] = _run([work[number]], restarted)
        restarted.next_offsets["events"] = number + 1
        log += [*again[:-1], restarted.partition_record("t", "w", 1, 4)]
        restarted = _restored(_compacted(log), restarted)
        _same(restarted, whole)
        assert len(records) == len(again)


def test_evicted_and_seen_again_is_the_newest_after_a_restore() -> None:
    shard = Shard(0, UserStateSettings(seen=3), WIDTH)
    user = shard.user("u", None)
    log: Records = []
    for number, item in enumerate("abc" + "x" * 29):  # 32 events, so that a cold record is written
        user.admit(number, number, 256)
        user.see(item, 3)
    shard.touch(user)
    log += shard.drain_touched()
    assert log[0][0].startswith(COLD_PREFIX)
    for number, item in enumerate("db", start=100):
        user.admit(number, number, 256)
        user.see(item, 3)
    shard.touch(user)
    log += shard.drain_touched()
    assert list(user.seen) == ["x", "d", "b"]
    assert list(_restored(log, shard).users["u"].seen) == ["x", "d", "b"]


def test_the_hot_record_stays_small_and_the_cold_one_is_rare() -> None:
    shard = Shard(0, UserStateSettings(), 32)
    hot: list[int] = []
    cold = 0
    user = shard.user("user", np.zeros(32, np.float32))
    for number in range(3000):
        user.admit(number * 2**50, number, 256)
        user.see(f"item-{number}", 2000)
        user.remember(f"item-{number}", "rating", number, 1.0, 50)
        shard.touch(user)
        for key, value in shard.drain_touched():
            cold += key.startswith(COLD_PREFIX)
            if not key.startswith(COLD_PREFIX):
                hot.append(len(value or b""))
    assert cold == 3000 // 32
    assert max(hot) < 3000
    assert len(user.seen) == 2000
    assert len(user.dedupe) == 256


def test_duplicates_are_judged_by_time_apart() -> None:
    user = UserState("u", 1, np.zeros(1, np.float32))
    user.admit(7, 1_000_000, 2)
    assert user.is_duplicate(7, 1_000_000, 10.0)
    assert user.is_duplicate(7, 999_990, 10.0)
    assert not user.is_duplicate(7, 1_000_011, 10.0)
    assert not user.is_duplicate(8, 1_000_000, 10.0)
    user.admit(8, 10**15, 2)  # from the future: closes nothing
    assert user.is_duplicate(7, 1_000_000, 10.0)
    user.admit(9, 0, 2)
    assert not user.is_duplicate(7, 1_000_000, 10.0), "only the last two are remembered"


def test_a_tombstone_takes_the_user_away() -> None:
    shard = Shard(0, UserStateSettings(), WIDTH)
    shard.touch(shard.user("u", None))
    log = [*shard.drain_touched(), (b"u", None)]
    assert _restored(log, shard).users == {}


@pytest.mark.parametrize(
    ("key", "value"),
    [(b"u", b"junk"), (b"\xff", b""), (PARTITION_KEY, b"{}"), (COLD_PREFIX + b"u", b"\x91\x01")],
)
def test_foreign_records_are_refused_by_place(key: bytes, value: bytes) -> None:
    with pytest.raises(ChangelogError, match=r"user-state\[3\]@12: not a record of user-state"):
        Shard(3, UserStateSettings(), WIDTH).restore(key, value, "user-state[3]@12")


def test_the_partition_record_says_whose_it_is() -> None:
    shard = Shard(2, UserStateSettings(), WIDTH, next_offsets={"events": 5}, stats=PartitionStats(accepted=4))
    shard.newest_ms = 99
    record = shard.partition_record("p.freshet-w1", "w1", 123, 8)
    back = _restored([record], shard)
    assert (back.owner_transactional_id, back.owner_worker, back.written_for) == ("p.freshet-w1", "w1", 8)
    assert (back.next_offsets, back.newest_ms, back.stats.accepted) == ({"events": 5}, 99, 4)
