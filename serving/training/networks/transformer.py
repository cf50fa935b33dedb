"""Causal self-attention over the recent items.

W.-C. Kang, J. McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018; pre-layer-norm blocks after R.
Xiong et al., "On Layer Normalization in the Transformer Architecture", ICML 2020.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from serving.training.networks.base import SequenceNetwork, Shape, Tokens
from serving.training.settings import TrainerSettings

_EXPANSION = 2
"""Width of the feed-forward layer over `dim`: 4 cost a third more time on MovieLens-100K and gained
nothing."""


class Block(nn.Module):
    """x + Attention(LN(x)), then x + FFN(LN(x))."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.attention_norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, _EXPANSION * dim),
            nn.GELU(approximate="tanh"),
            nn.Linear(_EXPANSION * dim, dim),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """float32[B, T, d] of the same."""
        normed = self.attention_norm(x)
        return self._finish(x, self._attend(normed, normed, None))

    def at(self, x: Tensor, column: Tensor) -> Tensor:
        """float32[B, 1, d]: the output at one column a row only, which is all that a last block need give."""
        index = column.view(-1, 1, 1).expand(-1, 1, x.shape[2])
        normed = self.attention_norm(x)
        visible = torch.arange(x.shape[1], device=x.device).unsqueeze(0) <= column.unsqueeze(1)
        attended = self._attend(torch.gather(normed, 1, index), normed, visible[:, None, None, :])
        return self._finish(torch.gather(x, 1, index), attended)

    def _attend(self, queries: Tensor, normed: Tensor, mask: Tensor | None) -> Tensor:
        """With no mask, causal. Shapes: queries [B, Q, d], normed [B, T, d], mask bool[B, 1, 1, T]."""
        key, value = self.key_value(normed).chunk(2, dim=2)
        attended = nn.functional.scaled_dot_product_attention(
            self._split(self.query(queries)),
            self._split(key),
            self._split(value),
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=mask is None,
        )
        merged: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return merged

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, x.shape[2] // self.heads).transpose(1, 2)

    def _finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + nn.functional.dropout(attended, self.dropout, self.training)
        finished: Tensor = x + self.feed_forward(x)
        return finished


class Transformer(SequenceNetwork):
    """Token vectors plus learned positions, counted from the begin mark, through causal blocks and a layer
    norm."""

    def __init__(self, shape: Shape, settings: TrainerSettings) -> None:
        super().__init__(shape, settings)
        if settings.dim % settings.heads:
            raise ValueError(f"trainer.dim={settings.dim} is no multiple of trainer.heads={settings.heads}")
        self.position = nn.Parameter(torch.empty(settings.history_length + 1, settings.dim))
        nn.init.normal_(self.position, std=0.02)
        self.dropout = nn.Dropout(settings.dropout)
        self.blocks = nn.ModuleList(
            Block(settings.dim, settings.heads, settings.dropout) for _ in range(settings.blocks)
        )
        self.norm = nn.LayerNorm(settings.dim)

    def states(self, tokens: Tokens, contents: Tensor) -> Tensor:
        x = self._embed(tokens, contents)
        for block in self.blocks:
            x = block(x)
        normed: Tensor = self.norm(x)
        return normed

    def encode(self, tokens: Tokens, column: Tensor, contents: Tensor) -> Tensor:
        x = self._embed(tokens, contents)
        *first, last = list(self.blocks)
        for block in first:
            x = block(x)
        assert isinstance(last, Block)
        normed: Tensor = self.norm(last.at(x, column))
        return normed.squeeze(1)

    def _embed(self, tokens: Tokens, contents: Tensor) -> Tensor:
        embedded: Tensor = self.dropout(self.embed(tokens, contents) + self.position[: tokens.items.shape[1]])
        return embedded


def build(shape: Shape, settings: TrainerSettings) -> SequenceNetwork:
    """A fresh transformer; seed torch before."""
    return Transformer(shape, settings)
