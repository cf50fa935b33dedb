"""Rows of the parts that need no broker: the item models' kernels, exact and approximate retrieval.

They are measured by scripts of their own, each in a process of its own, so that threads, memory and compiled
code of one don't touch another; what they print is turned into rows here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection
from typing import Any

from benchmarks.bench import Bench
from benchmarks.report import Goal, Row, row_of
from streams.errors import FreshetError

__all__ = ["GOALS", "measure", "retrieval_rows"]

GOALS = (
    Goal("exact_single", "exact top-100 of 1,000,000 items, one query", "one pass over the memory", 0.8),
    Goal("exact_batch", "exact top-100 of 1,000,000 items, batch of 64", "BLAS alone", 0.8),
    Goal("approximate", "approximate top-100 while items move and come", "exact", 20.0),
)
RECALL = 0.95
FOUND_MS = 1000.0


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
