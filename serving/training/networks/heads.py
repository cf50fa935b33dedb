r"""Several heads over one network: each of its own event types, folded into one inner product when served.

A head maps the network's state, $h_k = M_k u + m_k$ (the first is the identity), and all share the items'
vectors:

$$s_k(i) = \langle h_k, e_i \rangle + b_i \quad\text{(next)}, \qquad
s_k(i) = \mu_k + \sigma_k \langle h_k, e_i \rangle \quad\text{(value)}$$

A "next" head predicts which item the next event of its types is about; a "value" head what value (rating,
dwell seconds) that event has, with mean mu and deviation sigma of the values trained on. Served is
$\sum_k w_k s_k(i)$, which is one inner product again: $\langle \sum_k w_k \sigma_k h_k, e_i \rangle + b_i
\sum_{next} w_k + \sum_{value} w_k \mu_k$. Weighted losses over shared layers: R. Caruana,
"Multitask Learning", Machine Learning 1997.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from serving.training.settings import HeadSettings

if TYPE_CHECKING:
    from serving.training.networks.base import SequenceNetwork

__all__ = ["HeadView", "Heads"]


class Heads(nn.Module):
    """The maps of all heads, and what their values are measured by."""

    score_weight: Tensor
    mean: Tensor
    deviation: Tensor
    is_value: Tensor

    def __init__(self, dim: int, heads: tuple[HeadSettings, ...]) -> None:
        super().__init__()
        names = [head.name for head in heads]
        if len(set(names)) < len(names):
            raise ValueError(f"trainer.score_heads: the names {', '.join(names)} are not all different")
        self.settings = heads
        self.maps = nn.ModuleList(nn.Linear(dim, dim) for _ in heads[1:])
        for mapped in self.maps:
            assert isinstance(mapped, nn.Linear)
            nn.init.eye_(mapped.weight)
            nn.init.zeros_(mapped.bias)
        self.register_buffer(
            "score_weight", torch.tensor([head.score_weight for head in heads]), persistent=False
        )
        self.register_buffer(
            "is_value", torch.tensor([head.kind == "value" for head in heads]), persistent=False
        )
        self.register_buffer("mean", torch.zeros(len(heads)))
        self.register_buffer("deviation", torch.ones(len(heads)))

    def state(self, number: int, states: Tensor) -> Tensor:
        """float32[n, d]: one head's map of the network's states."""
        if number == 0:
            return states
        mapped: Tensor = self.maps[number - 1](states)
        return mapped

    def fold(self, states: Tensor) -> Tensor:
        """float32[n, d]: the weighted sum of all heads' states."""
        weights = self.score_weight * self.deviation
        folded = weights[0] * states
        for number in range(1, len(self.settings)):
            folded = folded + weights[number] * self.state(number, states)
        return folded

    def fold_biases(self, biases: Tensor) -> Tensor:
        """Items' biases as often as "next" heads count, and what value heads start from."""
        level = (self.score_weight * self.mean).sum()
        return (self.score_weight * ~self.is_value).sum() * biases + level

    def measure(self, number: int, values: Tensor) -> None:
        """Set a value head's mean and deviation from the values that will be trained on, float32[n]."""
        if len(values):
            self.mean[number] = values.mean()
            self.deviation[number] = torch.clamp(values.std(correction=0), min=1e-3)


class HeadView:
    """One head as a scorer: what a loss asks of a network, of this head alone."""

    def __init__(self, network: SequenceNetwork, number: int) -> None:
        if network.heads is None:
            raise ValueError("the network has no heads: build it with trainer.score_heads")
        self._network, self._heads, self._number = network, network.heads, number
        self._value = network.heads.settings[number].kind == "value"

    def logits(self, states: Tensor, contents: Tensor) -> Tensor:
        """float32[n, V + 2] of the network's states float32[n, d]."""
        vectors, biases = self._network.table(contents)
        return self._level(self._network.shared_scores(self._state(states), vectors, self._own(biases)))

    def shared(self, states: Tensor, places: Tensor, contents: Tensor) -> Tensor:
        """float32[n, k] of places int64[k]."""
        vectors, biases = self._network.vectors(places, contents), self._network.biases(places)
        return self._level(self._network.shared_scores(self._state(states), vectors, self._own(biases)))

    def scores(self, states: Tensor, places: Tensor, contents: Tensor) -> Tensor:
        """float32[n, k] of places int64[n, k]."""
        vectors, biases = self._network.vectors(places, contents), self._network.biases(places)
        return self._level(self._network.pair_scores(self._state(states), vectors, self._own(biases)))

    def _state(self, states: Tensor) -> Tensor:
        return self._heads.state(self._number, states)

    def _own(self, biases: Tensor) -> Tensor:
        return torch.zeros_like(biases) if self._value else biases

    def _level(self, scores: Tensor) -> Tensor:
        if not self._value:
            return scores
        return self._heads.mean[self._number] + self._heads.deviation[self._number] * scores
