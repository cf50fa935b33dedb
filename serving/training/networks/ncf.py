r"""Embeddings and a network over both: generalised matrix factorisation fused with a multi-layer perceptron.

$$s(u, i) = \langle p_u, q_i \rangle + w^\top \mathrm{ReLU}(A_2\, h + b_2) + b_i, \qquad
h = \mathrm{ReLU}(A_1 [p'_u; q'_i] + b_1)$$

X. He et al., "Neural Collaborative Filtering", WWW 2017 (NeuMF). There are no users' ids where this is
served, so p_u and p'_u are made of means of the user's recent items (`Pooling`), and the weights of the inner
product's factors are part of them. q_i and q'_i are the two halves of the item's vector.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from serving.training.networks.base import SequenceNetwork, Shape
from serving.training.networks.pooling import PooledNetwork
from serving.training.settings import TrainerSettings

_MAX_HIDDEN = 1 << 23
"""Hidden units computed at once when users are scored against all items: 32 MB a layer."""


class NeuMF(PooledNetwork):
    """States are [p_u; A_1's part of p'_u]: that half of the first layer is computed once a user, its other
    half once an item."""

    default_loss = "bce"
    inner_product = False

    def __init__(self, shape: Shape, settings: TrainerSettings) -> None:
        super().__init__(shape, settings)
        self.factors = settings.dim // 2
        rest = settings.dim - self.factors
        self.user = nn.Linear(self.pooling.width * settings.dim, self.factors + settings.dim)
        self.item_layer = nn.Linear(rest, settings.dim, bias=False)
        self.second = nn.Linear(settings.dim, settings.dim // 2)
        self.out = nn.Linear(settings.dim // 2, 1, bias=False)

    @property
    def state_width(self) -> int:
        return self.dim // 2 + self.dim

    def users(self, pooled: Tensor) -> Tensor:
        users: Tensor = self.user(pooled)
        return users

    def pair_scores(self, states: Tensor, vectors: Tensor, biases: Tensor) -> Tensor:
        product = torch.matmul(vectors[..., : self.factors], states[:, : self.factors].unsqueeze(-1))
        hidden = states[:, self.factors :].unsqueeze(1) + self.item_layer(vectors[..., self.factors :])
        return product.squeeze(-1) + self._perceptron(hidden) + biases

    def shared_scores(self, states: Tensor, vectors: Tensor, biases: Tensor) -> Tensor:
        """In blocks of users, computed again for their gradients, so that memory stays bounded."""
        product = torch.matmul(states[:, : self.factors], vectors[:, : self.factors].T)
        items = self.item_layer(vectors[:, self.factors :])
        size = max(1, _MAX_HIDDEN // max(1, items.numel()))
        blocks = torch.split(states[:, self.factors :], size)
        again = torch.is_grad_enabled() and len(blocks) > 1
        parts = [
            checkpoint(self._block, block, items, use_reentrant=False) if again else self._block(block, items)
            for block in blocks
        ]
        return product + torch.cat(parts) + biases

    def _block(self, users: Tensor, items: Tensor) -> Tensor:
        return self._perceptron(users.unsqueeze(1) + items.unsqueeze(0))

    def _perceptron(self, hidden: Tensor) -> Tensor:
        """float32[n, k] of the first layer's sums float32[n, k, d]."""
        scored: Tensor = self.out(torch.relu(self.second(torch.relu(hidden))))
        return scored.squeeze(-1)


def build(shape: Shape, settings: TrainerSettings) -> SequenceNetwork:
    """A fresh NeuMF; seed torch before."""
    return NeuMF(shape, settings)
