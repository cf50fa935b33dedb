r"""Averaged weights: what is judged, exported and served is the running mean of the optimiser's path.

$$\bar\theta_t = \beta_t \bar\theta_{t-1} + (1 - \beta_t)\, \theta_t, \qquad
\beta_t = \min\left(\beta, \frac{1 + t}{10 + t}\right)$$

At a constant learning rate the last weights jump about the optimum, and their mean lies nearer to it: what a
schedule that falls to zero gives at its end, averaging gives at every epoch, so that training can stop, go on
or start from the champion at any time. The first steps count little, since beta_t starts at 0.18. B. Polyak,
A. Juditsky, "Acceleration of Stochastic Approximation by Averaging", SIAM J. Control Optim. 1992; P. Izmailov
et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["WeightAverage", "rate_factor"]


class WeightAverage:
    """The mean of a network's parameters over the optimiser's steps; `decay` beta in 0 to 1, 0 keeps the
    last."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay is {decay}, but must lie in 0 to 1, below 1 (trainer.average_decay)")
        self.decay = decay
        self.steps = 0
        self._network = network
        self._mean = {name: p.detach().clone() for name, p in network.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Count the network's present weights; once after every step of the optimiser."""
        self.steps += 1
        keep = min(self.decay, (1 + self.steps) / (10 + self.steps))
        present = [p.detach() for _, p in self._network.named_parameters()]
        torch._foreach_lerp_(list(self._mean.values()), present, 1.0 - keep)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the network has the averaged weights, after it those of the optimiser again."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def state(self) -> dict[str, Tensor]:
        """Averaged parameters by name, for a checkpoint (with `steps`)."""
        return {name: mean.clone() for name, mean in self._mean.items()}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Go on from a checkpoint. Raises KeyError for a parameter that it lacks."""
        for name, mean in self._mean.items():
            mean.copy_(state[name])
        self.steps = steps

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self._network.named_parameters():
            present = parameter.detach().clone()
            parameter.copy_(self._mean[name])
            self._mean[name].copy_(present)


def rate_factor(step: int, warm_up_steps: int) -> float:
    """Share of the learning rate at a step that counts from 0: it rises linearly, then stays.

    >>> [rate_factor(step, 4) for step in (0, 1, 3, 4, 1000)]
    [0.25, 0.5, 1.0, 1.0, 1.0]
    """
    return min(1.0, (step + 1) / warm_up_steps) if warm_up_steps > 0 else 1.0
