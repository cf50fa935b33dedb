"""The models by the names that settings, `freshet evaluate` and the docs call them."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from online_models.base import OnlineRanker

__all__ = ["MODEL_NAMES", "make_model", "model_class"]

_CLASSES = {
    "biased_mf": "BiasedMF",
    "bpr": "BPR",
    "content": "ContentModel",
    "covisitation": "CoVisitation",
    "cross_domain": "CrossDomain",
    "eals": "EALS",
    "ease": "RecencyEASE",
    "fm": "FactorizationMachine",
    "fusion": "Fusion",
    "graph": "ItemGraph",
    "group_popularity": "GroupPopularity",
    "ials": "IALS",
    "isgd": "ISGD",
    "item_knn": "ItemKNN",
    "popularity": "DecayedPopularity",
    "session_knn": "SessionKNN",
    "social": "SocialRanker",
    "social_mf": "SocialMF",
    "stage_popularity": "StagePopularity",
    "trending": "Trending",
    "user_knn": "UserKNN",
}
"""Module of this package to class."""

MODEL_NAMES = tuple(sorted(_CLASSES))


def model_class(name: str) -> type[OnlineRanker]:
    """The class of a model. Raises ValueError for an unknown name, naming those that there are.

    >>> model_class("isgd").__name__
    'ISGD'
    """
    if name not in _CLASSES:
        raise ValueError(f"no model {name!r}; there are {', '.join(MODEL_NAMES)}")
    module = importlib.import_module(f"online_models.{name}")
    found: type[OnlineRanker] = getattr(module, _CLASSES[name])
    return found


def make_model(name: str, parameters: dict[str, Any] | None = None) -> OnlineRanker:
    """A fresh model. Raises ValueError for a name or a parameter that is unknown, naming what there is."""
    made, given = model_class(name), parameters or {}
    known = list(inspect.signature(made).parameters)
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"{name} has no parameter {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    return made(**given)
