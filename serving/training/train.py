"""Train a network on the learning log's older part, and stop by its newest part."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from serving.training import checkpoint
from serving.training.checkpoint import Checkpoint, Numbers, epoch_seed
from serving.training.dataset import LogSplit, Sequences
from serving.training.device import Place
from serving.training.distillation import Ensemble
from serving.training.networks import build_network
from serving.training.networks.base import SequenceNetwork, Shape
from serving.training.objective import Objective
from serving.training.settings import TrainerSettings
from serving.training.spectral import start_items
from serving.training.step import Stepper, TrainingDivergedError, evaluate, tokens
from serving.training.warm_start import WarmStart, Weights, copy_weights
from serving.training.windows import HeldOut, hold_out, hold_out_newest, training_batches

__all__ = [
    "Progress",
    "TrainedNetwork",
    "TrainingDivergedError",
    "WarmStart",
    "Weights",
    "copy_weights",
    "evaluate",
    "tokens",
    "train",
]


@dataclass(frozen=True, slots=True)
class Progress:
    """One line of a training run."""

    epoch: int
    epochs: int
    loss: float
    ndcg_at_10: float
    seconds: float
    seconds_left: float


@dataclass(slots=True)
class TrainedNetwork:
    """A network with its best weights, and how it got there."""

    network: SequenceNetwork
    vocabulary: tuple[str, ...]
    settings: TrainerSettings
    curve: list[Progress] = field(default_factory=list)
    seconds: float = 0.0
    ndcg_at_10: float = 0.0
    """On the newest part of the training data, at the weights that were kept."""
    resumed_from: int = 0
    """Epochs that an earlier process had done."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What else was measured, by name: of an ensemble, what each of its networks reached."""

    def weights(self) -> Weights:
        """All parameters by name, float32, for a later warm start."""
        return {name: p.detach().cpu().numpy().copy() for name, p in self.network.state_dict().items()}


def train(
    split: LogSplit,
    settings: TrainerSettings,
    warm_start: WarmStart | None = None,
    progress: Callable[[Progress], None] | None = None,
    place: Place | None = None,
    teacher: Ensemble | None = None,
) -> TrainedNetwork:
    """AdamW on cross-entropy over items at all positions at once, until the newest part of `split.train`
    stops gaining.

    Two runs of one seed and thread count on a CPU agree to the bit, as long as no time budget binds; so does
    one that was killed and continued, where `place` names a folder for checkpoints. Where `place.world` holds
    several processes, each takes its share of every batch, and all end with the same weights. The network
    comes back on the CPU. Sets torch's thread count.

    Raises NotEnoughDataError when nothing can be learned, TrainingDivergedError when the loss is not finite,
    DeviceError when the settings ask for what is not there.
    """
    torch.set_num_threads(settings.threads)
    run = _Run(split, settings, warm_start, place or Place.of(settings), teacher)
    run.resume()
    while not run.over():
        point = run.epoch()
        if progress is not None and run.place.world.leads:
            progress(point)
    return run.result()


class _Run:
    """One training from its first weights, or its newest checkpoint, to its end."""

    def __init__(
        self,
        split: LogSplit,
        settings: TrainerSettings,
        warm_start: WarmStart | None,
        place: Place,
        teacher: Ensemble | None,
    ) -> None:
        torch.manual_seed(epoch_seed(settings.seed, 0))
        self.place, self._settings = place, settings
        train = split.train
        columns = 0 if train.contexts is None else train.contexts.shape[1]
        shape = Shape(len(split.vocabulary), split.event_types, split.contents.shape[1], columns)
        network = build_network(shape, settings)
        self._fit, self._held_out = _held_out(split, settings)
        trained: set[str] = set()
        if warm_start is not None and copy_weights(
            network, split.vocabulary, warm_start, split.event_type_names, split.content
        ):
            trained = set(warm_start.vocabulary)
        if settings.spectral_start:
            is_trained = np.array([item in trained for item in split.vocabulary], dtype=np.bool_)
            start_items(network, self._fit, settings.seed, is_trained)
        self._network = network.to(place.device)
        self._contents = torch.from_numpy(split.contents).to(place.device)
        shared = place.world.size > 1
        if teacher is not None:
            teacher.to(place.device).eval()
        objective = Objective(network, self._contents, split, settings, teacher, shared)
        self._stepper = Stepper(network, objective, settings, place)
        self._trained = TrainedNetwork(network, split.vocabulary, settings)
        self._best, self._best_epoch, self._epoch = _copies(self._network), 0, 0
        self._budget, self._finished = _Budget(settings), False
        self._path, self._digest = _checkpoint_of(split, settings, warm_start, place)

    def resume(self) -> None:
        """Continue from the newest checkpoint of this run, if there is one; else judge the first weights."""
        found = self._read()
        if found is None:
            self._trained.ndcg_at_10 = self._judge()
            return
        numbers = found.numbers
        self._network.load_state_dict(dict(found.parts["network"]))
        self._stepper.load(found.parts)
        self._best = {name: value.to(self.place.device) for name, value in found.parts["best"].items()}
        self._epoch = self._trained.resumed_from = numbers.epoch
        self._best_epoch, self._trained.ndcg_at_10 = numbers.best_epoch, numbers.best_ndcg_at_10
        self._budget.spend(numbers.cpu_s, numbers.wall_s)
        self._finished = numbers.finished
        for epoch, (loss, ndcg, seconds) in enumerate(numbers.curve, start=1):
            self._trained.curve.append(Progress(epoch, self._settings.max_epochs, loss, ndcg, seconds, 0.0))

    def over(self) -> bool:
        return self._finished or self._epoch >= self._settings.max_epochs

    def epoch(self) -> Progress:
        """One pass over the training windows, its judgement, and its checkpoint."""
        self._epoch += 1
        seed = epoch_seed(self._settings.seed, self._epoch)
        batches = training_batches(self._fit, self._settings, np.random.default_rng(seed))
        loss = self._stepper.epoch(batches, seed, self._budget.spent)
        ndcg = self._judge()
        budget, left = self._budget, self._settings.max_epochs - self._epoch
        by_epochs = left * budget.seconds() / self._epoch
        point = Progress(
            self._epoch, self._settings.max_epochs, loss, ndcg,
            budget.seconds(), min(budget.seconds_left(), by_epochs),
        )  # fmt: skip
        self._trained.curve.append(point)
        if ndcg > self._trained.ndcg_at_10:
            self._best, self._best_epoch, self._trained.ndcg_at_10 = (
                self._stepper.weights(),
                self._epoch,
                ndcg,
            )
        tired = self._epoch - self._best_epoch >= self._settings.patience
        self._finished = self.place.world.either(tired or budget.spent()) or left == 0
        self._write()
        return point

    def result(self) -> TrainedNetwork:
        self._network.load_state_dict(self._best)
        self._network.cpu().eval()
        self._trained.seconds = self._budget.seconds()
        return self._trained

    def _judge(self) -> float:
        """NDCG@10 of the weights that would be kept, measured by the leader."""
        world = self.place.world
        if not world.leads:
            return world.agree(0.0)
        with self._stepper.averaged():
            return world.agree(evaluate(self._network, self._held_out, self._contents))

    def _write(self) -> None:
        if self._path is None or not self.place.world.leads:
            return
        curve = tuple((point.loss, point.ndcg_at_10, point.seconds) for point in self._trained.curve)
        numbers = Numbers(
            epoch=self._epoch,
            best_epoch=self._best_epoch,
            best_ndcg_at_10=self._trained.ndcg_at_10,
            cpu_s=self._budget.cpu_s(),
            wall_s=self._budget.seconds(),
            finished=self._finished,
            curve=curve,
        )
        parts = {"network": self._network.state_dict(), "best": self._best, **self._stepper.parts()}
        checkpoint.write(self._path, checkpoint.encode(Checkpoint(numbers, parts), self._digest))

    def _read(self) -> Checkpoint | None:
        """The leader's checkpoint, on every process."""
        if self._path is None:
            return None
        data = self._path.read_bytes() if self.place.world.leads and self._path.exists() else b""
        data = self.place.world.share(data)
        return checkpoint.decode(data, self._digest) if data else None


def _held_out(split: LogSplit, settings: TrainerSettings) -> tuple[Sequences, list[HeldOut]]:
    if split.judged is None:
        return hold_out_newest(split.train, settings)
    return hold_out(split.train, split.judged, settings)


class _Budget:
    """CPU seconds a thread, and seconds by the wall clock; whichever is used up first."""

    def __init__(self, settings: TrainerSettings) -> None:
        self._settings = settings
        self._wall_s, self._cpu_s = time.monotonic(), time.process_time()

    def spend(self, cpu_s: float, wall_s: float) -> None:
        """Count what an earlier process used up."""
        self._wall_s, self._cpu_s = time.monotonic() - wall_s, time.process_time() - cpu_s

    def seconds(self) -> float:
        """Wall seconds so far."""
        return time.monotonic() - self._wall_s

    def cpu_s(self) -> float:
        """CPU seconds of all threads so far."""
        return time.process_time() - self._cpu_s

    def share(self) -> float:
        """How much is used up, from 0."""
        cpu_s = self.cpu_s() / self._settings.threads
        return max(self.seconds() / self._settings.max_seconds, cpu_s / self._settings.max_cpu_seconds)

    def seconds_left(self) -> float:
        """Wall seconds until it is used up at the present speed."""
        share = self.share()
        return self.seconds() * max(0.0, 1.0 - share) / max(share, 1e-9)

    def spent(self) -> bool:
        return self.share() >= 1.0


def _copies(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def _checkpoint_of(
    split: LogSplit, settings: TrainerSettings, warm_start: WarmStart | None, place: Place
) -> tuple[Path | None, str]:
    """Where this run's checkpoint stands, and its digest: one folder may hold those of several networks."""
    if place.folder is None:
        return None, ""
    weights = warm_start.weights if warm_start is not None else None
    digest = checkpoint.digest_of_run(split, settings, weights, place.world.size)
    return place.folder / f"{digest[:32]}.safetensors", digest
