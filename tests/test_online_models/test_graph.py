"""The item graph against walks computed densely with numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from online_models import CoVisitation, ItemGraph, checks
from online_models.prequential import Interaction, evaluate
from tests.test_online_models.retrieval import assert_retrieve_is_score_sorted

PLAIN = {"gap_decay": 1.0, "shrinkage": 0.0}
EVENTS = st.lists(st.tuples(st.sampled_from("uvwx"), st.sampled_from("abcdefghij")), min_size=2, max_size=60)
FIVE = [
    ("u", "a"),
    ("u", "b"),
    ("v", "b"),
    ("v", "c"),
    ("w", "c"),
    ("w", "d"),
    ("w", "e"),
    ("x", "b"),
    ("x", "a"),
]


def dense(events: list[tuple[str, str]], items: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pairs T (window 20, no decay, both directions) and counts c of events, by the order of `items`."""
    table, count = np.zeros((len(items), len(items))), np.zeros(len(items))
    history: dict[str, list[str]] = {}
    for user, item in events:
        past = history.setdefault(user, [])
        for other in past[:20]:
            if other != item:
                table[items.index(other), items.index(item)] += 1.0
                table[items.index(item), items.index(other)] += 1.0
        count[items.index(item)] += 1.0
        past.insert(0, item)
    return table, count


def learned(model: CoVisitation, events: list[tuple[str, str]]) -> CoVisitation:
    model.learn_many([user for user, _ in events], [item for _, item in events])
    return model


def all_pairs(model: CoVisitation, items: str) -> NDArray[np.float32]:
    """Scores [asked with, candidate]: each item alone as the newest, all as candidates."""
    rows = model.items.rows(items)
    return model.score(rows[:, None], np.tile(rows, (len(items), 1)))


@pytest.mark.parametrize("restart", [0.3, 0.6, 0.9])
def test_scores_are_personalised_pagerank_as_solved_exactly(restart: float) -> None:
    model = ItemGraph(restart=restart, hops=16, max_pushes=16 * 5, **PLAIN)  # type: ignore[arg-type]
    learned(model, FIVE)
    table, count = dense(FIVE, "abcde")
    step = table / np.maximum(table.sum(axis=1), count)[:, None]
    recent = ["a", "b"]  # what x had, newest first
    start = np.zeros(5)
    for position, item in enumerate(recent):
        at = "abcde".index(item)
        start[at] += 0.85**position * max(table[at].sum(), count[at]) / count[at] ** 0.5
    pagerank = restart * np.linalg.solve(np.eye(5) - (1 - restart) * step.T, start)
    expected = (pagerank - restart * start) / (restart * (1 - restart)) / count**0.4
    left_out = (1 - restart) ** 16 / restart * start.sum()  # the walks of more than 16 steps
    for item, value in zip("abcde", expected, strict=True):
        score = model.predict_one("x", item)
        assert value - left_out - 1e-5 <= score <= value + 1e-5


@given(events=EVENTS, hops=st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_scores_are_the_sum_over_walks(events: list[tuple[str, str]], hops: int) -> None:
    model = ItemGraph(restart=0.4, hops=hops, max_pushes=64, **PLAIN)  # type: ignore[arg-type]
    learned(model, events)
    items = "".join(sorted({item for _, item in events}))
    table, count = dense(events, items)
    mass = table / count[:, None] ** 0.5
    total, step = mass.copy(), 0.6 * table / np.maximum(table.sum(axis=1), count)[:, None]
    for _ in range(hops - 1):
        mass = mass @ step
        total += mass
    np.testing.assert_allclose(all_pairs(model, items), total / count**0.4, rtol=1e-5, atol=1e-7)


@given(events=EVENTS)
@settings(max_examples=15, deadline=None)
def test_both_ends_normalised_alike_make_it_symmetric(events: list[tuple[str, str]]) -> None:
    model = ItemGraph(hops=3, target_exponent=0.5, **PLAIN)  # type: ignore[arg-type]
    learned(model, events)
    scores = all_pairs(model, "".join(sorted({item for _, item in events})))
    np.testing.assert_allclose(scores, scores.T, rtol=1e-4, atol=1e-7)


def test_one_hop_is_co_visitation_to_the_bit() -> None:
    same = {"window": 5, "half_life_s": 3600.0, "query_length": 6}
    near, graph = CoVisitation(**same), ItemGraph(hops=1, **same)  # type: ignore[arg-type]
    graph.target_exponent = near.target_exponent = 0.3
    graph.source_exponent = near.source_exponent = 0.6
    graph.query_decay = near.query_decay = 0.7
    graph.gap_decay = near.gap_decay = 0.9
    graph.shrinkage = near.shrinkage = 3.0
    for event in checks.random_events(300, users=20, items=40):
        near.learn_one(*event)
        graph.learn_one(*event)
    recent = np.concatenate([near.recent_rows(f"user-{k}", 8) for k in range(20)])
    every = np.tile(np.arange(len(near.items), dtype=np.int32), (20, 1))
    assert near.score(recent, every).tobytes() == graph.score(recent, every).tobytes()
    assert (near.score(recent, every) != 0.0).any()


def test_items_two_steps_away_are_found_where_co_visitation_has_nothing() -> None:
    near, graph = CoVisitation(**PLAIN), ItemGraph(restart=0.5, **PLAIN)  # type: ignore[arg-type]
    for model in (near, graph):
        learned(model, [("u", "a"), ("u", "b"), ("v", "b"), ("v", "c"), ("w", "a")])
    assert near.predict_one("w", "c") == 0.0
    # a leads to b with 1 / sqrt(2 events of a); half of it goes on, half of that to c, met once
    assert graph.predict_one("w", "c") == pytest.approx(0.5 / 2**0.5 / 2, rel=1e-6)
    assert graph.rank("w", ["c", "b", "unknown"]) == ["b", "c", "unknown"]


def test_only_the_heaviest_nodes_are_pushed() -> None:
    events = [("u", "a"), ("u", "b"), ("v", "a"), ("v", "b"), ("w", "a"), ("w", "c")]  # a-b twice, a-c once
    events += [("x", "b"), ("x", "d"), ("y", "c"), ("y", "e"), ("z", "a")]
    none, one, two = (
        learned(ItemGraph(max_pushes=pushes, **PLAIN), events)  # type: ignore[arg-type]
        for pushes in (0, 1, 2)
    )
    reached = [[model.predict_one("z", item) > 0.0 for item in "de"] for model in (none, one, two)]
    assert reached == [[False, False], [True, False], [True, True]]


@given(events=EVENTS, pushes=st.integers(0, 6), hops=st.integers(2, 4))
@settings(max_examples=15, deadline=None)
def test_a_score_is_never_too_high(events: list[tuple[str, str]], pushes: int, hops: int) -> None:
    items = "".join(sorted({item for _, item in events}))
    few = learned(ItemGraph(hops=hops, max_pushes=pushes), events)
    all_of_them = learned(ItemGraph(hops=hops, max_pushes=1000), events)
    direct = learned(ItemGraph(hops=1), events)
    assert (all_pairs(few, items) <= all_pairs(all_of_them, items) * (1 + 1e-5)).all()
    assert (all_pairs(few, items) >= all_pairs(direct, items) * (1 - 1e-5)).all()


@given(events=EVENTS, k=st.integers(1, 12), excluded=st.lists(st.integers(-1, 9), max_size=4))
@settings(max_examples=15, deadline=None)
def test_retrieve_is_score_sorted(events: list[tuple[str, str]], k: int, excluded: list[int]) -> None:
    model = learned(ItemGraph(), events)
    assert_retrieve_is_score_sorted(model, k, excluded)


def test_no_walk_follows_a_negative_edge() -> None:
    model = ItemGraph(**PLAIN)  # type: ignore[arg-type]
    model.learn_many(["u", "u", "v", "v", "w"], ["a", "b", "b", "c", "a"], [1.0, -1.0, 1.0, 1.0, 1.0])
    assert model.predict_one("w", "b") < 0.0
    assert model.predict_one("w", "c") == 0.0


def test_where_few_items_were_met_together_two_hops_beat_one() -> None:
    rng = np.random.default_rng(3)
    stream = []
    for user in range(400):  # ten groups of 30 items; a user has three of one group
        group = rng.integers(10)
        items = group * 30 + rng.choice(30, size=3, replace=False)
        stream += [Interaction(f"u{user}", f"i{item}") for item in items]
    reports = evaluate({"one": ItemGraph(hops=1), "two": ItemGraph(hops=2)}, stream)
    assert reports["two"].hr_at_50 > 1.2 * reports["one"].hr_at_50
    assert reports["two"].hr_at_10 > 1.1 * reports["one"].hr_at_10


def test_withdrawn_events_leave_no_walk() -> None:
    model = ItemGraph()
    model.learn_many(["u", "u"], ["a", "b"], x=[{"event_id": "1"}, {"event_id": "2"}])
    model.learn_many(["v", "v", "w"], ["b", "c", "a"], x=[{"event_id": "3"}, {"event_id": "4"}, None])
    assert model.predict_one("w", "c") > 0.0
    assert model.retract("u", "2")
    assert model.predict_one("w", "b") == model.predict_one("w", "c") == 0.0


@pytest.mark.parametrize(
    "kwargs", [{"restart": 0.0}, {"restart": 1.5}, {"hops": 0}, {"hops": 17}, {"max_pushes": -1}]
)
def test_bad_parameters_are_refused_by_name(kwargs: dict[str, float]) -> None:
    name, value = next(iter(kwargs.items()))
    with pytest.raises(ValueError, match=rf"{name} is {value}"):
        ItemGraph(**kwargs)  # type: ignore[arg-type]
