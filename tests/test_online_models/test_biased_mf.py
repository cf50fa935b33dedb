"""Biased matrix factorisation against its equations in plain numpy, and cases whose answers are known."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from online_models import ItemTable, checks
from online_models.biased_mf import BiasedMF
from online_models.factor_table import start_vectors

Rating = tuple[str, str, float]
VARIANTS: list[dict[str, Any]] = [
    {},
    {"adaptive": False, "learning_rate": 0.02, "low": 1.0, "high": 5.0, "dimension": 5},
    {"bias": False, "start_scale": 0.5},
    {"dimension": 1, "low": 0.0},
]
FOUR = [("u1", "i1", 5.0), ("u1", "i2", 3.0), ("u2", "i1", 4.0), ("u2", "i3", 2.0)]
TABLE = np.array([[5.0, 3.0, 4.0], [4.0, 5.0, 2.0], [3.0, 4.0, 5.0]])
FULL = [(f"{1 + u}", "ABC"[i], TABLE[u, i]) for u in range(3) for i in range(3)]


class Equations:
    """What the docstring says, with dictionaries and float64."""

    def __init__(self, model: BiasedMF) -> None:
        self.model = model
        self.users: dict[str, list[Any]] = {}
        self.items: dict[str, list[Any]] = {}
        self.ratings: list[float] = []

    def row(self, rows: dict[str, list[Any]], key: str, name: str) -> list[Any]:
        model = self.model
        start = start_vectors(model.seed, [name], model.dimension, model.start_scale)[0]
        return rows.setdefault(key, [0.0, start.astype(np.float64), 0.0, 0.0])

    def bounded(self, value: float) -> float:
        low, high = self.model.low, self.model.high
        return min(max(value, -np.inf if low is None else low), np.inf if high is None else high)

    def estimate(self, user: str, item: str) -> float:
        (b_u, u, *_), (b_i, v, *_) = (
            self.row(self.users, user, f"user:{user}"),
            self.row(self.items, item, item),
        )
        mean = float(np.mean(self.ratings)) if self.ratings and self.model.bias else 0.0
        return float(mean + b_u + b_i + u @ v)

    def learn(self, user: str, item: str, rating: float) -> None:
        model, rating = self.model, self.bounded(rating)
        span = 10.0 if model.low is None or model.high is None else model.high - model.low
        e = float(np.clip(rating - self.estimate(user, item), -span, span))
        mine, other = self.users[user], self.items[item]
        vectors = mine[1].copy(), other[1].copy()
        for row, fixed in ((mine, vectors[1]), (other, vectors[0])):
            slope = e - 2.0 * model.bias_regularization * row[0]
            gradient = e * fixed - 2.0 * model.regularization * row[1]
            sizes = [model.bias_learning_rate if model.bias else 0.0, model.learning_rate]
            if model.adaptive:
                row[2:] = [row[2] + slope**2, row[3] + (gradient**2).mean()]
                sizes = [sizes[0] / np.sqrt(1.0 + row[2]), sizes[1] / np.sqrt(1.0 + row[3])]
            row[0] += sizes[0] * slope
            row[1] = row[1] + sizes[1] * gradient
        self.ratings.append(rating)


def random_ratings(n: int, seed: int = 0, users: int = 6, items: int = 9, drift: float = 0.0) -> list[Rating]:
    rng = np.random.default_rng(seed)
    item = rng.integers(0, items, n) + (drift * np.arange(n)).astype(int)
    stars = rng.integers(0, 7, n)
    return [(f"u{rng.integers(0, users)}", f"i{item[k]}", float(stars[k])) for k in range(n)]


def learn(model: BiasedMF, ratings: Iterable[Rating], passes: int = 1) -> BiasedMF:
    for _ in range(passes):
        for user, item, rating in ratings:
            model.learn_one(user, item, rating)
    return model


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("kwargs", [{}, {"bias": False}, {"low": 1.0, "high": 5.0}], ids=str)
def test_what_is_learned_is_what_the_equations_say(adaptive: bool, kwargs: dict[str, Any]) -> None:
    model = BiasedMF(
        dimension=5, learning_rate=0.05, bias_learning_rate=0.15, regularization=0.03,
        bias_regularization=0.02, start_scale=0.3, adaptive=adaptive, **kwargs,
    )  # fmt: skip
    equations = Equations(model)
    for user, item, rating in random_ratings(300):
        expected = equations.bounded(equations.estimate(user, item))
        if item in model.items.ids:
            assert model.predict_one(user, item) == pytest.approx(expected, abs=2e-3)
        model.learn_one(user, item, rating)
        equations.learn(user, item, rating)
    assert model.mean == pytest.approx(np.mean(equations.ratings), rel=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_one_step_goes_down_the_gradient_of_the_objective(bias: bool) -> None:
    """By central differences of J, whose penalties are lambda ||.||^2: the step carries 2 lambda."""
    model = BiasedMF(
        dimension=3, learning_rate=0.01, bias_learning_rate=0.02, regularization=0.1, bias=bias,
        bias_regularization=0.2, start_scale=1.0, adaptive=False,
    )  # fmt: skip
    learn(model, [("u", "i", 3.0), ("w", "i", 4.0), ("u", "j", 1.0)])
    at = np.concatenate([model._users["u"][:4], model._table.rows[0][:4]]).astype(np.float64)
    mean = model.mean if bias else 0.0

    def objective(x: NDArray[np.float64]) -> float:
        b_u, u, b_i, v = x[0], x[1:4], x[4], x[5:]
        error = 5.0 - (mean + b_u + b_i + u @ v)
        return float(0.5 * error**2 + 0.2 * (b_u**2 + b_i**2) + 0.1 * (u @ u + v @ v))

    nudges = 1e-5 * np.eye(8)
    gradient = np.array([(objective(at + nudge) - objective(at - nudge)) / 2e-5 for nudge in nudges])
    gradient[[0, 4]] *= 2.0 if bias else 0.0  # the biases' rate is twice the factors'
    learn(model, [("u", "i", 5.0)])
    after = np.concatenate([model._users["u"][:4], model._table.rows[0][:4]])
    assert after - at == pytest.approx(-0.01 * gradient, abs=1e-6)


def test_four_ratings_come_back_and_rank_as_they_should() -> None:
    model = BiasedMF(dimension=2, learning_rate=0.05, regularization=0.001, bias=False, adaptive=False)
    learn(model, FOUR, passes=1500)
    for user, item, rating in FOUR:
        assert model.predict_one(user, item) == pytest.approx(rating, abs=0.05)
    assert model.rank("u1", ["i1", "i2", "i3"])[:2] == ["i1", "i2"]
    assert model.rank("u2", ["i1", "i2", "i3"])[0] == "i1"


def test_a_full_table_comes_back_and_the_balanced_factors_give_its_cosines() -> None:
    """SGD from a small start keeps U and V balanced, as the SVD's factors U S^(1/2) and V S^(1/2) are."""
    left, singular, right = np.linalg.svd(TABLE)
    u, v = left * np.sqrt(singular), right.T * np.sqrt(singular)
    cosine = (u @ v.T) / np.outer(np.linalg.norm(u, axis=1), np.linalg.norm(v, axis=1))
    assert cosine[0].round(3).tolist() == [0.954, 0.566, 0.769]
    model = BiasedMF(
        dimension=3, learning_rate=0.02, regularization=0.0, bias=False, adaptive=False, start_scale=0.05
    )
    learn(model, FULL, passes=1800)
    for user, item, rating in FULL:
        assert model.predict_one(user, item) == pytest.approx(rating, abs=0.02)
    assert model.rank("1", "ABC") == ["A", "C", "B"]
    users = np.array([model._users[user][1:4] for user in "123"])
    items = model._table.rows[:, 1:4]
    learned = (users @ items.T) / np.outer(np.linalg.norm(users, axis=1), np.linalg.norm(items, axis=1))
    assert learned[0] == pytest.approx(cosine[0], abs=0.02)


def test_sgd_reaches_what_alternating_least_squares_reaches() -> None:
    """J over a full 3 x 3 table: each row meets its penalty three times, so SGD's lambda is a third of J's.
    At J's minimum the singular values are shrunken by 2 lambda."""
    strength = 0.3
    u, v = np.eye(3), np.eye(3)
    for _ in range(500):
        u = np.linalg.solve(v.T @ v + 2.0 * strength * np.eye(3), v.T @ TABLE.T).T
        v = np.linalg.solve(u.T @ u + 2.0 * strength * np.eye(3), u.T @ TABLE).T
    left, singular, right = np.linalg.svd(TABLE)
    shrunken = left @ np.diag(np.maximum(singular - 2.0 * strength, 0.0)) @ right
    assert u @ v.T == pytest.approx(shrunken, abs=1e-3)
    model = BiasedMF(
        dimension=3, learning_rate=0.01, regularization=strength / 3.0, bias=False, adaptive=False
    )
    learn(model, FULL, passes=1500)
    estimates = np.array([[model.predict_one(user, item) for item in "ABC"] for user in "123"])
    assert estimates == pytest.approx(shrunken, abs=0.05)


def test_planted_biases_and_factors_are_found() -> None:
    rng = np.random.default_rng(3)
    b_u, b_i = rng.normal(0.0, 0.5, 60), rng.normal(0.0, 0.7, 80)
    u, v = rng.normal(0.0, 0.7, (60, 2)), rng.normal(0.0, 0.7, (80, 2))
    model, errors, plain = BiasedMF(dimension=4, start_scale=0.2), [], []
    for n in range(9_000):
        user, item = int(rng.integers(60)), int(rng.integers(80))
        rating = 3.5 + b_u[user] + b_i[item] + u[user] @ v[item] + rng.normal(0.0, 0.3)
        if n >= 6_000:
            errors.append(rating - model.predict_one(str(user), str(item)))
            plain.append(rating - 3.5 - b_u[user] - b_i[item])
        model.learn_one(str(user), str(item), rating)
    rmse, biases_alone = np.sqrt(np.mean(np.square(errors))), np.sqrt(np.mean(np.square(plain)))
    assert biases_alone > 0.7  # what the best biases leave
    assert 0.3 < rmse < 0.6


def test_a_ranking_by_rating_is_not_one_by_popularity() -> None:
    ratings = [(f"u{k}", "everybody's", 4.0) for k in range(50)]
    model = learn(BiasedMF(), [*ratings, ("v", "few's", 5.0), ("w", "few's", 5.0)])
    assert model.rank("stranger", ["everybody's", "few's"]) == ["few's", "everybody's"]


def test_estimates_and_ratings_stay_within_low_and_high() -> None:
    model = learn(BiasedMF(low=1.0, high=5.0), [("u", "i", 900.0), ("u", "j", 0.0)], passes=40)
    same = learn(BiasedMF(low=1.0, high=5.0), [("u", "i", 5.0), ("u", "j", 1.0)], passes=40)
    for name, array in same.to_arrays().items():
        told = name in ("users.past.value", "users.past.weight")  # kept as the user said it
        assert told != (array.tobytes() == model.to_arrays()[name].tobytes()), name
    learn(model, [("u", "i", 5.0)], passes=200)
    assert 4.5 < model.predict_one("u", "i") <= 5.0
    assert 1.0 <= model.predict_one("u", "j") <= 5.0


def taught_by_record(value: float, weight: float, low: float | None = 1.0) -> tuple[bytes, bytes]:
    """A replica's item state before and after a record that states `value` with `weight`."""
    model = learn(BiasedMF(low=low, high=5.0), [("u", "i", 4.0), ("v", "j", 3.0)])
    record = BiasedMF(low=low, high=5.0).learn_user([("v", "i", 4.0, {"weight": weight})])
    record.value[:] = value
    before = b"".join(array.tobytes() for array in model.item_arrays().values())
    model.apply(record, model.items.resolve(record))
    return before, b"".join(array.tobytes() for array in model.item_arrays().values())


def test_not_interested_counts_as_the_lowest_rating() -> None:
    assert taught_by_record(np.nan, -1.0) == taught_by_record(1.0, 1.0)
    assert taught_by_record(1.0, 1.0) != taught_by_record(4.0, 1.0)


@pytest.mark.parametrize(("weight", "low"), [(1.0, 1.0), (0.0, 1.0), (-1.0, None)])
def test_an_event_without_a_value_teaches_nothing(weight: float, low: float | None) -> None:
    before, after = taught_by_record(np.nan, weight, low)
    assert before == after


def test_a_value_counts_whatever_its_weight() -> None:
    assert taught_by_record(4.0, -1.0) == taught_by_record(4.0, 3.0)


def test_items_that_lose_their_rows_start_anew() -> None:
    model = BiasedMF(dimension=4, start_scale=0.3, learning_rate=0.05)
    model.items = ItemTable(limit=8)
    equations, lost = Equations(model), 0
    for user, item, rating in random_ratings(400, items=8, drift=0.1):
        model.learn_one(user, item, rating)
        equations.learn(user, item, rating)
        for gone in set(equations.items) - set(model.items.ids):
            del equations.items[gone]
            lost += 1
        for known in equations.items:
            expected = equations.estimate("u1", known)
            assert model.predict_one("u1", known) == pytest.approx(expected, abs=2e-3)
    assert lost == model.items.evictions > 20
    assert len(model.items) <= 8
    freed = [row for row, item in enumerate(model.items.ids) if not item]
    assert not model._table.rows[freed].any()


@given(
    stars=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40),
    adaptive=st.booleans(), bias=st.booleans(),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_no_ratings_lead_out_of_bounds(stars: list[float], adaptive: bool, bias: bool) -> None:
    model = BiasedMF(
        dimension=2, learning_rate=1.0, bias_learning_rate=1.0, regularization=0.0, adaptive=adaptive,
        bias=bias, start_scale=1.0,
    )  # fmt: skip
    learn(model, [(f"u{k % 2}", f"i{k % 3}", value) for k, value in enumerate(stars)], passes=3)
    assert np.abs(model._table.rows[:, 0]).max() <= 1e3
    assert np.abs(model._table.rows[:, 1:3]).max() <= 10.0
    assert np.isfinite(model._table.rows).all()
    assert np.isfinite([model.predict_one("u0", item) for item in model.items.ids]).all()
    if bias:
        assert model.mean == pytest.approx(np.mean(np.array(stars, dtype=np.float64)), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"dimension": 0}, "dimension is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"bias_learning_rate": 1.5}, "bias_learning_rate is 1.5"),
        ({"regularization": -0.1}, "regularization is -0.1"),
        ({"bias_regularization": float("nan")}, "bias_regularization is nan"),
        ({"start_scale": 2.0}, "start_scale is 2.0"),
        ({"low": 5.0, "high": 1.0}, "low is 5.0 and high 1.0"),
    ],
)
def test_parameters_out_of_range_are_named(kwargs: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        BiasedMF(**kwargs)


def test_a_record_of_another_dimension_is_refused() -> None:
    model = BiasedMF(dimension=4)
    batch = BiasedMF(dimension=6).learn_user([("u", "i", 1.0, None)])
    with pytest.raises(ValueError, match="7 columns, but this model has 5"):
        model.apply(batch, model.items.resolve(batch))
    with pytest.raises(ValueError, match="2 events, but a factor model's owner learns one"):
        model.learn_user([("u", "i", 1.0, None)] * 2)


@pytest.mark.parametrize("kwargs", VARIANTS, ids=str)
@pytest.mark.parametrize("check", checks.all_checks(), ids=lambda check: check.__name__)
def test_contract(check: Callable[[Callable[[], BiasedMF]], None], kwargs: dict[str, Any]) -> None:
    check(lambda: BiasedMF(**kwargs))


def rows_of(model: BiasedMF) -> list[np.ndarray]:
    return [np.array(list(model._users.values())), model._table.rows.copy()]


@pytest.mark.parametrize("adaptive", [True, False])
def test_a_rating_withdrawn_at_once_leaves_what_was(adaptive: bool) -> None:
    """Without regularization the step has an exact inverse; the mean is a count."""
    model = BiasedMF(
        dimension=4, adaptive=adaptive, learning_rate=0.1, bias_learning_rate=0.1, regularization=0.0,
        bias_regularization=0.0, start_scale=0.3,
    )  # fmt: skip
    events = [("u", "i", 5.0), ("v", "i", 3.0), ("v", "j", 2.0), ("u", "j", 4.0)]
    for number, (user, item, rating) in enumerate(events):
        model.learn_one(user, item, rating, {"event_id": str(number)})
    before, mean = rows_of(model), model.mean
    model.learn_one("u", "i", 1.0, {"event_id": "wrong"})
    after = rows_of(model)
    assert model.retract("u", "wrong")
    for was, moved, back in zip(before, after, rows_of(model), strict=True):
        assert np.abs(moved - was).max() > 0.01
        assert back == pytest.approx(was, abs=1e-4)
    assert model.mean == pytest.approx(mean)


def test_a_new_rating_replaces_the_former_one() -> None:
    model = BiasedMF()
    for rating in (1.0, 5.0):
        model.learn_one("u", "i", rating, {"event_type": "rating"})
    assert model.mean == 5.0
    assert model._totals.tolist() == [5.0, 1.0]


def test_a_forgotten_users_ratings_leave_the_mean() -> None:
    model = BiasedMF()
    model.learn_many(["u", "u", "v"], ["i", "j", "i"], [5.0, 4.0, 2.0])
    model.forget("u")
    assert model._totals.tolist() == [2.0, 1.0]
    assert model.predict_one("u", "i") == pytest.approx(model.predict_one("stranger", "i"), abs=0.2)
    model.forget("v")
    assert model.mean == 0.0
