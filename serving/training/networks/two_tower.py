r"""A tower for users, a tower for items, and nothing between them but an inner product.

$$s(u, i) = \langle f(p_u), g(E_i + W c_i) \rangle + b_i$$

P. Covington, J. Adams, E. Sargin, "Deep Neural Networks for YouTube Recommendations", RecSys 2016; X. Yi et
al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations", RecSys 2019. Since item
vectors don't depend on the user, an index over `retrieval_vectors` finds the best items without scoring all.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from serving.training.networks.base import SequenceNetwork, Shape
from serving.training.networks.pooling import PooledNetwork
from serving.training.settings import TrainerSettings


class Tower(nn.Module):
    """x A + MLP(x): a shortcut where the width changes, the identity where it stays."""

    def __init__(self, inputs: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.shortcut = nn.Identity() if inputs == dim else nn.Linear(inputs, dim)
        self.layers = nn.Sequential(
            nn.LayerNorm(inputs), nn.Linear(inputs, 2 * dim), nn.ReLU(), nn.Dropout(dropout)
        )
        self.out = nn.Linear(2 * dim, dim)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        """float32[..., dim] of float32[..., inputs]."""
        mapped: Tensor = self.shortcut(x) + self.out(self.layers(x))
        return mapped


class TwoTower(PooledNetwork):
    """The user tower reads means of recent items with their event types and gaps, the item tower an item's id
    and content."""

    default_loss = "in_batch"

    def __init__(self, shape: Shape, settings: TrainerSettings) -> None:
        super().__init__(shape, settings)
        self.user_tower = Tower(self.pooling.width * settings.dim, settings.dim, settings.dropout)
        self.item_tower = Tower(settings.dim, settings.dim, 0.0)

    def vectors(self, places: Tensor, contents: Tensor) -> Tensor:
        tower: Tensor = self.item_tower(super().vectors(places, contents))
        return tower

    def table(self, contents: Tensor) -> tuple[Tensor, Tensor]:
        places = torch.arange(self.vocabulary_size + 2, device=self.item_bias.device)
        return self.vectors(places, contents), self.biases(places)

    def users(self, pooled: Tensor) -> Tensor:
        users: Tensor = self.user_tower(pooled)
        return users


def build(shape: Shape, settings: TrainerSettings) -> SequenceNetwork:
    """A fresh pair of towers; seed torch before."""
    return TwoTower(shape, settings)
