"""The owner's half of learning: judged, then learned, however the batch is cut; the replicas' state is only
read."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.events import PartitionStats
from streams.intake import Batch
from streams.learner import JUDGED, joined
from streams.learning_log import Interactions
from tests.test_streams.user_model import PARTITIONS, Ev, PlainUsers, Worker, live_users, settings_of


@pytest.fixture
def worker() -> Worker:
    return Worker(settings_of())


def _learned(worker: Worker, events: Sequence[Ev], *, in_waves: bool = True) -> Interactions:
    _, rows = worker.take(events, in_waves=in_waves)
    assert rows is not None
    return rows


def _names(worker: Worker, values: list[int]) -> list[str]:
    """Item ids of a line of `Interactions.recent`."""
    ids = worker.items.items.ids
    return [worker.users.items.id_of(v).decode() if v >= 0 else ids[-v - 2] for v in values if v != -1]


def test_factors_form_a_chain_and_the_item_state_is_only_read(worker: Worker) -> None:
    before = worker.items.digest()
    rows = _learned(worker, [Ev("u", f"e{k}", k, f"item-{k}") for k in range(6)])
    assert worker.items.digest() == before
    np.testing.assert_array_equal(rows.before[0], worker.items.start_users(["u"])[0])
    for k, following in itertools.pairwise(range(len(rows))):
        np.testing.assert_array_equal(rows.after[k], rows.before[following])
        assert not np.array_equal(rows.before[k], rows.after[k])
    row = worker.users.row("u", 0)
    np.testing.assert_array_equal(rows.after[-1], worker.users.users.factor[row])
    assert [_names(worker, line) for line in rows.recent.tolist()[:3]] == [
        [],
        ["item-0"],
        ["item-1", "item-0"],
    ]
    assert _names(worker, rows.recent[5].tolist()) == ["item-4", "item-3", "item-2", "item-1"], "four at most"
    assert set(rows.token.tolist()) == {int(worker.users.users.long[row, 0]) % 2**64}


def test_what_was_liked_is_recent_what_was_used_is_seen(worker: Worker) -> None:
    kinds = {"liked": "good", "disliked": "bad", "shown": "nothing"}
    rows = _learned(worker, [Ev("u", item, 0, item, kind) for item, kind in kinds.items()] + [Ev("u", "s")])
    [user] = live_users(worker.users).values()
    assert [(item, weight) for item, _, _, weight in user["recent"]] == [("liked", 1.0), ("disliked", -1.0)]
    assert worker.users.gather(np.zeros(1, np.int32), np.arange(9, dtype=np.int32), 4).recent.tolist() == [
        [0, -1, -1, -1]
    ], "what was disliked can be withdrawn, but is not what the user is after"
    assert user["seen"] == ["liked", "disliked"]
    assert worker.shards[0].stats.evaluated == 1
    moved = [not np.array_equal(b, a) for b, a in zip(rows.before, rows.after, strict=True)]
    assert moved == [True, True, False, False]
    assert rows.code.tolist()[3] == -1
    assert rows.weight.tolist() == [1.0, -1.0, 0.0, 0.0]


def test_items_with_a_row_are_named_by_it_others_by_code(worker: Worker) -> None:
    worker.apply(_learned(worker, [Ev("u", "e1", 1, "old"), Ev("u", "e2", 2, "older")]))
    rows = _learned(worker, [Ev("u", "e3", 3, "new"), Ev("u", "e4", 4, "newest")])
    assert rows.table_epoch == worker.items.epoch > 0
    line = rows.recent[1].tolist()
    new = worker.users.items.codes_of([b"new"])[0]
    assert line == [new, *[-2 - worker.items.items.row(item) for item in ("older", "old")], -1]
    drawn = rows.negatives[rows.negatives != -1]
    assert len(drawn)
    assert set((-2 - drawn).tolist()) <= {0, 1}
    worker.apply(rows)
    assert worker.items.items.row("newest") >= 0


def test_the_step_is_the_models(worker: Worker) -> None:
    """Factors and negatives are `ItemState.learn_users`'s, from the same before."""
    worker.apply(_learned(worker, [Ev(f"fan-{k}", f"e{k}", k, f"item-{k % 5}") for k in range(20)]))
    kinds = ["good", "bad", "half"]
    events = [Ev(f"u{k}", f"f{k}", k, f"item-{k % 7}", kinds[k % 3]) for k in range(12)]
    batch = worker.admit(events)
    before = worker.users.users.factor[batch.rows].copy()
    after, drawn = worker.items.learn_users(
        before, [event.item or "" for event in events], batch.events.weight.astype(np.float32),
        batch.events.event_hash,
    )  # fmt: skip
    rows = worker.learner.learn(batch, batch.accepted)
    np.testing.assert_array_equal(rows.before, before)
    np.testing.assert_array_equal(rows.after, after)
    assert [_names(worker, line) for line in rows.negatives.tolist()] == drawn


# --- judging ---


class Judge:
    """Hit rate and NDCG at 10 by their definitions, from ids alone."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.users = PlainUsers(worker.settings)
        self.lists: dict[tuple[int, str], list[str]] = {}
        self.stats = [PartitionStats() for _ in range(PARTITIONS)]

    def take(self, events: Sequence[Ev]) -> None:
        popularity, ids = self.worker.items.popularity, self.worker.items.items.ids
        popular = [ids[row] for row in popularity.top_plain(10_000).tolist()]
        for event in events:
            known = self.users.users.get((event.partition, event.user))
            seen = list(known.seen) if known is not None else []
            if self.users.take(event) == "accepted" and event.weight > 0:
                self._judge(event, seen, popular)

    def _judge(self, event: Ev, seen: list[str], popular: list[str]) -> None:
        assert event.item is not None
        stats = self.stats[event.partition]
        stats.evaluated += 1
        shown = self.lists.get((event.partition, event.user), [])[:10]
        if event.item in shown:
            stats.hits_at_10 += 1
            stats.ndcg_at_10_sum += 1 / math.log2(shown.index(event.item) + 2)
        offered = [item for item in popular if item not in seen][:10]
        if event.item in offered:
            stats.popularity_hits_at_10 += 1
            stats.popularity_ndcg_at_10_sum += 1 / math.log2(offered.index(event.item) + 2)


FIGURES = ("evaluated", "hits_at_10", "ndcg_at_10_sum", "popularity_hits_at_10", "popularity_ndcg_at_10_sum")


def _figures(stats: PartitionStats) -> list[Any]:
    return [pytest.approx(getattr(stats, name), rel=1e-9) for name in FIGURES]


@pytest.mark.parametrize("in_waves", [False, True])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_judging_is_hit_rate_and_ndcg_by_definition(seed: int, in_waves: bool) -> None:
    rng = random.Random(seed)
    worker = Worker(settings_of(user_state={"seen": 9, "recent": 5}))
    judge = Judge(worker)
    for turn in range(12):
        events = [
            Ev(
                user=f"u{rng.randrange(6)}",
                event=f"e{turn}-{rng.randrange(30)}",
                time_ms=turn,
                item=f"item-{int(30 * rng.random() ** 2)}" if rng.random() < 0.95 else None,
                type=rng.choice(["good", "half", "good", "bad", "nothing"]),
                partition=rng.randrange(PARTITIONS),
            )
            for _ in range(40)
        ]
        judge.take(events)
        worker.apply(_learned(worker, events, in_waves=in_waves))
        for user in range(6):
            shown = rng.sample([f"item-{k}" for k in range(34)], rng.randrange(JUDGED + 1))
            worker.show(f"u{user}", shown)
            judge.lists |= {(p, f"u{user}"): shown for p, u in judge.users.users if u == f"u{user}"}
        worker.commit()
    for p in range(PARTITIONS):
        stats = worker.shards[p].stats
        assert [getattr(stats, name) for name in FIGURES] == _figures(judge.stats[p])
    total = [sum(getattr(judge.stats[p], name) for p in range(PARTITIONS)) for name in FIGURES]
    assert min(total) > 5, "nothing to judge, nothing shown"


def test_an_event_is_judged_by_the_list_before_it(worker: Worker) -> None:
    fans = [Ev(f"fan-{n}-{k}", "e", 0, f"item-{k}") for k in range(3) for n in range(4 - k)]
    worker.apply(_learned(worker, fans))  # popularity by construction: item-0 first, then item-1, item-2
    worker.apply(_learned(worker, [Ev("u", "e0", 0, "item-9")]))
    stats = worker.shards[0].stats
    judged = msgspec.structs.replace(stats)
    worker.show("u", ["other", "item-2", *(f"x{k}" for k in range(8))])
    _learned(worker, [Ev("u", "e1", 1, "item-2")])
    assert stats.hits_at_10 - judged.hits_at_10 == 1
    assert stats.ndcg_at_10_sum - judged.ndcg_at_10_sum == pytest.approx(1 / math.log2(3))
    assert stats.popularity_hits_at_10 - judged.popularity_hits_at_10 == 1
    gain = stats.popularity_ndcg_at_10_sum - judged.popularity_ndcg_at_10_sum
    assert gain == pytest.approx(1 / math.log2(4)), "item-2 is third among the popular"
    _learned(worker, [Ev("u", "e2", 2, "item-2")])
    assert stats.popularity_hits_at_10 - judged.popularity_hits_at_10 == 1, "popularity offers nothing seen"
    assert stats.evaluated - judged.evaluated == 2


# --- one by one, wave by wave, all at once ---

ITEMS = [f"item-{k}" for k in range(8)]
events = st.builds(
    Ev,
    user=st.sampled_from(["u", "v", "w"]),
    event=st.integers(0, 60).map(lambda n: f"e{n}"),
    time_ms=st.integers(0, 1000),
    item=st.none() | st.sampled_from(ITEMS),
    type=st.sampled_from(["good", "good", "half", "bad", "nothing"]),
    partition=st.integers(0, 1),
)


def _waves(batch: Batch, how: str) -> list[Any]:
    if how == "at once":
        return [batch.accepted]
    return batch.waves() if how == "waves" else [np.array([n], np.int32) for n in batch.accepted.tolist()]


def _told(worker: Worker, rows: Interactions | None) -> Iterator[tuple[Any, ...]]:
    """Each row of the log but its token: event, place, item, factors, lists."""
    if rows is None:
        return
    for k in range(len(rows)):
        start, length = rows.event[k].tolist()
        yield (
            rows.data[start : start + length].tobytes(),
            int(rows.partition[k]),
            int(rows.offset[k]),
            int(rows.time_ms[k]),
            float(rows.weight[k]),
            int(rows.event_type[k]),
            worker.users.items.id_of(rows.code[k]) if rows.code[k] >= 0 else None,
            rows.before[k].tobytes(),
            rows.after[k].tobytes(),
            tuple(_names(worker, rows.recent[k].tolist())),
            tuple(_names(worker, rows.negatives[k].tolist())),
        )


def _state(worker: Worker) -> dict[Any, Any]:
    """All users but for their tokens, which are random."""
    return {key: {**user, "token": ""} for key, user in live_users(worker.users).items()}


@given(work=st.lists(st.lists(events, max_size=30), min_size=1, max_size=4))
@settings(deadline=None, max_examples=40)
def test_at_once_in_waves_and_one_by_one_are_the_same(work: list[list[Ev]]) -> None:
    workers = {how: Worker(settings_of()) for how in ("at once", "waves", "one by one")}
    for events in work:
        told, log = {}, []
        for how, worker in workers.items():
            batch = worker.admit(events)
            rows = joined([worker.learner.learn(batch, wave) for wave in _waves(batch, how)])
            told[how] = sorted(_told(worker, rows), key=repr)
            log = list(worker.learner.log.pack(rows)) if rows is not None else []
        assert told["at once"] == told["waves"] == told["one by one"]
        for worker in workers.values():  # one log for all of them
            worker.follow(log)
            worker.commit()
    first, *others = map(_state, workers.values())
    assert all(first == other for other in others)
    figures = [[_figures(w.shards[p].stats) for p in range(2)] for w in workers.values()]
    exact = [[[getattr(w.shards[p].stats, n) for n in FIGURES] for p in range(2)] for w in workers.values()]
    assert exact[1] == figures[0]
    assert exact[2] == figures[0]


@given(work=st.lists(st.lists(events, max_size=20), min_size=1, max_size=6), data=st.data())
@settings(deadline=None, max_examples=30)
def test_a_worker_that_restarts_goes_on_bit_for_bit(work: list[list[Ev]], data: st.DataObject) -> None:
    whole, restarted = Worker(settings_of()), Worker(settings_of())
    for events in work:
        told = []
        for worker in (whole, restarted):
            _, rows = worker.take(events, in_waves=True)
            told.append(list(_told(worker, rows)))
            worker.apply(rows)
            worker.commit()
        assert told[0] == told[1]
        tokens = {key: user["token"] for key, user in live_users(restarted.users).items()}
        if data.draw(st.booleans()):
            restarted.restart()
        assert tokens == {key: user["token"] for key, user in live_users(restarted.users).items()}
    assert _state(whole) == _state(restarted)
    assert whole.items.digest() == restarted.items.digest()
    for p in range(PARTITIONS):
        assert whole.shards[p].stats == restarted.shards[p].stats
