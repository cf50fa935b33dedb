"""A gated recurrent network over the recent items.

B. Hidasi, A. Karatzoglou, L. Baltrunas, D. Tikk, "Session-based Recommendations with Recurrent Neural
Networks", ICLR 2016 (GRU4Rec), with the whole history as one session and item vectors shared between input
and output.
"""

from __future__ import annotations

from torch import Tensor, nn

from serving.training.networks.base import SequenceNetwork, Shape, Tokens
from serving.training.settings import TrainerSettings


class Gru(SequenceNetwork):
    """Token vectors through `blocks` gated recurrent layers and one linear map."""

    def __init__(self, shape: Shape, settings: TrainerSettings) -> None:
        super().__init__(shape, settings)
        self.dropout = nn.Dropout(settings.dropout)
        self.layers = nn.GRU(settings.dim, settings.dim, settings.blocks, batch_first=True)
        self.out = nn.Linear(settings.dim, settings.dim)

    def states(self, tokens: Tokens, contents: Tensor) -> Tensor:
        states, _ = self.layers(self.dropout(self.embed(tokens, contents)))
        mapped: Tensor = self.out(self.dropout(states))
        return mapped


def build(shape: Shape, settings: TrainerSettings) -> SequenceNetwork:
    """A fresh recurrent network; seed torch before."""
    return Gru(shape, settings)
