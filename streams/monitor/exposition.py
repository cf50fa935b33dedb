"""`/metrics`: the monitor's state in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from streams.metrics import LATENCY_BOUNDS_MS
from streams.monitor.metric_specs import METRICS, MetricSpec, Sample
from streams.monitor.state import MonitorState

__all__ = ["MonitorCollector", "make_registry", "render"]


class MonitorCollector(Collector):
    """Reads the state at each scrape; nothing is counted twice or kept here."""

    def __init__(self, state: MonitorState) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        for spec in METRICS:
            samples = list(spec.samples(self._state))
            if samples:
                yield _family(spec, samples)


def _family(spec: MetricSpec, samples: list[Sample]) -> Metric:
    if spec.kind == "histogram":
        return _histogram(spec, samples)
    make = CounterMetricFamily if spec.kind == "counter" else GaugeMetricFamily
    family = make(spec.name, spec.help, labels=spec.labels)
    for labels, value in samples:
        family.add_metric(labels, value)
    return family


def _histogram(spec: MetricSpec, samples: list[Sample]) -> Metric:
    """The latency histogram; workers send counts, not sums, so the sum takes each bucket's middle."""
    family = HistogramMetricFamily(spec.name, spec.help)
    bounds_s = [0.0, *(bound / 1000.0 for bound in LATENCY_BOUNDS_MS)]
    middles = [(low + high) / 2 for low, high in pairwise(bounds_s)] + [bounds_s[-1]]
    counts = [value for _, value in samples]
    each = [after - before for before, after in pairwise([0.0, *counts])]
    total_s = sum(count * middle for count, middle in zip(each, middles, strict=True))
    family.add_metric([], [(labels[0], value) for labels, value in samples], sum_value=total_s)
    return family


def make_registry(state: MonitorState) -> CollectorRegistry:
    """A registry of its own: no process or platform metrics of whatever else runs here."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(MonitorCollector(state))
    return registry


def render(registry: CollectorRegistry) -> bytes:
    """The text format 0.0.4."""
    return generate_latest(registry)
