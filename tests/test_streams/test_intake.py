"""What a micro-batch becomes: dead letters in order, late and duplicate ones out, counters, the guard, and
waves, so that a user's second event knows the first."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.clients import partition_for
from streams.errors import ProducerBrokenError
from streams.events import PartitionStats
from streams.intake import Batch, Intake
from streams.records import Record
from streams.rejects import Reason, Rejected
from streams.settings import Settings
from streams.shards import Shard, Shards
from streams.transaction import OutputRecord
from streams.validation import EventValidator, newest_after
from tests.test_streams.hostile_corpus import hostile_records
from tests.test_streams.user_model import PARTITIONS, T0, Ev, Worker, record, settings_of


def _dead(letter: OutputRecord) -> tuple[str, str, int, int]:
    """Reason, message, partition and offset that a dead letter tells."""
    headers = {name.removeprefix("freshet.errors."): value or b"" for name, value in letter.headers or ()}
    assert letter.topic == "events-dlq"
    place = int(headers["partition"]), int(headers["offset"])
    return headers["reason"].decode(), headers["message"].decode(), *place


class Sequential:
    """The same by the validator alone, one record after the other: what an intake has to come to."""

    def __init__(self, settings: Settings) -> None:
        self._validator = EventValidator(settings.validation, partial(partition_for, partitions=PARTITIONS))
        self._window_ms = settings.user_state.dedupe_window_s * 1000
        self.newest = Counter[int]()
        self.stats = [PartitionStats() for _ in range(PARTITIONS)]
        self.times: dict[tuple[int, str], dict[int, int]] = {}
        self.dead: list[tuple[str, str, int, int]] = []
        self.accepted: list[int] = []

    def take(self, n: int, message: Record) -> None:
        p, place = message.partition(), (message.partition(), message.offset())
        stats, kafka_ms = self.stats[p], message.timestamp()[1]
        found = self._validator.decode_event(message.value(), message.key(), *place, kafka_ms, self.newest[p])
        if isinstance(found, Rejected):
            self.dead.append((found.reason.value, found.message, *place))
            stats.late += found.reason is Reason.LATE
            stats.rejected += found.reason is not Reason.LATE
            return
        stats.unknown_fields += found.unknown_fields
        stats.misplaced += found.misplaced
        times = self.times.setdefault((p, found.event.user_id), {})
        earlier = times.get(found.event_hash)
        if earlier is not None and abs(found.time_ms - earlier) <= self._window_ms:
            stats.duplicate += 1
            return
        times[found.event_hash] = found.time_ms
        stats.accepted += 1
        self.newest[p] = min(newest_after(self.newest[p], found), int(time.time() * 1000))
        self.accepted.append(n)


good = st.builds(
    Ev,
    user=st.sampled_from(["u", "v", "w"]),
    event=st.integers(0, 12).map(lambda n: f"e{n}"),
    time_ms=st.integers(0, 60_000),
    item=st.none() | st.sampled_from(["i", "j"]),
    partition=st.integers(0, PARTITIONS - 1),
)
odd = st.fixed_dictionaries({"user_id": st.just("u"), "event_id": st.just("odd"), "x": st.integers()})
CORPUS = [one for one in hostile_records(40, seed=3) if len(one.value or b"") < 100_000]


def _message(made: Ev | dict[str, object] | int, n: int) -> Record:
    if isinstance(made, Ev):
        return record(made.value(), made.user.encode(), made.partition, n, T0 + made.time_ms)
    if isinstance(made, int):
        return record(CORPUS[made].value, CORPUS[made].key, made % PARTITIONS, n, T0)
    event = {"event_type": "click", "item_id": "i", "timestamp": T0, **made}
    return record(json.dumps(event).encode(), b"u", 1, n, T0)


@given(
    stream=st.lists(good | odd | st.integers(0, len(CORPUS) - 1), max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=4),
)
@settings(deadline=None, max_examples=80)
def test_an_intake_comes_to_what_the_validator_says_one_by_one(
    stream: list[Ev | dict[str, object] | int], cuts: list[int]
) -> None:
    own = settings_of(
        validation={"lateness_s": 20.0, "reject_limit": 1.0}, user_state={"dedupe_window_s": 15.0}
    )
    worker, plain = Worker(own), Sequential(own)
    messages = [_message(made, n) for n, made in enumerate(stream)]
    for n, message in enumerate(messages):
        plain.take(n, message)
    accepted, dead, records = [], [], 0
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(messages)], strict=True):
        batch = worker.intake.admit(messages[start:end], worker.shards)
        worker.commit()
        accepted += (start + batch.events.index[batch.accepted]).tolist()
        dead += [_dead(letter) for letter in batch.dead]
        records += batch.records
        assert batch.shards.keys() == {message.partition() for message in messages[start:end]}
    assert accepted == plain.accepted
    assert dead == plain.dead, "in order of arrival, each with the validator's words"
    assert records == len(messages)
    assert [worker.shards[p].stats for p in range(PARTITIONS)] == plain.stats
    assert [worker.shards[p].newest_ms for p in range(PARTITIONS)] == [plain.newest[p] for p in range(3)]


def test_a_dead_letter_is_the_record_as_it_came() -> None:
    worker = Worker(settings_of())
    bad = record(b"\xffnot json", b"key\x00", 2, 41, T0)
    fine = record(Ev("u", "e").value(), b"u", 0, 1, T0)
    [letter] = worker.intake.admit([fine, bad], worker.shards).dead
    assert (letter.key, letter.value) == (b"key\x00", b"\xffnot json")
    assert _dead(letter)[0] == "not_utf8"


def test_dead_letters_stand_in_order_of_arrival_whatever_their_reason() -> None:
    worker = _guarded(100, 1.0)
    batch = worker.intake.admit(_stream("gblbggllb"), worker.shards)
    assert [_dead(letter)[::3] for letter in batch.dead] == [
        ("invalid_json", 1), ("late", 2), ("invalid_json", 3), ("late", 6), ("late", 7), ("invalid_json", 8),
    ]  # fmt: skip
    assert batch.events.index[batch.accepted].tolist() == [0, 4, 5]


def test_what_a_late_event_is_told_is_what_was_newest_then() -> None:
    worker = Worker(settings_of(validation={"lateness_s": 10.0}))
    batch = worker.admit(
        [Ev("u", "e1", 20_000), Ev("u", "e2", 9_000), Ev("u", "e3", 30_000), Ev("u", "e4", 10_000)]
    )
    assert [_dead(letter) for letter in batch.dead] == [
        ("late", "11 s older than its partition's newest; at most 10 s", 0, 1),
        ("late", "20 s older than its partition's newest; at most 10 s", 0, 3),
    ]
    assert batch.accepted.tolist() == [0, 2]
    assert batch.rows[[1, 3]].tolist() == batch.turns[[1, 3]].tolist() == [-1, -1]


def test_no_event_moves_lateness_past_now_or_past_its_kafka_time() -> None:
    worker = Worker(settings_of(validation={"future_s": 1e9}))
    ahead = record(Ev("u", "e1", 90_000).value(), b"u", 0, 0, T0 + 50_000)
    worker.intake.admit([ahead], worker.shards)
    assert worker.shards[0].newest_ms == T0 + 50_000
    far = int(time.time() * 1000) - T0 + 10**9
    ahead = record(Ev("u", "e2", far).value(), b"u", 0, 1, T0 + far)
    worker.intake.admit([ahead], worker.shards)
    assert abs(worker.shards[0].newest_ms - time.time() * 1000) < 60_000


def _guarded(window: int, limit: float) -> Worker:
    return Worker(settings_of(validation={"reject_window": window, "reject_limit": limit}))


def _stream(pattern: str, start: int = 0) -> list[Record]:
    """Good (g), late (l) and bad (b) records."""
    return [
        record(
            b"bad" if kind == "b" else Ev("u", f"e{n}", -(10**10) if kind == "l" else 0).value(),
            b"u",
            0,
            n,
            T0,
        )
        for n, kind in enumerate(pattern, start)
    ]


@pytest.mark.parametrize(
    ("pattern", "stops"),
    [
        ("b" * 9, False),  # fewer than a window
        ("b" * 5 + "g" * 5, False),
        ("g" * 4 + "b" * 6, True),
        ("b" * 6 + "g" * 4, True),
        ("b" * 6 + "g" * 3, False),
        ("g" * 30 + "bg" * 30, False),
        ("g" * 30 + "bbg" * 4, True),
        ("gl" * 10 + "l" * 10, False),  # late is not broken
        ("g" + "bl" * 10, False),
        ("b" * 5 + "g" * 100 + "b" * 5, False),
    ],
)
def test_the_guard_judges_the_last_records_in_order_of_arrival(pattern: str, stops: bool) -> None:
    for size in (1, 3, len(pattern)):
        worker = _guarded(10, 0.5)
        worker.shards[0].newest_ms = T0
        messages = _stream(pattern)
        stopped = False
        try:
            for start in range(0, len(messages), size):
                worker.intake.admit(messages[start : start + size], worker.shards)
        except ProducerBrokenError as error:
            stopped, told = True, str(error)
        assert stopped == stops, size
        assert not stopped or "invalid_json" in told


def test_a_restart_goes_on_counting() -> None:
    shard = Shard(0)
    shard.count_recent(4, 5, 10)
    worker = _guarded(10, 0.5)
    worker.intake.begin_with([shard])
    with pytest.raises(ProducerBrokenError, match="events"):
        worker.intake.admit(_stream("b"), worker.shards)
    fresh = _guarded(10, 0.5)
    fresh.intake.begin_with([Shard(0)])
    fresh.intake.begin_with([shard])  # it has begun: what others saw counts no more
    fresh.intake.admit(_stream("b"), fresh.shards)


def test_each_partition_counts_its_own_recent_records() -> None:
    worker = _guarded(100, 1.0)
    messages = [
        record(b"bad" if n % 3 == 0 else Ev("u", f"e{n}").value(), b"u", n % 2, n, T0) for n in range(12)
    ]
    worker.intake.admit(messages, worker.shards)
    assert [(s.recent_records, s.recent_rejected) for s in worker.shards.owned.values()] == [
        (6, 2), (6, 2), (0, 0),
    ]  # fmt: skip


def _request(user: str | None, n: int) -> bytes:
    return json.dumps({"request_id": f"r{n}", "user_id": user, "timestamp": T0}).encode()


def test_requests_go_by_the_validator_and_are_counted_apart() -> None:
    worker = Worker(settings_of())
    messages = [
        record(_request("u", 0), b"u", 1, 5, T0, "requests"),
        record(b"bad", b"u", 2, 6, T0, "requests"),
        record(Ev("u", "e").value(), b"u", 0, 7, T0),
        record(b"bad", b"u", 0, 8, T0),
    ]
    batch = worker.intake.admit(messages, worker.shards)
    assert [(r.request.request_id, r.partition, r.offset) for r in batch.requests] == [("r0", 1, 5)]
    assert [_dead(letter)[2:] for letter in batch.dead] == [(0, 8), (2, 6)]
    assert batch.records == 2
    assert batch.shards.keys() == {0, 1, 2}
    stats = [msgspec.structs.asdict(worker.shards[p].stats) for p in range(PARTITIONS)]
    assert [s["requests_rejected"] for s in stats] == [0, 0, 1]
    assert [s["rejected"] for s in stats] == [1, 0, 0]
    assert [s["accepted"] for s in stats] == [1, 0, 0]


def test_broken_requests_stop_the_worker_too() -> None:
    worker = _guarded(4, 0.5)
    bad = [record(b"bad", b"u", 0, n, T0, "requests") for n in range(4)]
    with pytest.raises(ProducerBrokenError, match="requests"):
        worker.intake.admit(bad, worker.shards)


def test_nothing_is_a_batch_of_nothing() -> None:
    worker = Worker(settings_of())
    batch = worker.intake.admit([], worker.shards)
    assert (len(batch.events), len(batch.accepted), batch.dead, batch.requests) == (0, 0, [], [])
    assert (batch.waves(), batch.shards) == ([], {})


def test_users_get_random_tokens() -> None:
    workers = [Worker(settings_of()) for _ in range(2)]
    tokens = set()
    for worker in workers:
        batch = worker.admit([Ev(f"u{n}", f"e{n}") for n in range(50)] + [Ev("u1", "again")])
        assert batch.new.tolist() == list(range(50))
        tokens |= set(worker.users.users.long[batch.rows[batch.new], 0].tolist())
    assert len(tokens) == 100


def _check_rows(batch: Batch, users: Sequence[int]) -> None:
    """Each user has one row, and never another's."""
    rows: dict[int, int] = {}
    for user, row in zip(users, batch.rows.tolist(), strict=False):
        assert rows.setdefault(user, row) == row
    assert len(set(rows.values())) == len(rows)


@given(users=st.lists(st.integers(0, 6), max_size=60), duplicates=st.lists(st.integers(0, 59), max_size=9))
@settings(deadline=None, max_examples=60)
def test_waves_hold_one_event_a_user_in_order_and_lose_none(users: list[int], duplicates: list[int]) -> None:
    worker = Worker(settings_of())
    events = [Ev(f"u{user}", f"e{k}", k, "i") for k, user in enumerate(users)]
    repeated = [events[k] for k in duplicates if k < len(events)]
    batch = worker.admit(events + repeated)
    assert batch.accepted.tolist() == list(range(len(users)))
    _check_rows(batch, users)
    waves = batch.waves()
    for wave in waves:
        rows = batch.rows[wave].tolist()
        assert len(set(rows)) == len(rows) > 0
        assert wave.tolist() == sorted(wave.tolist())
    for user in set(users):
        own = [n for wave in waves for n in wave.tolist() if users[n] == user]
        assert own == [k for k, other in enumerate(users) if other == user]
    assert sum(map(len, waves)) == len(users)
    assert len(waves) == max(map(users.count, users), default=0), "no more waves than the busiest user needs"


def test_turns_begin_anew_once_the_batch_is_written() -> None:
    worker = Worker(settings_of())
    assert worker.admit([Ev("u", "e1"), Ev("u", "e2"), Ev("v", "e3")]).turns.tolist() == [0, 1, 0]
    worker.commit()
    assert worker.admit([Ev("u", "e4"), Ev("v", "e5")]).turns.tolist() == [0, 0]


def test_an_id_in_two_partitions_is_two_users() -> None:
    worker = Worker(settings_of())
    batch = worker.admit([Ev("u", "e", partition=p) for p in range(PARTITIONS)])
    assert len(set(batch.rows.tolist())) == PARTITIONS
    assert [worker.shards[p].stats.accepted for p in range(PARTITIONS)] == [1, 1, 1]
    assert sum(worker.shards[p].stats.misplaced for p in range(PARTITIONS)) == 2
    assert np.all(batch.turns == 0)


def test_an_intake_outlives_the_shards_it_fills() -> None:
    worker = Worker(settings_of())
    worker.take([Ev("u", "e1")])
    other = Shards(worker.settings, "other", worker.intake.reader.type_names)
    other.owned[0] = Shard(0)
    assert isinstance(worker.intake, Intake)
    batch = worker.intake.admit(worker.messages([Ev("u", "e1")]), other)
    assert batch.new.tolist() == [0]
    assert other.owned[0].stats == PartitionStats(accepted=1, misplaced=partition_for(b"u", PARTITIONS) != 0)
