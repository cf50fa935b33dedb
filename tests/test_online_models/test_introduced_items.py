"""Items with a row before their first use: they count nothing, cost no used item anything, and are the same
on every replica."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from online_models import ItemState, LearningBatch, ModelSettings
from online_models.learning_batch import UNPAIR, WITHDRAW
from online_models.table_kernels import SPARE
from tests.test_online_models.test_eviction import bounded, make_log

NEW = [f"n{k}" for k in range(12)]
Step = tuple[str, int]
"""What happens at a place of a log: events up to there, an item introduced, dismissed, forgotten, or some
of the events before taken back."""

steps = st.lists(
    st.tuples(st.just("events"), st.integers(1, 40))
    | st.tuples(
        st.sampled_from(["introduce", "dismiss", "forget", "withdraw", "unpair"]),
        st.integers(0, len(NEW) - 1),
    ),
    max_size=30,
)


def log_with_arrivals(seed: int, n: int = 400) -> LearningBatch:
    """Events on a drifting catalogue; of each three of its items one is among `NEW`."""
    log = make_log(n, items=36, seed=seed)
    log.item_ids = [NEW[k // 3] if k % 3 == 0 else item_id for k, item_id in enumerate(log.item_ids)]
    return log


def taken_back(batch: LearningBatch, what: str) -> LearningBatch:
    batch.kind = WITHDRAW if what == "withdraw" else UNPAIR
    return batch


def followed(
    models: ModelSettings,
    log: LearningBatch,
    script: Sequence[Step],
    *,
    cut: int = 1000,
    arrivals: bool = True,
) -> ItemState:
    """The state behind a log of events with `script` between them; `cut` events are applied at once at most,
    and without `arrivals` nothing is introduced nor dismissed."""
    state, done = ItemState(models), 0
    for what, number in (*script, ("events", len(log))):
        if what == "events":
            end = min(done + number, len(log))
            while done < end:
                state.apply(log.slice(done, min(done + cut, end)))
                done = min(done + cut, end)
        elif what in ("withdraw", "unpair"):
            first = max(0, done - 5 * number - 5)
            state.apply(taken_back(log.slice(first, min(first + 5, done)), what))
        elif what == "forget":
            state.forget_item(NEW[number])
        elif arrivals and what == "introduce":
            state.introduce([NEW[number], NEW[(number + 5) % len(NEW)]])
        elif arrivals:
            state.dismiss(NEW[number])
    return state


@given(seed=st.integers(0, 3), script=steps, cut=st.integers(1, 50), max_items=st.sampled_from([40, 64, 500]))
@settings(max_examples=60, deadline=None)
def test_replicas_agree_however_the_log_is_cut(
    seed: int, script: list[Step], cut: int, max_items: int
) -> None:
    log, models = log_with_arrivals(seed), bounded(max_items)
    whole = followed(models, log, script)
    assert followed(models, log, script, cut=cut).digest() == whole.digest()
    again = ItemState.from_bytes(models, whole.to_bytes())
    assert again.digest() == whole.digest()
    np.testing.assert_array_equal(again.introduced, whole.introduced)


@given(seed=st.integers(0, 3), script=steps, max_items=st.sampled_from([20, 34, 500]))
@settings(max_examples=60, deadline=None)
def test_nothing_that_is_learned_depends_on_them(seed: int, script: list[Step], max_items: int) -> None:
    """The used items, and all that is known of them, are those of the same log without introductions: rows
    differ, and nothing else."""
    log, models = log_with_arrivals(seed), bounded(max_items)
    state, plain = (followed(models, log, script, arrivals=arrivals) for arrivals in (True, False))
    used = sorted(item_id for item_id in plain.items.ids if item_id)
    introduced = {state.items.ids[row] for row in np.flatnonzero(state.introduced).tolist()}
    assert sorted(item_id for item_id in state.items.ids if item_id and item_id not in introduced) == used
    assert introduced <= set(NEW)
    rows, others = state.items.rows(used), plain.items.rows(used)
    np.testing.assert_array_equal(state.popularity.score(rows), plain.popularity.score(others))
    np.testing.assert_array_equal(state.factors.factors.rows[rows], plain.factors.factors.rows[others])
    np.testing.assert_array_equal(state.activity.last_ms[rows], plain.activity.last_ms[others])
    for row, other in zip(rows.tolist(), others.tolist(), strict=True):
        recent = np.array([[row]], dtype=np.int32), np.array([[other]], dtype=np.int32)
        np.testing.assert_array_equal(
            state.covisitation.score(recent[0], rows[None, :]),
            plain.covisitation.score(recent[1], others[None, :]),
        )


def test_an_introduced_item_counts_nothing_until_it_is_used() -> None:
    state = ItemState(bounded(500))
    log = make_log(40, items=10)
    state.apply(log)
    before = state.digest()
    assert state.introduce(["new", "i3", "new", ""]) == 1, "the others have a row, or no name"
    row = state.items.row("new")
    assert row >= 0
    assert bool(state.introduced[row])
    assert state.introduced.sum() == 1
    assert row not in state.popularity.top(100).tolist()
    assert state.popularity.score_plain(np.array([row], dtype=np.int32)).tolist() == [0.0]
    np.testing.assert_array_equal(
        state.factors.factors.rows[row], state.factors.factors.start_vectors(["new"])[0]
    )
    assert not state.dismiss("i3")
    assert not state.dismiss("unknown")
    used = ItemState.from_bytes(state.settings, state.to_bytes())
    assert state.dismiss("new")
    assert (state.items.row("new"), int(state.introduced.sum())) == (-1, 0)
    assert state.introduce(["new"]) == 1, "it may come back"
    assert state.digest() != before, "its row is another"
    log = make_log(1, items=1)
    log.item_ids = ["new"]
    used.apply(log)
    assert not used.introduced.any()
    assert not used.dismiss("new"), "it has been used since"
    assert used.items.row("new") == row


def test_what_is_taken_back_of_a_former_use_changes_nothing() -> None:
    """An item that was used, forgotten and introduced again has no event that could be taken back."""
    state, log = ItemState(bounded(500)), make_log(40, items=10)
    state.apply(log)
    assert state.forget_item("i3")
    assert state.introduce(["i3"]) == 1
    digest = state.digest()
    mine = log.take(np.flatnonzero(log.item == 3))
    assert len(mine) > 2
    for what in ("unpair", "withdraw"):
        state.apply(taken_back(mine, what))
        assert state.digest() == digest
    assert state.has_introduced


def test_a_full_table_takes_none_and_gives_theirs_first() -> None:
    models = bounded(64)
    room = 64 - 64 // SPARE
    state, log = ItemState(models), make_log(600, items=200, drift=0.3)
    assert state.introduce([f"n{k}" for k in range(100)]) == room
    assert (state.items.room, state.introduce(["late"])) == (0, 0)
    distinct: set[int] = set()
    for event in range(len(log)):
        distinct.add(int(log.item[event]))
        state.apply(log.slice(event, event + 1))
        left = max(0, room - len(distinct))
        assert state.introduced.sum() == left, "an introduced one goes for each item that is used"
        if len(distinct) == room:
            break
    assert all(state.items.row(log.item_ids[item]) >= 0 for item in distinct)
    assert len(distinct) == room


def test_a_row_that_another_item_had_tells_nothing_of_it() -> None:
    """Mentions of the former item are swept before its row is given to an introduced one."""
    state = ItemState(bounded(500))
    log = make_log(200, items=8)
    state.apply(log)
    assert state.forget_item("i1")
    while state.items.row("last") < 0 or state.items.ids.count(""):
        state.introduce([f"n{len(state.items.ids)}-{state.epoch}", "last"])
        assert state.epoch < 1000, "the freed row is given in the end"
    rows = np.flatnonzero(state.introduced).astype(np.int32)
    used = state.items.rows([f"i{k}" for k in range(8) if k != 1])
    for row in used[used >= 0].tolist():
        scores = state.covisitation.score(np.array([[row]], dtype=np.int32), rows[None, :])
        assert not scores.any()
    names = [state.items.ids[row] for row in rows.tolist()]
    np.testing.assert_array_equal(
        state.factors.factors.rows[rows], state.factors.factors.start_vectors(names)
    )


def test_owners_draw_their_negatives_among_used_items() -> None:
    state = ItemState(bounded(500))
    state.introduce([f"n{k}" for k in range(60)])
    state.apply(make_log(60, items=20))
    users = np.zeros((300, 4), dtype=np.float32)
    hashes = np.random.default_rng(1).integers(0, 2**63, 300).astype(np.uint64)
    event = ["i3"] * 300, np.ones(300, dtype=np.float32), hashes
    for step in (state.learn_users, state.unlearn_users):
        drawn = [item_id for line in step(users, *event)[1] for item_id in line]
        assert set(drawn) <= {item_id for item_id in state.items.ids if item_id.startswith("i")} - {"i3"}
        assert len(drawn) > 700, "most of three each, though three in four rows are introduced"
    alone = ItemState(bounded(500))
    alone.introduce(["n1", "n2"])
    assert not any(alone.learn_users(users[:1], ["i3"], event[1][:1], hashes[:1])[1]), "there is none to draw"
