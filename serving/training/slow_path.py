"""The slow path on one screen: dataset, train, export, gate, publish."""

from __future__ import annotations

import importlib.metadata
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import safetensors.numpy

from serving.ranker.errors import RankerError, RankerRefusedError, RegistryError
from serving.ranker.ranker import Ranker
from serving.ranker.session import RankerSession
from serving.registry.manifest import (
    GOLDEN_FILE,
    MODEL_FILE,
    VOCABULARY_FILE,
    WEIGHTS_FILE,
    GateReport,
    Manifest,
    ModelScore,
    Signature,
    TrainedOn,
    digest_of,
    file_entries,
)
from serving.registry.store import Published, Registry
from serving.registry.swap import load_verified
from serving.training.dataset import InteractionLog, LogSplit, split_by_time
from serving.training.export import Export, export_onnx
from serving.training.fused import ExportedRanker
from serving.training.gate import gate
from serving.training.settings import TrainerSettings
from serving.training.train import Progress, TrainedNetwork, WarmStart, train

__all__ = ["Outcome", "Stage", "prepare", "run_slow_path"]


@dataclass(frozen=True, slots=True)
class Stage:
    """Where a run stands: `fraction` of the whole from 0 to 1, and a line to show."""

    name: str
    fraction: float
    text: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """`published` is None when the gate refused; `report` says why, with its numbers. Times by stage, in
    seconds."""

    published: Published | None
    report: GateReport
    seconds: dict[str, float]
    champion_problem: str = ""


@dataclass(frozen=True, slots=True)
class _Champion:
    ranker: Ranker
    warm_start: WarmStart


def run_slow_path(
    log: InteractionLog,
    registry: Registry,
    settings: TrainerSettings,
    champion: str | None = None,
    progress: Callable[[Stage], None] | None = None,
) -> Outcome:
    """Train on `log`, and publish what beats popularity and the version `champion`, which is also the warm
    start.

    A champion that can't be loaded is no reason to stand still: the run goes on without it, and says so in
    `Outcome.champion_problem`. Raises NotEnoughDataError, TrainingDivergedError, RankerError (export) and
    RegistryError (publish).
    """
    clock = _Clock(progress)
    clock.stage("dataset", 0.0, f"{len(log)} interactions")
    split = split_by_time(log, settings)
    incumbent, problem = _load_champion(registry, champion)
    clock.stage("train", 0.02, f"{split.interactions} interactions, {len(split.vocabulary)} items")
    trained = train(split, settings, incumbent.warm_start if incumbent else None, clock.epoch)
    with tempfile.TemporaryDirectory(prefix="freshet-export-") as folder:
        clock.stage("export", 0.8, f"NDCG@10 {trained.ndcg_at_10:.4f} on the newest training events")
        path = Path(folder) / MODEL_FILE
        export = export_onnx(ExportedRanker(trained.network), path, seed=settings.seed)
        model = path.read_bytes()
    clock.stage("gate", 0.9, f"{len(split.newest)} events")
    created_at_ms = int(time.time() * 1000)
    version = _version(created_at_ms, model)
    report = _gate(model, version, split, incumbent, settings, export)
    if not report.accepted:
        clock.stage("refused", 1.0, "; ".join(report.reasons))
        return Outcome(None, report, clock.seconds, problem)
    clock.stage("publish", 0.98, version)
    files = _files(model, trained, export)
    published = registry.publish(
        _manifest(version, created_at_ms, registry, split, trained, export, report, files), files
    )
    clock.stage("published", 1.0, f"{version}, NDCG@10 {_ndcg(report.challenger):.4f}")
    return Outcome(published, report, clock.seconds, problem)


def prepare() -> None:
    """Train and export a toy, so that what PyTorch imports on first use (10 s of CPU) is there already."""
    settings = TrainerSettings(dim=4, heads=1, blocks=1, history_length=2, max_epochs=1, min_interactions=1)
    log = InteractionLog()
    times_ms = list(range(60))
    log.append(
        user=[t % 3 for t in times_ms],
        item_ids=["a", "b"],
        item=[t % 2 for t in times_ms],
        time_ms=times_ms,
        event_type=[0] * 60,
        weight=[1.0] * 60,
        offset=0,
    )
    trained = train(split_by_time(log, settings), settings)
    with tempfile.TemporaryDirectory(prefix="freshet-export-") as folder:
        export_onnx(ExportedRanker(trained.network), Path(folder) / MODEL_FILE)


class _Clock:
    """Times the stages, and passes them on."""

    def __init__(self, progress: Callable[[Stage], None] | None) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress
        self._name = ""
        self._since = time.monotonic()

    def stage(self, name: str, fraction: float, text: str) -> None:
        now = time.monotonic()
        if self._name:
            self.seconds[self._name] = now - self._since
        self._name, self._since = name, now
        if self._progress is not None:
            self._progress(Stage(name, fraction, text))

    def epoch(self, point: Progress) -> None:
        if self._progress is None:
            return
        done = max(point.epoch / point.epochs, point.seconds / max(1e-9, point.seconds + point.seconds_left))
        text = f"epoch {point.epoch}, loss {point.loss:.3f}, NDCG@10 {point.ndcg_at_10:.4f}"
        eta = f", at most {max(0.0, point.seconds_left):.0f} s left"
        self._progress(Stage("train", 0.02 + 0.78 * min(1.0, done), text + eta))


def _load_champion(registry: Registry, version: str | None) -> tuple[_Champion | None, str]:
    if version is None:
        return None, ""
    try:
        stored = registry.fetch(version, names=(WEIGHTS_FILE,))
        ranker = load_verified(registry, version, stored.digest, "cpu")
        weights = safetensors.numpy.load(stored.files[WEIGHTS_FILE])
    except (RegistryError, RankerRefusedError, safetensors.SafetensorError) as error:
        return None, f"champion {version} is left out: {error}"
    return _Champion(ranker, WarmStart(ranker.vocabulary, weights)), ""


def _gate(
    model: bytes,
    version: str,
    split: LogSplit,
    incumbent: _Champion | None,
    settings: TrainerSettings,
    export: Export,
) -> GateReport:
    challenger = Ranker(
        RankerSession(model, "cpu", settings.threads),
        split.vocabulary,
        version=version,
        history_length=settings.history_length,
    )
    champion = incumbent.ranker if incumbent else None
    return gate(
        challenger, champion, split.popularity, split.newest, settings.gate, export.parity, seed=settings.seed
    )


def _files(model: bytes, trained: TrainedNetwork, export: Export) -> dict[str, bytes]:
    return {
        MODEL_FILE: model,
        VOCABULARY_FILE: msgspec.json.encode(trained.vocabulary),
        WEIGHTS_FILE: safetensors.numpy.save(trained.weights()),
        GOLDEN_FILE: safetensors.numpy.save(export.golden.arrays()),
    }


def _manifest(
    version: str,
    created_at_ms: int,
    registry: Registry,
    split: LogSplit,
    trained: TrainedNetwork,
    export: Export,
    report: GateReport,
    files: dict[str, bytes],
) -> Manifest:
    if report.challenger is None:
        raise RankerError(f"{version}: an accepted report without the challenger's scores")
    return Manifest(
        version=version,
        model_name=registry.model_name,
        network=trained.settings.network,
        files=file_entries(files),
        signature=Signature(),
        history_length=trained.settings.history_length,
        vocabulary_size=len(trained.vocabulary),
        trained_on=TrainedOn(
            from_offset=split.from_offset, to_offset=split.to_offset, interactions=split.interactions
        ),
        gate=report,
        metrics={
            "hr_at_10": report.challenger.hr_at_10,
            "ndcg_at_10": report.challenger.ndcg_at_10,
            "validation_ndcg_at_10": trained.ndcg_at_10,
            "epochs": float(len(trained.curve)),
            "train_seconds": trained.seconds,
        },
        opset=export.opset,
        created_at_ms=created_at_ms,
        code_version=_code_version(),
    )


def _version(created_at_ms: int, model: bytes) -> str:
    """Sorts by time, and tells two of one millisecond apart: 20261122T114413.123Z-1f2e3d4c."""
    at = datetime.fromtimestamp(created_at_ms / 1000, tz=UTC)
    return f"{at:%Y%m%dT%H%M%S}.{created_at_ms % 1000:03d}Z-{digest_of(model)[:8]}"


def _code_version() -> str:
    try:
        return importlib.metadata.version("freshet")
    except importlib.metadata.PackageNotFoundError:
        return "source"


def _ndcg(score: ModelScore | None) -> float:
    return score.ndcg_at_10 if score is not None else float("nan")
