"""Two models on the same events, paired."""

from __future__ import annotations

import msgspec

from online_models.evaluation import metrics
from online_models.evaluation.arena import Entrant
from online_models.evaluation.metrics import mean_of
from online_models.evaluation.protocols import Run
from online_models.evaluation.significance import mcnemar, paired_bootstrap
from online_models.evaluation.slices import Flags

__all__ = ["Comparison", "Paired", "compare", "paired"]

SURE = 0.05
"""A p value below it counts a stretch of the stream as won or lost."""


class Paired(msgspec.Struct, frozen=True, kw_only=True):
    """Hits within the first ten of two models on a part of the events, paired."""

    judged: int
    hr_difference: float
    hits_only_model: int
    hits_only_against: int
    p_value: float


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Two models on the same events: who hit what alone, and the difference in NDCG@10 (model - against).

    `first_events` is the same on users' first events (history 0); of `windows` consecutive stretches of the
    stream, the model hit more in `windows_model` and less in `windows_against` by McNemar's test at 0.05.
    """

    model: str
    against: str
    hits_only_model: int
    hits_only_against: int
    p_value: float
    ndcg_difference: float
    interval_95: tuple[float, float]
    first_events: Paired
    windows: int
    windows_model: int
    windows_against: int


def compare(run: Run, one: Entrant, other: Entrant, seed: int = 0, window: int = 5000) -> Comparison:
    """Paired comparison on all judged events; `model` is the one with the higher NDCG@10."""
    gains = {entrant.name: metrics.gains(run.ranks(entrant)) for entrant in (one, other)}
    better, worse = (other, one) if gains[other.name].sum() > gains[one.name].sum() else (one, other)
    hit, other_hit = metrics.hits(run.ranks(better), 10), metrics.hits(run.ranks(worse), 10)
    difference = gains[better.name] - gains[worse.name]
    whole = paired(hit, other_hit)
    stretches = [
        paired(hit[start : start + window], other_hit[start : start + window])
        for start in range(0, len(hit), window)
    ]
    sure = [stretch for stretch in stretches if stretch.p_value < SURE]
    return Comparison(
        model=better.name,
        against=worse.name,
        hits_only_model=whole.hits_only_model,
        hits_only_against=whole.hits_only_against,
        p_value=whole.p_value,
        ndcg_difference=mean_of(difference),
        interval_95=paired_bootstrap(difference, run.user, seed=seed),
        first_events=paired(hit[run.history == 0], other_hit[run.history == 0]),
        windows=len(stretches),
        windows_model=sum(stretch.hr_difference > 0 for stretch in sure),
        windows_against=sum(stretch.hr_difference < 0 for stretch in sure),
    )


def paired(hit: Flags, other_hit: Flags) -> Paired:
    """Two models' hits bool[n] on the same events.

    >>> import numpy as np
    >>> paired(np.array([True, True, False]), np.array([False, True, False]))
    Paired(judged=3, hr_difference=0.3333333333333333, hits_only_model=1, hits_only_against=0, p_value=1.0)
    """
    only, only_other = int((hit & ~other_hit).sum()), int((other_hit & ~hit).sum())
    return Paired(
        judged=len(hit),
        hr_difference=(only - only_other) / max(len(hit), 1),
        hits_only_model=only,
        hits_only_against=only_other,
        p_value=mcnemar(only, only_other),
    )
