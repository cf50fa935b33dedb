"""The figures of a run: what `freshet evaluate --json` prints."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import msgspec
import numpy as np
from numpy.typing import NDArray

from online_models.evaluation import metrics
from online_models.evaluation.arena import Entrant
from online_models.evaluation.protocols import Run
from online_models.evaluation.significance import mcnemar, paired_bootstrap

__all__ = [
    "Comparison",
    "Evaluation",
    "ModelFigures",
    "SliceFigures",
    "WindowFigures",
    "compare",
    "summarise",
]

FADING = 0.999
MOST_POINTS = 500
"""Points of a window curve at most."""
Flags = NDArray[np.bool_]


class SliceFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Means over a part of the judged events; 0 where the part is empty."""

    judged: int
    hr_at_10: float
    ndcg_at_10: float


class WindowFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Means over the last `window` judged events, up to and with the `judged`-th, which was event `event`."""

    judged: int
    event: int
    hr_at_10: float
    ndcg_at_10: float


class ModelFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one model; docs/evaluation.md has the equations."""

    model: str
    judged: int
    hr_at_10: float
    ndcg_at_10: float
    hr_at_50: float
    mrr: float
    recall_at_10: float
    coverage_at_10: float
    novelty: float
    diversity: float | None
    gini: float
    rmse: float | None
    hr_at_10_faded: float
    ndcg_at_10_faded: float
    seconds: float
    events_per_second: float
    score_us: float
    """Microseconds to score all items, mean over judged events."""
    learn_us: float
    """Microseconds to learn an event, mean over learned events."""
    slices: dict[str, dict[str, SliceFigures]]
    windows: list[WindowFigures]


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Two models on the same events: who hit what alone, and the difference in NDCG@10 (model - against)."""

    model: str
    against: str
    hits_only_model: int
    hits_only_against: int
    p_value: float
    ndcg_difference: float
    interval_95: tuple[float, float]


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """All of a run. `judged` counts the events on which models were asked, `repeats` those that were not
    because the user had had the item."""

    dataset: str
    events: int
    users: int
    items: int
    protocol: str
    judged: int
    repeats: int
    window: int
    models: list[ModelFigures]
    comparisons: list[Comparison]


def summarise(run: Run, dataset: str, window: int = 5000, seed: int = 0) -> Evaluation:
    """The figures of a run, models in the order in which they were given.

    >>> from online_models.evaluation.interactions import Interaction
    >>> from online_models.evaluation.protocols import prequential
    >>> from online_models.popularity import DecayedPopularity
    >>> stream = [Interaction(user, item) for user in "abcd" for item in ("tea", "milk")]
    >>> found = summarise(prequential({"popularity": DecayedPopularity()}, stream), "tiny")
    >>> found.judged, found.models[0].hr_at_10, found.models[0].slices["history"]["0"].hr_at_10
    (8, 0.75, 0.75)
    """
    parts = _slices(run)
    return Evaluation(
        dataset=dataset,
        events=run.events,
        users=run.users,
        items=run.items,
        protocol=run.protocol,
        judged=len(run.event),
        repeats=run.repeats,
        window=window,
        models=[_figures(run, entrant, parts, window) for entrant in run.entrants],
        comparisons=[compare(run, one, other, seed) for one, other in combinations(run.entrants, 2)],
    )


def compare(run: Run, one: Entrant, other: Entrant, seed: int = 0) -> Comparison:
    """Paired comparison on all judged events; `model` is the one with the higher NDCG@10."""
    gains = {entrant.name: metrics.gains(run.ranks(entrant)) for entrant in (one, other)}
    better, worse = (other, one) if gains[other.name].sum() > gains[one.name].sum() else (one, other)
    hit, other_hit = metrics.hits(run.ranks(better), 10), metrics.hits(run.ranks(worse), 10)
    only, only_other = int((hit & ~other_hit).sum()), int((other_hit & ~hit).sum())
    difference = gains[better.name] - gains[worse.name]
    return Comparison(
        model=better.name,
        against=worse.name,
        hits_only_model=only,
        hits_only_against=only_other,
        p_value=mcnemar(only, only_other),
        ndcg_difference=_mean(difference),
        interval_95=paired_bootstrap(difference, run.user, seed=seed),
    )


def _figures(
    run: Run, entrant: Entrant, parts: Mapping[str, Mapping[str, Flags]], window: int
) -> ModelFigures:
    ranks = run.ranks(entrant)
    hit, gain = metrics.hits(ranks, 10).astype(np.float64), metrics.gains(ranks)
    shown = entrant.shown[: run.items]
    seconds = entrant.score_s + entrant.learn_s
    return ModelFigures(
        model=entrant.name,
        judged=len(ranks),
        hr_at_10=_mean(hit),
        ndcg_at_10=_mean(gain),
        hr_at_50=_mean(metrics.hits(ranks, 50)),
        mrr=_mean(metrics.reciprocals(ranks)),
        recall_at_10=_mean(hit),
        coverage_at_10=metrics.coverage(shown),
        novelty=entrant.surprise / max(entrant.listed, 1),
        diversity=entrant.apart / entrant.pairs if entrant.pairs else None,
        gini=metrics.gini(shown),
        rmse=(entrant.squared_error / entrant.rated) ** 0.5 if entrant.rated else None,
        hr_at_10_faded=metrics.faded_mean(hit, FADING),
        ndcg_at_10_faded=metrics.faded_mean(gain, FADING),
        seconds=seconds,
        events_per_second=run.events / seconds if seconds else 0.0,
        score_us=1e6 * entrant.score_s / max(len(ranks), 1),
        learn_us=1e6 * entrant.learn_s / max(run.events, 1),
        slices={
            kind: {name: _slice(hit, gain, chosen) for name, chosen in found.items()}
            for kind, found in parts.items()
        },
        windows=_windows(run, hit, gain, window),
    )


def _slices(run: Run) -> dict[str, dict[str, Flags]]:
    """Parts of the judged events by what was known of user and item, and by place in the stream."""
    history, exposures, place = run.history, run.exposures, run.event / max(run.events, 1)
    parts = {
        "history": {
            "0": history == 0,
            "1-4": (history >= 1) & (history <= 4),
            "5-9": (history >= 5) & (history <= 9),
            "10+": history >= 10,
        },
        "item_exposures": {"0-4": exposures <= 4, "5+": exposures >= 5},
        "stream": {"first 20%": place < 0.2, "last 80%": place >= 0.2, "last 70%": place >= 0.3},
    }
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


def _slice(hit: NDArray[np.float64], gain: NDArray[np.float64], chosen: Flags) -> SliceFigures:
    return SliceFigures(judged=int(chosen.sum()), hr_at_10=_mean(hit[chosen]), ndcg_at_10=_mean(gain[chosen]))


def _windows(
    run: Run, hit: NDArray[np.float64], gain: NDArray[np.float64], window: int
) -> list[WindowFigures]:
    if run.protocol == "last-positive-out":  # one event of each user, and nothing learned between
        return []
    step = max(window // 5, len(hit) // MOST_POINTS, 1)
    ends, hit_means = metrics.sliding_means(hit, window, step)
    _, gain_means = metrics.sliding_means(gain, window, step)
    return [
        WindowFigures(judged=end, event=int(run.event[end - 1]), hr_at_10=hr, ndcg_at_10=ndcg)
        for end, hr, ndcg in zip(ends.tolist(), hit_means.tolist(), gain_means.tolist(), strict=True)
    ]


def _mean(values: NDArray[np.generic]) -> float:
    return float(np.asarray(values, dtype=np.float64).mean()) if len(values) else 0.0
