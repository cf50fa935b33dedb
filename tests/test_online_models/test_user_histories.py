"""The kept histories against dictionaries, for every order of events, users and items that come and go."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online_models import ItemTable, LearningBatch
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

    def learn(self, events: list[Event], values: list[float]) -> tuple[list[float], list[list[int]]]:
        batch, n = batch_of(events), len(events)
        rows = self.items.resolve(batch)
        self.histories.reserve(n, len(self.items), self.items.limit)
        own, before = np.zeros(n, dtype=np.float32), np.full((n, 4), -1, dtype=np.int32)
        value, sign = np.array(values, dtype=np.float32), np.array([s for *_, s in events], dtype=np.int8)
        out = (own, before, np.zeros((n, 4), dtype=np.float32))
        left = self.histories.learn((0, n), batch, rows, 0, sign, value, self.centred, out)
        assert left == len(rows.changes)
        return own.tolist(), before.tolist()


class Plain:
    """The same with dictionaries: token to the last `length` uses (item, value), None where one is gone."""

    def __init__(self, max_users: int, length: int, max_items: int) -> None:
        self.max_users, self.length, self.room = max_users, length, max_items - max_items // 32
        self.users: OrderedDict[int, list[tuple[int, float] | None]] = OrderedDict()
        self.items: OrderedDict[int, None] = OrderedDict()

    def learn(self, token: int, item: int, sign: int, value: float) -> None:
        if item not in self.items and len(self.items) == self.room:
            gone = self.items.popitem(last=False)[0]
            for token_of, uses in self.users.items():
                self.users[token_of] = [None if use and use[0] == gone else use for use in uses]
        self.items[item] = None
        self.items.move_to_end(item)
        if token == 0:
            return
        if token not in self.users and len(self.users) == self.max_users:
            self.users.popitem(last=False)
        uses = self.users.setdefault(token, [])
        self.users.move_to_end(token)
        if sign:
            uses[:] = [None if use and use[0] == item else use for use in uses]
        if sign > 0:
            uses[:] = [*uses, (item, value)][-self.length :]


@given(
    events=EVENTS, max_users=st.integers(1, 6), length=st.integers(1, 5), max_items=st.integers(2, 12),
    size=st.integers(1, 20), restored=st.booleans(),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_histories_are_what_dictionaries_say(
    events: list[Event], max_users: int, length: int, max_items: int, size: int, restored: bool
) -> None:
    replica, plain = Replica(max_users, length, max_items), Plain(max_users, length, max_items)
    for start in range(0, len(events), size):
        part = events[start : start + size]
        values = [float(start + position) for position in range(len(part))]
        replica.learn(part, values)
        for (token, item, sign), value in zip(part, values, strict=True):
            plain.learn(token, item, sign, value)
        if restored:
            arrays = replica.histories.to_arrays("h", len(replica.items))
            replica.histories = UserHistories(max_users, length)
            replica.histories.load("h", arrays)
        assert len(replica.histories) == len(plain.users)
        for token in range(1, 6):
            found, value_of = replica.histories.newest_items(token, 99)
            expected = [use for use in reversed(plain.users.get(token, [])) if use]
            assert [(replica.items.ids[row], v) for row, v in zip(found, value_of, strict=True)] == [
                (f"i{item}", value) for item, value in expected
            ]
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
            (token, use[1]) for token, uses in plain.users.items() for use in uses if use and use[0] == item
        ]
        assert found == sorted(expected, key=lambda use: -use[1])
    users = int(store.marks[USERS])
    assert store.held[:users].tolist() == [
        sum(use is not None for use in plain.users[token]) for token in store.token[:users].tolist()
    ]


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
    assert replica.histories.nbytes() <= 40_000 * (40 + 4 * 16) + 8 * 1000
