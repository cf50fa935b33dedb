"""On paper: what a rate of events and a catalogue would need, from the costs that were measured.

    python -m benchmarks.estimate [--events-per-s 1000000] [--items 100000000] [--docs]

Reads `learn.json`, `items.json`, `memory_item.json` and `lists_ranker.json` of `benchmarks/results`: a figure
that was not measured is not guessed, the row is left out. A wall is where one of them passes what a core, a
partition or a machine gives.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.report import DOCUMENT, put_into

__all__ = ["Costs", "Need", "costs", "needs", "needs_table"]

RESULTS = Path(__file__).parent / "results"
PARTITION_MB_PER_S = 50.0
"""What one partition (one leader, one sequential log) is asked to take; vendors' guides say 10 to 100."""
MACHINE_GB = 256.0
"""Memory of one worker's machine."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Measured, one core, one broker on the same machine."""

    learn_us: float
    """Wall time of one event in a worker that only learns, everything included."""
    apply_us: float | None
    """Of one interaction in a replica of the item state; every worker pays it for every event."""
    log_bytes: float
    """Learning log, an event."""
    state_bytes: float
    """Changelog, an event."""
    item_bytes: float | None
    list_us: float | None


@dataclass(frozen=True, slots=True)
class Need:
    """One resource: how much of it, and at what size the first limit is met."""

    what: str
    need: str
    wall: str


def _load(folder: Path, name: str) -> dict[str, Any] | None:
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def costs(folder: Path) -> Costs:
    """The measured costs.

    Raises:
        FileNotFoundError: there is no `learn.json`: run `python -m benchmarks --only learn`.
    """
    learn = _load(folder, "learn")
    if learn is None:
        raise FileNotFoundError(f"{folder / 'learn.json'}: run `python -m benchmarks --only learn` first")
    items, item, lists = (_load(folder, name) for name in ("items", "memory_item", "lists_ranker"))
    written = learn["details"]["written_bytes_an_event"]
    return Costs(
        learn_us=1e6 / learn["ours_median"],
        apply_us=None if items is None else items["details"].get("whole_state_us"),
        log_bytes=written["interactions"],
        state_bytes=written["user-state"],
        item_bytes=None if item is None else item["ours_median"],
        list_us=None if lists is None else 1e6 / lists["ours_median"],
    )


def needs(found: Costs, events_per_s: float, items: float) -> list[Need]:
    """What `events_per_s` and `items` would need, resource by resource."""
    log_mb = events_per_s * found.log_bytes / 1e6
    rows = [
        Need(
            "learning, owners' side",
            f"{events_per_s * found.learn_us / 1e6:.0f} workers of one core",
            "none: users are partitioned",
        ),
        Need(
            "changelog `user-state`",
            f"{events_per_s * found.state_bytes / 1e6:,.0f} MB/s over all partitions",
            "none: partitioned, by brokers",
        ),
        Need(
            "learning log, one partition",
            f"{log_mb:,.0f} MB/s",
            f"{PARTITION_MB_PER_S * 1e6 / found.log_bytes:,.0f} events/s at {PARTITION_MB_PER_S:g} MB/s",
        ),
    ]
    if found.apply_us is not None:
        rows.append(
            Need(
                "applying the log, in every worker",
                f"{events_per_s * found.apply_us / 1e6:.1f} cores",
                f"{1e6 / found.apply_us:,.0f} events/s: it is one sequence, so one core",
            )
        )
    if found.item_bytes is not None:
        rows.append(
            Need(
                "item state, in every worker",
                f"{items * found.item_bytes / 1e9:,.0f} GB",
                f"{MACHINE_GB * 1e9 / found.item_bytes:,.0f} items in {MACHINE_GB:g} GB",
            )
        )
    if found.list_us is not None:
        rows.append(
            Need(
                "a ranked list for every event",
                f"{events_per_s * found.list_us / 1e6:,.0f} cores",
                "none: more partitions, more workers; or coalesce",
            )
        )
    return rows


def needs_table(rows: list[Need]) -> str:
    """The rows as a Markdown table."""
    lines = ["| what | needs | wall |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {row.what} | {row.need} | {row.wall} |" for row in rows)])


@click.command()
@click.option("--events-per-s", default=1_000_000.0, show_default=True)
@click.option("--items", default=100_000_000.0, show_default=True)
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS)
@click.option("--docs", is_flag=True, help="Put the table into docs/performance.md too.")
def main(events_per_s: float, items: float, results: Path, docs: bool) -> None:
    """Print what the rate and the catalogue would need."""
    text = needs_table(needs(costs(results), events_per_s, items))
    click.echo(text)
    if docs:
        put_into(DOCUMENT, "estimate", text)


if __name__ == "__main__":
    main()
