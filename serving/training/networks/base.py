"""What every network shares: the item table, the tied scoring head, and how a history is laid out."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class SequenceNetwork(nn.Module, ABC):
    """An encoder of item sequences with a tied dot-product head: score(h, i) = <encode(h), E_i> + b_i.

    Rendle et al., "Neural Collaborative Filtering vs. Matrix Factorization Revisited", RecSys 2020, for the
    dot product.
    """

    def __init__(self, vocabulary_size: int, dim: int, history_length: int) -> None:
        super().__init__()
        self.vocabulary_size = vocabulary_size
        self.dim = dim
        self.history_length = history_length
        self.item_embedding = nn.Embedding(vocabulary_size + 1, dim)
        self.item_bias = nn.Parameter(torch.zeros(vocabulary_size + 1))
        nn.init.normal_(self.item_embedding.weight, std=dim**-0.5)

    @abstractmethod
    def states(self, inputs: Tensor) -> Tensor:
        """float32[B, T, d] of int64[B, T]."""

    @abstractmethod
    def encode(self, history: Tensor) -> Tensor:
        """float32[B, d] of int64[B, L] with 0 on the left."""

    def forward(self, history: Tensor, candidates: Tensor) -> Tensor:
        """float32[B, C] of int64[B, L] and int64[B, C]."""
        return self.sampled_logits(self.encode(history), candidates)

    def logits(self, states: Tensor) -> Tensor:
        """float32[n, V + 1] of float32[n, d]; column 0 belongs to no item."""
        return nn.functional.linear(states, self.item_embedding.weight, self.item_bias)

    def sampled_logits(self, states: Tensor, items: Tensor) -> Tensor:
        """float32[n, k] of float32[n, d] and int64[n, k]."""
        vectors = self.item_embedding(items)
        return torch.matmul(vectors, states.unsqueeze(-1)).squeeze(-1) + self.item_bias[items]


def begin_mark_then_items(history: Tensor) -> tuple[Tensor, Tensor]:
    """Turn int64[B, L] with 0 on the left into [B, L + 1]: begin mark, items oldest first, 0 on the right.

    The second result, int64[B], is the column of the newest item, or 0, the begin mark, for an empty history.
    With the padding on the right a causal network can't see it, so no mask is needed and leading columns of
    zeros change nothing.
    """
    length = history.shape[1]
    empty = (history == 0).sum(dim=1, keepdim=True)
    columns = torch.arange(length, device=history.device).unsqueeze(0) + empty
    rolled = torch.gather(history, 1, torch.clamp(columns, max=length - 1)) * (columns < length)
    return nn.functional.pad(rolled, (1, 0)), length - empty.squeeze(1)
