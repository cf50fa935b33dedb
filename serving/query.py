"""What the pipeline is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Query", "RankedItem", "RankedList"]


@dataclass(slots=True)
class Query:
    """One list to make. `recent` holds the user's items, oldest first; `factor` is float32 [d], zeros when
    unknown."""

    recent: Sequence[str]
    seen: Collection[str]
    factor: npt.NDArray[np.float32]
    count: int
    categories: Sequence[str] | None = None
    exclude: Sequence[str] = ()
    candidates: Sequence[str] | None = None


@dataclass(slots=True)
class RankedItem:
    item_id: str
    score: float
    sources: list[str]
    kind: str
    because: list[str]
    text: str


@dataclass(slots=True)
class RankedList:
    items: list[RankedItem]
    ranker: str | None
    degraded: str | None
    """Why the list was made without a part that should have been there; None when all was there."""
