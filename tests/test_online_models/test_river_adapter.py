from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from river import checks as river_checks
from river import facto, linear_model, optim, preprocessing, reco, tree
from river.checks import reco as reco_checks

from online_models import checks
from online_models.prequential import Interaction, evaluate
from online_models.river_adapter import RiverRecommender, RiverRegressor, one_hot_features

RATINGS = [
    ("ann", "tea", 5.0),
    ("ann", "nails", 1.0),
    ("bob", "tea", 4.0),
    ("bob", "milk", 3.0),
    ("eve", "milk", 2.0),
]


@pytest.mark.parametrize(
    "make",
    [
        reco.Baseline,
        lambda: reco.FunkMF(n_factors=4, seed=1),
        lambda: reco.BiasedMF(n_factors=4, seed=1),
    ],
    ids=["baseline", "funk_mf", "biased_mf"],
)
def test_a_river_recommender_predicts_what_it_predicts_alone(make: Any) -> None:
    alone, adapted = make(), RiverRecommender(make())
    for user, item, rating in RATINGS * 5:
        alone.learn_one(user, item, rating)
        adapted.learn_one(user, item, rating, {"timestamp": 7, "weight": 1.0})
    assert adapted.items.ids == ["tea", "nails", "milk"]
    for user in ("ann", "eve"):
        expected = [alone.predict_one(user, item) for item in adapted.items.ids]
        assert [adapted.predict_one(user, item) for item in adapted.items.ids] == expected
        scores = adapted.score_rows(user, np.array([2, -1, 0], dtype=np.int32))
        assert scores.tolist() == np.array([expected[2], 0.0, expected[0]], dtype=np.float32).tolist()


def test_ties_are_ranked_by_id_whatever_the_order() -> None:
    model = RiverRecommender(reco.Baseline())
    assert model.rank("u", {"b", "a", "c"}) == model.rank("u", ["c", "b", "a", "a"]) == ["a", "b", "c"]
    for _ in range(5):
        model.learn_one("u", "a", 1.0)
        model.learn_one("v", "c", 5.0)
    assert model.rank("w", ["a", "d", "c", "b"]) == ["c", "b", "d", "a"]


def test_a_factorisation_machine_over_context_tells_places_apart() -> None:
    def features(user: str, item: str, x: Any) -> dict[str, float]:
        return {f"{item} at {x.get('place', 'home')}": 1.0}

    model = RiverRegressor(linear_model.LinearRegression(optimizer=optim.SGD(0.1)), features)
    for _ in range(200):
        model.learn_one("ann", "tea", 5.0, {"place": "home"})
        model.learn_one("ann", "tea", 1.0, {"place": "bar"})
    assert model.predict_one("ann", "tea", {"place": "home"}) == pytest.approx(5.0, abs=0.1)
    assert model.predict_one("ann", "tea", {"place": "bar"}) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: linear_model.LinearRegression(),
        lambda: facto.FMRegressor(n_factors=3, seed=1),
        lambda: preprocessing.StandardScaler() | linear_model.LinearRegression(),
        lambda: tree.HoeffdingTreeRegressor(),
    ],
    ids=["linear", "fm", "pipeline", "tree"],
)
def test_regressors_learn_features_of_user_item_and_context(make: Any) -> None:
    alone, adapted = make(), RiverRegressor(make())
    for user, item, rating in RATINGS * 3:
        x = {"timestamp": 3, "price": 2.5}
        alone.learn_one({f"user={user}": 1.0, f"item={item}": 1.0, "price": 2.5}, rating)
        adapted.learn_one(user, item, rating, x)
    features = {"user=bob": 1.0, "item=milk": 1.0, "price": 2.5}
    assert adapted.predict_one("bob", "milk", {"price": 2.5}) == alone.predict_one(features)
    assert adapted.rank("bob", ["milk", "tea"]) == sorted(
        ["milk", "tea"], key=lambda item: -adapted.predict_one("bob", item)
    )


def test_features_by_hand() -> None:
    x = {
        "timestamp": 1,
        "weight": 2.0,
        "event_id": "e",
        "event_type": 3,
        "age": 30,
        "member": True,
        "city": "X",
    }
    assert one_hot_features("u", "i", x) == {
        "user=u": 1.0, "item=i": 1.0, "event_type=3": 1.0, "age": 30.0, "member": 1.0, "city=X": 1.0,
    }  # fmt: skip


def test_adapters_are_evaluated_beside_our_models() -> None:
    rng = np.random.default_rng(0)
    events = []
    for k in range(600):  # items of even number are good, and good ones are taken
        item = 2 * int(rng.integers(0, 15)) + int(rng.random() < 0.1)
        rating = 5.0 if item % 2 == 0 else 1.0
        events.append(Interaction(f"u{k % 150}", f"i{item}", rating, {"timestamp": k}, rating))
    models = {
        "river": RiverRecommender(reco.Baseline()),
        "river regressor": RiverRegressor(linear_model.LinearRegression()),
        "random": RiverRecommender(reco.RandomNormal(seed=1)),
    }
    reports = evaluate(models, events)
    assert reports["river"].hr_at_10 > reports["random"].hr_at_10 + 0.1
    assert reports["river"].rmse is not None
    assert reports["river"].rmse < reports["random"].rmse
    assert reports["river regressor"].hr_at_10 > reports["random"].hr_at_10


class _Broken(reco.Baseline):  # type: ignore[misc]
    def predict_one(self, user: Any, item: Any, x: Any = None) -> float:
        return math.nan


def test_predictions_that_are_not_finite_are_refused_by_name() -> None:
    model = RiverRecommender(_Broken())
    model.learn_one("ann", "tea", 5.0)
    for ask in (
        lambda: model.predict_one("ann", "tea"),
        lambda: model.rank("ann", ["tea"]),
        lambda: model.score_rows("ann", np.zeros(1, dtype=np.int32)),
    ):
        with pytest.raises(
            ValueError, match=r"RiverRecommender\(_Broken\): .* user 'ann' and item 'tea' is nan"
        ):
            ask()
    with pytest.raises(ValueError, match="y is inf for user 'ann' and item 'milk'"):
        model.learn_one("ann", "milk", math.inf)
    assert model.items.ids == ["tea"]


def test_what_is_no_model_of_its_kind_is_refused() -> None:
    with pytest.raises(TypeError, match=r"model is a LinearRegression, but a river\.reco Ranker is needed"):
        RiverRecommender(linear_model.LinearRegression())
    with pytest.raises(TypeError, match="model is a Baseline, but a River regressor is needed"):
        RiverRegressor(reco.Baseline())


def test_discovery_does_not_take_adapters_for_replicated_models() -> None:
    names = {model.__name__ for model in checks.discover_models()}
    assert "CoVisitation" in names
    assert not {"RiverRecommender", "RiverRegressor"} & names


def applicable(model: Any) -> Iterator[Any]:
    """River's checks of this estimator; those that need a data set have none for a recommender that is no
    regressor."""
    return (
        check for check in river_checks.yield_checks(model) if check.__name__ not in model._unit_test_skips()
    )


ESTIMATORS = [
    *checks.discover_models(),
    RiverRecommender,
    RiverRegressor,
]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: estimator.__name__)
def test_rivers_own_estimator_checks_pass(estimator: Any) -> None:
    random.seed(0)  # River's recommender check draws users from it
    model = estimator(**next(iter(estimator._unit_test_params())))
    ran = []
    for check in applicable(model):
        check(model.clone())
        ran.append(check.__name__)
    assert {"check_pickling_supports_roundtrip", "check_repr_roundtrips_clone", "check_reco_routine"} <= set(
        ran
    )


def test_rivers_recommender_check_asks_little() -> None:
    """It asserts nothing, which is why the contract has checks of its own: even a constant passes it."""

    class Constant(reco.base.Ranker):  # type: ignore[misc]
        def learn_one(self, user: Any, item: Any, y: Any, x: Any = None) -> None:
            return

        def predict_one(self, user: Any, item: Any, x: Any = None) -> float:
            return 0.0

    reco_checks.check_reco_routine(Constant())
    assert len(list(itertools.islice(applicable(Constant()), 5))) == 5
