"""Parts of the judged events that are looked at apart: cold users, cold items, unpopular items, stretches."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from online_models.evaluation.protocols import Run

__all__ = ["Flags", "slices"]

Flags = NDArray[np.bool_]


def slices(run: Run, searched: int | None = None) -> dict[str, dict[str, Flags]]:
    """Parts of the judged events, bool[judged] each, by what was known of user and item before, and by place
    in the stream: kind of part to name to flags."""
    history, exposures, place = run.history, run.exposures, run.event / max(run.events, 1)
    parts = {
        "history": {
            "0": history == 0,
            "1-4": (history >= 1) & (history <= 4),
            "5-9": (history >= 5) & (history <= 9),
            "10+": history >= 10,
        },
        "user_events": {f"first {n}": history < n for n in (1, 2, 5, 10)},
        "item_exposures": {
            "0": exposures == 0,
            "1-4": (exposures >= 1) & (exposures <= 4),
            "0-4": exposures <= 4,
            "5+": exposures >= 5,
        },
        "item_popularity": {"top 10%": run.popular, "other 90%": ~run.popular},
        "stream": {"first 20%": place < 0.2, "last 80%": place >= 0.2, "last 70%": place >= 0.3},
    }
    if searched is not None:
        parts["search"] = {"searched on": run.event < searched, "after it": run.event >= searched}
    if run.protocol == "temporal":
        parts["user_event"] = {
            "first": _first_of_each(run.user),
            "last": _first_of_each(run.user[::-1])[::-1],
        }
    return parts


def _first_of_each(user: NDArray[np.int32]) -> Flags:
    first = np.zeros(len(user), dtype=np.bool_)
    first[np.unique(user, return_index=True)[1]] = True
    return first
