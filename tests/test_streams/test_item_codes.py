"""Item codes and rows of the item table: led to each other while rows are given, freed and given again, and
no code is taken from an item that anybody still names."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams import user_table
from streams.bounds import Bounds
from streams.item_codes import ItemCodes
from tests.test_streams.user_model import Ev, Worker, check_table, live_users, settings_of

LIMIT = 34
"""Rows of the item table: one of them is kept for the turnover."""


def _settings(**tables: object) -> Worker:
    models = {"factors": {"dimension": 3, "negatives": 2}, "covisitation": {"window": 4}, "max_items": LIMIT}
    return Worker(settings_of(models=models, **tables))


def _check_maps(worker: Worker) -> None:
    """Rows and codes lead to each other, by way of the items' ids."""
    codes, table, ids = worker.learner.codes, worker.users.items, worker.items.items.ids
    codes.cover()
    assert len(codes.row_of) >= table.capacity
    assert len(codes.code_of) >= len(ids)
    expected = np.full(len(codes.row_of), -1, np.int32)
    for row, item_id in enumerate(ids):
        code = int(codes.code_of[row])
        if item_id:
            assert table.id_of(code).decode() == item_id
            expected[code] = row
        else:
            assert code == -1
    assert not (codes.code_of[len(ids) :] >= 0).any()
    np.testing.assert_array_equal(codes.row_of, expected)
    assert sorted(codes.named().tolist()) == sorted(np.flatnonzero(expected >= 0).tolist())


def _batch(rng: random.Random, turn: int, items: int = 25) -> list[Ev]:
    """Events of items that move on with time, so that older ones lose their rows."""
    return [
        Ev(
            f"u{rng.randrange(5)}",
            f"e{turn}-{k}",
            turn,
            f"item-{8 * turn + rng.randrange(items)}",
            rng.choice(["good", "bad", "half", "nothing"]),
        )
        for k in range(30)
    ]


@given(seed=st.integers(0, 2**32), restarts=st.sets(st.integers(0, 9)), every=st.integers(1, 3))
@settings(deadline=None, max_examples=25)
def test_rows_given_freed_and_given_again(seed: int, restarts: set[int], every: int) -> None:
    rng = random.Random(seed)
    worker = _settings()
    for turn in range(10):
        _, rows = worker.take(_batch(rng, turn))
        log = list(worker.learner.log.pack(rows)) if rows is not None else []
        worker.commit()
        if turn in restarts:
            worker.restart()  # of the users; the replica's changes are still to be told
        worker.follow(log)
        _check_maps(worker)
        if turn % every == 0:
            worker.move(0)
            _check_maps(worker)
    assert worker.items.evictions > 0
    assert len(worker.items.items.ids) <= LIMIT


def test_a_map_made_late_is_the_map_that_followed() -> None:
    rng = random.Random(4)
    worker = _settings()
    for turn in range(6):
        _, rows = worker.take(_batch(rng, turn))
        worker.apply(rows)
    late = ItemCodes(worker.items, worker.users.items)
    followed = worker.learner.codes
    followed.cover()
    late.cover()
    n = worker.users.items.capacity
    np.testing.assert_array_equal(late.row_of[:n], followed.row_of[:n])
    n = len(worker.items.items.ids)
    np.testing.assert_array_equal(late.code_of[:n], followed.code_of[:n])
    late.follow(np.arange(n, dtype=np.int32), np.zeros(0, np.int32))
    np.testing.assert_array_equal(late.code_of[:n], followed.code_of[:n])


def test_an_item_has_a_code_before_it_has_a_row() -> None:
    worker = _settings()
    _, rows = worker.take([Ev("u", "e1", 1, "a"), Ev("u", "e2", 2, "b")])
    a, b = worker.users.items.codes_of([b"a", b"b"]).tolist()
    worker.learner.codes.cover()
    assert worker.learner.codes.row_of[[a, b]].tolist() == [-1, -1]
    worker.apply(rows)
    assert worker.learner.codes.row_of[[a, b]].tolist() == worker.items.items.rows(["a", "b"]).tolist()
    assert worker.learner.codes.code_of[worker.items.items.rows(["a", "b"])].tolist() == [a, b]


def test_a_row_that_goes_to_another_item_leads_to_that() -> None:
    worker = _settings()
    for k in range(2 * LIMIT):
        _, rows = worker.take([Ev("u", f"e{k}", k, f"item-{k}")])
        worker.apply(rows)
    first = worker.users.items.codes_of([b"item-0"])[0]
    assert worker.items.items.row("item-0") == -1
    assert first >= 0, "the user has seen it"
    assert worker.learner.codes.row_of[first] == -1
    _check_maps(worker)


def _named(worker: Worker) -> set[str]:
    """Every item that a user's lists or the item table name."""
    named = {item_id for item_id in worker.items.items.ids if item_id}
    for user in live_users(worker.users).values():
        named |= {item for item, *_ in user["recent"]} | set(user["seen"]) | set(user["last_list"])
    return named


def _held(worker: Worker) -> set[str]:
    table = worker.users.items
    return {table.id_of(code).decode() for code in table.held().tolist()}


@given(seed=st.integers(0, 2**32), actions=st.lists(st.sampled_from(["move", "expire", "show", "restart"])))
@settings(deadline=None, max_examples=25)
def test_only_codes_that_nobody_names_are_given_back(seed: int, actions: list[str]) -> None:
    rng = random.Random(seed)
    worker = _settings(user_state={"seen": 9, "recent": 6, "dedupe_entries": 5})
    given_back = 0
    for turn in range(12):
        _, rows = worker.take(_batch(rng, turn))
        worker.apply(rows)
        action = actions[turn % len(actions)] if actions else ""
        if action == "show":
            shown = [f"item-{rng.randrange(300)}" for _ in range(10)]
            worker.show(f"u{rng.randrange(5)}", list(dict.fromkeys(shown)))
        elif action == "expire":
            worker.users.expire(0, 3, 0)
        worker.commit()
        if action == "move":
            worker.move(0)
        elif action == "restart":
            worker.restart()
        named, before = _named(worker), live_users(worker.users)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(user_table, "ITEM_GARBAGE", -(1 << 30))
            unused = worker.users.unused_items(worker.learner.codes.named)
        worker.learner.codes.cover()
        worker.learner.codes.forget(unused)
        given_back += len(unused)
        assert _held(worker) == named, "no more and no less"
        assert live_users(worker.users) == before
        check_table(worker.users, (6, 9, 5))
        _check_maps(worker)
    assert given_back > 0
    assert worker.users.items.codes < 12 * 25, "codes are given again"


def test_codes_are_looked_through_only_when_many_have_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_table, "ITEM_GARBAGE", 20)
    worker = _settings()
    looks = 0

    def named() -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        nonlocal looks
        looks += 1
        return worker.learner.codes.named()

    held = []
    for k in range(100):
        worker.take([Ev("u", f"e{k}", k, f"item-{k}", "nothing")])  # it names them, and keeps none
        worker.learner.codes.cover()
        worker.learner.codes.forget(worker.users.unused_items(named))
        held.append(len(worker.users.items))
    assert looks == 5
    assert max(held) == 19


def test_bounds_hold_users_and_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_table, "ITEM_GARBAGE", 50)
    worker = _settings(user_state={"max_users": 40})
    bounds = Bounds(worker.settings.user_state, worker.shards, worker.learner.codes)
    for k in range(300):
        _, rows = worker.take([Ev(f"u{k}", f"e{k}", k, f"item-{k}")])
        worker.apply(rows)
        bounds.keep()
        worker.commit()
        assert len(worker.users) <= 40
        assert worker.users.population[0] == len(worker.users)
    assert worker.shards[0].stats.expired == 300 - len(worker.users)
    assert worker.users.items.codes < 250
    _check_maps(worker)
    assert worker.records(0).users.keys() == {user for _, user in live_users(worker.users)}
