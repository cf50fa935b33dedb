"""River's own recommenders and regressors, as estimators that are evaluated beside the online models."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from river.base import Regressor
from river.reco.base import Ranker

from online_models.base import Context
from online_models.item_table import ItemTable

__all__ = ["Features", "RiverRecommender", "RiverRegressor", "one_hot_features"]

Features = Callable[[str, str, Context], dict[str, Any]]
"""(user, item, x) to the features dict of a River model."""

_NOT_FEATURES = frozenset({"timestamp", "weight", "event_id"})


def one_hot_features(user: str, item: str, x: Context) -> dict[str, Any]:
    """One indicator each for user and item, and the context: numbers as they are, all else as indicators.

    >>> one_hot_features("ann", "tea", {"timestamp": 5, "event_type": 2, "place": "home", "price": 2.5})
    {'user=ann': 1.0, 'item=tea': 1.0, 'event_type=2': 1.0, 'place=home': 1.0, 'price': 2.5}
    """
    features: dict[str, Any] = {f"user={user}": 1.0, f"item={item}": 1.0}
    for name, value in x.items():
        if isinstance(value, float) or (isinstance(value, int) and name != "event_type"):
            if name not in _NOT_FEATURES:
                features[name] = float(value)
        elif name not in _NOT_FEATURES:
            features[f"{name}={value}"] = 1.0
    return features


class _Adapter(Ranker, abc.ABC):
    """What both adapters share: an item table of what was learned, scores by row, refusals by name.

    River's models are exempt from the contract of `OnlineRanker`: they keep no replicated state, write no
    log, may insert users while they predict, and may draw from a random stream. So the adapters are no
    `OnlineRanker`, and discovery does not find them.
    """

    predicts_ratings = True

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.items = ItemTable()

    @abc.abstractmethod
    def _predict(self, user: str, item: str, x: Context) -> float: ...

    @abc.abstractmethod
    def _learn(self, user: str, item: str, y: float, x: Context) -> None: ...

    def learn_one(  # type: ignore[override]  # ids are strings here, not any hashable
        self, user: str, item: str, y: float = 1.0, x: Context | None = None
    ) -> None:
        """Learn one event, y being what is predicted. Raises ValueError for y not finite."""
        if not math.isfinite(y):
            raise ValueError(f"y is {y!r} for user {user!r} and item {item!r}, but a finite number is needed")
        self._learn(user, item, float(y), x or {})
        self.items.ensure([item])

    def learn_many(
        self,
        users: Sequence[str],
        items: Sequence[str],
        y: Sequence[float] | None = None,
        x: Sequence[Context | None] | None = None,
    ) -> None:
        """Learn events in their order, one by one."""
        for place, (user, item) in enumerate(zip(users, items, strict=True)):
            self.learn_one(user, item, 1.0 if y is None else y[place], None if x is None else x[place])

    def predict_one(  # type: ignore[override]  # as above
        self, user: str, item: str, x: Context | None = None
    ) -> float:
        """The River model's prediction. Raises ValueError, naming model, user and item, for one not
        finite."""
        value = float(self._predict(user, item, x or {}))
        if not math.isfinite(value):
            raise ValueError(
                f"{self._name()}: the prediction for user {user!r} and item {item!r} is {value}; lower its "
                "learning rate, or clip its gradient"
            )
        return value

    def score_rows(self, user: str, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        """Predictions float32[n] of rows int32[n]; 0 for -1."""
        ids = self.items.ids
        scores = [self.predict_one(user, ids[row]) if row >= 0 else 0.0 for row in rows.tolist()]
        return np.array(scores, dtype=np.float32)

    def rank(  # type: ignore[override]  # as above
        self, user: str, items: Collection[str], x: Context | None = None
    ) -> list[str]:
        """Items by falling prediction, equal ones by item id."""
        score_of = {item: self.predict_one(user, item, x) for item in set(items)}
        return sorted(score_of, key=lambda item: (-score_of[item], item))

    def _name(self) -> str:
        return type(self).__name__


class RiverRecommender(_Adapter):
    """Any River recommender (`reco.Baseline`, `reco.BiasedMF`, `reco.FunkMF`, `reco.RandomNormal`, or your
    own) on string ids, ranked over all items that it has learned.

    y is what the model is taught, a rating as a rule; x is passed on as it is. River's factor models predict
    ratings, and a ranking by predicted rating is not one by what users take next: expect low hit rates of
    it.

    Parameters: model, a River `reco.base.Ranker`; seed (unused: River's models have their own).

    >>> from river import reco
    >>> model = RiverRecommender(reco.Baseline())
    >>> for user, item, rating in [("ann", "tea", 5.0), ("ann", "nails", 1.0), ("bob", "tea", 4.0)]:
    ...     model.learn_one(user, item, rating)
    >>> model.rank("bob", ["nails", "tea"]), round(model.predict_one("bob", "tea"), 3)
    (['tea', 'nails'], 3.36)
    """

    def __init__(self, model: Ranker, seed: int = 0) -> None:
        super().__init__(seed=seed)
        if not isinstance(model, Ranker):
            raise TypeError(f"model is a {type(model).__name__}, but a river.reco Ranker is needed")
        self.model: Any = model

    @classmethod
    def _unit_test_params(cls) -> Any:
        from river import reco

        yield {"model": reco.Baseline()}

    def _predict(self, user: str, item: str, x: Context) -> float:
        return float(self.model.predict_one(user, item, dict(x)))

    def _learn(self, user: str, item: str, y: float, x: Context) -> None:
        self.model.learn_one(user, item, y, dict(x))

    def _name(self) -> str:
        return f"{type(self).__name__}({type(self.model).__name__})"


class RiverRegressor(_Adapter):
    """Any River regressor (a linear model, a factorisation machine, a tree, a pipeline) over features of
    user, item and context, as a recommender: items are ranked by what it predicts for them.

    Parameters: model, a River `base.Regressor` or a pipeline that ends in one; features, a function of
    (user, item, x), `one_hot_features` where None; seed (unused). Ranking without a context asks for
    features with an empty one.

    >>> from river import linear_model
    >>> model = RiverRegressor(linear_model.LinearRegression(intercept_lr=0.0))
    >>> for _ in range(50):
    ...     model.learn_one("ann", "tea", 5.0)
    ...     model.learn_one("ann", "nails", 1.0)
    >>> model.rank("ann", ["nails", "tea"]), model.predict_one("ann", "tea") > 3.0
    (['tea', 'nails'], True)
    """

    def __init__(self, model: Regressor, features: Features | None = None, seed: int = 0) -> None:
        super().__init__(seed=seed)
        if not callable(getattr(model, "learn_one", None)) or isinstance(model, Ranker):
            raise TypeError(f"model is a {type(model).__name__}, but a River regressor is needed")
        self.model: Any = model
        self.features = features

    @classmethod
    def _unit_test_params(cls) -> Any:
        from river import linear_model

        yield {"model": linear_model.LinearRegression()}

    def _features(self, user: str, item: str, x: Context) -> dict[str, Any]:
        return (self.features or one_hot_features)(user, item, x)

    def _predict(self, user: str, item: str, x: Context) -> float:
        return float(self.model.predict_one(self._features(user, item, x)))

    def _learn(self, user: str, item: str, y: float, x: Context) -> None:
        self.model.learn_one(self._features(user, item, x), y)

    def _name(self) -> str:
        return f"{type(self).__name__}({type(self.model).__name__})"
