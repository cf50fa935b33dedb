"""A row of the table: what was measured beside what, and whether it reached what it should."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

__all__ = ["DOCUMENT", "Goal", "Row", "environment", "put_into", "row_of", "table", "write"]

PACKAGES = (
    "confluent-kafka", "faust-streaming", "msgspec", "numba", "numpy", "onnxruntime-gpu", "river", "torch",
)  # fmt: skip
DOCUMENT = Path(__file__).parent.parent / "docs" / "performance.md"


@dataclass(frozen=True, slots=True)
class Goal:
    """The issue's line: `better` says whether the ratio must reach `to_reach` or stay under it."""

    name: str
    what: str
    against: str
    to_reach: float | None
    better: Literal["higher", "lower"] = "higher"

    def met(self, ratio: float) -> bool | None:
        """None where there is no bar: a row that only reports."""
        if self.to_reach is None:
            return None
        return ratio >= self.to_reach if self.better == "higher" else ratio <= self.to_reach


@dataclass(slots=True)
class Row:
    """One measured row. `ours` and `against` are by round, in `unit`; `reached` is the ratio reported."""

    goal: Goal
    unit: str
    ours: list[float]
    against: list[float]
    reached: float
    details: dict[str, Any] = field(default_factory=dict)
    conditions: dict[str, bool] = field(default_factory=dict)
    """What must hold besides, such as a recall."""

    @property
    def met(self) -> bool | None:
        bar = self.goal.met(self.reached)
        return bar if bar is None else bar and all(self.conditions.values())

    def as_json(self) -> dict[str, Any]:
        return {
            "row": self.goal.name,
            "what": self.goal.what,
            "against": self.goal.against,
            "to_reach": self.goal.to_reach,
            "better": self.goal.better,
            "reached": round(self.reached, 4),
            "met": self.met,
            "unit": self.unit,
            "ours": [round(value, 4) for value in self.ours],
            "against_rounds": [round(value, 4) for value in self.against],
            "ours_median": round(statistics.median(self.ours), 4),
            "against_median": round(statistics.median(self.against), 4),
            "conditions": self.conditions,
            "details": self.details,
        }


def row_of(goal: Goal, unit: str, ours: Sequence[float], against: Sequence[float], **details: Any) -> Row:
    """A row whose ratio is the median over rounds of ours / against; the rounds were interleaved."""
    ratios = [mine / other for mine, other in zip(ours, against, strict=True)]
    return Row(goal, unit, list(ours), list(against), statistics.median(ratios), details)


def environment(rounds: int, quick: bool) -> dict[str, Any]:
    """The machine, the versions and the command: what a figure is worth nothing without."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": head.stdout.strip() or "no git",
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "versions": versions,
        "rounds": rounds,
        "quick": quick,
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
    }


def write(row: Row, folder: Path, about: dict[str, Any]) -> Path:
    """`<folder>/<row>.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{row.goal.name}.json"
    path.write_text(json.dumps({**row.as_json(), "environment": about}, indent=2) + "\n", "utf-8")
    return path


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    head = ("row", "what", "against", "ours", "theirs", "reached", "to reach", "met")
    lines = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    text = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines]
    text.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(text)


def _cells(row: Row) -> tuple[str, ...]:
    goal = row.goal
    bar = "" if goal.to_reach is None else f"{'' if goal.better == 'higher' else '≤ '}{goal.to_reach:g} x"
    return (
        goal.name,
        goal.what,
        goal.against,
        f"{_figure(statistics.median(row.ours))} {row.unit}",
        f"{_figure(statistics.median(row.against))} {row.unit}",
        f"{row.reached:.3g} x",
        bar,
        {True: "yes", False: "NO", None: ""}[row.met],
    )


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def put_into(document: Path, name: str, text: str) -> None:
    """Replace what stands in `document` between `<!-- name -->` and `<!-- /name -->`.

    Raises:
        ValueError: the marks are not there.
    """
    before, begin, rest = document.read_text("utf-8").partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    if not begin or not end:
        raise ValueError(f"{document}: no marks <!-- {name} --> and <!-- /{name} -->")
    document.write_text(before + begin + text.rstrip() + "\n" + end + after, "utf-8")
