"""What smaller graphs of the ranker cost and lose: size, time of a call, NDCG@10, each beside float32.

    python -m benchmarks.compression [--network transformer] [--small] [--docs]

Trains the network on all of MovieLens-100K but the newest 5,000 events, by which the graphs are judged: the
whole vocabulary is ranked for each, less what the user had. Losses are shares of float32's NDCG@10 on the
same events, with the 95 % interval of a paired bootstrap over users; times are ratios of calls that take
turns in one process, 16 users x 200 candidates with full histories, one thread.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import click
import msgspec
import numpy as np

from benchmarks.quality import data_of
from benchmarks.report import DOCUMENT, environment, put_into
from serving.training.compress import Candidate, Source, compress_best
from serving.training.dataset import InteractionLog, split_by_time
from serving.training.export import export_onnx
from serving.training.fused import ExportedRanker
from serving.training.settings import Compression, CompressionSettings, TrainerSettings
from serving.training.train import train
from streams.datasets import Dataset

__all__ = ["as_text", "log_of", "measure"]

RESULTS = Path(__file__).parent / "results"
SIZE_GOAL, TIME_GOAL, LOSS_GOAL = 3.0, 2.0, 0.01
"""3 x smaller or 2 x faster, while the interval's upper end is below 1 %."""
SMALL = {"dim": 16, "blocks": 2, "history_length": 10, "max_epochs": 2, "slice_max_events": 300}


def log_of(data: Dataset, limit: int | None = None) -> InteractionLog:
    """The events of a data set in order of time, ties in the file's order, all of them positive."""
    events = sorted((e for e in data.events if e.item_id is not None), key=lambda e: e.timestamp)[:limit]
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    log = InteractionLog()
    log.append(
        user=[users.setdefault(e.user_id, len(users)) for e in events],
        item=[items.setdefault(str(e.item_id), len(items)) for e in events],
        item_ids=list(items),
        time_ms=[e.timestamp for e in events],
        event_type=np.zeros(len(events)),
        weight=np.ones(len(events)),
        offset=np.arange(len(events)),
    )
    return log


def measure(log: InteractionLog, settings: TrainerSettings, folder: Path) -> list[Candidate]:
    """Train, export, and make every smaller graph."""
    split = split_by_time(log, settings)
    ranker = ExportedRanker(train(split, settings).network)
    path = folder / "model.onnx"
    export = export_onnx(ranker, path, seed=settings.seed)
    source = Source(ranker, export, path.read_bytes(), split, settings)
    return list(compress_best(source, progress=click.echo).table)


def goal_met(candidate: Candidate) -> bool:
    """3 x smaller or 2 x faster, at under 1 % of NDCG@10 lost by the upper end of the interval."""
    small = candidate.size_ratio <= 1 / SIZE_GOAL or candidate.latency_ratio <= 1 / TIME_GOAL
    return candidate.size_bytes > 0 and small and candidate.high < LOSS_GOAL


def as_text(table: Sequence[Candidate]) -> str:
    """A Markdown table."""
    lines = [
        "| graph | file | smaller | faster | NDCG@10 | lost | 95 % | goal |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in table:
        if not one.size_bytes:
            lines.append(f"| {one.kind} | {one.verdict} | | | | | | |")
            continue
        lines.append(
            f"| {one.kind} | {one.size_bytes / 1000:,.0f} kB | {1 / one.size_ratio:.2f} x "
            f"| {1 / one.latency_ratio:.2f} x | {one.ndcg_at_10:.4f} | {100 * one.ndcg_loss:+.2f} % "
            f"| {100 * one.low:+.2f} to {100 * one.high:+.2f} % | {'met' if goal_met(one) else ''} |"
        )
    return "\n".join(lines)


@click.command()
@click.option("--network", default="transformer", show_default=True)
@click.option("--small", is_flag=True, help="A tiny network on little data: does it run?")
@click.option("--docs", is_flag=True, help="Put the table into docs/performance.md.")
@click.option("--results", default=RESULTS, type=click.Path(path_type=Path), show_default=True)
def main(network: str, small: bool, docs: bool, results: Path) -> None:
    started = time.monotonic()
    asked = CompressionSettings(candidates=get_args(Compression))
    settings = TrainerSettings(network=network, slice_max_events=5000, max_seconds=3600.0, compression=asked)
    if small:
        settings = msgspec.structs.replace(settings, **SMALL)
    results.mkdir(parents=True, exist_ok=True)
    data = data_of("ml-100k", small)
    with tempfile.TemporaryDirectory(prefix="freshet-compression-") as folder:
        table = measure(log_of(data, 5000 if small else None), settings, Path(folder))
    about: dict[str, Any] = {**environment(1, small), "command": "python -m benchmarks.compression"}
    content = {
        "dataset": data.name,
        "network": network,
        "seconds": round(time.monotonic() - started, 1),
        "rows": [{**msgspec.to_builtins(one), "met": goal_met(one)} for one in table],
        "environment": about,
    }
    (results / "compression.json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    text = as_text(table)
    click.echo(text)
    if docs:
        put_into(DOCUMENT, "compression", text)


if __name__ == "__main__":
    main()
