"""The learned item state as the arrays that the kernels read: the one place that knows where the models keep
them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from online_models.item_state import ItemState
from serving.kernels import Learned

__all__ = ["Activity", "activity_arrays", "learned_arrays"]


class Activity(NamedTuple):
    """What is counted of items, by row: float64, int64 and int64, all [>= rows]."""

    plain: npt.NDArray[np.float64]
    """Positive events."""
    exposures: npt.NDArray[np.int64]
    last_ms: npt.NDArray[np.int64]
    """Time of the newest positive event, -1 where there is none."""
    newest_ms: int
    """The newest event's time, of all items."""


def learned_arrays(items: ItemState) -> Learned:
    """Views, hardly a copy: take them anew for every batch of lists, for learning may move the arrays."""
    related, popular = items.covisitation, items.popularity
    return Learned(
        pool=related._pool,
        source_norm=related._source_norm,
        target_norm=related._target_norm,
        decay=related.query_decay ** np.arange(related.query_length, dtype=np.float64),
        popularity=popular._decayed,
        top=popular.top(popular.top_size),
        factors=items.factors.factors.rows,
    )


def activity_arrays(items: ItemState) -> Activity:
    """Views, as `learned_arrays`."""
    popular, activity = items.popularity, items.activity
    activity.reserve()
    popular._reserve(len(items.items))
    return Activity(
        plain=popular._plain,
        exposures=activity.exposures,
        last_ms=activity.last_ms,
        newest_ms=max(int(popular._clock[1]), 0),
    )
