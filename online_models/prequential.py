"""Test-then-learn evaluation in one call: before a model learns an event, it is asked where that event's item
would stand.

Full ranking, never sampled (Krichene and Rendle, KDD 2020): candidates are all items known so far less those
that the user has had. Protocol of Gama, Sebastião and Rodrigues, On evaluating stream learning algorithms,
Machine Learning 2013. `online_models.evaluation` has the other protocols and the other figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
import numpy as np

from online_models.evaluation import metrics
from online_models.evaluation.arena import Entrant, Evaluated
from online_models.evaluation.interactions import Interaction
from online_models.evaluation.protocols import Run, prequential

__all__ = ["Interaction", "PrequentialReport", "evaluate"]


class PrequentialReport(msgspec.Struct, frozen=True, kw_only=True):
    """Means over the judged events. Repeats (items the user has had) and weights <= 0 are only learned."""

    events: int
    judged: int
    repeats: int
    hr_at_10: float
    ndcg_at_10: float
    hr_at_50: float
    mrr: float
    rmse: float | None
    seconds: float
    score_us: float
    """Microseconds to score all items, mean over judged events."""
    learn_us: float
    """Microseconds to learn an event."""


def evaluate(models: Mapping[str, Evaluated], events: Iterable[Interaction]) -> dict[str, PrequentialReport]:
    """Run each event past every model: judge, then learn.

    An item that the model doesn't know is a miss. Tied scores give half credit: the rank is (number above) +
    (number tied) / 2. HR@k is the share of ranks below k, NDCG@10 the mean of 1 / log2(rank + 2) within the
    first ten, MRR the mean of 1 / (rank + 1); ranks from 0. RMSE is of the ratings that events state
    (`Interaction.rating`), for models that predict them. Raises ValueError for a score that is not finite,
    naming model, user and item.

    >>> from online_models.popularity import DecayedPopularity
    >>> stream = [Interaction(user, item) for user in "abcd" for item in ("tea", "milk")]
    >>> report = evaluate({"popularity": DecayedPopularity()}, stream)["popularity"]
    >>> report.events, report.judged, report.hr_at_10, round(report.mrr, 4)
    (8, 8, 0.75, 0.625)
    """
    run = prequential(models, list(events))
    return {entrant.name: _report(run, entrant) for entrant in run.entrants}


def _report(run: Run, entrant: Entrant) -> PrequentialReport:
    ranks = run.ranks(entrant)
    n = max(len(ranks), 1)
    return PrequentialReport(
        events=run.events,
        judged=len(ranks),
        repeats=run.repeats,
        hr_at_10=float(np.sum(metrics.hits(ranks, 10))) / n,
        ndcg_at_10=float(np.sum(metrics.gains(ranks))) / n,
        hr_at_50=float(np.sum(metrics.hits(ranks, 50))) / n,
        mrr=float(np.sum(metrics.reciprocals(ranks))) / n,
        rmse=(entrant.squared_error / entrant.rated) ** 0.5 if entrant.rated else None,
        seconds=entrant.score_s + entrant.learn_s,
        score_us=1e6 * entrant.score_s / n,
        learn_us=1e6 * entrant.learn_s / max(run.events, 1),
    )
