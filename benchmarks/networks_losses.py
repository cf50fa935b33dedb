"""Which loss ranks best, leave-one-out: one network, one budget of processor time, every loss.

    python -m benchmarks.networks_losses [--network transformer] [--seeds 2] [--cpu-s 120] [--small]

The split, what is ranked and how ties count are those of `benchmarks.networks_loo`. All else is equal: sizes,
first vectors, order of the windows, learning rate, budget. "bce, 1 negative" is SASRec's own loss; the others
take as many draws as the settings have by default. Each loss is compared with the full softmax, paired by
user.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from benchmarks.loo_split import LeaveOneOut
from benchmarks.networks_loo import RESULTS, SMALL_EVENTS, Fitted, figures, fit, paired
from benchmarks.quality import data_of, events_of
from benchmarks.report import environment
from serving.training.networks import network_names
from serving.training.settings import TrainerSettings

__all__ = ["BASELINE", "LOSSES", "main", "measure"]

BASELINE = "full softmax"
LOSSES: Mapping[str, Mapping[str, Any]] = {
    BASELINE: {"loss": "full_softmax"},
    "sampled softmax, logQ corrected": {"loss": "sampled_softmax"},
    "gbce": {"loss": "gbce"},
    "bce, 1 negative": {"loss": "bce", "negatives_per_target": 1},
}
"""What each changes in the settings."""


def measure(
    split: LeaveOneOut, network: str, base: TrainerSettings, seeds: int, losses: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Test and validation figures of each loss, and its paired difference from the full softmax: after each
    seed, of all seeds so far."""
    fitted: dict[str, list[Fitted]] = {name: [] for name in losses}
    for seed in range(1, seeds + 1):
        for name in losses:
            settings = msgspec.structs.replace(base, **LOSSES[name])
            fitted[name].append(fit(split, network, settings, seed))
        ranks = {name: [split.ranks(one.test, 1) for one in found] for name, found in fitted.items()}
        yield {
            "rows": {name: {**figures(ranks[name]), **_training(split, fitted[name])} for name in losses},
            "differences": {
                f"{name} - {BASELINE}": paired(ranks[name], ranks[BASELINE])
                for name in losses
                if name != BASELINE and BASELINE in losses
            },
        }


def _training(split: LeaveOneOut, fitted: Sequence[Fitted]) -> dict[str, Any]:
    return {
        "validation": figures([split.ranks(one.validation, 2) for one in fitted]),
        "epochs": [one.epochs for one in fitted],
        "cpu_s": [round(one.cpu_s, 1) for one in fitted],
        "cpu_s_to_within_1_percent": [round(one.near_s, 1) for one in fitted],
    }


def table(found: Mapping[str, Any]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| loss | HR@10 / NDCG@10 | by seed | validation | epochs | NDCG@10 less the full softmax's, 95 % |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in found["rows"].items():
        seeds = ", ".join(f"{hr:.4f} / {ndcg:.4f}" for hr, ndcg in row["by_seed"])
        difference = found["differences"].get(f"{name} - {BASELINE}")
        apart = ""
        if difference:
            mean, low, high = difference["ndcg_at_10"]
            apart = f"{mean:+.4f} ({low:+.4f} to {high:+.4f})"
        lines.append(
            f"| {name} | {row['hr_at_10']:.4f} / {row['ndcg_at_10']:.4f} | {seeds} "
            f"| {row['validation']['hr_at_10']:.4f} / {row['validation']['ndcg_at_10']:.4f} "
            f"| {', '.join(map(str, row['epochs']))} | {apart} |"
        )
    return "\n".join(lines)


@click.command()
@click.option("--dataset", default="ml-100k", show_default=True, help="As of `freshet evaluate`.")
@click.option("--network", default="transformer", show_default=True, type=click.Choice(network_names()))
@click.option("--losses", default=";".join(LOSSES), show_default=True, help="Names, semicolons between.")
@click.option("--seeds", default=2, show_default=True)
@click.option("--cpu-s", default=120.0, show_default=True, help="CPU seconds a training may take.")
@click.option("--small", is_flag=True, help="The first 3,000 events, one short training each: does it run?")
@click.option("--results", type=click.Path(path_type=Path, file_okay=False), default=RESULTS)
def main(
    dataset: str, network: str, losses: str, seeds: int, cpu_s: float, small: bool, results: Path
) -> None:
    """Measure, write networks_losses.json, print the table."""
    names = [name.strip() for name in losses.split(";")]
    if unknown := [name for name in names if name not in LOSSES]:
        raise click.BadParameter(f"{', '.join(unknown)}: there are {'; '.join(LOSSES)}")
    events = events_of(data_of(dataset, small), None, SMALL_EVENTS if small else None)
    base = TrainerSettings(max_cpu_seconds=cpu_s, max_seconds=100.0 * cpu_s, max_epochs=100, patience=5)
    if small:
        base, seeds = msgspec.structs.replace(base, max_epochs=1, dim=16), 1
    results.mkdir(parents=True, exist_ok=True)
    command = f"python -m benchmarks.networks_losses --network {network} --cpu-s {cpu_s:g}"
    for found in measure(LeaveOneOut.of(events), network, base, seeds, names):
        content = {
            "dataset": dataset, "network": network, **found, "settings": msgspec.to_builtins(base),
            "environment": {**environment(1, small), "command": command},
        }  # fmt: skip
        (results / "networks_losses.json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    click.echo(table(found))


if __name__ == "__main__":
    main()
