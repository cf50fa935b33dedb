"""The kept histories against dictionaries, for every order of events, users and items that come and go."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online_models import ItemTable, LearningBatch
from online_models.learning_batch import WITHDRAW
from online_models.user_histories import UserHistories
from online_models.user_histories_kernels import USERS

Event = tuple[int, int, int]
EVENTS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 9), st.sampled_from([1, 1, 1, 0, -1])), max_size=60
)


def batch_of(events: list[Event]) -> LearningBatch:
    """Events of (token, item, sign); the value of an event is its position."""
    n = len(events)
    return LearningBatch(
        item_ids=[f"i{k}" for k in range(10)],
        item=np.array([item for _, item, _ in events], dtype=np.int32),
        recent=np.full((n, 0), -1, dtype=np.int32),
        time_ms=np.zeros(n, dtype=np.int64),
        weight=np.ones(n, dtype=np.float32),
        event_type=np.zeros(n, dtype=np.uint8),
        user_before=np.zeros((n, 0), dtype=np.float32),
        user_after=np.zeros((n, 0), dtype=np.float32),
        negatives=np.full((n, 0), -1, dtype=np.int32),
        user=np.array([token for token, *_ in events], dtype=np.uint64),
    )


class Replica:
    def __init__(self, max_users: int, length: int, max_items: int, centred: bool = False) -> None:
        self.items = ItemTable(limit=max_items)
        self.histories = UserHistories(max_users, length)
        self.centred = centred

    def learn(
        self, events: list[Event], values: list[float], first_ms: int = 0
    ) -> tuple[list[float], list[list[int]]]:
        batch, n = batch_of(events), len(events)
        batch.time_ms += np.arange(first_ms, first_ms + n)
        rows = self.items.resolve(batch)
        self.histories.reserve(n, len(self.items), self.items.limit)
        own, before = np.zeros(n, dtype=np.float32), np.full((n, 4), -1, dtype=np.int32)
        value, sign = np.array(values, dtype=np.float32), np.array([s for *_, s in events], dtype=np.int8)
        out = (own, before, np.zeros((n, 4), dtype=np.float32))
        left = self.histories.learn((0, n), batch, rows, 0, sign, value, self.centred, out)
        assert left == len(rows.changes)
        return own.tolist(), before.tolist()

    def unlearn(self, event: Event, value: float, time_ms: int) -> tuple[float, list[int], list[float]]:
        batch = batch_of([event])
        batch.time_ms[0], batch.kind = time_ms, WITHDRAW
        batch, rows = self.items.find(batch)
        own, before = np.zeros(1, dtype=np.float32), np.full((1, 4), -1, dtype=np.int32)
        values, sign = np.zeros((1, 4), dtype=np.float32), np.array([event[2]], dtype=np.int8)
        if len(batch):
            given = np.array([value], dtype=np.float32)
            self.histories.unlearn(batch, rows, sign, given, (own, before, values))
        return float(own[0]), before[0].tolist(), values[0].tolist()


class Plain:
    """The same with dictionaries: token to the last `length` uses (item, value), None where one is gone. Of
    an item that is there twice, the newer use counts."""

    def __init__(self, max_users: int, length: int, max_items: int) -> None:
        self.max_users, self.length, self.room = max_users, length, max_items - max_items // 32
        self.users: OrderedDict[int, list[tuple[int, float] | None]] = OrderedDict()
        self.items: OrderedDict[int, None] = OrderedDict()

    def learn(self, token: int, item: int, sign: int, value: float) -> None:
        if item not in self.items and len(self.items) == self.room:
            self.forget_item(next(iter(self.items)))
        self.items[item] = None
        self.items.move_to_end(item)
        if token == 0:
            return
        if token not in self.users and len(self.users) == self.max_users:
            self.users.popitem(last=False)
        uses = self.users.setdefault(token, [])
        self.users.move_to_end(token)
        if sign < 0:
            uses[:] = [None if use and use[0] == item else use for use in uses]
        if sign > 0:
            uses[:] = [*uses, (item, value)][-self.length :]

    def forget_item(self, item: int) -> None:
        del self.items[item]
        for token, uses in self.users.items():
            self.users[token] = [None if use and use[0] == item else use for use in uses]

    def withdraw(self, token: int, item: int, value: float) -> None:
        if token in self.users and (item, value) in self.users[token]:
            self.users[token].remove((item, value))

    def visible(self, token: int) -> list[tuple[int, float]]:
        """Uses that count, newest first."""
        seen: dict[int, float] = {}
        for use in reversed(self.users.get(token, [])):
            if use:
                seen.setdefault(*use)
        return list(seen.items())


def compare(replica: Replica, plain: Plain) -> None:
    assert len(replica.histories) == len(plain.users)
    for token in range(1, 6):
        found, value_of = replica.histories.newest_items(token, 99)
        assert [(replica.items.ids[row], v) for row, v in zip(found, value_of, strict=True)] == [
            (f"i{item}", value) for item, value in plain.visible(token)
        ]


def restored(histories: UserHistories, items: int) -> UserHistories:
    again = UserHistories(histories.max_users, histories.length)
    again.load("h", histories.to_arrays("h", items))
    return again


@given(
    events=EVENTS, max_users=st.integers(1, 6), length=st.integers(1, 5), max_items=st.integers(2, 12),
    size=st.integers(1, 20), restore=st.booleans(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_histories_are_what_dictionaries_say(
    events: list[Event], max_users: int, length: int, max_items: int, size: int, restore: bool
) -> None:
    replica, plain = Replica(max_users, length, max_items), Plain(max_users, length, max_items)
    for start in range(0, len(events), size):
        part = events[start : start + size]
        values = [float(start + position) for position in range(len(part))]
        replica.learn(part, values, start)
        for (token, item, sign), value in zip(part, values, strict=True):
            plain.learn(token, item, sign, value)
        if restore:
            replica.histories = restored(replica.histories, len(replica.items))
        compare(replica, plain)
    check_links(replica, plain)


STEPS = st.lists(
    st.tuples(st.sampled_from(["learn"] * 6 + ["withdraw"] * 3 + ["user", "item"]), st.integers(0, 99)),
    max_size=25,
)


@given(events=EVENTS, steps=STEPS, max_users=st.integers(2, 6), length=st.integers(1, 6))
@settings(max_examples=100, deadline=None)
def test_uses_are_withdrawn_and_users_and_items_forgotten(
    events: list[Event], steps: list[tuple[str, int]], max_users: int, length: int
) -> None:
    replica, plain = Replica(max_users, length, 60), Plain(max_users, length, 60)
    learned: list[tuple[int, Event]] = []
    for at, event in enumerate(events):
        replica.learn([event], [float(at)], at)
        plain.learn(*event, float(at))
        learned.append((at, event))
        kind, which = steps[at] if at < len(steps) else ("learn", 0)
        if kind == "withdraw":
            time_ms, (token, item, sign) = learned.pop(which % len(learned))
            replica.unlearn((token, item, sign), float(time_ms), time_ms)
            if sign > 0:
                plain.withdraw(token, item, float(time_ms))
        elif kind == "user":
            replica.histories.forget_users(np.array([1 + which % 5], dtype=np.uint64))
            plain.users.pop(1 + which % 5, None)
        elif kind == "item" and (row := replica.items.free(f"i{which % 10}")) >= 0:
            replica.histories.forget_items(np.array([row], dtype=np.int32))
            plain.forget_item(which % 10)
            learned = [(t, one) for t, one in learned if one[1] != which % 10]
        replica.histories = restored(replica.histories, len(replica.items))
        compare(replica, plain)
        check_links(replica, plain)


def check_links(replica: Replica, plain: Plain) -> None:
    """Each item's uses are linked from the newest to the oldest, both ways, and none is left out."""
    store, length = replica.histories.store, replica.histories.length
    for item in plain.items:
        row, found = replica.items.row(f"i{item}"), []
        node, before = int(store.head[row]), -1
        while node >= 0:
            assert (int(store.row[node]), int(store.newer[node])) == (row, before)
            found.append((int(store.token[node // length]), float(store.value[node])))
            node, before = int(store.older[node]), node
        expected = [
            (token, use[1]) for token in plain.users for use in plain.visible(token) if use[0] == item
        ]
        assert found == sorted(expected, key=lambda use: -use[1])
    users = int(store.marks[USERS])
    held = [len(plain.visible(token)) for token in store.token[:users].tolist()]
    assert store.held[:users].tolist() == held


def test_what_is_withdrawn_is_what_was_learned() -> None:
    replica = Replica(4, 4, 50, centred=True)
    values = [4.0, 2.0, 3.0, 5.0]
    own, before = replica.learn([(1, item, 1) for item in (0, 1, 0, 2)], values)
    taken = [replica.unlearn((1, item, 1), values[at], at) for at, item in [(3, 2), (2, 0)]]
    assert [taken[0][0], taken[1][0]] == [own[3], own[2]]
    assert taken[0][1] == [0, 1, 0, -1], "an older use of an item is named too; the newest comes first"
    assert taken[0][2][:2] == [own[2], own[1]]
    assert taken[1][1:] == ([1, 0, -1, -1], [own[1], own[0], 0.0, 0.0])
    assert before[2] == [1, 0, -1, -1]
    assert replica.histories.newest_items(1, 9)[0].tolist() == [1, 0], "the older use of item 0 is back"
    assert replica.learn([(1, 2, 1)], [3.0], 5)[0] == [0.0], "the mean is that of 4, 2 and 3"


def test_centred_values_are_less_the_mean_so_far() -> None:
    replica = Replica(4, 3, 50, centred=True)
    own, before = replica.learn([(1, 0, 1), (2, 0, 1), (1, 1, 1), (1, 2, 1)], [4.0, 1.0, 2.0, 3.0])
    assert own == [0.0, 0.0, -1.0, 0.0]  # user 1: 4 - 4, 2 - (4 + 2) / 2, 3 - (4 + 2 + 3) / 3
    assert before == [[-1] * 4, [-1] * 4, [0, -1, -1, -1], [1, 0, -1, -1]]
    rows, values = replica.histories.newest_items(1, 2)
    assert (rows.tolist(), values.tolist()) == ([2, 1], [0.0, -1.0])


@pytest.mark.parametrize("bad", [{"max_users": 0, "length": 5}, {"max_users": 5, "length": 0}])
def test_sizes_that_hold_nothing_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"max_users is \d and history_length \d"):
        UserHistories(**bad)


def test_an_event_costs_no_more_among_many_users() -> None:
    replica = Replica(50_000, 4, 50)
    replica.learn([(token, token % 10, 1) for token in range(1, 40_001)], [1.0] * 40_000)
    store = replica.histories.store
    assert len(store.token) <= 50_000
    assert len(store.index) <= 4 * 50_000 + 1
    assert replica.histories.nbytes() <= 40_000 * (40 + 4 * 24) + 8 * 1000
