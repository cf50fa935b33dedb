"""The table of quality: the issue's goals, each beside its anchor and the peers installed, in one run.

    python -m benchmarks.quality [--small | --render] [--models names] [--peers names] [--docs]

Models have their defaults, which were chosen on the first fifth of the stream; the other four are in the
details. A row below its bar is reported, not hidden; the exit code says only whether all could be measured.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import msgspec

from benchmarks.quality_rows import (
    ANCHOR,
    PEER_ALS,
    PLAIN,
    QualityRow,
    all_rows,
    quality_table,
    regret_row,
    rmse_row,
    split_rows,
)
from benchmarks.quality_runs import (
    EventPopularity,
    Made,
    joined_run,
    parts_of_fusion,
    registry_models,
    rmse_of,
)
from benchmarks.quality_scripts import cost_row, drift_rows
from benchmarks.report import environment, put_into
from online_models import Fusion
from online_models.evaluation.arena import Evaluated
from online_models.evaluation.interactions import Interaction
from online_models.evaluation.peers import LIBRARIES, MissingPeerError, make_peers
from online_models.evaluation.protocols import Run
from online_models.evaluation.results import Evaluation, summarise
from online_models.registry import MODEL_NAMES, make_model
from online_models.river_adapter import RiverRecommender
from streams.datasets import Dataset, load_dataset
from streams.interactions import Interactions
from streams.settings import ValidationSettings, default_state_dir

__all__ = ["main", "measure"]

RESULTS = Path(__file__).parent / "results"
DOCUMENT = Path(__file__).parent.parent / "docs" / "quality.md"
SMALL_EVENTS = 1000
WARM_UP = 200
SMALL_MODELS = ("biased_mf", "covisitation", "fusion", "popularity")
ALS_SEEDS = 6
FIVE = 5.0


@dataclass(slots=True)
class Gaps:
    """What could not be measured: by a failure, or because a library is not installed."""

    failed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def events_of(data: Dataset, min_rating: float | None, limit: int | None) -> list[Interaction]:
    """Events as the models learn them."""
    return Interactions(data, ValidationSettings().weights(), min_rating, limit)[:]


def measure(
    data: Dataset,
    names: Sequence[str],
    limit: int | None,
    peers: Sequence[str],
    seeds: int,
    gaps: Gaps,
) -> tuple[list[QualityRow], dict[str, Evaluation]]:
    """All rows but those of the other scripts, and the full figures of the three runs."""
    every = events_of(data, None, limit)
    is_rated = any(event.rating is not None for event in every)
    anchors: dict[str, Made] = {ANCHOR: EventPopularity, PLAIN: lambda: EventPopularity(float("inf"))}
    ours = registry_models(names)
    parts = parts_of_fusion() if "fusion" in names else {}
    known = Interactions(data, ValidationSettings().weights()).catalogue()
    others, als = _peers(peers, seeds, gaps.missing)
    plan: dict[str, tuple[str, dict[str, Made], list[Interaction]]] = {
        "warming up": ("prequential", {**ours, **parts}, every[:WARM_UP]),
        "all ratings": ("prequential", {**ours, **anchors, **parts}, every),
        "split A": ("last-positive-out", {**ours, **anchors, **others}, every),
    }
    if is_rated:
        plan["ratings of 5"] = ("prequential", {**ours, **anchors}, events_of(data, FIVE, limit))
    else:
        gaps.missing.append(f"{data.name} states no ratings: no rows of ratings of 5 and of their errors")
    runs = {
        title: joined_run(title, protocol, made, events, gaps.failed, known)
        for title, (protocol, made, events) in plan.items()
    }
    del runs["warming up"]
    run = runs["all ratings"]
    rows = [*all_rows(run, runs.get("ratings of 5")), *split_rows(runs["split A"], als)]
    if (found := regret_row(run, _log_loss(run))) is not None:
        rows.append(found)
    if "biased_mf" in names and is_rated:
        rows.append(rmse_row(_errors(every)))
    return rows, {title: _figures(found, data.name) for title, found in runs.items()}


def _figures(run: Run, dataset: str) -> Evaluation:
    """As `freshet evaluate` prints them, less the pairs and the curves over time."""
    found = summarise(run, dataset, compared=False)
    models = [msgspec.structs.replace(model, windows=[]) for model in found.models]
    return msgspec.structs.replace(found, models=models)


def _log_loss(run: Run) -> dict[str, Any]:
    """The fusion's own account: mean log losses, its regret, and that as a share of the best part's loss."""
    fusion = next((entrant.model for entrant in run.entrants if entrant.name == "fusion"), None)
    if not isinstance(fusion, Fusion):
        return {}
    account: dict[str, Any] = fusion.regret()
    least = min(account["alone"].values())
    return {**account, "share": account["regret"] / least if least else 0.0}


def _errors(events: Sequence[Interaction]) -> dict[str, float]:
    """RMSE of biased_mf and of River's factor models, as River sets them and as the peers are set."""
    from river import reco

    peers = make_peers("river", "prequential")
    models = {
        "biased_mf": make_model("biased_mf"),
        "River BiasedMF, its defaults": RiverRecommender(reco.BiasedMF(seed=0)),
        "River BiasedMF, tuned": peers["river.BiasedMF"],
        "River FunkMF, tuned": peers["river.FunkMF"],
    }
    return rmse_of(models, events)


def _peers(names: Sequence[str], seeds: int, missing: list[str]) -> tuple[dict[str, Made], list[str]]:
    """The peers that are installed, ALS once for each seed, and the names under which ALS runs."""
    found: dict[str, Made] = {}
    als: list[str] = []
    for library in names:
        try:
            found.update({name: lambda model=model: model for name, model in _library(library).items()})
        except MissingPeerError as error:
            missing.append(str(error))
            click.echo(error, err=True)
            continue
        if library == "implicit":
            als = [PEER_ALS, *(f"{PEER_ALS}, seed {seed}" for seed in range(1, seeds))]
            for seed, name in enumerate(als):
                found[name] = lambda seed=seed: _library("implicit", seed)[PEER_ALS]  # type: ignore[misc]
    return found, als


def _library(library: str, seed: int = 0) -> dict[str, Evaluated]:
    return make_peers(library, "last-positive-out", seed=seed)


def data_of(name: str, is_small: bool) -> Dataset:
    """The data set; for a small run without it on this machine, the synthetic one."""
    folder = default_state_dir() / "datasets" / "ml-100k"
    return load_dataset("synthetic" if is_small and name == "ml-100k" and not folder.is_dir() else name)


def write(
    folder: Path, data: Dataset, rows: Sequence[QualityRow], models: Mapping[str, Evaluation],
    failed: Sequence[str], seconds: float,
) -> None:  # fmt: skip
    """`<folder>/quality.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "dataset": data.name,
        "seconds": round(seconds, 1),
        "rows": [{**msgspec.to_builtins(row), "met": row.met} for row in rows],
        "not_measured": list(failed),
        "runs": msgspec.to_builtins(dict(models)),
        "environment": {**environment(1, False), "command": "python -m benchmarks.quality"},
    }
    (folder / "quality.json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def read(folder: Path) -> tuple[list[QualityRow], dict[str, Evaluation]]:
    """Rows and figures of `<folder>/quality.json`."""
    content = json.loads((folder / "quality.json").read_text("utf-8"))
    rows = msgspec.convert(content["rows"], list[QualityRow])
    return rows, msgspec.convert(content["runs"], dict[str, Evaluation])


def models_table(models: Mapping[str, Evaluation]) -> str:
    """HR@10 and NDCG@10 of every model in every run, best first by the first run."""
    titles = list(models)
    by_name: dict[str, dict[str, str]] = {}
    for title, found in models.items():
        for model in sorted(found.models, key=lambda model: -model.ndcg_at_10):
            cells = by_name.setdefault(model.model, {})
            cells[title] = f"{model.hr_at_10:.4f} / {model.ndcg_at_10:.4f}"
    head = f"| model | {' | '.join(titles)} |\n|{' --- |' * (len(titles) + 1)}"
    lines = (
        f"| {name} | {' | '.join(cells.get(t, '') for t in titles)} |" for name, cells in by_name.items()
    )
    return "\n".join([head, *lines])


@click.command()
@click.option("--dataset", default="ml-100k", show_default=True, help="As of `freshet evaluate`.")
@click.option("--models", default=",".join(MODEL_NAMES), help="Names, comma-separated; all by default.")
@click.option("--peers", default=",".join(LIBRARIES), show_default=True, help="Libraries, comma-separated.")
@click.option("--small", is_flag=True, help="The first 1,000 events, few models, no peers: does it run?")
@click.option("--docs", is_flag=True, help="Put the tables into docs/quality.md too.")
@click.option("--render", is_flag=True, help="Measure nothing: the tables of quality.json as it lies there.")
@click.option("--results", type=click.Path(path_type=Path, file_okay=False), default=RESULTS)
def main(dataset: str, models: str, peers: str, small: bool, docs: bool, render: bool, results: Path) -> None:
    """Measure, write quality.json, print the table."""
    started, gaps = time.monotonic(), Gaps()
    if render:
        rows, figures = read(results)
    else:
        data = data_of(dataset, small)
        names = SMALL_MODELS if small else _names(models)
        libraries = [] if small else _names(peers)
        rows, figures = measure(data, names, SMALL_EVENTS if small else None, libraries, ALS_SEEDS, gaps)
        if not small:
            rows += [cost_row(), *drift_rows()]
        write(results, data, rows, figures, [*gaps.failed, *gaps.missing], time.monotonic() - started)
    text = quality_table(rows)
    click.echo(text)
    if docs:
        put_into(DOCUMENT, "goals", text)
        put_into(DOCUMENT, "models", models_table(figures))
    if gaps.failed:
        click.echo("not measured:\n" + "\n".join(gaps.failed), err=True)
        sys.exit(1)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


if __name__ == "__main__":
    main()
