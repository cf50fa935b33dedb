from __future__ import annotations

from collections import defaultdict
from math import sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online_models import ItemKNN, ItemTable, checks
from online_models.item_knn_kernels import block_size
from online_models.learning_batch import PAIR, UNPAIR, WITHDRAW
from tests.test_online_models.batches import LASTING, random_batches

BROWSED = [("user 1", "ABC"), ("user 2", "BCD"), ("user 3", "CDE")]


def browsers(**parameters: Any) -> ItemKNN:
    model = ItemKNN(query_decay=1.0, shrinkage=0.0, **parameters)
    for user, items in BROWSED:
        model.learn_many([user] * 3, list(items))
    return model


def similarities(model: ItemKNN, source: str, targets: str) -> list[float]:
    rows = model.items.rows(list(targets))
    return model.score(model.items.rows([source]), rows).tolist()


@pytest.mark.parametrize(
    ("measure", "d_for_1", "e_for_1", "a_or_e_for_2"),
    [
        ("count", 3.0, 1.0, 2.0),  # D: once with B, twice with C; E: once with C; A: once with B and with C
        ("cosine", 1 / 2 + 2 / sqrt(6), 1 / sqrt(3), 1 / sqrt(2) + 1 / sqrt(3)),
    ],
)
def test_three_browsers(measure: str, d_for_1: float, e_for_1: float, a_or_e_for_2: float) -> None:
    """Case 2: the same symmetric counts by hand, and the cosines that they give."""
    model = browsers(measure=measure)
    assert model.predict_one("user 1", "D") == pytest.approx(d_for_1)
    assert model.predict_one("user 1", "E") == pytest.approx(e_for_1)
    assert model.predict_one("user 3", "B") == pytest.approx(d_for_1)
    assert model.predict_one("user 3", "A") == pytest.approx(e_for_1)
    assert model.predict_one("user 2", "A") == model.predict_one("user 2", "E")
    assert model.predict_one("user 2", "A") == pytest.approx(a_or_e_for_2)
    ranked = model.recommend([user for user, _ in BROWSED], 2, dict(BROWSED))
    assert [[item for item, _ in one] for one in ranked] == [["D", "E"], ["A", "E"], ["B", "A"]]


EVENT = st.tuples(st.sampled_from("uvw"), st.sampled_from("abcdefghijkl"), st.sampled_from([1.0, 2.0, 5.0]))
EVENTS = st.lists(EVENT, max_size=100)


class Plain:
    """The equations of the docstring, with dictionaries and no decay in time."""

    def __init__(self, model: ItemKNN) -> None:
        self.model = model
        self.together: dict[tuple[str, str], float] = defaultdict(float)
        self.mass: dict[str, float] = defaultdict(float)
        self.history: dict[str, list[tuple[str, float]]] = defaultdict(list)  # newest first
        self.ratings: dict[str, list[float]] = defaultdict(list)
        self.is_rated = model.measure == "adjusted_cosine"

    def learn(self, user: str, item: str, y: float) -> None:
        self.ratings[user].append(y)
        own = y - float(np.mean(self.ratings[user])) if self.is_rated else y
        window = self.history[user][: self.model.history_length]
        for place, (other, value) in enumerate(window):
            if other != item and other not in [before for before, _ in window[:place]]:
                pair = own * (value if self.is_rated else 1.0)
                self.together[item, other] += pair
                self.together[other, item] += pair
        self.mass[item] += own * own if self.is_rated else abs(own)
        if self.is_rated:  # a new rating moves the item to the front and leaves a hole
            self.history[user] = [("", 0.0) if other == item else (other, x) for other, x in
                                  self.history[user]]  # fmt: skip
        self.history[user].insert(0, (item, own))

    def score(self, user: str, item: str) -> float:
        model, total = self.model, 0.0
        window = self.history[user][: model.history_length if self.is_rated else model.query_length]
        asked = [entry for entry in window if entry[0]][: model.query_length]
        for place, (other, value) in enumerate(asked):
            roots = sqrt(self.mass[item] * self.mass[other])
            similarity = self.together[other, item]
            if model.measure != "count":
                similarity = similarity / (roots + model.shrinkage) if roots > 1e-6 else 0.0
            total += model.query_decay**place * similarity * (value if self.is_rated else 1.0)
        return total


@given(
    events=EVENTS, measure=st.sampled_from(["cosine", "adjusted_cosine", "count"]),
    shrinkage=st.sampled_from([0.0, 5.0]), history_length=st.integers(1, 6),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_scores_follow_the_equation(
    events: list[tuple[str, str, float]], measure: str, shrinkage: float, history_length: int
) -> None:
    model = ItemKNN(
        measure=measure, shrinkage=shrinkage, history_length=history_length, query_length=4, query_decay=0.8
    )
    plain = Plain(model)
    for user, item, y in events:
        model.learn_one(user, item, y)
        plain.learn(user, item, y)
    for user in "uv":
        for item in "abcdefghijkl":
            expected = plain.score(user, item)
            assert model.predict_one(user, item) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_few_and_many_candidates_score_the_same() -> None:
    for parameters in ({}, {"shrinkage": 3.0, "half_life_s": 3600.0}, {"measure": "count"}):
        model = ItemKNN(**parameters)
        for user, item, weight, x in checks.random_events(600, users=20, items=90):
            model.learn_one(user, item, weight, x)
        rows = np.arange(-1, len(model.items), dtype=np.int32)
        assert len(rows) > 64
        for user in ("user-1", "user-2", "stranger"):
            many = model.score_rows(user, rows)
            few = np.concatenate([model.score_rows(user, rows[k : k + 9]) for k in range(0, len(rows), 9)])
            assert many.tolist() == few.tolist()
            assert (model._total == 0.0).all()


def test_adjusted_cosine_tells_likes_from_dislikes() -> None:
    """Two users agree on a and b, and disagree with both on c; each has rated z to have a mean before."""
    model = ItemKNN(measure="adjusted_cosine", query_decay=1.0, shrinkage=0.0)
    for user in ("ann", "bob"):
        for item, rating in [("z", 3.0), ("a", 5.0), ("b", 5.0), ("c", 1.0)]:
            model.learn_one(user, item, rating)
    # less the running means: 3 - 3, 5 - 4, 5 - 13/3, 1 - 14/4 of each
    assert similarities(model, "a", "abcz") == pytest.approx([0.0, 1.0, -1.0, 0.0])
    model.learn_one("eve", "z", 1.0)
    model.learn_one("eve", "a", 5.0)
    # eve's own 5 - 3 for a, times 2 x 1 x 2/3 / (sqrt(1 + 1 + 4) sqrt(4/9 + 4/9))
    assert model.predict_one("eve", "b") == pytest.approx(2 / sqrt(3))
    assert model.predict_one("eve", "c") == pytest.approx(-2 / sqrt(3))


def test_a_rating_counts_where_there_is_one_and_the_weight_where_there_is_none() -> None:
    rated, weighed = ItemKNN(measure="adjusted_cosine"), ItemKNN(measure="adjusted_cosine")
    for item, rating in [("a", 5.0), ("b", 1.0), ("c", 2.0)]:
        rated.learn_one("ann", item, rating, {"weight": 1.0})
        batch = weighed.learn_user([("ann", item, rating, None)])
        batch.value[:] = np.nan
        weighed.apply(batch, weighed.items.resolve(batch))
    ours, theirs = rated.item_arrays(), weighed.item_arrays()
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)
    assert rated.predict_one("ann", "b") != 0.0


def test_not_interested_lowers_a_score() -> None:
    for measure in ("count", "cosine"):
        model = browsers(measure=measure)
        before = model.predict_one("user 1", "D")
        model.learn_one("user 4", "C")
        model.learn_one("user 4", "D", -1.0)
        assert model.predict_one("user 1", "D") < before
        assert similarities(model, "C", "D")[0] == pytest.approx(1.0 if measure == "count" else 1 / sqrt(12))


def test_a_full_row_keeps_its_nearest_half() -> None:
    model = ItemKNN(neighbours=4, history_length=1)
    for k in range(4):  # partner k is met k + 1 times by users of its own, and used 10 times without the hub
        for n in range(k + 1):
            model.learn_many([f"u{k}.{n}"] * 2, ["hub", f"p{k}"])
    for n in range(50):
        model.learn_one(f"only {n}", "p3")
    rows = model.items.rows(["p0", "p1", "p2", "p3"])
    hub = model.items.rows(["hub"])
    assert (model.score(hub, rows) > 0).all()
    model.learn_many(["last"] * 2, ["hub", "p4"])
    # by n_ij / sqrt(n_j): p0 1, p1 2 / sqrt 2, p2 3 / sqrt 3, p3 4 / sqrt 54
    assert (model.score(hub, model.items.rows([f"p{k}" for k in range(5)])) > 0).tolist() == [
        False, True, True, False, True
    ]  # fmt: skip
    assert model._pool.used[hub[0]] == 3


@given(events=EVENTS, neighbours=st.integers(1, 9), restored=st.booleans())
@settings(max_examples=40, deadline=None)
def test_rows_stay_bounded_and_do_not_depend_on_their_layout(
    events: list[tuple[str, str, float]], neighbours: int, restored: bool
) -> None:
    model, plain = ItemKNN(neighbours=neighbours), ItemKNN(neighbours=neighbours)
    for user, item, y in events:
        model.learn_one(user, item, y)
        plain.learn_one(user, item, y)
        if restored:  # lays every row out anew
            model.load_item_arrays(model.item_arrays())
        assert model._pool.used.max(initial=0) <= neighbours
        assert model._pool.capacity.max(initial=0) <= block_size(neighbours)
    assert model.digest() == plain.digest()


def test_weights_halve_by_event_time_across_a_moved_landmark() -> None:
    count = ItemKNN(measure="count", half_life_s=10.0)
    cosine = ItemKNN(half_life_s=10.0, shrinkage=1.0)
    for model in (count, cosine):
        model.learn_one("u", "a", x={"timestamp": 0})
        model.learn_one("u", "b", x={"timestamp": 0})
    for seconds in (10, 50, 300):
        left = 2.0 ** (-seconds / 10)
        for model in (count, cosine):
            model.learn_one("other", "c", x={"timestamp": seconds * 1000})
        assert count.predict_one("u", "a") == pytest.approx(left, rel=1e-6)
        assert cosine.predict_one("u", "a") == pytest.approx(left / (left + 1.0), rel=1e-6)
    assert count._clock[0] > 0
    count.learn_one("v", "a", x={"timestamp": 290_000})
    count.learn_one("v", "b", x={"timestamp": 290_000})
    assert count.predict_one("u", "a") == pytest.approx(0.5 + 2.0**-30)  # late by one half-life


def test_items_that_come_and_go_leave_nothing_behind() -> None:
    """A full table: against a dictionary that forgets with it, after a restore on the way."""
    rng, model = np.random.default_rng(3), ItemKNN(measure="count", history_length=3, query_decay=1.0)
    model.items = ItemTable(limit=40)
    together: dict[tuple[str, str], float] = defaultdict(float)
    recent: list[str] = []
    for step in range(900):
        item = f"i{step // 6 + int(rng.integers(0, 30))}"
        known = {other for other in recent if model.items.row(other) >= 0}
        had = set(model.items.ids)
        model.learn_one("u", item)
        gone = had - set(model.items.ids)
        together = defaultdict(float, {pair: n for pair, n in together.items() if not gone & set(pair)})
        for other in known - gone - {item}:
            together[item, other] += 1.0
            together[other, item] += 1.0
        recent = [item, *recent][:3]
        if step % 200 == 199:
            limited, arrays = ItemTable.from_arrays(model.items.to_arrays(), 40), model.item_arrays()
            model.items = limited
            model.load_item_arrays(arrays)
    assert model.items.evictions > 50
    ids = [item for item in model.items.ids if item]
    for item in ids:
        found = model.score(model.items.rows([item]), model.items.rows(ids)).tolist()
        assert found == [together[item, other] for other in ids]


def test_blocks_that_were_given_up_are_used_again() -> None:
    model, tops = ItemKNN(history_length=5), []
    model.items = ItemTable(limit=60)
    rng = np.random.default_rng(0)
    for step in range(3000):
        model.learn_one(f"u{step % 20}", f"i{step // 10 + rng.integers(0, 40)}")
        tops.append(int(model._pool.marks[0]))
    assert model.items.evictions > 200
    assert tops[-1] <= 1.2 * tops[1000]  # two hundred items later, without a block more for each
    assert model.nbytes() == 33 * len(model.items) + 8 * tops[-1]


def test_learning_cost_does_not_grow_with_the_catalogue() -> None:
    model = ItemKNN()
    model.items.ensure(f"item-{k}" for k in range(50_000))
    model.learn_many(["u"] * 30, [f"item-{k * 1000}" for k in range(30)])
    assert int(model._pool.marks[0]) <= 30 * (8 + 16 + 32 + 64)


@given(
    events=st.lists(EVENT, min_size=1, max_size=50),
    measure=st.sampled_from(["cosine", "adjusted_cosine", "count"]),
    which=st.integers(0, 99), history_length=st.sampled_from([3, 50]),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_what_is_withdrawn_was_never_there(
    events: list[tuple[str, str, float]], measure: str, which: int, history_length: int
) -> None:
    which %= len(events)
    if measure == "adjusted_cosine":
        history_length = 50
    model, without = [
        ItemKNN(measure=measure, shrinkage=1.0, history_length=history_length) for _ in range(2)
    ]
    for at, (user, item, y) in enumerate(events):
        model.learn_one(user, item, y, {"event_id": f"{at}"})
        if at != which:
            without.learn_one(user, item, y)
    assert model.retract(events[which][0], f"{which}")
    ids = "".join(without.items.ids)
    for item in ids:
        assert similarities(model, item, ids) == pytest.approx(similarities(without, item, ids), abs=1e-5)
    if measure != "adjusted_cosine":  # there, what is 0 may be held or not
        assert model._pool.used.sum() == without._pool.used.sum()
    assert model._mass.max(initial=0.0) == pytest.approx(without._mass.max(initial=0.0), abs=1e-6)


def test_ratings_beyond_the_kept_history_stay_as_they_were_learned() -> None:
    """Withdrawing the oldest of many ratings takes back and learns again what is kept, to the same state."""
    model = ItemKNN(measure="adjusted_cosine", history_length=4)
    for at, item in enumerate("abcdefgh"):
        model.learn_one("ann", item, 1.0 + at % 5, {"timestamp": at, "event_id": item})
    before = model.item_arrays()
    assert model.retract("ann", "a")
    after = model.item_arrays()
    for name, array in before.items():
        assert after[name] == pytest.approx(array, rel=1e-5, abs=1e-6), name


def test_rating_again_replaces_the_rating() -> None:
    for measure in ("cosine", "adjusted_cosine"):
        model, once = ItemKNN(measure=measure, shrinkage=1.0), ItemKNN(measure=measure, shrinkage=1.0)
        model.learn_one("ann", "a", 1.0, {"event_type": "rating"})
        for one in (model, once):
            one.learn_many(["ann", "bob", "bob"], ["b", "a", "b"], [4.0, 5.0, 2.0])
            one.learn_one("ann", "a", 5.0, {"event_type": "rating"})
        assert similarities(model, "a", "ab") == pytest.approx(similarities(once, "a", "ab"), abs=1e-6)
        assert model.predict_one("bob", "b") == pytest.approx(once.predict_one("bob", "b"), abs=1e-6)


@pytest.mark.parametrize("measure", ["cosine", "adjusted_cosine", "count"])
def test_a_hundred_thousand_random_steps_stay_finite(measure: str) -> None:
    rng = np.random.default_rng(0)
    model = ItemKNN(measure=measure, neighbours=20, half_life_s=60.0, shrinkage=0.0, max_users=40)
    for batch in random_batches(rng, n=10_000, batches=4, users=60, items=50):
        model.apply(batch, model.items.resolve(batch))
        for kind in (UNPAIR, PAIR, WITHDRAW):
            taken = batch.take(rng.choice(len(batch), 2_000))
            taken.kind = kind
            model.correct(*model.items.find(taken))
        assert np.isfinite(model._pool.values).all()
        assert np.isfinite(model._mass).all()
        rows = np.arange(len(model.items), dtype=np.int32)
        for strength in (None, np.full(15, 2e6, dtype=np.float32)):
            assert np.isfinite(model.score(rows[:15], rows, strength)).all()


VARIANTS: list[dict[str, Any]] = [
    {"measure": "count", "neighbours": 8},
    {"shrinkage": 4.0, "half_life_s": 3600.0, "history_length": 3},
    {"measure": "adjusted_cosine", "max_users": 6},
    {"measure": "adjusted_cosine", "half_life_s": 3600.0, "neighbours": 9},
]


@pytest.mark.parametrize("parameters", VARIANTS, ids=str)
@pytest.mark.parametrize("check", checks.all_checks(), ids=lambda check: check.__name__)
def test_variants_keep_the_contract(check: Any, parameters: dict[str, Any]) -> None:
    check(lambda: ItemKNN(**parameters))


@pytest.mark.parametrize(
    "parameters",
    [
        {"measure": "count", "neighbours": 3},
        {"measure": "adjusted_cosine", "max_users": 3},
        {"measure": "adjusted_cosine", "half_life_s": 60.0, "history_length": 4, "neighbours": 5},
    ],
    ids=str,
)
@pytest.mark.parametrize("check", LASTING, ids=lambda check: check.__name__)
def test_small_tables_keep_the_contract(check: Any, parameters: dict[str, Any]) -> None:
    """What has left a row or a history does not come back, so nothing that needs it does."""
    check(lambda: ItemKNN(**parameters))


@pytest.mark.parametrize(
    "parameters",
    [
        {"measure": "euclid"},
        {"neighbours": 0},
        {"history_length": 51},
        {"query_length": 0},
        {"query_decay": 1.5},
        {"shrinkage": -1.0},
        {"half_life_s": 0.001},
        {"max_users": 0},
    ],
    ids=str,
)
def test_bad_parameters_are_refused_by_name(parameters: dict[str, Any]) -> None:
    [(name, value)] = parameters.items()
    with pytest.raises(ValueError, match=f"{name} is {value!r}"):
        ItemKNN(**parameters)
