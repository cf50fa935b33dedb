from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online_models import CoVisitation, checks
from online_models.prequential import Interaction, evaluate
from tests.test_online_models.retrieval import assert_retrieve_is_score_sorted


def dense_scores(model: CoVisitation, events: list[tuple[str, str]], user: str) -> dict[str, float]:
    """The equation of the docstring, with dense tables and no decay in time."""
    table: dict[tuple[str, str], float] = defaultdict(float)
    count: dict[str, float] = defaultdict(float)
    history: dict[str, list[str]] = defaultdict(list)
    for who, item in events:
        for gap, other in enumerate(history[who][: model.window]):
            if other != item:
                table[other, item] += model.gap_decay**gap
                table[item, other] += model.gap_decay**gap * model.backward_weight
        count[item] += 1
        history[who].insert(0, item)
    s, a, b = model.shrinkage, model.source_exponent, model.target_exponent
    return {
        item: sum(
            model.query_decay**position * table[h, item] / ((count[h] + s) ** a * (count[item] + s) ** b)
            for position, h in enumerate(history[user][: model.query_length])
        )
        for item in count
    }


EVENTS = st.lists(
    st.tuples(st.sampled_from("uvw"), st.sampled_from("abcdefghijklmnopqrstuvwxyz")), max_size=120
)


@given(events=EVENTS, gap_decay=st.sampled_from([1.0, 0.8]), shrinkage=st.sampled_from([0.0, 5.0]))
@settings(max_examples=40, deadline=None)
def test_scores_follow_the_equation(
    events: list[tuple[str, str]], gap_decay: float, shrinkage: float
) -> None:
    model = CoVisitation(gap_decay=gap_decay, shrinkage=shrinkage, backward_weight=0.5, window=5)
    model.learn_many([user for user, _ in events], [item for _, item in events])
    for item, expected in dense_scores(model, events, "u").items():
        assert model.predict_one("u", item) == pytest.approx(expected, rel=1e-5, abs=1e-7)


@given(events=EVENTS, k=st.integers(1, 40), excluded=st.lists(st.integers(-1, 40), max_size=6))
@settings(max_examples=40, deadline=None)
def test_retrieve_is_score_sorted(events: list[tuple[str, str]], k: int, excluded: list[int]) -> None:
    model = CoVisitation()
    model.learn_many([user for user, _ in events], [item for _, item in events])
    assert_retrieve_is_score_sorted(model, k, excluded)


def test_contributions_sum_to_the_score() -> None:
    model = CoVisitation()
    for user, item, weight, x in checks.random_events(200):
        model.learn_one(user, item, abs(weight) % 10, x)
    recent = model.recent_rows("user-1", 10)[0]
    for row in range(len(model.items)):
        parts = model.contributions(recent, row)
        whole = model.score(recent[None, :], np.array([[row]], dtype=np.int32))[0, 0]
        assert parts.shape == (10,)
        assert parts.sum() == pytest.approx(whole, rel=1e-5)


def test_a_full_row_drops_its_lightest_eighth() -> None:
    model = CoVisitation(row_capacity=16, window=1, gap_decay=1.0)
    weights = [float(3 + (5 * k) % 17) for k in range(17)]  # the seventeenth partner finds the row full
    for k, weight in enumerate(weights):
        model.learn_many([f"u{k}"] * 2, ["hub", f"p{k}"], [1.0, weight])
    rows, _ = model.retrieve(np.array([[model.items.row("hub")]], dtype=np.int32), 20)
    kept = {model.items.ids[row] for row in rows[0] if row >= 0}
    lightest = sorted(range(16), key=lambda k: weights[k])[:2]
    assert kept == {f"p{k}" for k in range(17) if k not in lightest}


def test_old_weights_halve_by_event_time_across_a_moved_landmark() -> None:
    model = CoVisitation(half_life_s=10.0, source_exponent=0.0, target_exponent=0.0, query_decay=0.8)
    model.learn_one("u", "a", x={"timestamp": 0})
    model.learn_one("u", "b", x={"timestamp": 0})
    # b is the newest of u and leads to a; a, one place back, leads to b; at 300 s the landmark has moved
    for seconds, expected in [(10, 0.5), (50, 2.0**-5), (300, 2.0**-30)]:
        model.learn_one("other", "c", x={"timestamp": seconds * 1000})
        assert model.predict_one("u", "a") == pytest.approx(expected, rel=1e-6)
        assert model.predict_one("u", "b") == pytest.approx(0.8 * expected, rel=1e-6)
    assert model._clock[0] > 0


def test_a_late_event_counts_with_its_age() -> None:
    model = CoVisitation(half_life_s=10.0, source_exponent=0.0, target_exponent=0.0)
    model.learn_one("v", "z", x={"timestamp": 20_000})
    model.learn_one("u", "a", x={"timestamp": 0})
    model.learn_one("u", "b", x={"timestamp": 0})
    assert model.predict_one("u", "a") == pytest.approx(0.25)


def test_a_negative_weight_lowers_a_score() -> None:
    model = CoVisitation()
    model.learn_many(["u", "u", "v"], ["a", "b", "a"])
    before = model.predict_one("v", "b")
    model.learn_one("w", "a")
    model.learn_one("w", "b", -1.0)
    assert model.predict_one("v", "b") < before


def test_learning_cost_does_not_grow_with_the_catalogue() -> None:
    model = CoVisitation()
    model.items.ensure(f"item-{k}" for k in range(50_000))
    model.learn_many(["u"] * 30, [f"item-{k * 1000}" for k in range(30)])
    slots = int(model._pool.marks[0])
    assert slots <= 30 * (1 + 20) * 2  # blocks for 30 touched rows of at most 20 partners, none for others


@pytest.mark.parametrize(
    "kwargs", [{"row_capacity": 100}, {"row_capacity": 4}, {"gap_decay": 1.5}, {"half_life_s": 0.001}]
)
def test_bad_parameters_are_refused(kwargs: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(kwargs.values())))):
        CoVisitation(**kwargs)


@given(
    events=EVENTS,
    withdrawn=st.sets(st.integers(0, 119), max_size=20),
    half_life_s=st.sampled_from([0.0, 7.0]),
)
@settings(max_examples=30, deadline=None)
def test_withdrawn_events_leave_no_trace(
    events: list[tuple[str, str]], withdrawn: set[int], half_life_s: float
) -> None:
    """Rows are long enough here that none is pruned, and pasts short enough that all can be withdrawn."""
    model, without = (
        CoVisitation(shrinkage=3.0, gap_decay=0.9, backward_weight=0.5, window=5, half_life_s=half_life_s)
        for _ in range(2)
    )
    last = ("w", "z", 1.0, {"timestamp": 200_000})
    for place, (user, item) in enumerate(events):
        event = (user, item, 1.0, {"timestamp": 1000 * place, "event_id": str(place)})
        model.learn_one(*event)
        if place not in withdrawn:
            without.learn_one(*event)
    done = [place for place, (user, _) in enumerate(events) if place in withdrawn]
    missed = [place for place in done if not model.retract(events[place][0], str(place))]
    assert not missed
    for one in (model, without):
        one.learn_one(*last)
    for user in "uvw":
        for item in without.items.ids:
            theirs = without.predict_one(user, item)
            assert model.predict_one(user, item) == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    unused = [row for row, item in enumerate(model.items.ids) if without.items.row(item) < 0]
    assert not model._source_norm[unused].any()
    assert not model._count[unused].any()
    assert not model._pool.length[unused].any()


def test_a_forgotten_item_is_in_nobodys_list() -> None:
    model = CoVisitation(shrinkage=0.0, gap_decay=1.0)
    model.learn_many(["u", "u", "u", "v"], ["a", "b", "c", "a"])
    gone = model.items.row("b")
    model.forget(item="b")
    rows, scores = model.retrieve(model.recent_rows("v", 10), 5)
    assert [model.items.ids[row] for row in rows[0] if row >= 0] == ["c"]
    assert scores[0, 0] == pytest.approx(2**-0.5)  # a was used twice, c once
    assert model._pool.length[gone] == 0
    model.learn_many(["w", "w"], ["b", "a"])  # b is new now
    assert model.items.row("b") >= 0
    assert model.predict_one("w", "c") > 0.0


def test_short_rows_keep_the_hit_rate_of_the_dense_table() -> None:
    """Twenty tastes of 15 items, a tenth of all uses at random: rows meet more partners than they keep."""
    rng, events = np.random.default_rng(1), []
    for number in range(2400):
        user = number % 60
        near = 15 * (user % 20) + int(14.99 * rng.random() ** 2)
        item = near if rng.random() < 0.9 else int(rng.integers(300))
        events.append(Interaction(f"u{user}-{number // 1200}", f"i{item}"))
    short, dense = CoVisitation(row_capacity=32), CoVisitation(row_capacity=512)
    reports = evaluate({"short": short, "dense": dense}, events)
    assert int((dense._pool.length > 32).sum()) > 100
    assert int(short._pool.length.max()) <= 32
    assert reports["dense"].hr_at_10 > 0.3
    assert reports["short"].hr_at_10 >= 0.995 * reports["dense"].hr_at_10
