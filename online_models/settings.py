"""Settings of the online models. Imports neither numba nor River, so that reading settings stays fast."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

__all__ = ["CoVisitationSettings", "FactorSettings", "ModelSettings", "PopularitySettings"]

Count = Annotated[int, Meta(ge=1, le=4096)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Meta(ge=0.0, le=1e9)]
HalfLifeSeconds = Annotated[float, Meta(ge=0.0, le=1e12)]
"""Half-life in seconds of event time; 0 turns decay off."""


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class CoVisitationSettings(_Section, frozen=True):
    """See `online_models.covisitation.CoVisitation`."""

    window: Annotated[int, Meta(ge=1, le=50)] = 20
    gap_decay: Share = 0.95
    backward_weight: Share = 1.0
    query_length: Annotated[int, Meta(ge=1, le=50)] = 15
    query_decay: Share = 0.85
    source_exponent: Share = 0.5
    target_exponent: Share = 0.4
    shrinkage: NonNegative = 10.0
    row_capacity: Annotated[int, Meta(ge=8, le=16384)] = 1024
    half_life_s: HalfLifeSeconds = 0.0


class PopularitySettings(_Section, frozen=True):
    """See `online_models.popularity.DecayedPopularity`."""

    half_life_s: HalfLifeSeconds = 20 * 86_400.0
    top_size: Annotated[int, Meta(ge=1, le=65_536)] = 4096


class FactorSettings(_Section, frozen=True):
    """See `online_models.isgd.ISGD`."""

    dimension: Annotated[int, Meta(ge=1, le=1024)] = 32
    learning_rate: Annotated[float, Meta(gt=0.0, le=0.5)] = 0.3
    regularization: NonNegative = 0.01
    negatives: Annotated[int, Meta(ge=0, le=64)] = 8
    start_scale: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.1


class ModelSettings(_Section, frozen=True):
    """All that decides what the replicated item state becomes; its digest stands in every learning record."""

    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    max_items: Annotated[int, Meta(ge=1, le=2**28)] = 1_000_000
    """Rows of the item table. When it is full (1/32 is kept for the turnover), a new item takes a row from
    the item whose last event is longest ago, and all that was learned of that item is forgotten."""
    covisitation: CoVisitationSettings = msgspec.field(default_factory=CoVisitationSettings)
    popularity: PopularitySettings = msgspec.field(default_factory=PopularitySettings)
    factors: FactorSettings = msgspec.field(default_factory=FactorSettings)
