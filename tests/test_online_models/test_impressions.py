from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online_models import ISGD, DecayedPopularity
from online_models.impressions import ImpressionJudge, WeightedEvent

MINUTE_MS = 60_000
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["shown", "shown", "shown", "clicked", "settle"]),
        st.sampled_from(["ann", "bob"]),
        st.sampled_from("abcdef"),
        st.integers(0, 6),
        st.sampled_from(["l1", "l2", "l3", "l4"]),
        st.integers(0, 20),
    ),
    max_size=80,
)


def show(
    judge: ImpressionJudge, items: str, list_id: str = "list", user: str = "ann", minute: int = 0
) -> None:
    for position, item in enumerate(items):
        assert judge.shown(user, item, position, list_id, minute * MINUTE_MS) == []


def weights(events: list[WeightedEvent]) -> dict[str, float]:
    return {item: pytest.approx(y) for _, item, y, _ in events}


def test_what_stands_above_a_click_is_passed_over_and_what_stands_below_is_not_judged() -> None:
    judge = ImpressionJudge(weight=0.1, eta=1.0, strength=10.0, click_rate=0.1)
    show(judge, "abcd")
    learned = judge.clicked("ann", "c", MINUTE_MS)
    theta = 10.0 * 0.5 / (1 + 10.0)  # no click at position 1 in one impression, prior 1 / 2
    assert weights(learned) == {"a": -0.1, "b": -0.1 / theta}
    assert [(user, x["timestamp"], x["event_type"], x["event_id"]) for user, _, _, x in learned] == [
        ("ann", MINUTE_MS, "impression", "list/0"),
        ("ann", MINUTE_MS, "impression", "list/1"),
    ]
    assert judge.settle(10**9) == []  # d was below the click


def test_a_lower_click_judges_what_lies_between() -> None:
    judge = ImpressionJudge(eta=0.0, strength=1e9)
    show(judge, "abcde")
    assert [item for _, item, _, _ in judge.clicked("ann", "b", 1)] == ["a"]
    assert [item for _, item, _, _ in judge.clicked("ann", "e", 2)] == ["c", "d"]
    assert judge.clicked("ann", "a", 3) == []  # judged before
    assert judge.clicked("ann", "e", 3) == []


def test_an_unanswered_list_is_judged_by_how_likely_it_was_looked_at() -> None:
    judge = ImpressionJudge(weight=0.2, patience_s=600.0, eta=1.0, strength=1e9, cap=2.5)
    show(judge, "abcd", minute=1)
    assert judge.settle(11 * MINUTE_MS - 1) == []
    learned = judge.settle(11 * MINUTE_MS)
    assert weights(learned) == {"a": -0.2, "b": -0.1, "c": -0.08, "d": -0.08}  # 1/3 and 1/4 are below 1/cap
    assert {x["timestamp"] for *_, x in learned} == {11 * MINUTE_MS}
    assert judge.settle(10**9) == []


def test_the_weight_of_what_was_passed_over_is_capped() -> None:
    judge = ImpressionJudge(weight=0.1, eta=2.0, strength=1e9, cap=3.0)
    show(judge, "abcd")
    assert weights(judge.clicked("ann", "d", 1)) == {"a": -0.1, "b": -0.3, "c": -0.3}


def test_examination_is_learned_from_clicks_by_position() -> None:
    judge = ImpressionJudge(eta=1.0, strength=50.0, click_rate=0.1, patience_s=60.0)
    for k in range(300):
        show(judge, "abc", f"l{k}", minute=k)
        if k % 3 == 0:
            judge.clicked("ann", "a", k * MINUTE_MS)
        if k % 6 == 0:
            judge.clicked("ann", "c", k * MINUTE_MS)
        judge.settle((k + 1) * MINUTE_MS)
    rate = (100 + 50 * 0.1) / (300 + 50)
    assert judge.examination(0) == 1.0
    assert judge.examination(1) == 0.2  # no clicks: the bound, 1 / cap
    assert judge.examination(2) == pytest.approx((50 / rate + 50 / 3) / (300 + 50))
    assert judge.examination(99) == 0.2


def test_repeats_late_ones_and_far_positions_are_passed_over() -> None:
    judge = ImpressionJudge(patience_s=60.0, max_items=2, eta=0.0, strength=1e9)
    show(judge, "aab")
    assert judge.shown("ann", "z", 1, "list", 5) == []
    learned = judge.shown("ann", "n", 0, "next", 2 * MINUTE_MS)
    assert [x["event_id"] for *_, x in learned] == ["list/0", "list/1"]
    judge.shown("ann", "y", 1, "list", 2 * MINUTE_MS)  # its list is closed
    assert [item for _, item, _, _ in judge.settle(10**9)] == ["n"]


def test_a_click_means_the_list_it_names_or_else_the_newest() -> None:
    def two() -> ImpressionJudge:
        judge = ImpressionJudge()
        show(judge, "xa", "old")
        show(judge, "ya", "new")
        return judge

    assert [item for _, item, _, _ in two().clicked("ann", "a", 1)] == ["y"]
    assert [item for _, item, _, _ in two().clicked("ann", "a", 1, "old")] == ["x"]
    assert two().clicked("ann", "a", 1, "unknown") == []
    assert two().clicked("bob", "a", 1) == []


def test_the_oldest_list_makes_room_and_is_not_judged() -> None:
    judge = ImpressionJudge(max_lists=2)
    for list_id in ("l1", "l2", "l3"):
        show(judge, "ab", list_id)
    assert {x["event_id"].split("/")[0] for *_, x in judge.settle(10**9)} == {"l2", "l3"}


def test_forgetting_drops_lists_and_items() -> None:
    judge = ImpressionJudge()
    show(judge, "abc", user="ann")
    show(judge, "abc", user="bob")
    judge.forget("ann")
    judge.forget(item="b")
    assert all(b"ann" not in array.tobytes() for array in judge.to_arrays().values())
    assert [(user, item) for user, item, _, _ in judge.settle(10**9)] == [("bob", "a"), ("bob", "c")]
    judge.forget("ann", item="never seen")


def play(judge: ImpressionJudge, steps: list[tuple[Any, ...]], seen: Counter[tuple[str, str, str]]) -> Any:
    learned, clock = [], 0
    for kind, user, item, position, list_id, minutes in steps:
        clock += minutes * MINUTE_MS
        if kind == "shown":
            seen[user, list_id, f"{list_id}/{position}"] += 1
            learned += judge.shown(user, item, position, list_id, clock)
        elif kind == "clicked":
            learned += judge.clicked(user, item, clock)
        else:
            learned += judge.settle(clock)
    return learned + judge.settle(clock + 30 * MINUTE_MS)


@given(steps=STEPS, cap=st.sampled_from([1.0, 3.0]), eta=st.sampled_from([0.0, 1.0, 3.0]))
@settings(max_examples=80, deadline=None)
def test_weights_are_bounded_and_nothing_is_learned_twice(
    steps: list[tuple[Any, ...]], cap: float, eta: float
) -> None:
    judge = ImpressionJudge(weight=0.1, cap=cap, eta=eta, strength=2.0, max_lists=4, patience_s=1800.0)
    shown: Counter[tuple[str, str, str]] = Counter()
    # users are kept, so that a repeat is known however late it comes
    kept = [("shown" if step[0] == "settle" else step[0], *step[1:]) for step in steps]
    learned = play(judge, kept, shown)
    judged = Counter((user, x["event_id"].split("/")[0], x["event_id"]) for user, _, _, x in learned)
    assert all(n == 1 for n in judged.values())
    assert set(judged) <= set(shown)
    assert all(-0.1 * cap - 1e-12 <= y <= -0.1 / cap + 1e-12 for _, _, y, _ in learned)
    assert all(1.0 / cap <= judge.examination(position) <= 1.0 for position in range(9))
    assert judge.settle(10**12) == []


@given(steps=STEPS, cut=st.integers(0, 80))
@settings(max_examples=40, deadline=None)
def test_a_restored_judge_goes_on_as_the_first(steps: list[tuple[Any, ...]], cut: int) -> None:
    judge, restored = (ImpressionJudge(strength=2.0, max_lists=2, max_items=5) for _ in range(2))
    before = steps[:cut]
    clock = sum(step[5] for step in before) * MINUTE_MS
    for kind, user, item, position, list_id, _ in before:
        if kind == "shown":
            judge.shown(user, item, position, list_id, clock)
        elif kind == "clicked":
            judge.clicked(user, item, clock)
    restored.from_arrays(judge.to_arrays())
    after = [("shown", "ann", "a", 0, "l1", clock), *steps[cut:]]
    assert play(restored, after, Counter()) == play(judge, after, Counter())


def test_models_learn_what_was_passed_over() -> None:
    judge = ImpressionJudge(weight=0.5)
    for model in (DecayedPopularity(), ISGD()):
        model.learn_many(["ann", "eve"] * 3, ["a", "b"] * 3)
        before = model.predict_one("ann", "a")
        show(judge, "abc", model.__class__.__name__)
        users, items, y, x = zip(*judge.clicked("ann", "c", MINUTE_MS), strict=True)
        model.learn_many(users, items, y, x)
        assert model.predict_one("ann", "a") < before


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"weight": 0.0}, "weight is 0.0"),
        ({"patience_s": float("nan")}, "patience_s is nan"),
        ({"cap": 0.5}, "cap is 0.5"),
        ({"eta": -1.0}, "eta is -1.0"),
        ({"strength": 0.0}, "strength is 0.0"),
        ({"click_rate": 2.0}, "click_rate is 2.0"),
        ({"max_lists": 0}, "max_lists is 0"),
        ({"max_items": 0}, "max_items is 0"),
    ],
)
def test_bad_parameters_are_refused_by_name(kwargs: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ImpressionJudge(**kwargs)


@pytest.mark.parametrize(
    "bad", [("", "a", 0, "l"), ("u", "", 0, "l"), ("u", "a", -1, "l"), ("u", "a", 0, "")]
)
def test_bad_impressions_are_refused(bad: tuple[str, str, int, str]) -> None:
    with pytest.raises(ValueError, match="an impression needs"):
        ImpressionJudge().shown(*bad, time_ms=0)
