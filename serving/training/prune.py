"""A network with most of its weights at zero, trained on so that the rest take over.

M. Zhu, S. Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model compression", ICLR
2018 workshop: the share of zeros rises as s (1 - (1 - t/T)^3), and what is small is masked.
"""

from __future__ import annotations

import copy
import time

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from serving.training.dataset import LogSplit
from serving.training.device import Place
from serving.training.networks.base import SequenceNetwork
from serving.training.objective import Objective
from serving.training.settings import TrainerSettings
from serving.training.step import Stepper
from serving.training.windows import hold_out_newest, training_batches

__all__ = ["prune", "sparsity_at"]

_LEAST_WEIGHTS = 1024
"""Smaller matrices stay whole: their zeros save nothing."""


class _Mask(nn.Module):
    """w -> w * mask: what is masked gets no gradient."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask: Tensor
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        """float32 of the weight's shape."""
        masked: Tensor = weight * self.mask
        return masked


def sparsity_at(epoch: int, epochs: int, final: float) -> float:
    """Share of zeros in an epoch, from 1 to `epochs`.

    >>> [round(sparsity_at(epoch, 4, 0.8), 3) for epoch in (1, 2, 4)]
    [0.462, 0.7, 0.8]
    """
    return final * (1.0 - (1.0 - epoch / epochs) ** 3)


def prune(network: SequenceNetwork, split: LogSplit, settings: TrainerSettings) -> SequenceNetwork:
    """A copy, of whose every large matrix a share `settings.compression.sparsity` is zero: the smallest in
    magnitude, more of them each epoch, for `settings.max_cpu_seconds` a thread at most. The given network
    stays as it is."""
    asked, place = settings.compression, Place.of(settings)
    pruned = copy.deepcopy(network).to(place.device)
    modules = [module for module in pruned.modules() if _is_large(module)]
    for module in modules:
        weight = module.weight
        assert isinstance(weight, Tensor)
        parametrize.register_parametrization(module, "weight", _Mask(torch.ones_like(weight)))
    fit, _ = hold_out_newest(split.train, settings)
    contents = torch.from_numpy(split.contents).to(place.device)
    stepper = Stepper(pruned, Objective(pruned, contents, split, settings), settings, place)
    until = time.process_time() + settings.max_cpu_seconds * settings.threads
    for epoch in range(1, asked.pruning_epochs + 1):
        for module in modules:
            _raise(module, sparsity_at(epoch, asked.pruning_epochs, asked.sparsity))
        seed = settings.seed + epoch
        batches = training_batches(fit, settings, np.random.default_rng(seed))
        stepper.epoch(batches, seed, lambda: time.process_time() > until)
    pruned.load_state_dict(stepper.weights())
    for module in modules:
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    return pruned.cpu().eval()


def _is_large(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.dim() == 2 and weight.numel() >= _LEAST_WEIGHTS


@torch.no_grad()
def _raise(module: nn.Module, sparsity: float) -> None:
    """Mask the smallest weights in magnitude, so that a share `sparsity` is zero."""
    mask = next(part.mask for part in module.modules() if isinstance(part, _Mask))
    weight = module.weight
    assert isinstance(weight, Tensor)
    smallest = torch.argsort(weight.abs().flatten())[: round(sparsity * weight.numel())]
    mask.view(-1)[smallest] = 0.0
