"""A user as weighted means of what he did lately: what networks without an order of their own read."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from serving.training.networks.base import SequenceNetwork, Shape, Tokens
from serving.training.settings import TrainerSettings

__all__ = ["PooledNetwork", "Pooling"]

_FIRST_HALF_LIVES = (1.0, 4.0, 16.0, 256.0)
"""Half-lives in tokens at the start of training: from about the newest item alone to the plain mean."""


class Pooling(nn.Module):
    r"""Means of a history's tokens under several half-lives, which are learned.

    $$p_h(t) = \frac{\sum_{s \le t} e^{-r_h (t - s)}\, x_s}{\sum_{s \le t} e^{-r_h (t - s)}}$$

    With r = 0 the order counts for nothing. One rate costs a product of [T, T] and [T, d]; nothing is read
    after t.
    """

    def __init__(self) -> None:
        super().__init__()
        rates = torch.log(torch.tensor(2.0)) / torch.tensor(_FIRST_HALF_LIVES)
        self.log_rate = nn.Parameter(torch.log(rates))

    @property
    def width(self) -> int:
        """How many means one token gives."""
        return len(_FIRST_HALF_LIVES)

    def forward(self, x: Tensor, columns: Tensor) -> Tensor:
        """float32[B, Q, H d] of x float32[B, T, d] as of columns int64[1 or B, Q]."""
        age = columns.unsqueeze(2) - torch.arange(x.shape[1], device=x.device)
        rates = torch.exp(self.log_rate).view(1, -1, 1, 1)
        decayed = torch.exp(-rates * torch.clamp(age, min=0).unsqueeze(1).to(x.dtype))
        weights = decayed * (age >= 0).unsqueeze(1)
        means = torch.matmul(weights / weights.sum(dim=3, keepdim=True), x.unsqueeze(1))
        return means.transpose(1, 2).flatten(2)


class PooledNetwork(SequenceNetwork):
    """A network whose states are made of pooled tokens alone, so that one column costs one column."""

    def __init__(self, shape: Shape, settings: TrainerSettings) -> None:
        super().__init__(shape, settings)
        self.pooling = Pooling()
        self.dropout = nn.Dropout(settings.dropout)

    @abstractmethod
    def users(self, pooled: Tensor) -> Tensor:
        """States float32[B, Q, d] of pooled tokens float32[B, Q, H d]."""

    def states(self, tokens: Tokens, contents: Tensor) -> Tensor:
        columns = torch.arange(tokens.items.shape[1], device=tokens.items.device).unsqueeze(0)
        return self._states_at(tokens, columns, contents)

    def encode(self, tokens: Tokens, column: Tensor, contents: Tensor) -> Tensor:
        return self._states_at(tokens, column.unsqueeze(1), contents).squeeze(1)

    def _states_at(self, tokens: Tokens, columns: Tensor, contents: Tensor) -> Tensor:
        return self.users(self.pooling(self.dropout(self.embed(tokens, contents)), columns))
