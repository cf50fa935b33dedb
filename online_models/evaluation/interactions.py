"""What is evaluated on: one event after another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from online_models import corrections

__all__ = ["Interaction", "weight_of"]


class Interaction(NamedTuple):
    """One event of the stream; x as in `OnlineRanker`, so its weight is x["weight"] when given, else y.

    `rating` is the rating that the event states, for models that predict it; None where it states none.
    """

    user: str
    item: str
    y: float = 1.0
    x: Mapping[str, Any] | None = None
    rating: float | None = None


def weight_of(event: Interaction) -> float:
    """The weight with which the event is learned.

    >>> weight_of(Interaction("ann", "tea", 4.0)), weight_of(Interaction("ann", "tea", 4.0, {"weight": 1}))
    (4.0, 1.0)
    """
    return corrections.weight_of(event.y, event.x)
