"""One step of training, on one process or its share on each of several, and the judgement of the result."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from serving.training.averaging import WeightAverage, rate_factor
from serving.training.dataset import NotEnoughDataError
from serving.training.device import Place
from serving.training.networks.base import Ranking, SequenceNetwork, Tokens
from serving.training.objective import Learned, Objective
from serving.training.settings import TrainerSettings
from serving.training.windows import Batch, HeldOut

__all__ = ["Stepper", "TrainingDivergedError", "evaluate", "tokens"]

_MAX_GRADIENT_NORM = 5.0
"""Keeps one odd batch from undoing an epoch."""
_MAX_SCORES = 1 << 25
"""Scores of held-out targets at once, 128 MB: with a large vocabulary a batch is judged in parts."""
_ASK_EVERY = 8
"""Batches between two questions to the other processes whether the time is up."""


class TrainingDivergedError(Exception):
    """The loss stopped being a number."""


class Stepper:
    """Optimiser, loss and precision around a network; `parts` and `load` carry its state over a restart."""

    def __init__(
        self,
        network: SequenceNetwork,
        objective: Objective,
        settings: TrainerSettings,
        place: Place,
    ) -> None:
        self._network, self._settings, self._place = network, settings, place
        self._adversary = objective.adversary
        self._objective: nn.Module = objective
        if place.world.size > 1:
            ids = [place.device.index] if place.device.type == "cuda" else None
            self._objective = DistributedDataParallel(self._objective, device_ids=ids)
        self._optimizer = torch.optim.AdamW(
            network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
        )
        self._scaler = place.scaler()
        self._average = WeightAverage(network, settings.average_decay)

    def epoch(self, batches: Iterable[Batch], seed: int, spent: Callable[[], bool]) -> float:
        """Train on the batches until `spent`; gives the mean loss a batch, over all processes.

        All draws follow from `seed`, on every process alike, so that what is drawn for a whole batch (hidden
        items, negatives) agrees between them.
        """
        torch.manual_seed(seed)
        hidden = np.random.default_rng([seed, 1])
        self._network.train()
        losses: list[Tensor] = []
        for batch in batches:
            self._network.hide(self._drawn(hidden))
            losses.append(self._step(batch))
            if self._place.device.type == "cpu":  # on a GPU the question would wait for each batch
                _check(losses[-1], len(losses))
            if self._over(len(losses), spent):
                break
        self._network.hide(None)
        if not losses:
            raise NotEnoughDataError("no window of the training part holds a positive target")
        for number, loss in enumerate(losses, start=1):
            _check(loss, number)
        return self._place.world.total(float(torch.stack(losses).double().mean()))

    def weights(self) -> dict[str, Tensor]:
        """A copy of the weights that are judged and kept."""
        with self.averaged():
            return {name: value.detach().clone() for name, value in self._network.state_dict().items()}

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The network holds, for the duration, the weights that are judged and kept."""
        with self._average.applied():
            yield

    def parts(self) -> dict[str, Mapping[str, Tensor]]:
        """What a checkpoint must hold beside the network's weights."""
        state = self._optimizer.state_dict()["state"]
        moments = {f"{row}.{name}": value for row, values in state.items() for name, value in values.items()}
        found: dict[str, Mapping[str, Tensor]] = {
            "optimizer": moments,
            "average": self._average.state(),
            "steps": {"done": torch.tensor(self._average.steps)},
        }
        if self._scaler.is_enabled():
            numbers = self._scaler.state_dict()
            found["scaler"] = {name: torch.tensor(float(value)) for name, value in numbers.items()}
        if self._adversary is not None:
            found["adversary"] = self._adversary.state_dict()
        return found

    def load(self, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Continue from what `parts` gave."""
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in parts["optimizer"].items():
            row, _, name = key.partition(".")
            state.setdefault(int(row), {})[name] = value
        self._average.restore(parts["average"], int(parts["steps"]["done"]))
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})
        if self._scaler.is_enabled() and "scaler" in parts:
            counts = {"growth_interval", "_growth_tracker"}
            self._scaler.load_state_dict(
                {name: int(v) if name in counts else float(v) for name, v in parts["scaler"].items()}
            )
        if self._adversary is not None:
            self._adversary.load_state_dict(parts["adversary"])

    def _step(self, batch: Batch) -> Tensor:
        """One update; gives this process's part of the batch's mean loss.

        DistributedDataParallel takes the mean of the processes' gradients. With each process's mean loss
        weighted by size * n_own / n_all, that is the gradient of the whole batch's mean.
        """
        world, device = self._place.world, self._place.device
        own = batch.part(world.rank, world.size)
        share = np.count_nonzero(own.targets) / np.count_nonzero(batch.targets) if world.size > 1 else 1.0
        learned = (own.targets, own.target_types, own.target_values)
        with self._place.autocast():
            loss = self._objective(
                tokens(own, device), Learned(*(torch.from_numpy(x).to(device) for x in learned))
            )
        for group in self._optimizer.param_groups:
            factor = rate_factor(self._average.steps, self._settings.warm_up_steps)
            group["lr"] = self._settings.learning_rate * factor
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss * (share * world.size) if world.size > 1 else loss).backward()
        self._scaler.unscale_(self._optimizer)
        nn.utils.clip_grad_norm_(self._network.parameters(), _MAX_GRADIENT_NORM)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._average.update()
        part: Tensor = loss.detach() * share
        return part

    def _over(self, done: int, spent: Callable[[], bool]) -> bool:
        if self._place.world.size == 1:
            return spent()
        return done % _ASK_EVERY == 0 and self._place.world.either(spent())

    def _drawn(self, rng: np.random.Generator) -> Tensor | None:
        """Places of items whose ids are hidden for one batch, so that the row of unseen items is learned."""
        vocabulary = self._network.vocabulary_size
        count = round(self._settings.hidden_share * vocabulary)
        if not count:
            return None
        return torch.from_numpy(rng.integers(1, vocabulary + 1, count)).to(self._place.device)


def evaluate(network: Ranking, held_out: list[HeldOut], contents: Tensor) -> float:
    """NDCG@10 on held-out targets: all items ranked less what the user had, half credit for ties; 0 where
    there are none."""
    gains: list[Tensor] = []
    device, at_once = contents.device, max(1, _MAX_SCORES // len(contents))
    network.eval()
    with torch.no_grad():
        for part in held_out:
            targets = torch.from_numpy(part.batch.targets).to(device)
            chosen = targets > 0
            states, target = network.queries(tokens(part.batch, device), contents)[chosen], targets[chosen]
            for first in range(0, len(target), at_once):
                block = slice(first, first + at_once)
                scores = network.logits(states[block], contents)
                gains.append(_gains(scores, target[block].unsqueeze(1), *_seen_of(part, first, len(scores))))
    network.train()
    return float(torch.cat(gains).mean()) if gains else 0.0


def _seen_of(part: HeldOut, first: int, count: int) -> tuple[Tensor, Tensor]:
    """Of `count` targets from `first` on: pairs (number from `first`, item) that their users had before."""
    begin, end = np.searchsorted(part.seen_target, (first, first + count))  # they stand in order
    return torch.from_numpy(part.seen_target[begin:end] - first), torch.from_numpy(part.seen_item[begin:end])


def _gains(scores: Tensor, target: Tensor, seen_row: Tensor, seen_item: Tensor) -> Tensor:
    """Each target's NDCG@10 by scores float32[n, V + 2], which are overwritten; target int64[n, 1]."""
    target_score = scores.gather(1, target)
    scores[seen_row.to(scores.device), seen_item.to(scores.device)] = float("-inf")
    scores[:, [0, -1]] = float("-inf")
    scores.scatter_(1, target, float("-inf"))
    ahead = (scores > target_score).sum(dim=1) + 0.5 * (scores == target_score).sum(dim=1)
    return torch.where(ahead < 10, 1.0 / torch.log2(ahead + 2.0), torch.zeros_like(ahead))


def _check(loss: Tensor, number: int) -> None:
    if not torch.isfinite(loss):
        raise TrainingDivergedError(
            f"loss is {float(loss)} at batch {number}: lower trainer.learning_rate, or look for broken "
            "weights in the warm start"
        )


def tokens(batch: Batch, device: torch.device | None = None) -> Tokens:
    """A batch's inputs as tensors."""
    items, types, gaps = (torch.from_numpy(x).to(device) for x in (batch.inputs, batch.types, batch.gaps))
    said = batch.context
    return Tokens(items, types, gaps, None if said is None else torch.from_numpy(said).to(device))
