"""Leave-one-out: a plain SASRec, each network, and the transformer fused with the online models.

    python -m benchmarks.networks_loo [--seeds 3] [--networks transformer,gru] [--tie-orders 5] [--small]

Each user's last event by time is the test, the one before it stops the training and chooses the weights of
the fusion, and all before them trains; all ratings count. Histories hold the validation item when the test
is asked. The whole catalogue is ranked less what the user had, ties by half. The order of equal times is the
file's; `--tie-orders` repeats the transformer with those of one user shuffled. The plain network has random
first vectors, no times, the last weights instead of their mean, and each epoch in the same order.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np

from benchmarks.loo_split import Float64, LeaveOneOut, log_softmax
from benchmarks.quality import data_of, events_of
from benchmarks.report import environment
from online_models import CoVisitation, Fusion
from online_models.base import OnlineRanker
from online_models.evaluation import metrics
from online_models.evaluation.significance import paired_bootstrap
from serving.training.networks import network_names
from serving.training.settings import TrainerSettings
from serving.training.train import Progress, train

__all__ = ["Fitted", "figures", "fit", "fuse", "main", "measure", "paired"]

RESULTS = Path(__file__).parent / "results"
PLAIN = "plain SASRec"
MAIN = "transformer"
GOALS = {MAIN: (0.215, 0.112), "fused": (0.24, 0.13)}
SMALL_EVENTS = 3000
WEIGHTS = tuple(round(0.1 * k, 1) for k in range(16))
"""Of the online models' log score beside the network's log probability."""
FLOOR = 1.0
"""Added to co-visitation's score, in means of the user's: an item without any is not impossible."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """One training: log probabilities float64[U, V + 1] of the validation and test items' askings, and what
    it took. `near_s`: CPU seconds until the validation NDCG@10 was first within 1% of its best."""

    seed: int
    validation: Float64
    test: Float64
    epochs: int
    cpu_s: float
    near_s: float


def settings_of(name: str, base: TrainerSettings, seed: int) -> TrainerSettings:
    """The recipe, or the plain network's."""
    if name != PLAIN:
        return msgspec.structs.replace(base, network=name, seed=seed)
    return msgspec.structs.replace(
        base, network=MAIN, seed=seed, spectral_start=False, shuffle_ties=False, average_decay=0.0,
        hidden_share=0.0, learning_rate=1e-3,
    )  # fmt: skip


def fit(split: LeaveOneOut, name: str, base: TrainerSettings, seed: int) -> Fitted:
    """Train one network, stopped by the validation items, and ask it for both."""
    with_times = name != PLAIN
    started, curve = time.process_time(), []

    def note(point: Progress) -> None:
        curve.append((point.ndcg_at_10, time.process_time() - started))

    trained = train(split.split(with_times), settings_of(name, base, seed), progress=note)
    click.echo(f"{name}, seed {seed}: {curve[-1]}", err=True)
    best = max(ndcg for ndcg, _ in curve)
    return Fitted(
        seed=seed,
        validation=split.network_scores(trained.network, 2, with_times),
        test=split.network_scores(trained.network, 1, with_times),
        epochs=len(curve),
        cpu_s=curve[-1][1],
        near_s=next(cpu_s for ndcg, cpu_s in curve if ndcg >= 0.99 * best),
    )


def online(split: LeaveOneOut, model: OnlineRanker) -> tuple[Float64, Float64]:
    """Log scores for the validation items, and, the model having learned these, for the test items."""
    split.learn(model, back=2)
    validation = _logs(split, model, 2)
    split.learn(model, back=1, learned=2)
    return validation, _logs(split, model, 1)


def _logs(split: LeaveOneOut, model: OnlineRanker, back: int) -> Float64:
    scores = split.online_scores(model)
    if isinstance(model, CoVisitation):  # its scores add up: to be pooled with logs they need one
        scores = np.nan_to_num(split.masked(scores, back), nan=0.0, neginf=0.0)
        scores = np.log(scores + FLOOR * scores.mean(axis=1, keepdims=True) + 1e-12)
    scores = np.where(np.isnan(scores), np.nanmin(scores, axis=1, keepdims=True), scores)
    return log_softmax(split.masked(scores, back))


def fuse(split: LeaveOneOut, fitted: Sequence[Fitted], logs: Float64) -> float:
    """The weight of the online models' opinion that ranks the validation items best, by NDCG@10 over all
    seeds."""

    def ndcg(weight: float) -> float:
        ranks = [split.ranks(pooled(one.validation, logs, weight), 2) for one in fitted]
        return metrics.mean_of(metrics.gains(np.concatenate(ranks)))

    return max(WEIGHTS, key=ndcg)


def pooled(network: Float64, logs: Float64, weight: float) -> Float64:
    """log p + w log q where both are finite, else -inf."""
    return np.where(np.isfinite(network), network + weight * np.where(np.isfinite(logs), logs, 0.0), -np.inf)


def figures(ranks: Sequence[Float64]) -> dict[str, Any]:
    """Mean HR@10 and NDCG@10, and by seed."""
    by_seed = [(metrics.mean_of(r < 10), metrics.mean_of(metrics.gains(r))) for r in ranks]
    hr, ndcg = np.mean(by_seed, axis=0).tolist()
    rounded = [[round(value, 4) for value in pair] for pair in by_seed]
    return {"hr_at_10": round(hr, 4), "ndcg_at_10": round(ndcg, 4), "by_seed": rounded}


class _Here(Executor):
    """Runs what is submitted at once, in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def measure(
    split: LeaveOneOut,
    networks: Sequence[str],
    base: TrainerSettings,
    seeds: int,
    ties: Sequence[LeaveOneOut],
    jobs: int,
) -> dict[str, Any]:
    """All rows, the paired differences and the tie orders; `jobs` trainings run beside each other."""
    names, ranks = list(dict.fromkeys([PLAIN, *networks])), {}
    with _Here() if jobs == 1 else ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        waiting = {
            name: [pool.submit(fit, split, name, base, seed) for seed in range(1, seeds + 1)]
            for name in names
        }
        shuffled = [pool.submit(fit, tie, MAIN, base, 1) for tie in ties if MAIN in names]
        opinions = {
            "co-visitation": online(split, CoVisitation()),
            "online fusion": online(split, Fusion()),
        }
        found = {name: [one.result() for one in trained] for name, trained in waiting.items()}
        orders = [tie.ranks(one.result().test, 1) for tie, one in zip(ties, shuffled, strict=False)]
    rows: dict[str, Any] = {}
    for name, fitted in found.items():
        ranks[name] = [split.ranks(one.test, 1) for one in fitted]
        rows[name] = figures(ranks[name]) | {
            "validation": figures([split.ranks(one.validation, 2) for one in fitted]),
            "epochs": [one.epochs for one in fitted],
            "cpu_s": [round(one.cpu_s, 1) for one in fitted],
            "cpu_s_to_within_1_percent": [round(one.near_s, 1) for one in fitted],
        }
    for name, (validation, test) in opinions.items():
        rows[name] = figures([split.ranks(test, 1)])
        if MAIN in found:
            weight, both = fuse(split, found[MAIN], validation), f"{MAIN} + {name}"
            ranks[both] = [split.ranks(pooled(one.test, test, weight), 1) for one in found[MAIN]]
            rows[both] = figures(ranks[both]) | {"weight": weight}
    differences = {f"{name} - {PLAIN}": paired(ranks[name], ranks[PLAIN]) for name in ranks if name != PLAIN}
    return {"rows": rows, "differences": differences, "tie_orders": figures(orders) if orders else {}}


def paired(ours: Sequence[Float64], theirs: Sequence[Float64]) -> dict[str, Any]:
    """Mean difference over users, each one's mean over the seeds, with a 95% interval by bootstrap."""
    result: dict[str, Any] = {}
    for name, of in (("hr_at_10", lambda r: (r < 10).astype(np.float64)), ("ndcg_at_10", metrics.gains)):
        difference = np.mean([of(r) for r in ours], axis=0) - np.mean([of(r) for r in theirs], axis=0)
        interval = paired_bootstrap(difference, np.arange(len(difference)), samples=4000)
        result[name] = [round(float(value), 4) for value in (difference.mean(), *interval)]
    return result


def table(found: Mapping[str, Any]) -> str:
    """The rows as a Markdown table."""
    lines = ["| model | HR@10 | NDCG@10 | by seed | CPU s to within 1% |", "| --- | --- | --- | --- | --- |"]
    for name, row in found["rows"].items():
        seeds = ", ".join(f"{hr:.4f} / {ndcg:.4f}" for hr, ndcg in row["by_seed"])
        near = ", ".join(str(value) for value in row.get("cpu_s_to_within_1_percent", []))
        lines.append(f"| {name} | {row['hr_at_10']:.4f} | {row['ndcg_at_10']:.4f} | {seeds} | {near} |")
    return "\n".join(lines)


@click.command()
@click.option("--dataset", default="ml-100k", show_default=True, help="As of `freshet evaluate`.")
@click.option("--networks", default=",".join(network_names()), help="Names, comma-separated; all by default.")
@click.option("--seeds", default=3, show_default=True)
@click.option("--tie-orders", default=5, show_default=True, help="Of equal times of one user, shuffled.")
@click.option("--cpu-s", default=180.0, show_default=True, help="CPU seconds a training may take.")
@click.option("--jobs", default=1, show_default=True, help="Trainings beside each other.")
@click.option("--small", is_flag=True, help="The first 3,000 events, one short training each: does it run?")
@click.option("--results", type=click.Path(path_type=Path, file_okay=False), default=RESULTS)
def main(
    dataset: str,
    networks: str,
    seeds: int,
    tie_orders: int,
    cpu_s: float,
    jobs: int,
    small: bool,
    results: Path,
) -> None:
    """Measure, write networks_loo.json, print the table."""
    events = events_of(data_of(dataset, small), None, SMALL_EVENTS if small else None)
    base = TrainerSettings(max_cpu_seconds=cpu_s, max_seconds=100.0 * cpu_s, max_epochs=100, patience=5)
    if small:
        base, seeds, tie_orders = msgspec.structs.replace(base, max_epochs=1, dim=16), 1, 1
    names = [name.strip() for name in networks.split(",") if name.strip()]
    ties = [LeaveOneOut.of(events, seed) for seed in range(1, tie_orders + 1)]
    found = measure(LeaveOneOut.of(events), names, base, seeds, ties, jobs)
    content = {
        "dataset": dataset, "goals": GOALS, **found, "settings": msgspec.to_builtins(base),
        "environment": {**environment(1, False), "command": "python -m benchmarks.networks_loo"},
    }  # fmt: skip
    results.mkdir(parents=True, exist_ok=True)
    (results / "networks_loo.json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    click.echo(table(found))


if __name__ == "__main__":
    main()
