"""The slow path on one screen: dataset, train, fuse, export, compress, gate, publish."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import safetensors.numpy

from serving.ranker.errors import RankerRefusedError, RegistryError
from serving.ranker.inputs import Contents
from serving.ranker.ranker import Ranker
from serving.registry.manifest import WEIGHTS_FILE, GateReport
from serving.registry.store import Published, Registry
from serving.registry.swap import load_verified
from serving.settings import ServingSettings
from serving.training import checkpoint
from serving.training.dataset import InteractionLog, LogSplit, NotEnoughDataError, split_by_time
from serving.training.device import Place
from serving.training.distributed import ALONE, World
from serving.training.ensemble import train_networks
from serving.training.examples import Examples
from serving.training.export import exported
from serving.training.fit_head import fit_head
from serving.training.fused import ExportedRanker
from serving.training.gate import Judged, gate
from serving.training.publish import Product, figures_of, files_of, manifest_of, version_of
from serving.training.settings import TrainerSettings
from serving.training.train import Progress, TrainedNetwork, TrainingDivergedError, train
from serving.training.warm_start import WarmStart

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
    seconds. `product` is what was judged, and `split` what it was trained on."""

    published: Published | None
    report: GateReport
    seconds: dict[str, float]
    product: Product
    split: LogSplit
    champion_problem: str = ""
    notes: tuple[str, ...] = field(default=())


_SERVING = ServingSettings()


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
    *,
    examples: Examples | None = None,
    contents: Contents | None = None,
    serving: ServingSettings = _SERVING,
    world: World = ALONE,
    folder: Path | None = None,
) -> Outcome | None:
    """Train on `log`, and publish what beats popularity and the version `champion`, which is also the warm
    start.

    1. Split by time; the newest events are the gate's alone.
    2. Train, on every process of `world`; what a restart needs is kept under `folder` until the end.
    3. The first process goes on alone, and the others get None. Fit the head that joins in the online
       features, from `examples` before the gate's events.
    4. Export, and compress as far as the settings allow.
    5. Ask the gate. 6. Publish what it lets through.

    A champion that can't be loaded is no reason to stand still: the run goes on without it, and says so in
    `Outcome.champion_problem`. Raises NotEnoughDataError, TrainingDivergedError, DeviceError, RankerError
    (export) and RegistryError (publish).
    """
    clock = _Clock(progress if world.leads else None)
    clock.stage("dataset", 0.0, f"{len(log)} interactions")
    split = split_by_time(log, settings, contents)  # 1
    incumbent, problem = _load_champion(registry, champion, log.context_keys, world)
    if folder is not None and world.leads:
        checkpoint.remove_stale(folder)
    own = _own_folder(folder, split, settings, champion)
    clock.stage("train", 0.02, f"{split.interactions} interactions, {len(split.vocabulary)} items")
    try:
        warm_start = incumbent.warm_start if incumbent is not None else None
        trained = train_networks(
            split, settings, warm_start, clock.epoch, Place.of(settings, world, own)
        )  # 2
        if not world.leads:
            return None
        data = Judged(split.newest, split.popularity, examples, split.event_type_names, contents, serving)
        outcome = _judged(trained, split, data, registry, incumbent, clock, problem)  # 3 to 6
    except (NotEnoughDataError, TrainingDivergedError):
        _remove(own, world)  # what failed once would fail again from there
        raise  # after any other failure (another process lost, no registry) a repeated run goes on
    _remove(own, world)
    return outcome


def _judged(
    trained: TrainedNetwork,
    split: LogSplit,
    data: Judged,
    registry: Registry,
    incumbent: _Champion | None,
    clock: _Clock,
    problem: str,
) -> Outcome:
    product, notes = _made(trained, split, data, clock)
    clock.stage("gate", 0.95, f"{len(split.newest)} events")
    report = gate(
        product.served(product.session()),
        incumbent.ranker if incumbent is not None else None,
        data,
        trained.settings.gate,
        product.export.parity,
        precision=product.precision,
        weights=trained.weights(),
        seed=trained.settings.seed,
    )
    if not report.accepted:
        clock.stage("refused", 1.0, "; ".join(report.reasons))
        return Outcome(None, report, clock.seconds, product, split, problem, notes)
    clock.stage("publish", 0.98, product.version)
    files = files_of(product)
    published = registry.publish(manifest_of(product, registry.model_name, report, files), files)
    score = report.challenger.ndcg_at_10 if report.challenger is not None else float("nan")
    clock.stage("published", 1.0, f"{product.version}, NDCG@10 {score:.4f}")
    return Outcome(published, report, clock.seconds, product, split, problem, notes)


def _made(
    trained: TrainedNetwork, split: LogSplit, data: Judged, clock: _Clock
) -> tuple[Product, tuple[str, ...]]:
    """The graph that is to serve, and what should be known of how it came about."""
    settings, notes = trained.settings, []
    clock.stage("head", 0.8, f"NDCG@10 {trained.ndcg_at_10:.4f} on the newest training events")
    fitted = None
    if data.examples is not None and settings.head_examples:
        fitted = fit_head(trained.network, split, data.examples, settings, data.contents, data.serving)
    if fitted is None:
        none_kept = "no lists were kept (log not read from its beginning, or trainer.head_examples = 0)"
        why = none_kept if data.examples is None else "too few lists, or the fixed blend was as good"
        notes.append(f"The online features are not joined in: {why}.")
    clock.stage("export", 0.83, trained.settings.network)
    ranker = ExportedRanker(trained.network, fitted.head if fitted is not None else None)
    model, export = exported(ranker, seed=settings.seed)
    created_at_ms = int(time.time() * 1000)
    product = Product(trained, split, ranker, model, export, version_of(created_at_ms, model), created_at_ms)
    product = replace(product, figures=figures_of(fitted) if fitted is not None else {})
    if not settings.compression.candidates:
        return product, tuple(notes)
    clock.stage("compress", 0.88, f"{len(model):,} bytes")
    return product.compressed(data, lambda kind: clock.say(0.88, kind)), tuple(notes)


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
    trained = train(split_by_time(log, settings), settings, place=Place())
    exported(ExportedRanker(trained.network), seed=settings.seed)


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
        self.say(fraction, text)

    def say(self, fraction: float, text: str) -> None:
        """More of the present stage."""
        if self._progress is not None:
            self._progress(Stage(self._name, fraction, text))

    def epoch(self, point: Progress) -> None:
        if self._progress is None:
            return
        done = max(point.epoch / point.epochs, point.seconds / max(1e-9, point.seconds + point.seconds_left))
        text = f"epoch {point.epoch}, loss {point.loss:.3f}, NDCG@10 {point.ndcg_at_10:.4f}"
        eta = f", at most {max(0.0, point.seconds_left):.0f} s left"
        self._progress(Stage("train", 0.02 + 0.78 * min(1.0, done), text + eta))


def _load_champion(
    registry: Registry, version: str | None, context_keys: tuple[str, ...], world: World
) -> tuple[_Champion | None, str]:
    """The champion, or why it is left out: by every process of `world` when one can't load it, since all must
    begin with the same weights."""
    if version is None:
        return None, ""
    found, problem = None, ""
    try:
        found = _champion(registry, version, context_keys)
    except (RegistryError, RankerRefusedError, safetensors.SafetensorError) as error:
        problem = f"champion {version} is left out: {error}"
    if world.either(found is None):
        return None, problem or f"champion {version} is left out: another process could not load it"
    return found, ""


def _champion(registry: Registry, version: str, context_keys: tuple[str, ...]) -> _Champion:
    stored = registry.fetch(version, names=(WEIGHTS_FILE,))
    ranker = load_verified(registry, version, stored.digest, "cpu", context_keys=context_keys)
    weights = safetensors.numpy.load(stored.files[WEIGHTS_FILE])
    manifest = stored.manifest
    content = tuple((block.name, block.dim) for block in manifest.content)
    return _Champion(ranker, WarmStart(ranker.vocabulary, weights, manifest.event_types, content))


def _own_folder(
    folder: Path | None, split: LogSplit, settings: TrainerSettings, champion: str | None
) -> Path | None:
    """This run's folder under `folder`, by what it is trained on: a run that is repeated finds it again."""
    if folder is None:
        return None
    digest = checkpoint.digest_of_run(split, settings, None, 0, champion or "")
    return folder / digest[: checkpoint.NAME_LENGTH]


def _remove(own: Path | None, world: World) -> None:
    if own is not None and world.leads:
        checkpoint.remove(own)
