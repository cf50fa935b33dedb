"""Rows of the table of quality that other scripts of this folder measure: cost, and recovery after drift."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks import cost_per_event, drift_recovery
from benchmarks.quality_rows import QualityRow
from online_models import CoVisitation, DecayedPopularity

__all__ = ["cost_row", "drift_rows"]


def cost_row(events: int = 20_000) -> QualityRow:
    """Co-visitation's microseconds an event, score all and learn, alone in the process."""
    found = cost_per_event.costs("covisitation", events)
    return QualityRow(
        name="cost_alone", what="the same of co-visitation, events one by one, best of five rounds",
        anchor="co-visitation prototype, dense: 24 + 8 µs", figure="µs of processor time", to_reach=10.0,
        better="lower", reached=found["score_all_us"] + found["learn_one_us"], by="covisitation",
        details=found,
    )  # fmt: skip


def drift_rows(events: int = 8000, seeds: int = 5) -> Iterator[QualityRow]:
    """Events until 90% of the old hit rate, the answer to an alarm against the best fixed half-life; and
    what it loses where nothing shifts."""
    planted = {
        "popularity": (DecayedPopularity, drift_recovery.popularity_stream),
        "sequence": (CoVisitation, drift_recovery.sequence_stream),
    }
    for name, (model, stream) in planted.items():
        found: dict[str, Any] = drift_recovery.compared(model, stream, events, seeds)
        del found["fixed"]
        about = {"anchor": f"best fixed half-life, {found['best_fixed_half_life_s']:g} s", "by": "forget"}
        yield QualityRow(
            name=f"drift_{name}", what=f"planted drift of {name}: events until 90% of the old hit rate",
            figure="share of the anchor's events", to_reach=0.5, better="lower", reached=found["ratio"],
            details=found, **about,
        )  # fmt: skip
        yield QualityRow(
            name=f"stationary_{name}", what=f"the same on a stationary stream of {name}: hits lost",
            figure="share", to_reach=0.01, better="lower", reached=found["lost_stationary"],
            details={"false_alarms": found["forget"]["false_alarms"], "events": events * seeds}, **about,
        )  # fmt: skip
