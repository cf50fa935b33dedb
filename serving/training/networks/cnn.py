"""Dilated causal convolutions over the recent items.

F. Yuan et al., "A Simple Convolutional Generative Network for Next Item Recommendation", WSDM 2019
(NextItNet).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from serving.training.networks.base import SequenceNetwork, Shape, Tokens
from serving.training.settings import TrainerSettings

_KERNEL = 3


class CausalConvolution(nn.Module):
    """A convolution over the token at t and the two that stand `dilation` and `2 dilation` before it."""

    def __init__(self, dim: int, dilation: int) -> None:
        super().__init__()
        self.before = (_KERNEL - 1) * dilation
        self.convolution = nn.Conv1d(dim, dim, _KERNEL, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        """float32[B, T, d] of the same."""
        padded = nn.functional.pad(x.transpose(1, 2), (self.before, 0))
        convolved: Tensor = self.convolution(padded)
        return convolved.transpose(1, 2)


class Block(nn.Module):
    """x + f(x): two convolutions, the second reaching twice as far, each behind a layer norm and ReLU."""

    def __init__(self, dim: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.convolutions = nn.ModuleList(CausalConvolution(dim, dilation * (1 + k)) for k in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """float32[B, T, d] of the same."""
        inner = x
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            inner = convolution(torch.relu(norm(inner)))
        added: Tensor = x + self.dropout(inner)
        return added


class Cnn(SequenceNetwork):
    """Token vectors through `blocks` residual blocks of dilations 1 and 2, 4 and 8, and so on, and a layer
    norm: two blocks see 31 tokens."""

    def __init__(self, shape: Shape, settings: TrainerSettings) -> None:
        super().__init__(shape, settings)
        self.dropout = nn.Dropout(settings.dropout)
        self.blocks = nn.ModuleList(
            Block(settings.dim, 4**number, settings.dropout) for number in range(settings.blocks)
        )
        self.norm = nn.LayerNorm(settings.dim)

    def states(self, tokens: Tokens, contents: Tensor) -> Tensor:
        x = self.dropout(self.embed(tokens, contents))
        for block in self.blocks:
            x = block(x)
        normed: Tensor = self.norm(x)
        return normed


def build(shape: Shape, settings: TrainerSettings) -> SequenceNetwork:
    """A fresh convolutional network; seed torch before."""
    return Cnn(shape, settings)
