"""Users scored a second, 200 candidates each, on one core: `Ranker` beside ONNX Runtime alone.

    python -m benchmarks.scoring [--quick] [--docs]

The graph is the trainer's default network and head with random weights. Ours goes from rows of the item
table to scores: it lays histories out and runs the graph; theirs runs the graph on what ours made. Both take
turns, in one process with one thread, whose processor time is taken.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import numpy as np

from benchmarks.ranker_model import export_random
from benchmarks.report import DOCUMENT, environment, put_into
from serving.ranker.inputs import CONTEXT, FEATURES, RankerInputs
from serving.ranker.ranker import Asked, Ranker
from serving.ranker.session import RankerSession

__all__ = ["as_text", "measure"]

RESULTS = Path(__file__).parent / "results"
GOAL = 0.9
ITEMS = 1682
CANDIDATES = 200
USERS = (1, 16, 128)


class _Keeper(RankerSession):
    """Keeps what it was last given."""

    last: RankerInputs

    def score(self, inputs: RankerInputs) -> np.ndarray:
        self.last = inputs
        return super().score(inputs)


def asked(users: int, length: int) -> Asked:
    """Full histories of random rows, an event a minute."""
    rng = np.random.default_rng(users)
    shape = (users, length)
    return Asked(
        recent=rng.integers(0, ITEMS, shape, dtype=np.int32),
        kinds=np.zeros(shape, dtype=np.int32),
        times_ms=np.tile(np.arange(length, 0, -1, dtype=np.int64) * 60_000, (users, 1)),
        context=rng.normal(0, 1, (users, len(CONTEXT))).astype(np.float32),
        rows=rng.integers(0, ITEMS, (users, CANDIDATES), dtype=np.int32),
        features=rng.normal(0, 1, (users, CANDIDATES, len(FEATURES))).astype(np.float32),
    )


def measure(model: Path, history_length: int, users: int, rounds: int) -> dict[str, float]:
    """Medians over rounds that alternate: users a second of both, and the ratio of each round's pair."""
    session = _Keeper(model, "cpu")
    names = [str(item) for item in range(ITEMS)]
    ranker = Ranker(session, names, version="bench", history_length=history_length, fused=True)
    query, places = asked(users, history_length), ranker.places_of(names).astype(np.int32)
    types = np.zeros(1, dtype=np.int64)
    ranker.score_rows(query, places, types)
    feeds = session.last.feeds()
    calls = max(1, 16 // users)
    ours: list[float] = []
    alone: list[float] = []
    for _ in range(rounds):
        ours.append(_seconds(lambda: ranker.score_rows(query, places, types), calls))
        alone.append(_seconds(lambda: session._session.run(["scores"], feeds), calls))
    ratios = [theirs / mine for mine, theirs in zip(ours, alone, strict=True)]
    return {
        "users_a_call": users,
        "ours_users_per_s": users * calls / statistics.median(ours),
        "alone_users_per_s": users * calls / statistics.median(alone),
        "reached": statistics.median(ratios),
    }


def as_text(rows: Sequence[dict[str, float]]) -> str:
    """A Markdown table."""
    lines = ["| users a call | users/s | ONNX Runtime alone | reached | to reach |", "| --- " * 5 + "|"]
    lines += [
        f"| {row['users_a_call']:.0f} | {row['ours_users_per_s']:,.0f} | {row['alone_users_per_s']:,.0f} "
        f"| {row['reached']:.3f} x | {GOAL} x |"
        for row in rows
    ]
    return "\n".join(lines)


def _seconds(call: Callable[[], object], calls: int) -> float:
    """Of this thread's processor time: others on the core don't count."""
    started = time.thread_time()
    for _ in range(calls):
        call()
    return time.thread_time() - started


@click.command()
@click.option("--quick", is_flag=True, help="Few rounds: does it run?")
@click.option("--docs", is_flag=True, help="Put the table into docs/performance.md.")
@click.option("--results", default=RESULTS, type=click.Path(path_type=Path), show_default=True)
def main(quick: bool, docs: bool, results: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="freshet-scoring-") as folder:
        path, history_length = export_random([str(item) for item in range(ITEMS)], Path(folder))
        rows = [measure(path, history_length, users, 3 if quick else 41) for users in USERS]
    click.echo(as_text(rows))
    about = {**environment(len(rows), quick), "command": "python -m benchmarks.scoring"}
    results.mkdir(parents=True, exist_ok=True)
    content = {"candidates": CANDIDATES, "goal": GOAL, "rows": rows, "environment": about}
    (results / "scoring.json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    if docs:
        put_into(DOCUMENT, "scoring", as_text(rows))


if __name__ == "__main__":
    main()
