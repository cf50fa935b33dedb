"""The table of speed: every row measured beside what it is to be held against, in one run.

    python -m benchmarks [--only row,row] [--quick] [--rounds 5] [--results FOLDER]

Each row's figures, with the machine and the versions, go to `<results>/<row>.json`; the table is printed at
the end and goes to `<results>/table.md`. A row below its bar is reported, not hidden; the exit code says only
whether every row could be measured.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import click
from confluent_kafka import KafkaException

from benchmarks import answering, growth, latency, learning, libraries, memory
from benchmarks.bench import Bench, open_bench
from benchmarks.broker_warming import warm_broker
from benchmarks.report import DOCUMENT, Goal, Row, environment, put_into, table, write
from streams.errors import FreshetError

__all__ = ["MEASUREMENTS", "run"]

Measurement = tuple[Sequence[Goal], Callable[[Bench, Collection[str]], list[Row]]]

MEASUREMENTS: tuple[Measurement, ...] = (
    (learning.GOALS, learning.measure),
    (libraries.ITEM_GOALS, libraries.measure_items),
    (answering.GOALS, answering.measure),
    (latency.GOALS, latency.measure_rows),
    (libraries.GOALS, libraries.measure),
    (memory.GOALS, memory.measure),
    (growth.GOALS, growth.measure),
)
"""The rows in the order of the table; those of one entry share their rounds."""
NAMES = tuple(goal.name for goals, _ in MEASUREMENTS for goal in goals)
WITHOUT_BROKER = frozenset(goal.name for goal in (*libraries.ITEM_GOALS, *libraries.GOALS))
WARM_S = 120.0
RESULTS = Path(__file__).parent / "results"


def run(bench: Bench, names: Collection[str], results: Path) -> tuple[list[Row], list[str]]:
    """Measure the rows in `names`, write each as soon as it is there; and what could not be measured."""
    rows: list[Row] = []
    failed: list[str] = []
    for goals, measure in MEASUREMENTS:
        wanted = [goal.name for goal in goals if goal.name in names]
        if not wanted:
            continue
        about, started = environment(bench.rounds, bench.quick), time.monotonic()
        try:
            found = measure(bench, wanted)
        except (FreshetError, KafkaException) as error:
            failed.append(f"{', '.join(wanted)}: {error}")
            click.echo(failed[-1], err=True)
            continue
        for row in found:
            write(row, results, about)
            click.echo(f"{row.goal.name}: {row.reached:.3g} x ({time.monotonic() - started:.0f} s)", err=True)
        rows += found
    return rows, failed


def _chosen(only: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in only.split(",") if name.strip())
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        raise click.BadParameter(f"no row {', '.join(unknown)}; there are {', '.join(NAMES)}")
    return names or NAMES


@click.command()
@click.option("--only", default="", help=f"Rows, comma-separated, of: {', '.join(NAMES)}.")
@click.option("--quick", is_flag=True, help="Everything small, one round: does it run at all?")
@click.option("--rounds", type=click.IntRange(1, 50), help="Interleaved rounds; 5, or 1 with --quick.")
@click.option("--docs", is_flag=True, help="Put the table into docs/performance.md too.")
@click.option("--results", type=click.Path(path_type=Path, file_okay=False), default=RESULTS)
def main(only: str, quick: bool, rounds: int | None, docs: bool, results: Path) -> None:
    """Measure, write one JSON file a row, print the table."""
    names = _chosen(only)
    with open_bench(quick=quick, rounds=rounds or (1 if quick else 5)) as bench:
        if not quick and not WITHOUT_BROKER.issuperset(names):
            warm_broker(bench, WARM_S)
        rows, failed = run(bench, names, results)
    text = table(rows)
    click.echo(text)
    results.mkdir(parents=True, exist_ok=True)
    (results / "table.md").write_text(text + "\n", "utf-8")
    if docs:
        put_into(DOCUMENT, "table", text)
    if failed:
        click.echo("not measured:\n" + "\n".join(failed), err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
