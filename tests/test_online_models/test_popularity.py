from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online_models import DecayedPopularity

EVENTS = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 10**6), st.sampled_from([1.0, 0.5, 3.0])), max_size=150
)


def learned(events: list[tuple[int, int, float]], **kwargs: float) -> DecayedPopularity:
    model = DecayedPopularity(**kwargs)
    for item, second, weight in events:
        model.learn_one("u", str(item), weight, {"timestamp": second * 1000})
    return model


@given(events=EVENTS, half_life_s=st.sampled_from([0.0, 5_000.0, 1e6]))
@settings(max_examples=50, deadline=None)
def test_scores_follow_the_equation(events: list[tuple[int, int, float]], half_life_s: float) -> None:
    model = learned(events, half_life_s=half_life_s)
    now = max((second for _, second, _ in events), default=0)
    for item in {item for item, _, _ in events}:
        ages = [(weight, now - second) for other, second, weight in events if other == item]
        expected = sum(weight * (2.0 ** (-age / half_life_s) if half_life_s else 1.0) for weight, age in ages)
        assert model.predict_one("u", str(item)) == pytest.approx(expected, rel=1e-5, abs=1e-30)
        assert model.score_plain(model.items.rows([str(item)])).tolist() == [len(ages)]


@given(events=EVENTS, top_size=st.integers(1, 40), half_life_s=st.sampled_from([0.0, 5_000.0]))
@settings(max_examples=60, deadline=None)
def test_top_lists_are_exact(events: list[tuple[int, int, float]], top_size: int, half_life_s: float) -> None:
    model = learned(events, top_size=top_size, half_life_s=half_life_s)
    rows = np.arange(len(model.items), dtype=np.int32)
    n = len(rows)
    best = np.argsort(-model._decayed[:n], kind="stable")[:top_size]
    assert model.top(top_size).tolist() == [row for row in best if model._decayed[row] > 0.0]
    plain = np.argsort(-model.score_plain(rows), kind="stable")[:top_size]
    assert model.top_plain(top_size).tolist() == plain.tolist()
    assert model.top(3).tolist() == model.top(top_size).tolist()[:3]


def test_a_disliked_item_falls_and_leaves_the_list() -> None:
    model = DecayedPopularity(half_life_s=0.0)
    model.learn_many(["u"] * 4, ["a", "a", "b", "c"])
    assert [model.items.ids[row] for row in model.top(9)] == ["a", "b", "c"]
    model.learn_many(["u"] * 2, ["a", "b"], [-1.5, -2.0])
    assert [model.items.ids[row] for row in model.top(9)] == ["c", "a"]
    assert [model.items.ids[row] for row in model.top_plain(9)] == ["a", "b", "c"]


def test_a_short_list_is_rebuilt_after_many_negative_events() -> None:
    model = DecayedPopularity(half_life_s=0.0, top_size=2)
    model.learn_many(["u"] * 60, ["a"] * 30 + ["b"] * 20 + ["c"] * 10)
    model.learn_many(["u"] * 1024, ["a", "b"] * 512, [-1.0] * 1024)
    assert [model.items.ids[row] for row in model.top(2)] == ["c"]


@given(
    events=EVENTS,
    withdrawn=st.sets(st.integers(0, 149), max_size=60),
    top_size=st.integers(1, 40),
    half_life_s=st.sampled_from([0.0, 1e5]),
)
@settings(max_examples=40, deadline=None)
def test_withdrawn_events_leave_no_trace_and_the_lists_exact(
    events: list[tuple[int, int, float]], withdrawn: set[int], top_size: int, half_life_s: float
) -> None:
    model = DecayedPopularity(top_size=top_size, half_life_s=half_life_s)
    kept = [event for place, event in enumerate(events) if place not in withdrawn]
    for place, (item, second, weight) in enumerate(events):
        x = {"timestamp": second * 1000, "event_id": str(place)}
        model.learn_one(f"u{place % 3}", str(item), weight, x)
    for place in sorted(withdrawn):
        assert model.retract(f"u{place % 3}", str(place)) == (place < len(events))
    without = learned(kept, half_life_s=half_life_s)
    n, rows = len(model.items), np.arange(len(model.items), dtype=np.int32)
    theirs = without.items.rows(model.items.ids)
    plain = without.score_plain(theirs)
    assert model.score_plain(rows).tolist() == plain.tolist()
    between_s = float(model._clock[0] - without._clock[0]) / 1000.0  # of their landmarks
    shift = 2.0 ** (between_s / half_life_s) if half_life_s and kept else 1.0
    expected = [without._decayed[row] if row >= 0 else 0.0 for row in theirs.tolist()]
    assert (model._decayed[:n] * shift).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    for values, best in ((model._decayed[:n], model.top(top_size)), (plain, model.top_plain(top_size))):
        positive = min(top_size, int((values > 0.0).sum()))
        assert np.argsort(-values, kind="stable")[: len(best)].tolist() == best.tolist()
        assert positive // 2 <= len(best) <= positive


def test_the_newest_event_withdrawn_takes_the_time_back() -> None:
    model = DecayedPopularity(half_life_s=10.0)
    for second, item in enumerate("abcd"):
        model.learn_one("u", item, x={"timestamp": 10_000 * second, "event_id": item})
    assert model.predict_one("u", "a") == 0.125
    assert model.retract("u", "d")
    assert model.predict_one("u", "a") == 0.25
    assert model.retract("u", "b")
    assert [model.predict_one("u", item) for item in "abcd"] == [0.25, 0.0, 1.0, 0.0]
    assert model.retract("u", "c")
    assert model.retract("u", "a")  # the last time that is known stays
    assert model.top(9).tolist() == model.top_plain(9).tolist() == []


def test_a_forgotten_item_leaves_both_lists() -> None:
    model = DecayedPopularity(top_size=2)
    model.learn_many(["u"] * 6, ["a", "a", "a", "b", "b", "c"])
    model.forget(item="a")
    assert [model.items.ids[row] for row in model.top(2)] == ["b", "c"]
    assert [model.items.ids[row] for row in model.top_plain(2)] == ["b", "c"]


def test_top_is_a_copy() -> None:
    model = DecayedPopularity()
    model.learn_one("u", "a")
    before = model.digest()
    model.top(1)[:] = 9
    model.top_plain(1)[:] = 9
    assert model.digest() == before
