"""What one batch costs: the loss of every head, and beside it an adversary's and a teacher's."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from serving.training.adversarial import Generator, perturbation
from serving.training.dataset import Int64, LogSplit, NotEnoughDataError
from serving.training.distillation import Ensemble, soft_loss
from serving.training.losses import make_loss
from serving.training.networks.base import SequenceNetwork, Tokens
from serving.training.networks.heads import HeadView
from serving.training.settings import HeadSettings, TrainerSettings

__all__ = ["Learned", "Objective"]


class Learned(NamedTuple):
    """What a batch learns, [B, T] each: targets int64 (places), 0 where nothing is learned, their event types
    int64 and their values float32, NaN where an event has none."""

    targets: Tensor
    types: Tensor
    values: Tensor


class _Picked(NamedTuple):
    """The same, of the n positions where something is learned; seen int64[n, T] is what stood before each."""

    position: tuple[Tensor, Tensor]
    targets: Tensor
    types: Tensor
    values: Tensor
    seen: Tensor


class Objective(nn.Module):
    """A batch's mean loss as a module, so that DistributedDataParallel can stand around it.

    `is_shared` says that it will: then the loss depends on every parameter, since processes wait for each
    other's gradient of each. Raises ValueError for heads of event types that the split does not know,
    NotEnoughDataError for a value head without values.
    """

    def __init__(
        self,
        network: SequenceNetwork,
        contents: Tensor,
        split: LogSplit,
        settings: TrainerSettings,
        teacher: Ensemble | None = None,
        is_shared: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self._settings, self._is_shared = settings, is_shared
        self._beside = contents, teacher  # not the module's own: neither trained nor told to other processes
        self._loss_of = make_loss(split, settings, network.default_loss)
        self._draws = settings.negatives if len(split.vocabulary) > settings.full_softmax_limit else 0
        self._types = [_codes(head, split) for head in settings.score_heads]
        self.adversary: Generator | None = None
        if settings.adversarial == "irgan":
            self.adversary = Generator(network.shape, settings, contents.device, is_shared)
        _measure(network, split, self._types)

    def forward(self, inputs: Tokens, learned: Learned) -> Tensor:
        """Of tokens [B, T]; 0 where nothing is learned."""
        window, column = torch.where(learned.targets > 0)
        loss = self._of_nothing() if self._is_shared else torch.zeros((), device=learned.targets.device)
        if not len(window):
            if self.adversary is not None:
                self.adversary.sit_out()
            return loss
        later = torch.arange(inputs.items.shape[1], device=window.device) > column.unsqueeze(1)
        seen = inputs.items[window].masked_fill(later, 0)
        seen = seen.masked_fill(seen > self.network.vocabulary_size, 0)
        targets, types, values = (part[window, column] for part in learned)
        found = self._of(inputs, _Picked((window, column), targets, types, values, seen))
        return loss + found if self._is_shared else found

    def _of(self, inputs: Tokens, picked: _Picked) -> Tensor:
        contents, teacher = self._beside
        states = self.network.queries(inputs, contents)[picked.position]
        loss = self._ranking(states, picked)
        weight = self._settings.adversarial_weight
        if self.adversary is not None:
            loss = loss + weight * self.adversary.loss_against(
                self.network, states, inputs, picked.position, picked.targets, picked.seen, contents
            )
        if self._settings.adversarial == "apr":
            loss = loss + weight * self._perturbed(inputs, picked, loss)
        return loss if teacher is None else self._taught(inputs, picked, states, loss, teacher)

    def _ranking(self, states: Tensor, picked: _Picked) -> Tensor:
        """The loss of the one head, or the weighted sum over heads; every event counts once in each."""
        contents, _ = self._beside
        if not self._types:
            return self._loss_of(self.network, states, picked.targets, picked.seen, contents)
        total = states.sum() * 0.0
        for number, (head, codes) in enumerate(zip(self._settings.score_heads, self._types, strict=True)):
            rows = torch.ones_like(picked.types, dtype=torch.bool)
            if codes is not None:
                rows = torch.isin(picked.types, torch.from_numpy(codes).to(rows.device))
            if head.kind == "value":
                rows = rows & torch.isfinite(picked.values)
            if rows.any():
                share = head.loss_weight * rows.sum() / len(rows)
                total = total + share * self._of_head(number, states, picked, rows)
        return total

    def _of_head(self, number: int, states: Tensor, picked: _Picked, rows: Tensor) -> Tensor:
        contents, _ = self._beside
        view, targets = HeadView(self.network, number), picked.targets[rows]
        if self._settings.score_heads[number].kind == "next":
            return self._loss_of(view, states[rows], targets, picked.seen[rows], contents)
        found = view.scores(states[rows], targets.unsqueeze(1), contents).squeeze(1)
        assert self.network.heads is not None
        return ((found - picked.values[rows]) / self.network.heads.deviation[number]).square().mean()

    def _perturbed(self, inputs: Tokens, picked: _Picked, loss: Tensor) -> Tensor:
        contents, _ = self._beside
        vectors = self.network.item_embedding.weight
        self.network.shift = perturbation(loss, vectors, self._settings.adversarial_epsilon)
        try:
            return self._ranking(self.network.queries(inputs, contents)[picked.position], picked)
        finally:
            self.network.shift = None

    def _taught(
        self, inputs: Tokens, picked: _Picked, states: Tensor, loss: Tensor, teacher: Ensemble
    ) -> Tensor:
        contents, _ = self._beside
        with torch.no_grad():
            taught = teacher.queries(inputs, contents)[picked.position]
        weight, temperature = self._settings.distillation_weight, self._settings.distillation_temperature
        soft = soft_loss(
            self.network,
            states,
            teacher,
            taught,
            picked.targets,
            picked.seen,
            contents,
            temperature,
            self._draws,
        )
        return (1.0 - weight) * loss + weight * soft

    def _of_nothing(self) -> Tensor:
        """0 that depends on every parameter."""
        return torch.stack([parameter.sum() for parameter in self.network.parameters()]).sum() * 0.0


def _codes(head: HeadSettings, split: LogSplit) -> Int64 | None:
    """Numbers of the head's event types, from 1; None for all."""
    if not head.event_types:
        return None
    known = {name: number for number, name in enumerate(split.event_type_names, start=1)}
    missing = [name for name in head.event_types if name not in known]
    if missing:
        raise ValueError(
            f"trainer.score_heads: {head.name!r} learns from {', '.join(missing)}, of which the log holds "
            f"nothing; it holds {', '.join(known) or 'no named event types'}"
        )
    return np.array([known[name] for name in head.event_types], dtype=np.int64)


def _measure(network: SequenceNetwork, split: LogSplit, types: list[Int64 | None]) -> None:
    """Tell value heads the mean and deviation of what they will be trained on."""
    if network.heads is None:
        return
    for number, head in enumerate(network.heads.settings):
        if head.kind != "value":
            continue
        values, codes = split.train.values, types[number]
        rows = (
            split.train.targets if codes is None else split.train.targets & np.isin(split.train.types, codes)
        )
        found = np.zeros(0, np.float32) if values is None else values[rows & np.isfinite(values)]
        if not len(found):
            raise NotEnoughDataError(
                f"trainer.score_heads: no event that {head.name!r} learns from has a value"
            )
        network.heads.measure(number, torch.from_numpy(found))
