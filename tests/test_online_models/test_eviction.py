"""A full item table: new items take the rows of idle ones, on every replica the same, and nothing stays."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from online_models import ItemState, ItemTable, LearningBatch, ModelSettings
from online_models.covisitation_kernels import UNINDEXED
from online_models.settings import CoVisitationSettings, FactorSettings, PopularitySettings
from online_models.table_kernels import FREED, SPARE

PLAIN: dict[str, Any] = {"window": 4, "gap_decay": 1.0, "shrinkage": 0.0, "target_exponent": 0.25}
"""Without decay and shrinkage, as the equations of these tests have it."""

SETTINGS = ModelSettings(
    covisitation=CoVisitationSettings(row_capacity=256, half_life_s=0.0, **PLAIN),
    popularity=PopularitySettings(half_life_s=0.0, top_size=6),
    factors=FactorSettings(dimension=4, negatives=3),
)


def bounded(max_items: int) -> ModelSettings:
    return msgspec.structs.replace(SETTINGS, max_items=max_items)


def make_log(n: int, items: int, seed: int = 0, drift: float = 0.2) -> LearningBatch:
    """Random events whose items drift through a catalogue; items are named by id."""
    rng = np.random.default_rng(seed)
    item = ((rng.integers(0, max(items // 3, 1), n) + (drift * np.arange(n)).astype(int)) % items).astype(
        np.int32
    )
    recent = np.full((n, 4), -1, dtype=np.int32)
    for back in range(1, 5):
        recent[back:, back - 1] = item[:-back]
    recent[rng.random((n, 4)) < 0.3] = -1
    return LearningBatch(
        item_ids=[f"i{k}" for k in range(items)],
        item=item,
        recent=recent,
        time_ms=np.cumsum(rng.integers(0, 9_000, n)).astype(np.int64),
        weight=rng.choice([1.0, 2.0, 0.5], n).astype(np.float32),
        event_type=np.zeros(n, dtype=np.uint8),
        user_before=rng.normal(size=(n, 4)).astype(np.float32),
        user_after=rng.normal(size=(n, 4)).astype(np.float32),
        negatives=rng.integers(-1, items, (n, 3)).astype(np.int32),
    )


def name_rows(batch: LearningBatch, writer: ItemState) -> LearningBatch:
    """The batch as a writer with the replica `writer` sends it: known items by row, others left out."""
    for column in (batch.recent, batch.negatives):
        rows = np.append(writer.items.rows(batch.item_ids), -1)[column]
        column[:] = np.where(rows >= 0, -rows - 2, -1)
    batch.table_epoch = writer.epoch
    return batch


class Dense:
    """What is learned under the equations, with dictionaries, and eviction by the last event."""

    def __init__(self, max_items: int) -> None:
        self.room = max_items - max_items // SPARE
        self.used: OrderedDict[str, None] = OrderedDict()
        self.together: dict[tuple[str, str], float] = defaultdict(float)
        self.weight: dict[str, float] = defaultdict(float)
        self.times: dict[str, int] = defaultdict(int)
        self.evictions = 0

    def learn(self, item: str, recent: list[str], weight: float) -> None:
        if item not in self.used and len(self.used) == self.room:
            gone = self.used.popitem(last=False)[0]
            self.together = defaultdict(float, {k: v for k, v in self.together.items() if gone not in k})
            del self.weight[gone], self.times[gone]
            self.evictions += 1
        self.used[item] = None
        self.used.move_to_end(item)
        for other in recent:
            if other in self.used and other != item:
                self.together[other, item] += weight
                self.together[item, other] += weight
        self.weight[item] += weight
        self.times[item] += 1


@given(
    max_items=st.integers(1, 90), items=st.integers(1, 120), drift=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    seed=st.integers(0, 9),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_what_is_learned_is_what_the_equations_say_of_the_items_left(
    max_items: int, items: int, drift: float, seed: int
) -> None:
    log, state, dense = make_log(300, items, seed, drift), ItemState(bounded(max_items)), Dense(max_items)
    for start in range(0, 300, 50):
        state.apply(log.slice(start, start + 50))
        for event in range(start, start + 50):
            recent = [log.item_ids[index] for index in log.recent[event].tolist() if index >= 0]
            dense.learn(log.item_ids[log.item[event]], recent, float(log.weight[event]))
        assert state.evictions == dense.evictions
        assert {item for item in state.items.ids if item} == set(dense.used)
        assert len(state.items) <= max_items
        ids = list(dense.used)
        rows = state.items.rows(ids)
        assert state.popularity.score(rows).tolist() == pytest.approx([dense.weight[item] for item in ids])
        assert state.popularity.score_plain(rows).tolist() == [dense.times[item] for item in ids]
        scores = state.covisitation.score(rows[:, None], np.tile(rows, (len(rows), 1)))
        expected = [
            [dense.together[a, b] / (dense.weight[a] ** 0.5 * dense.weight[b] ** 0.25) for b in ids]
            for a in ids
        ]
        assert scores == pytest.approx(np.array(expected), rel=1e-4, abs=1e-6)
        for best, values in (
            (state.popularity.top(6), dense.weight),
            (state.popularity.top_plain(6), dense.times),
        ):
            order = sorted(ids, key=lambda item: (-values[item], state.items.row(item)))
            assert [state.items.ids[row] for row in best] == order[: len(best)]
            assert len(best) >= min(len(ids), 4)


# A list of the most popular is made anew while rows stand in it whose items go later in the same batch.
@example(max_items=67, cuts=[193], snapshot=False, by_row=False, lag=0)
@given(
    max_items=st.integers(1, 80), cuts=st.lists(st.integers(0, 200), max_size=8), snapshot=st.booleans(),
    by_row=st.booleans(), lag=st.integers(0, 60),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_any_batches_and_a_snapshot_between_give_one_state(
    max_items: int, cuts: list[int], snapshot: bool, by_row: bool, lag: int
) -> None:
    chosen = bounded(max_items)
    log = make_log(200, 100, drift=0.7)
    if by_row:
        writer, parts = ItemState(chosen), []
        for start in range(0, 200, 20):
            if start >= lag:  # the writer is behind the log
                parts_known = LearningBatch.concat(parts[: (start - lag) // 20] or [log.slice(0, 0)])
                writer = ItemState(chosen)
                writer.apply(parts_known)
            parts.append(name_rows(log.slice(start, start + 20), writer))
        log = LearningBatch.concat(parts)
    whole, state = ItemState(chosen), ItemState(chosen)
    whole.apply(log)
    for start, stop in pairwise([0, *sorted(cuts), 200]):
        state.apply(log.slice(start, stop))
        if snapshot:
            state = ItemState.from_bytes(chosen, state.to_bytes())
    assert state.digest() == whole.digest()
    assert state.items.ids == whole.items.ids
    assert (state.evictions, state.epoch) == (whole.evictions, whole.epoch)


def test_naming_by_row_and_by_id_is_one_log_while_nothing_is_evicted() -> None:
    log = make_log(200, 60)
    by_id, by_row = ItemState(SETTINGS), ItemState(SETTINGS)
    for start in range(0, 200, 20):
        batch = log.slice(start, start + 20)
        known = by_id.items.rows(batch.item_ids) >= 0
        for column in (batch.recent, batch.negatives):
            column[~np.append(known, False)[column]] = -1
        by_id.apply(batch)
        by_row.apply(name_rows(batch.slice(0, 20), by_row))
    assert by_row.digest() == by_id.digest()


def test_a_row_that_another_item_has_by_now_is_unknown() -> None:
    state = ItemState(bounded(3))
    state.apply(make_log(3, 3, drift=1.0))
    epoch, old = state.epoch, state.items.ids[:]
    later = make_log(2, 8).slice(0, 2)
    later.item_ids, later.item[:] = ["x", "y"], [0, 1]
    later.recent[:], later.negatives[:] = -1, -1
    state.apply(later)
    moved = [row for row in range(3) if state.items.ids[row] != old[row]]
    assert len(moved) == 2
    named = later.slice(0, 1)
    named.recent = np.array([[-2, -3, -4, -1]], dtype=np.int32)
    named.table_epoch = epoch
    rows = ItemTable.from_arrays(state.to_arrays(), 3).resolve(named)
    assert rows.recent[0, :3].tolist() == [-1 if row in moved else row for row in range(3)]
    named.table_epoch = state.epoch
    assert ItemTable.from_arrays(state.to_arrays(), 3).resolve(named).recent[0, :3].tolist() == [0, 1, 2]


def test_an_item_that_comes_back_starts_anew() -> None:
    log = make_log(400, 200, drift=1.0)
    state, fresh = ItemState(bounded(40)), ItemState(bounded(40))
    state.apply(log.slice(0, 300))
    gone = next(
        item for item in log.item_ids if state.items.row(item) < 0 and item in log.slice(0, 300).item_ids
    )
    back = log.slice(300, 301)
    back.item_ids, back.recent[:], back.negatives[:] = [gone], -1, -1
    back.item[:] = 0
    state.apply(back)
    fresh.apply(back)
    row, first = state.items.row(gone), fresh.items.row(gone)
    assert (state.factors.factors.rows[row] == fresh.factors.factors.rows[first]).all()
    assert state.covisitation._pool.length[row] == 0
    assert state.popularity.score(np.array([row])) == fresh.popularity.score(np.array([first]))


def test_changes_tell_which_rows_have_another_item() -> None:
    state, log = ItemState(bounded(64)), make_log(600, 300, drift=0.5)
    known: list[str] = []
    for start in range(0, 600, 30):
        state.apply(log.slice(start, start + 30))
        given_rows, freed = state.take_changes()
        assert (given_rows.dtype, freed.dtype) == (np.int32, np.int32)
        known += [""] * (len(state.items) - len(known))
        for row in freed.tolist():
            known[row] = ""
        for row in given_rows.tolist():
            known[row] = state.items.ids[row]
        assert known == state.items.ids
    assert state.evictions > 100
    assert [len(rows) for rows in state.take_changes()] == [0, 0]
    restored = ItemState.from_bytes(bounded(64), state.to_bytes())
    given_rows, freed = restored.take_changes()
    assert sorted([*given_rows, *freed]) == list(range(len(restored.items)))
    assert (restored.items.given[freed] == FREED).all()


def test_freed_rows_are_never_found() -> None:
    state, log = ItemState(bounded(96)), make_log(2000, 400, drift=0.5)
    state.apply(log)
    freed = {row for row, item in enumerate(state.items.ids) if not item}
    assert freed
    everyone = np.arange(len(state.items), dtype=np.int32)
    found = [
        state.factors.retrieve(log.user_after[:20], 200)[0],
        state.covisitation.retrieve(everyone[:, None], 99)[0],
    ]
    found += [state.popularity.top(99), state.popularity.top_plain(99)]
    for rows in found:
        assert not freed & set(rows.ravel().tolist())
    hashes = np.arange(300, dtype=np.uint64)
    weight = np.ones(300, dtype=np.float32)
    _, drawn = state.learn_users(state.start_users(["u"] * 300), ["i1"] * 300, weight, hashes)
    assert set().union(*drawn) <= {item for item in state.items.ids if item}


def test_a_new_item_costs_as_many_steps_in_a_large_table_as_in_a_small_one() -> None:
    """Changes are all that the models do for a new item: an eviction, a share of the sweep, the new row."""
    for max_items in (2_000, 64_000):
        state = ItemState(bounded(max_items))
        ids = [f"i{k}" for k in range(max_items + 500)]
        n = len(ids)
        log = make_log(n, n)
        log.item_ids, log.item = ids, np.arange(n, dtype=np.int32)
        log.recent[:], log.negatives[:] = -1, -1
        state.apply(log.slice(0, max_items))
        for start in range(max_items, n, 100):
            rows = state.items.resolve(log.slice(start, start + 100))
            assert len(rows.changes) <= 5 * 100
            sweeps = rows.changes[rows.changes[:, 1] == 2]
            assert (sweeps[:, 3] - sweeps[:, 2]).max() <= 64
            assert np.bincount(rows.changes[:, 0]).max() <= 3


def test_a_full_table_takes_no_item_outside_the_log() -> None:
    table = ItemTable(["a", "b"], limit=2)
    with pytest.raises(ValueError, match="2 items fill a table of 2"):
        table.ensure(["c"])
    assert table.ensure(["b"]).tolist() == [1]


def test_long_rows_follow_the_equations_while_items_come_and_go() -> None:
    """One item meets hundreds: its row has an index, and is swept of those that lose their rows."""
    n, items, max_items = 1500, 900, 400
    log, state, dense = make_log(n, items, drift=0.6), ItemState(msgspec.structs.replace(
        bounded(max_items), covisitation=CoVisitationSettings(row_capacity=512, **PLAIN)
    )), Dense(max_items)  # fmt: skip
    log.item[::5] = items - 1
    log.recent[1::2, 0] = items - 1
    for start in range(0, n, 100):
        state.apply(log.slice(start, start + 100))
        state = ItemState.from_bytes(state.settings, state.to_bytes()) if start % 300 == 0 else state
    for event in range(n):
        recent = [log.item_ids[index] for index in log.recent[event].tolist() if index >= 0]
        dense.learn(log.item_ids[log.item[event]], recent, float(log.weight[event]))
    ids = list(dense.used)
    hub, rows = state.items.row(log.item_ids[-1]), state.items.rows(ids)
    assert state.covisitation._pool.length[hub] > 200
    assert state.evictions == dense.evictions > 200
    scores = state.covisitation.score(np.array([[hub]], dtype=np.int32), rows[None, :])[0]
    name = log.item_ids[-1]
    expected = [dense.together[name, b] / (dense.weight[name] ** 0.5 * dense.weight[b] ** 0.25) for b in ids]
    assert scores == pytest.approx(np.array(expected), rel=1e-4, abs=1e-6)


@given(max_items=st.integers(5, 200), seed=st.integers(0, 50), n=st.integers(0, 900))
@settings(max_examples=25, deadline=None)
def test_the_pool_knows_its_blocks_and_wastes_little(max_items: int, seed: int, n: int) -> None:
    state = ItemState(bounded(max_items))
    state.apply(make_log(n, 250, seed, drift=0.4))
    pool, rows = state.covisitation._pool, len(state.items)
    top, unused, source, to = pool.marks.tolist()
    sizes = [1 + c + (c if c > UNINDEXED else 0) for c in pool.capacity[:rows].tolist() if c > 0]
    assert top == sum(sizes) + unused + (source - to if source >= 0 else 0)
    held = [row for row in range(rows) if pool.capacity[row] > 0]
    assert pool.keys[pool.start[held] - 1].tolist() == held
    assert top <= 1.3 * sum(sizes) + 600


def test_memory_of_an_item_stays_near_its_raw_arrays() -> None:
    """64 factors and 50 neighbours an item: 4 bytes a factor, 8 a neighbour, 32 of counts."""
    n = 3000
    state = ItemState(msgspec.structs.replace(ModelSettings(), factors=FactorSettings(dimension=64)))
    for lap in range(-1, 5):
        log = make_log(n, n)
        log.item_ids, log.item = [f"i{k}" for k in range(n)], np.arange(n, dtype=np.int32)
        behind = 5 * lap + np.arange(1, 6)
        log.recent = ((log.item[:, None] - behind) % n if lap >= 0 else np.full((n, 5), -1)).astype(np.int32)
        log.user_before = log.user_after = np.zeros((n, 64), dtype=np.float32)
        state.apply(log)
    assert state.to_arrays()["covisitation.lengths"].tolist() == [50] * n
    lists = 2 * 4 * 4096  # of the most popular: they do not grow with the items
    assert sum(state.nbytes().values()) - lists <= 1.5 * n * (4 * 64 + 8 * 50 + 32)
