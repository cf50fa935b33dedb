"""Training on a data set, without Kafka: what a data scientist runs on a laptop."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from serving.ranker.errors import RankerError, RegistryError
from serving.training.dataset import NotEnoughDataError
from serving.training.distributed import ALONE, World
from serving.training.slow_path import Outcome, Stage, run_slow_path
from serving.training.train import TrainingDivergedError
from streams.datasets import Dataset
from streams.errors import FreshetError
from streams.item_vectors import dataset_vectors
from streams.model_records import open_registry
from streams.settings import Settings, default_state_dir
from streams.trainer_dataset import BATCH_EVENTS, LocalWorker
from streams.trainer_log import TrainingLog, made_replay

__all__ = ["summary_of", "train_on_dataset"]

log = logging.getLogger("freshet.trainer")


def train_on_dataset(
    settings: Settings,
    data: Dataset,
    events: int | None = None,
    champion: str | None = None,
    world: World = ALONE,
    progress: Callable[[Stage], None] | None = None,
) -> Outcome | None:
    """Train on the first `events` of `data`, and publish what the gate lets through into the settings'
    registry; None on every process but the first.

    The events go through a worker's fast path, so that what is learned, and the features of a fused ranker,
    are those of production. A run that was killed is continued by the next with the same data and settings.

    Raises:
        FreshetError: there is too little to train on, or the training failed.
    """
    training = _read(settings, data, events, world, progress)
    interactions = training.interactions()
    vectors = dataset_vectors(settings, data)
    try:
        return run_slow_path(
            interactions,
            open_registry(settings),
            settings.trainer,
            champion,
            progress,
            examples=training.examples(interactions),
            contents=vectors if vectors.spec else None,
            serving=settings.serving,
            world=world,
            folder=default_state_dir() / "training" / "data-sets",
        )
    except (NotEnoughDataError, TrainingDivergedError, RankerError, RegistryError) as error:
        raise FreshetError(f"training on {data.name}: {error}") from error
    finally:
        vectors.close()


def summary_of(outcome: Outcome, dataset: str) -> dict[str, Any]:
    """The run in a few words and numbers, for the command's output."""
    published, trained = outcome.published, outcome.product.trained
    problem = [outcome.champion_problem] if outcome.champion_problem else []
    return {
        "dataset": dataset,
        "version": published.manifest.version if published is not None else None,
        "uri": published.uri if published is not None else None,
        "digest": published.digest if published is not None else None,
        "reasons": list(outcome.report.reasons),
        "notes": [*problem, *outcome.notes, *outcome.report.notes],
        "interactions": outcome.split.interactions,
        "items": len(outcome.split.vocabulary),
        "epochs": len(trained.curve),
        "resumed_from": trained.resumed_from,
        "train_seconds": trained.seconds,
        "seconds": outcome.seconds,
        "validation_ndcg_at_10": trained.ndcg_at_10,
        "metrics": outcome.report.figures(),
        "curve": [[point.epoch, point.loss, point.ndcg_at_10, point.seconds] for point in trained.curve],
    }


def _read(
    settings: Settings,
    data: Dataset,
    events: int | None,
    world: World,
    progress: Callable[[Stage], None] | None,
) -> TrainingLog:
    """The data set's learning log, as `Trainer` would have read it."""
    chosen = data.events[:events]
    worker = LocalWorker(settings)
    training = TrainingLog(
        settings.trainer.max_interactions,
        made_replay(settings) if world.leads else None,
        settings.ranker.context_keys,
    )
    training.follow_to(-(-len(chosen) // BATCH_EVENTS), settings.trainer.head_examples)

    def told(done: int) -> None:
        if progress is not None and world.leads:
            progress(Stage("reading", 0.0, f"{done:,} of {len(chosen):,} events of {data.name}"))

    for number, record in enumerate(worker.records(chosen, told)):
        training.add(record, number, data.name)
    if worker.left_out and world.leads:
        log.warning(
            "%d of %d events were left out: %s", worker.left_out, len(chosen), "; ".join(worker.rejected)
        )
    return training
