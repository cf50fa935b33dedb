"""Bayesian personalised ranking against its equations in plain numpy, and its negatives by their chances."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online_models import ItemTable, LearningBatch, checks
from online_models import bpr_kernels as kernels
from online_models.bpr import BPR
from online_models.factor_table import start_vectors

VARIANTS: list[dict[str, Any]] = [
    {},
    {"sampling": "uniform"},
    {"sampling": "popularity", "popularity_exponent": 0.75, "dimension": 5},
    {"sampling": "dynamic", "candidates": 3, "negatives": 2},
    {"learning_rate": 0.5, "bias_learning_rate": 0.5, "regularization": 0.0, "negatives": 1},
]
SAMPLING = [{"sampling": "uniform"}, {"sampling": "popularity"}, {"sampling": "dynamic"}]


class Equations:
    """What the docstring says of a log whose negatives are drawn, with dictionaries and float64."""

    def __init__(self, model: BPR) -> None:
        self.model = model
        self.users: dict[str, Any] = {}
        self.items: dict[str, list[Any]] = {}
        self.counts: Counter[str] = Counter()

    def start(self, name: str) -> Any:
        return start_vectors(self.model.seed, [name], self.model.dimension, self.model.start_scale)[0].astype(
            np.float64
        )

    def item(self, name: str) -> list[Any]:
        return self.items.setdefault(name, [0.0, self.start(name)])

    def score(self, user: str, item: str) -> float:
        bias, factor = self.items[item]
        return float(bias + self.users.get(user, self.start(f"user:{user}")) @ factor)

    def learn(self, user: str, item: str, weight: float, negatives: list[str], live: set[str]) -> None:
        """The user learns from all negatives, the items from those that the event's item left a row."""
        model, sign = self.model, np.sign(weight)
        rate = min(abs(weight) * model.learning_rate, 0.5)
        bias_rate = min(abs(weight) * model.bias_learning_rate, 0.5)
        before = self.users.get(user, self.start(f"user:{user}"))
        chosen = self.item(item)
        fixed = {name: [self.items[name][0], self.items[name][1].copy()] for name in [item, *negatives]}
        moved = before.copy()
        for name in negatives:
            (b_i, v_i), (b_j, v_j) = fixed[item], fixed[name]
            slope = sign / (1.0 + np.exp(sign * (b_i - b_j + moved @ (v_i - v_j))))
            moved = moved + rate * (slope * (v_i - v_j) - model.regularization * moved)
        for gone in set(self.items) - live:
            del self.items[gone], self.counts[gone]
        for name in [name for name in negatives if name in live]:
            other = self.items[name]
            slope = sign / (1.0 + np.exp(sign * (chosen[0] - other[0] + before @ (chosen[1] - other[1]))))
            for row, side in ((chosen, 1.0), (other, -1.0)):
                row[0] += bias_rate * (side * slope - model.bias_regularization * row[0])
                row[1] = row[1] + rate * (side * slope * before - model.regularization * row[1])
        self.users[user] = moved
        self.counts[item] += weight > 0.0


def negatives_of(batch: LearningBatch) -> list[str]:
    return [batch.item_ids[index] for index in batch.negatives[0].tolist()]


def step(model: BPR, user: str, item: str, weight: float = 1.0, number: int = 0) -> list[str]:
    """Learn one event; the negatives that it drew."""
    batch = model.learn_user([(user, item, weight, {"event_id": str(number)})])
    model.apply(batch, model.items.resolve(batch))
    return negatives_of(batch)


@pytest.mark.parametrize("limit", [1000, 8])
@pytest.mark.parametrize("kwargs", SAMPLING, ids=str)
def test_what_is_learned_is_what_the_equations_say(kwargs: dict[str, Any], limit: int) -> None:
    """Items drift through the catalogue: with 8 rows, most lose theirs, and start anew when they return."""
    model = BPR(
        dimension=5, learning_rate=0.2, bias_learning_rate=0.1, regularization=0.05, negatives=3,
        bias_regularization=0.02, start_scale=0.3, **kwargs,
    )  # fmt: skip
    model.items = ItemTable(limit=limit)
    rng, equations = np.random.default_rng(0), Equations(model)
    for k in range(400):
        user, item = f"u{rng.integers(0, 9)}", f"i{(rng.integers(0, 12) + k // 15) % 40}"
        weight = float(rng.choice([1.0, 1.0, 2.0, 0.3, -1.0, 0.0, 100.0]))
        known = set(model.items.ids)
        drawn = step(model, user, item, weight, number=k)
        assert set(drawn) <= known - {item, ""}
        equations.learn(user, item, weight, drawn, set(model.items.ids))
        if k % 10 == 0:
            for name in equations.items:
                assert model.predict_one(user, name) == pytest.approx(equations.score(user, name), abs=2e-3)
    rows = model.items.rows(list(equations.items))
    assert model._counts[rows].tolist() == [equations.counts[name] for name in equations.items]
    assert (model.items.evictions > 50) == (limit == 8)


def test_no_negative_is_one_of_the_users_recent_items_or_the_item() -> None:
    for kwargs in SAMPLING:
        model, had, drawn = BPR(negatives=4, **kwargs), dict[str, list[str]](), 0
        rng = np.random.default_rng(1)
        for k in range(600):
            user, item = f"u{k % 5}", f"i{rng.integers(0, 70)}"
            recent = had.setdefault(user, [])
            negatives = step(model, user, item, number=k)
            assert not set(negatives) & {item, *recent[-50:]}
            recent.append(item)
            drawn += len(negatives)
        assert drawn > 1000


def test_an_event_goes_without_negatives_where_all_items_are_the_users() -> None:
    model = BPR(negatives=4)
    for k in range(30):
        assert step(model, "u", f"i{k % 6}", number=k) == []
    before = model._table.rows.copy()
    assert step(model, "u", "i1", 1.0, number=99) == []
    assert (model._table.rows == before).all()


def drawn_by_strangers(model: BPR, n: int = 3000) -> Counter[str]:
    """Negatives of n strangers' first event on an unknown item; none of them is learned."""
    found: Counter[str] = Counter()
    for k in range(n):
        found.update(
            negatives_of(model.learn_user([(f"stranger-{k}", "new", 1.0, {"event_id": f"draw-{k}"})]))
        )
    return found


@pytest.mark.parametrize(
    ("kwargs", "exponent"),
    [
        ({"sampling": "uniform"}, 0.0),
        ({"sampling": "popularity", "popularity_exponent": 1.0}, 1.0),
        ({"sampling": "popularity", "popularity_exponent": 0.5}, 0.5),
    ],
)
def test_negatives_have_their_chances(kwargs: dict[str, Any], exponent: float) -> None:
    model, counts = BPR(negatives=2, dimension=2, **kwargs), {"a": 1, "b": 4, "c": 16, "d": 64}
    for name, count in counts.items():
        for k in range(count):
            step(model, f"{name}-{k}", name, number=k)
    step(model, "somebody", "a", -1.0)  # not interested: no more popular by that
    found = drawn_by_strangers(model)
    chances = np.array(list(counts.values())) ** exponent
    expected = chances / chances.sum()
    shares = np.array([found[name] for name in counts]) / found.total()
    assert found.total() == 6000
    assert shares == pytest.approx(expected, abs=0.02)  # three standard errors


def test_dynamic_negatives_are_the_best_scored_of_those_drawn() -> None:
    teacher = BPR(sampling="uniform", bias_learning_rate=0.1, dimension=4)
    for k in range(400):
        step(teacher, f"u{k}", f"i{min(7 * k % 20, 3 * k % 20)}", number=k)
    model = BPR(sampling="dynamic", candidates=256, negatives=1, dimension=4)
    model.from_arrays(teacher.to_arrays())
    for k in range(10):  # all items are among so many draws
        user = f"u{k}"
        known = [item for item in model.items.ids if item not in model._recent[user]]
        score_of = {item: model.predict_one(user, item) for item in known}
        for weight, wanted in ((1.0, max), (-1.0, min)):
            record = model.learn_user([(user, "new", weight, {"event_id": f"best-{k}"})])
            assert negatives_of(record) == [wanted(known, key=score_of.__getitem__)]
            model._users[user] = record.user_before[0]
            if weight > 0.0:  # what is disliked is no recent item
                model._recent[user].remove("new")
    means = []
    for candidates in (1, 4, 256):
        other = BPR(sampling="dynamic", candidates=candidates, negatives=1, dimension=4)
        other.from_arrays(teacher.to_arrays())
        found = drawn_by_strangers(other, 500)
        means.append(sum(n * other.predict_one("anybody", item) for item, n in found.items()) / 500)
    assert means[0] + 0.01 < means[1] < means[2] - 0.01


def test_negatives_hang_on_the_event_and_the_items_alone() -> None:
    quiet, busy = BPR(), BPR()
    for model in (quiet, busy):
        for k in range(40):
            step(model, f"u{k}", f"i{k % 20}", number=k)
    for k in range(5):
        busy.learn_user([(f"other-{k}", "i1", 1.0, None)])  # draws, and is never learned by the items
    events = [("u", "i3", 1.0, {"event_id": name}) for name in ("same", "same", "another")]
    first, again = quiet.learn_user(events[:1]), busy.learn_user(events[1:2])
    assert negatives_of(first) == negatives_of(again)
    assert negatives_of(first) != negatives_of(BPR.learn_user(quiet, events[2:]))


@given(
    updates=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 30)), min_size=1, max_size=60),
    exponent=st.sampled_from([0.0, 0.5, 1.0]),
)
@settings(max_examples=60, deadline=None)
def test_the_tree_draws_each_row_by_its_weight(updates: list[tuple[int, int]], exponent: float) -> None:
    counts, moved, built = (
        np.zeros(41, dtype=np.int64), np.zeros(65, dtype=np.int64), np.zeros(65, dtype=np.int64),
    )  # fmt: skip
    for row, count in updates:
        kernels._count(row, count, counts, moved, exponent)
    kernels.build_tree(counts, exponent, built)
    assert moved.tolist() == built.tolist()
    weights = np.where(counts > 0, np.floor(256.0 * counts.astype(np.float64) ** exponent), 0.0).astype(int)
    assert built[-1] == weights.sum()
    edges = np.cumsum(weights)
    for target in {0, *edges.tolist(), *(edges - 1).tolist(), *(edges // 2).tolist()}:
        if 0 <= target < edges[-1]:
            assert kernels._row_at(built, target) == np.searchsorted(edges, target, side="right")


def test_a_restored_tree_draws_as_the_one_that_grew() -> None:
    model, restored = BPR(sampling="popularity"), BPR(sampling="popularity")
    for k in range(400):
        step(model, f"u{k}", f"i{min(k % 97, k % 89, k % 83)}", number=k)
    restored.from_arrays(model.to_arrays())
    assert drawn_by_strangers(model, 100) == drawn_by_strangers(restored, 100)


def test_biases_become_the_log_of_popularity() -> None:
    """With uniform negatives a pair's odds are those of the two items' popularity, and x is its logit."""
    shares = np.array([0.5, 0.25, 0.15, 0.1])
    model = BPR(sampling="uniform", dimension=1, start_scale=0.0, bias_learning_rate=0.01, negatives=3)
    items = np.random.default_rng(2).choice(4, size=8000, p=shares)
    for k, item in enumerate(items.tolist()):
        model.learn_one(f"u{k}", f"i{item}")
    biases = np.array([model.predict_one("anybody", f"i{k}") for k in range(4)])
    logs = np.log(shares)
    assert biases - biases.mean() == pytest.approx(logs - logs.mean(), abs=0.25)


def test_communities_are_told_apart() -> None:
    model, rng = BPR(dimension=8), np.random.default_rng(0)
    for _ in range(6000):
        user = int(rng.integers(0, 20))
        model.learn_one(f"u{user}", f"i{2 * int(rng.integers(0, 40)) + user % 2}")
    for user in range(20):
        own = np.array([model.predict_one(f"u{user}", f"i{2 * k + user % 2}") for k in range(40)])
        other = np.array([model.predict_one(f"u{user}", f"i{2 * k + 1 - user % 2}") for k in range(40)])
        assert (own[:, None] > other[None, :]).mean() >= 0.9


def test_not_interested_lowers_the_item_for_the_user() -> None:
    model = BPR(dimension=8)
    for k in range(600):
        step(model, f"u{k % 30}", f"i{k * k % 31 % 12}", number=k)
    first = model.rank("new", model.items.ids)[0]
    places = []
    for k in range(12):
        places.append(model.rank("new", model.items.ids).index(first))
        step(model, "new", first, -1.0, number=1000 + k)
    assert places[0] == 0
    assert model.rank("new", model.items.ids)[-1] == first
    assert model._counts[model.items.row(first)] == sum(f"i{k * k % 31 % 12}" == first for k in range(600))


def test_a_weight_of_nothing_teaches_nothing() -> None:
    model = BPR()
    for k in range(50):
        step(model, f"u{k % 7}", f"i{k % 11}", number=k)
    before = model._table.rows.copy(), model._counts.copy(), model._user_factor("u1").copy()
    assert step(model, "u1", "i2", 0.0) == []
    after = model._table.rows, model._counts, model._user_factor("u1")
    assert [a.tobytes() for a in before] == [b.tobytes() for b in after]


@given(
    weights=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60),
    sampling=st.sampled_from(["uniform", "popularity", "dynamic"]),
)
@settings(max_examples=30, deadline=None)
def test_no_weights_lead_out_of_bounds(weights: list[float], sampling: str) -> None:
    model = BPR(
        dimension=2, learning_rate=0.5, bias_learning_rate=0.5, regularization=0.0, start_scale=1.0,
        sampling=sampling,
    )  # fmt: skip
    for k in range(5 * len(weights)):
        step(model, f"u{k}", f"i{k % 4}", weights[k % len(weights)], number=k)
    assert np.abs(model._table.rows).max() <= 10.0
    assert np.isfinite([model.predict_one("u0", item) for item in model.items.ids]).all()


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"dimension": 0}, "dimension is 0"),
        ({"learning_rate": 0.7}, "learning_rate is 0.7"),
        ({"bias_learning_rate": -0.1}, "bias_learning_rate is -0.1"),
        ({"regularization": float("nan")}, "regularization is nan"),
        ({"bias_regularization": 2.0}, "bias_regularization is 2.0"),
        ({"negatives": 0}, "negatives is 0"),
        ({"candidates": 0}, "candidates is 0"),
        ({"popularity_exponent": 1.5}, "popularity_exponent is 1.5"),
        ({"start_scale": -1.0}, "start_scale is -1.0"),
        ({"sampling": "hard"}, "sampling is 'hard', but one of uniform, popularity, dynamic"),
    ],
)
def test_parameters_out_of_range_are_named(kwargs: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        BPR(**kwargs)


def test_a_record_of_another_dimension_is_refused() -> None:
    model = BPR(dimension=4)
    batch = BPR(dimension=6).learn_user([("u", "i", 1.0, None)])
    with pytest.raises(ValueError, match="6 dimensions, but this model has 4"):
        model.apply(batch, model.items.resolve(batch))
    with pytest.raises(ValueError, match="2 events, but a factor model's owner learns one"):
        model.learn_user([("u", "i", 1.0, None)] * 2)


@pytest.mark.parametrize("kwargs", VARIANTS, ids=str)
@pytest.mark.parametrize("check", checks.all_checks(), ids=lambda check: check.__name__)
def test_contract(check: Callable[[Callable[[], BPR]], None], kwargs: dict[str, Any]) -> None:
    check(lambda: BPR(**kwargs))


@pytest.mark.parametrize("kwargs", [{"sampling": "uniform"}, {"sampling": "popularity"}], ids=str)
def test_an_event_withdrawn_at_once_leaves_what_was(kwargs: dict[str, Any]) -> None:
    """Without regularization the pairs have inverses; its negatives are those that it had drawn."""
    model = BPR(dimension=6, negatives=3, learning_rate=0.05, regularization=0.0, start_scale=0.2, **kwargs)
    for user, item, *_ in checks.random_events(60):
        model.learn_one(user, item)
    names = ("bpr.items", "bpr.counts", "bpr.users")
    before = {name: model.to_arrays()[name] for name in names}
    model.learn_one("user-1", "item-3", 1.0, {"event_id": "wrong"})
    after = {name: model.to_arrays()[name] for name in names}
    tree = model._tree.copy()
    assert model.retract("user-1", "wrong")
    for name in names:
        moved = np.abs(after[name] - before[name]).max()
        assert moved > 0.01
        assert np.abs(model.to_arrays()[name] - before[name]).max() < 0.2 * moved, name
    assert model.to_arrays()["bpr.counts"].tolist() == before["bpr.counts"].tolist()
    if kwargs["sampling"] == "popularity":
        rebuilt = np.zeros_like(tree)
        kernels.build_tree(model._counts[: len(model._table)], model._rule.exponent, rebuilt)
        assert model._tree.tolist() == rebuilt.tolist() != tree.tolist()


def test_a_forgotten_users_events_leave_the_counts() -> None:
    model = BPR(dimension=4)
    model.learn_many(["u", "u", "v", "u"], ["i", "j", "i", "i"], [1.0, 1.0, 1.0, -1.0])
    model.forget("u")
    counts = dict(zip(model.items.ids, model.to_arrays()["bpr.counts"].tolist(), strict=True))
    assert counts == {"i": 1, "j": 0}
