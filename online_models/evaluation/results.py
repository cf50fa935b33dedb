"""The figures of a run: what `freshet evaluate --json` prints."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from online_models.evaluation import metrics
from online_models.evaluation.arena import Entrant
from online_models.evaluation.comparison import Comparison, compare
from online_models.evaluation.metrics import mean_of
from online_models.evaluation.protocols import Run
from online_models.evaluation.slices import Flags, slices

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
    parameters: dict[str, Any]
    """Parameters that differ from the defaults, because they were given or found by a search."""


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """All of a run. `judged` counts the events on which models were asked, `repeats` those that were not
    because the user had had the item; `searched_on_events` how many of the first events parameters were
    searched on, null where they were not."""

    dataset: str
    events: int
    users: int
    items: int
    protocol: str
    judged: int
    repeats: int
    window: int
    searched_on_events: int | None
    models: list[ModelFigures]
    comparisons: list[Comparison]


def summarise(
    run: Run,
    dataset: str,
    window: int = 5000,
    seed: int = 0,
    parameters: Mapping[str, Mapping[str, Any]] | None = None,
    searched: int | None = None,
    compared: bool = True,
) -> Evaluation:
    """The figures of a run, models in the order in which they were given; `parameters` are stated by model,
    figures before and after the first `searched` events are given apart, and each model is `compared` with
    each other, which with dozens of models takes long.

    >>> from online_models.evaluation.interactions import Interaction
    >>> from online_models.evaluation.protocols import prequential
    >>> from online_models.popularity import DecayedPopularity
    >>> stream = [Interaction(user, item) for user in "abcd" for item in ("tea", "milk")]
    >>> found = summarise(prequential({"popularity": DecayedPopularity()}, stream), "tiny")
    >>> found.judged, found.models[0].hr_at_10, found.models[0].slices["history"]["0"].hr_at_10
    (8, 0.75, 0.75)
    """
    parts, stated = slices(run, searched), parameters or {}
    pairs = combinations(run.entrants, 2) if compared else ()
    return Evaluation(
        dataset=dataset,
        events=run.events,
        users=run.users,
        items=run.items,
        protocol=run.protocol,
        judged=len(run.event),
        repeats=run.repeats,
        window=window,
        searched_on_events=searched,
        models=[
            _figures(run, entrant, parts, window, dict(stated.get(entrant.name, {})))
            for entrant in run.entrants
        ],
        comparisons=[compare(run, one, other, seed, window) for one, other in pairs],
    )


def _figures(
    run: Run, entrant: Entrant, parts: Mapping[str, Mapping[str, Flags]], window: int,
    parameters: dict[str, Any],
) -> ModelFigures:  # fmt: skip
    ranks = run.ranks(entrant)
    hit, gain = metrics.hits(ranks, 10).astype(np.float64), metrics.gains(ranks)
    shown = entrant.shown[: run.items]
    seconds = entrant.score_s + entrant.learn_s
    return ModelFigures(
        model=entrant.name,
        judged=len(ranks),
        hr_at_10=mean_of(hit),
        ndcg_at_10=mean_of(gain),
        hr_at_50=mean_of(metrics.hits(ranks, 50)),
        mrr=mean_of(metrics.reciprocals(ranks)),
        recall_at_10=mean_of(hit),
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
        parameters=parameters,
    )


def _slice(hit: NDArray[np.float64], gain: NDArray[np.float64], chosen: Flags) -> SliceFigures:
    return SliceFigures(
        judged=int(chosen.sum()), hr_at_10=mean_of(hit[chosen]), ndcg_at_10=mean_of(gain[chosen])
    )


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
