"""What the gate says of ranks: means, paired differences with intervals, parts of the events, coverage."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from serving.registry.manifest import Comparison, ModelScore, SliceScore
from serving.training.dataset import Bool, Int64
from serving.training.gate_ranks import CUTOFF, Contest, Ranking

__all__ = [
    "NEW_ITEM_EVENTS",
    "NEW_USER_EVENTS",
    "compared",
    "coverage",
    "gains",
    "parts_of",
    "score_of",
    "slice_scores",
]

Float64 = npt.NDArray[np.float64]

NEW_USER_EVENTS = 5
"""A user with at most so many events before is new."""
NEW_ITEM_EVENTS = 5
"""An item with fewer positive events in the training part is new."""
_HISTORIES = (0, 1, 6, 21, 51)
_BLOCK = 1 << 21
"""Numbers drawn at once: 16 MiB."""


def gains(ranks: Float64) -> Float64:
    """float64[n]: NDCG@10 of each event, 1 / log2(rank + 2) within the first ten."""
    return np.where(ranks < CUTOFF, 1.0 / np.log2(np.minimum(ranks, CUTOFF) + 2.0), 0.0)


def score_of(ranks: Float64) -> ModelScore:
    """HR@10 and NDCG@10, 0 where there is no event."""
    if not len(ranks):
        return ModelScore(hr_at_10=0.0, ndcg_at_10=0.0)
    return ModelScore(hr_at_10=float((ranks < CUTOFF).mean()), ndcg_at_10=float(gains(ranks).mean()))


def compared(
    challenger: Float64, other: Float64, users: Int64, against: str, samples: int, seed: int
) -> Comparison:
    """Mean paired difference in NDCG@10 of ranks float64[n], and its 95 % bootstrap interval.

    Users int64[n] are drawn with all their events, since a user's events are alike (Efron and Tibshirani, An
    Introduction to the Bootstrap, 1993). All 0 where there is no event.
    """
    differences = gains(challenger) - gains(other)
    if not len(differences):
        return Comparison(against=against, ndcg_gain=0.0, low=0.0, high=0.0)
    _, user = np.unique(users, return_inverse=True)
    sums, counts = np.bincount(user, weights=differences), np.bincount(user)
    rng, n, means = np.random.default_rng(seed), len(sums), []
    size = max(1, _BLOCK // n)
    for start in range(0, samples, size):
        drawn = rng.integers(0, n, (min(size, samples - start), n))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return Comparison(against=against, ndcg_gain=float(differences.mean()), low=float(low), high=float(high))


def parts_of(contest: Contest, popularity: Mapping[str, float]) -> dict[str, Bool]:
    """Flags bool[n] of the contest's events by name: new users, new items (few or no positive events in the
    training part, by `popularity`), and by how many events the user had before."""
    newest, events = contest.newest, contest.events
    before = (newest.positions - newest.starts)[events]
    known = np.array([popularity.get(item_id, 0.0) for item_id in newest.item_ids])
    parts = {
        "new_users": before <= NEW_USER_EVENTS,
        "new_items": known[newest.targets[events]] < NEW_ITEM_EVENTS,
    }
    for first, following in zip(_HISTORIES, (*_HISTORIES[1:], None), strict=True):
        name = f"history_{first}" + (
            "_up" if following is None else f"_{following - 1}" * (following > first + 1)
        )
        parts[name] = (before >= first) & (before < (following or np.inf))
    return parts


def slice_scores(parts: Mapping[str, Bool], rankings: Mapping[str, Ranking]) -> tuple[SliceScore, ...]:
    """NDCG@10 of every contestant on every part; None for one that was not ranked."""
    scores = []
    for name, chosen in parts.items():
        by_name = {
            who: score_of(ranking.ranks[chosen]).ndcg_at_10
            for who, ranking in rankings.items()
            if chosen.any()
        }
        scores.append(SliceScore(name=name, events=int(chosen.sum()), **by_name))
    return tuple(scores)


def coverage(ranking: Ranking) -> int:
    """Distinct items over all lists of ten.

    >>> coverage(Ranking(np.zeros(2), np.array([[4, 7, -1], [7, 9, 4]])))
    3
    """
    return len(np.unique(ranking.top[ranking.top >= 0]))
