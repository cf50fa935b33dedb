"""Settings of the way from candidates to a list."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

__all__ = ["ServingSettings"]


class ServingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many candidates each source gives, and how the sources' scores are blended."""

    covisitation_candidates: Annotated[int, Meta(ge=0, le=10_000)] = 150
    popularity_candidates: Annotated[int, Meta(ge=1, le=4096)] = 50
    factor_candidates: Annotated[int, Meta(ge=0, le=10_000)] = 30
    covisitation_weight: Annotated[float, Meta(ge=0, le=1)] = 0.7
    ranker_weight: Annotated[float, Meta(ge=0, le=1)] = 0.3
    factor_weight: Annotated[float, Meta(ge=0, le=1)] = 0.05
    popularity_weight: Annotated[float, Meta(ge=0, le=1)] = 0.02
    ranker_timeout_ms: Annotated[float, Meta(gt=0)] = 1000.0
