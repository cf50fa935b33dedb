"""Incremental recommenders over contiguous arrays, under River's interface.

Names load on first use: `online_models.settings` alone costs neither numba nor River.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from online_models.base import OnlineRanker
    from online_models.biased_mf import BiasedMF
    from online_models.bpr import BPR
    from online_models.content import ContentModel
    from online_models.covisitation import CoVisitation
    from online_models.cross_domain import CrossDomain
    from online_models.eals import EALS
    from online_models.ease import RecencyEASE
    from online_models.errors import OnlineModelError, SnapshotMismatchError
    from online_models.factor_table import FactorTable
    from online_models.fm import FactorizationMachine
    from online_models.fusion import Fusion
    from online_models.graph import ItemGraph
    from online_models.group_popularity import GroupPopularity
    from online_models.ials import IALS
    from online_models.isgd import ISGD
    from online_models.item_knn import ItemKNN
    from online_models.item_state import ItemState
    from online_models.item_table import ItemTable
    from online_models.learning_batch import BatchRows, LearningBatch
    from online_models.popularity import DecayedPopularity
    from online_models.session_knn import SessionKNN
    from online_models.settings import ModelSettings
    from online_models.social import SocialRanker
    from online_models.social_mf import SocialMF
    from online_models.stage_popularity import StagePopularity
    from online_models.trending import Trending
    from online_models.user_knn import UserKNN

__all__ = [
    "BPR",
    "EALS",
    "IALS",
    "ISGD",
    "BatchRows",
    "BiasedMF",
    "CoVisitation",
    "ContentModel",
    "CrossDomain",
    "DecayedPopularity",
    "FactorTable",
    "FactorizationMachine",
    "Fusion",
    "GroupPopularity",
    "ItemGraph",
    "ItemKNN",
    "ItemState",
    "ItemTable",
    "LearningBatch",
    "ModelSettings",
    "OnlineModelError",
    "OnlineRanker",
    "RecencyEASE",
    "SessionKNN",
    "SnapshotMismatchError",
    "SocialMF",
    "SocialRanker",
    "StagePopularity",
    "Trending",
    "UserKNN",
]

_MODULE_OF = {
    "SocialMF": "social_mf",
    "SocialRanker": "social",
    "GroupPopularity": "group_popularity",
    "Trending": "trending",
    "BPR": "bpr",
    "BiasedMF": "biased_mf",
    "IALS": "ials",
    "EALS": "eals",
    "UserKNN": "user_knn",
    "ItemKNN": "item_knn",
    "ISGD": "isgd",
    "BatchRows": "learning_batch",
    "CoVisitation": "covisitation",
    "ContentModel": "content",
    "CrossDomain": "cross_domain",
    "DecayedPopularity": "popularity",
    "FactorTable": "factor_table",
    "FactorizationMachine": "fm",
    "ItemGraph": "graph",
    "Fusion": "fusion",
    "ItemState": "item_state",
    "ItemTable": "item_table",
    "LearningBatch": "learning_batch",
    "ModelSettings": "settings",
    "OnlineModelError": "errors",
    "OnlineRanker": "base",
    "RecencyEASE": "ease",
    "SessionKNN": "session_knn",
    "SnapshotMismatchError": "errors",
    "StagePopularity": "stage_popularity",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
