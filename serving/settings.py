"""Settings of the way from candidates to a list."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

__all__ = ["ServingSettings"]

Candidates = Annotated[int, Meta(ge=0, le=10_000)]
Weight = Annotated[float, Meta(ge=0, le=1)]


class ServingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many candidates each source gives, and how the sources' scores are blended."""

    covisitation_candidates: Candidates = 150
    popularity_candidates: Candidates = 50
    """At least as many as the list is long are taken."""
    factor_candidates: Candidates = 30
    factor_scan_items: Annotated[int, Meta(ge=0)] = 20_000
    """Catalogues with more learned items than this get no candidates from the factors, which would take an
    inner product with every item for every list (0.2 ms at 20,000); the other sources' candidates are still
    scored by them."""
    content_candidates: Candidates = 10
    """New items, like by content to what the user had; 0 where `[content]` asks for none."""
    content_new_events: Annotated[int, Meta(ge=1, le=1_000_000)] = 5
    """Items with fewer positive events are new: others have better sources."""
    content_scan_items: Annotated[int, Meta(ge=1, le=1_000_000)] = 2000
    """New items that are compared at most, those that got their row last; with texts, 40 ns each a list."""
    content_weight: Weight = 0.1
    covisitation_weight: Weight = 0.7
    popularity_weight: Weight = 0.05
    factor_weight: Weight = 0.5
    factor_experience_items: Annotated[float, Meta(ge=0, le=10_000)] = 5.0
    """A user who has seen h items gives the factors h / (h + this) of their weight: a young factor is
    noise."""
    ranker_weight: Weight = 0.3
