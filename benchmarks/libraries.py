"""Rows of the parts that need no broker: the item models' kernels, exact and approximate retrieval.

They are measured by scripts of their own, each in a process of its own, so that threads, memory and compiled
code of one don't touch another; what they print is turned into rows here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from benchmarks.bench import Bench
from benchmarks.plots import IMAGES, line_plot
from benchmarks.report import Goal, Row, row_of
from streams.errors import FreshetError

__all__ = ["GOALS", "ITEM_GOALS", "item_rows", "measure", "measure_items", "retrieval_rows"]

ITEM_GOALS = (
    Goal("items", "item model kernels, one core", "River FunkMF.learn_one, as many factors", 50.0),
    Goal("memory_item", "resident memory an item: 64 factors, 50 neighbours", "raw arrays", 1.5, "lower"),
)
GOALS = (
    Goal("exact_single", "exact top-100 of 1,000,000 items, one query", "one pass over the memory", 0.8),
    Goal("exact_batch", "exact top-100 of 1,000,000 items, batch of 64", "BLAS alone", 0.8),
    Goal("approximate", "approximate top-100 while items move and come", "exact", 20.0),
)
RECALL = 0.95
FOUND_MS = 1000.0


def measure_items(bench: Bench, wanted: Collection[str]) -> list[Row]:
    found = run_json(bench, "benchmarks.item_models", *(["--quick"] if bench.quick else []))
    _plot_growth(found["growth"], bench.folder if bench.quick else IMAGES)
    return [row for row in item_rows(found) if row.goal.name in wanted]


def item_rows(found: dict[str, Any]) -> list[Row]:
    """Rows of what `benchmarks.item_models` printed; its own medians, so one figure a side.

    River moves one user and one item an event; `isgd` is that work. The whole state (negatives,
    co-visitation, popularity) is in the details, by event and by pair learned.
    """
    river, memory = found["river"], found["memory"]
    speed = row_of(
        ITEM_GOALS[0],
        "events/s",
        [1e6 / river["isgd_us"]],
        [1e6 / river["river_us"]],
        whole_state_us=river["state_us"],
        river=river,
        us_by_batch_size=found["batch_us"],
        growth=found["growth"],
    )
    size = row_of(
        ITEM_GOALS[1], "bytes", [memory["resident_bytes"]], [float(memory["raw_bytes"])], memory=memory
    )
    return [speed, size]


def _plot_growth(growth: list[dict[str, float]], folder: Path) -> None:
    names = {
        "known_item_us": "known items",
        "new_item_us": "new items",
        "new_item_in_full_table_us": "new items in a full table",
    }
    lines = {
        title: [(float(point["items"]), point[name]) for point in growth] for name, title in names.items()
    }
    path = folder / "growth_item_state.svg"
    line_plot(path, "Learned item state, one event", "items", "µs of processor time", lines, log_x=True)


def measure(bench: Bench, wanted: Collection[str]) -> list[Row]:
    items = bench.size(1_000_000, 20_000)
    rounds = bench.rounds if bench.rounds > 1 else 3
    found = run_json(bench, "benchmarks.retrieval", "--items", str(items), "--rounds", str(rounds))
    return [row for row in retrieval_rows(found) if row.goal.name in wanted]


def run_json(bench: Bench, module: str, *arguments: str) -> dict[str, Any]:
    """Run `python -m module` and decode what it prints.

    Raises:
        FreshetError: it failed; the end of what it said.
    """
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, env=bench.env, capture_output=True, text=True)
    if done.returncode:
        raise FreshetError(f"{module} ended with {done.returncode}: {done.stderr[-1500:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def retrieval_rows(found: dict[str, Any]) -> list[Row]:
    """Rows of what `benchmarks.retrieval` printed; its own medians, so one figure a side."""
    exact, near = found["exact"], found["approximate"]
    single, many = exact["single_ms"], exact["batch_ms"]
    size = {name: found[name] for name in ("items", "dimension", "rounds", "seed")}
    bounds = (
        min(single["sgemv"], single["sum"]),
        min(ms for name, ms in many.items() if name != "top_k"),
        near["exact_ms"],
    )
    ours = (single["top_k"], many["top_k"], near["approximate_ms"]["p50"])
    details: tuple[dict[str, Any], ...] = (
        {"ms": single},
        {"ms": many},
        {"realistic": near, "gaussian": found["approximate_gaussian"]},
    )
    rows = [
        row_of(goal, "calls/s", [1000 / mine], [1000 / bound], **size, **more)
        for goal, mine, bound, more in zip(GOALS, ours, bounds, details, strict=True)
    ]
    rows[2].conditions = {
        f"recall >= {RECALL}": near["recall_at_100"] >= RECALL,
        f"a moved item is found within {FOUND_MS:g} ms": near["moved_item_found_ms"] <= FOUND_MS,
    }
    return rows
