"""Metrics of ranker versions: what serves, what was refused, what is on trial and how trials ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from streams.events import TrialStats
from streams.monitor.metric import MetricSpec, Sample
from streams.monitor.state import MonitorState

__all__ = ["MODEL_METRICS"]

STATUSES = ("live", "shadow", "dropped", "refused", "superseded")


def _ranker(state: MonitorState) -> Iterator[Sample]:
    for stats in sorted(state.live(), key=lambda stats: stats.worker):
        provider = stats.ranker_providers[0] if stats.ranker_providers else "none"
        yield (stats.worker, stats.ranker or "none", provider), 1.0


def _swaps(state: MonitorState) -> Iterator[Sample]:
    for stats in sorted(state.live(), key=lambda stats: stats.worker):
        yield (stats.worker,), stats.swaps


def _refused(state: MonitorState) -> Iterator[Sample]:
    for stats in sorted(state.live(), key=lambda stats: stats.worker):
        yield (stats.worker,), sum(stats.refusals.values())


def _refused_by_kind(state: MonitorState) -> Iterator[Sample]:
    for stats in sorted(state.live(), key=lambda stats: stats.worker):
        yield from (((stats.worker, kind), count) for kind, count in sorted(stats.refusals.items()))


def _versions(state: MonitorState) -> Iterator[Sample]:
    for status in STATUSES:
        yield (status,), sum(record.status == status for record in state.models.values())


def _rollbacks(state: MonitorState) -> Iterator[Sample]:
    if state.models:
        yield (), state.rollbacks


def _trials(value: Callable[[TrialStats], float]) -> Callable[[MonitorState], Iterator[Sample]]:
    def samples(state: MonitorState) -> Iterator[Sample]:
        for trial in state.trials():
            yield (trial.kind, trial.live, trial.other), value(trial)

    return samples


def _rates(
    live: Callable[[TrialStats], float], other: Callable[[TrialStats], float]
) -> Callable[[MonitorState], Iterator[Sample]]:
    def samples(state: MonitorState) -> Iterator[Sample]:
        for trial in state.trials():
            if trial.events:
                yield (trial.kind, trial.live, "live"), live(trial) / trial.events
                yield (trial.kind, trial.other, "beside"), other(trial) / trial.events

    return samples


_TRIAL, _ROLE = ("trial", "live", "other"), ("trial", "version", "role")

MODEL_METRICS: tuple[MetricSpec, ...] = (
    MetricSpec("freshet_ranker_info", "gauge", ("worker", "version", "provider"),
               "1 for the ranker version in service and the ONNX Runtime provider in force.", _ranker),
    MetricSpec("freshet_ranker_swaps_total", "counter", ("worker",),
               "Ranker versions taken into service since the worker began.", _swaps),
    MetricSpec("freshet_ranker_refused_total", "counter", ("worker",),
               "Ranker versions refused since the worker began.", _refused),
    MetricSpec("freshet_model_refused_total", "counter", ("worker", "kind"),
               "The same by what failed: store, load, slow, manifest, digest, size, file, signature,"
               " features, context, vocabulary, not_finite or probe.", _refused_by_kind),
    MetricSpec("freshet_model_versions", "gauge", ("status",),
               "Versions in the `models` topic that are live, shadow, dropped, refused or superseded.",
               _versions),
    MetricSpec("freshet_model_rollbacks_total", "counter", (),
               "Versions that workers rolled back after a swap, in the `models` topic.", _rollbacks),
    MetricSpec("freshet_model_trial_events", "gauge", _TRIAL,
               "Judged events of the live version and the one scored beside it: a shadow, or on probation"
               " the version before.", _trials(lambda t: t.events)),
    MetricSpec("freshet_model_trial_hit_rate_at_10", "gauge", _ROLE,
               "HR@10 of each of the two on those events.",
               _rates(lambda t: t.live_hits, lambda t: t.other_hits)),
    MetricSpec("freshet_model_trial_ndcg_at_10", "gauge", _ROLE,
               "NDCG@10 of each of the two on those events.",
               _rates(lambda t: t.live_ndcg_sum, lambda t: t.other_ndcg_sum)),
)  # fmt: skip
