"""Test-then-learn evaluation: before a model learns an event, it is asked where that event's item would
stand.

Full ranking, never sampled (Krichene and Rendle, KDD 2020): candidates are all items known so far less those
that the user has had. Protocol of Gama, Sebastião and Rodrigues, On evaluating stream learning algorithms,
Machine Learning 2013.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from online_models.base import OnlineRanker

__all__ = ["Interaction", "PrequentialReport", "evaluate"]


class Interaction(NamedTuple):
    """One event of the stream; x as in `OnlineRanker`, so its weight is x["weight"] when given, else y."""

    user: str
    item: str
    y: float = 1.0
    x: Mapping[str, Any] | None = None


class PrequentialReport(msgspec.Struct, frozen=True, kw_only=True):
    """Means over the judged events. Repeats (items the user has had) and weights <= 0 are only learned."""

    events: int
    judged: int
    repeats: int
    hr_at_10: float
    ndcg_at_10: float
    hr_at_50: float
    mrr: float
    seconds: float


class _Tally:
    """Running sums for one model."""

    def __init__(self, model: OnlineRanker) -> None:
        self.model = model
        self.hits_10 = self.hits_50 = 0
        self.gain = self.reciprocal = self.seconds = 0.0

    def judge(self, user: str, item: str, had: set[str]) -> None:
        rank = _rank(self.model, user, item, had)
        if rank is None:
            return
        self.hits_10 += rank < 10
        self.hits_50 += rank < 50
        self.gain += 1.0 / math.log2(rank + 2.0) if rank < 10 else 0.0
        self.reciprocal += 1.0 / (rank + 1.0)

    def report(self, events: int, judged: int, repeats: int) -> PrequentialReport:
        n = max(judged, 1)
        return PrequentialReport(
            events=events, judged=judged, repeats=repeats, hr_at_10=self.hits_10 / n, ndcg_at_10=self.gain /
            n, hr_at_50=self.hits_50 / n, mrr=self.reciprocal / n, seconds=self.seconds,
        )  # fmt: skip


def evaluate(
    models: Mapping[str, OnlineRanker], events: Iterable[Interaction]
) -> dict[str, PrequentialReport]:
    """Run each event past every model: judge, then learn.

    An item that the model doesn't know is a miss. Tied scores give half credit: the rank is (number above) +
    (number tied) / 2. HR@k is the share of ranks below k, NDCG@10 the mean of 1 / log2(rank + 2) within the
    first ten, MRR the mean of 1 / (rank + 1); ranks from 0. Raises ValueError for a score that is not
    finite, naming model, user and item.

    >>> from online_models.popularity import DecayedPopularity
    >>> stream = [Interaction(user, item) for user in "abcd" for item in ("tea", "milk")]
    >>> report = evaluate({"popularity": DecayedPopularity()}, stream)["popularity"]
    >>> report.events, report.judged, report.hr_at_10, round(report.mrr, 4)
    (8, 8, 0.75, 0.625)
    """
    tallies = {name: _Tally(model) for name, model in models.items()}
    had: dict[str, set[str]] = {}
    n = judged = repeats = 0
    for event in events:
        n += 1
        seen = had.setdefault(event.user, set())
        weight = float((event.x or {}).get("weight", event.y))
        repeats += event.item in seen
        is_judged = weight > 0.0 and event.item not in seen
        judged += is_judged
        for tally in tallies.values():
            started = time.perf_counter()
            if is_judged:
                tally.judge(event.user, event.item, seen)
            tally.model.learn_one(event.user, event.item, event.y, event.x)
            tally.seconds += time.perf_counter() - started
        seen.add(event.item)
    return {name: tally.report(n, judged, repeats) for name, tally in tallies.items()}


def _rank(model: OnlineRanker, user: str, item: str, had: set[str]) -> float | None:
    """Rank of the item from 0, halves for ties, among known items that the user has not had; None if
    unknown."""
    target = model.items.row(item)
    if target < 0:
        return None
    scores: NDArray[np.float32] = model.score_rows(user, np.arange(len(model.items), dtype=np.int32))
    if not np.isfinite(scores).all():
        bad = model.items.ids[int(np.flatnonzero(~np.isfinite(scores))[0])]
        raise ValueError(f"{type(model).__name__}: score of item {bad!r} for user {user!r} is not finite")
    seen_rows = model.items.rows(had)
    scores[seen_rows[seen_rows >= 0]] = -np.inf
    above = int((scores > scores[target]).sum())
    tied = int((scores == scores[target]).sum()) - 1
    return above + tied / 2.0
