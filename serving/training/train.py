"""Train a network on the learning log's older part, and stop by its newest part."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from serving.training.dataset import LogSplit, NotEnoughDataError
from serving.training.losses import LossFunction, make_loss
from serving.training.networks import build_network
from serving.training.networks.base import SequenceNetwork, Shape, Tokens
from serving.training.settings import TrainerSettings
from serving.training.windows import Batch, HeldOut, hold_out_newest, training_batches

_MAX_GRADIENT_NORM = 5.0
"""Keeps one odd batch from undoing an epoch."""

Weights = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class WarmStart:
    """An earlier network: its vocabulary (item id of index 1, 2, ...) and its weights by parameter name."""

    vocabulary: tuple[str, ...]
    weights: Weights


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

    def weights(self) -> Weights:
        """All parameters by name, float32, for a later warm start."""
        return {name: p.detach().cpu().numpy().copy() for name, p in self.network.state_dict().items()}


class TrainingDivergedError(Exception):
    """The loss stopped being a number."""


def train(
    split: LogSplit,
    settings: TrainerSettings,
    warm_start: WarmStart | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> TrainedNetwork:
    """AdamW on cross-entropy over items at all positions at once, until the newest part of `split.train`
    stops gaining.

    Two runs of one seed and thread count agree to the bit, as long as no time budget binds. Sets torch's
    thread count. Raises NotEnoughDataError when nothing can be learned, TrainingDivergedError when the loss
    is not finite.
    """
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    shape = Shape(len(split.vocabulary), split.event_types, split.contents.shape[1])
    network = build_network(shape, settings)
    contents = torch.from_numpy(split.contents)
    if warm_start is not None:
        copy_weights(network, split.vocabulary, warm_start)
    fit, held_out = hold_out_newest(split.train, settings)
    loss_of = make_loss(split, settings)
    optimizer = torch.optim.AdamW(
        network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
    )
    trained = TrainedNetwork(network, split.vocabulary, settings, ndcg_at_10=evaluate(network, held_out, contents))
    best, best_epoch, budget = trained.weights(), 0, _Budget(settings)
    for epoch in range(1, settings.max_epochs + 1):
        loss = _epoch(network, optimizer, training_batches(fit, settings, rng), loss_of, budget, contents, settings)
        ndcg = evaluate(network, held_out, contents)
        point = Progress(epoch, settings.max_epochs, loss, ndcg, budget.seconds(), budget.seconds_left())
        trained.curve.append(point)
        if progress is not None:
            progress(point)
        if ndcg > trained.ndcg_at_10:
            best, trained.ndcg_at_10, best_epoch = trained.weights(), ndcg, epoch
        if epoch - best_epoch >= settings.patience or budget.spent():
            break
    network.load_state_dict({name: torch.from_numpy(value) for name, value in best.items()})
    network.eval()
    trained.seconds = budget.seconds()
    return trained


class _Budget:
    """CPU seconds a thread, and seconds by the wall clock; whichever is used up first."""

    def __init__(self, settings: TrainerSettings) -> None:
        self._settings = settings
        self._wall_s, self._cpu_s = time.monotonic(), time.process_time()

    def seconds(self) -> float:
        """Wall seconds so far."""
        return time.monotonic() - self._wall_s

    def share(self) -> float:
        """How much is used up, from 0."""
        cpu_s = (time.process_time() - self._cpu_s) / self._settings.threads
        return max(self.seconds() / self._settings.max_seconds, cpu_s / self._settings.max_cpu_seconds)

    def seconds_left(self) -> float:
        """Wall seconds until it is used up at the present speed."""
        share = self.share()
        return self.seconds() * max(0.0, 1.0 - share) / max(share, 1e-9)

    def spent(self) -> bool:
        return self.share() >= 1.0


def copy_weights(network: SequenceNetwork, vocabulary: tuple[str, ...], warm_start: WarmStart) -> int:
    """Copy the weights that fit: item rows by item id, the rest by name and shape. Gives the number of items
    copied."""
    rows = {item_id: row for row, item_id in enumerate(warm_start.vocabulary, start=1)}
    old = np.array([rows.get(item_id, -1) for item_id in vocabulary], dtype=np.int64)
    here = np.flatnonzero(old >= 0)
    per_item = {"item_embedding.weight", "item_bias"}
    with torch.no_grad():
        for name, parameter in network.state_dict().items():
            source = warm_start.weights.get(name)
            if source is None or source.shape[1:] != tuple(parameter.shape[1:]):
                continue
            if name in per_item:
                parameter[[0, -1]] = torch.from_numpy(source[[0, -1]])
                parameter[here + 1] = torch.from_numpy(source[old[here]])
            elif source.shape == tuple(parameter.shape):
                parameter.copy_(torch.from_numpy(source))
    return len(here)


def evaluate(network: SequenceNetwork, held_out: list[HeldOut], contents: Tensor) -> float:
    """NDCG@10 on held-out targets: all items ranked less what the user had, half credit for ties; 0 where
    there are none."""
    gains: list[Tensor] = []
    network.eval()
    with torch.no_grad():
        for part in held_out:
            targets = torch.from_numpy(part.batch.targets)
            chosen = targets > 0
            scores = network.logits(network.states(tokens(part.batch), contents)[chosen], contents)
            target = targets[chosen].unsqueeze(1)
            target_score = scores.gather(1, target)
            scores[torch.from_numpy(part.seen_target), torch.from_numpy(part.seen_item)] = float("-inf")
            scores[:, [0, -1]] = float("-inf")
            scores.scatter_(1, target, float("-inf"))
            ahead = (scores > target_score).sum(dim=1) + 0.5 * (scores == target_score).sum(dim=1)
            gains.append(torch.where(ahead < 10, 1.0 / torch.log2(ahead + 2.0), torch.zeros_like(ahead)))
    network.train()
    return float(torch.cat(gains).mean()) if gains else 0.0


def tokens(batch: Batch) -> Tokens:
    """A batch's inputs as tensors."""
    return Tokens(*(torch.from_numpy(x) for x in (batch.inputs, batch.types, batch.gaps)))


def _epoch(
    network: SequenceNetwork,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Batch],
    loss_of: LossFunction,
    budget: _Budget,
    contents: Tensor,
    settings: TrainerSettings,
) -> float:
    """Train on the batches while the budget lasts; gives the mean loss a batch."""
    network.train()
    losses: list[float] = []
    for batch in batches:
        network.hide(_drawn(network.vocabulary_size, settings.hidden_share))
        given, targets = tokens(batch), torch.from_numpy(batch.targets)
        inputs = given.items
        window, column = torch.where(targets > 0)
        states = network.states(given, contents)[window, column]
        later = torch.arange(inputs.shape[1]) > column.unsqueeze(1)
        seen = inputs[window].masked_fill(later, 0)
        loss = loss_of(network, states, targets[window, column], seen, contents)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), _MAX_GRADIENT_NORM)
        optimizer.step()
        losses.append(float(loss.detach()))
        if not np.isfinite(losses[-1]):
            raise TrainingDivergedError(
                f"loss is {losses[-1]} at batch {len(losses)}: lower trainer.learning_rate, or look for "
                "broken weights in the warm start"
            )
        if budget.spent():
            break
    network.hide(None)
    if not losses:
        raise NotEnoughDataError("no window of the training part holds a positive target")
    return float(np.mean(losses))


def _drawn(vocabulary: int, share: float) -> Tensor | None:
    """Places of items whose ids are hidden for one batch, so that the row of unseen items is learned."""
    count = round(share * vocabulary)
    return torch.randint(1, vocabulary + 1, (count,)) if count else None
