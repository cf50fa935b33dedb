"""What a metric is, as `/metrics` shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from streams.monitor.state import MonitorState

__all__ = ["MetricSpec", "Sample"]

Sample = tuple[tuple[str, ...], float]
"""Label values and a value."""


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric: its name as scraped, its type, its labels and what it says."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str
    samples: Callable[[MonitorState], Iterable[Sample]]
