r"""Causal self-attention over the recent items, that knows how far apart and how long ago they stand.

$$a_{ts} = \mathrm{softmax}_{s \le t}\left(\frac{\langle q_t, k_s \rangle}{\sqrt{d_h}} + r_{h, t - s}
+ z_{h, b(\tau_t - \tau_s)}\right)$$

r and z are learned for each head h, from 0: r by distance, z by the binary logarithm b of the seconds between
the two events, as the gaps' buckets tell them. W.-C. Kang, J. McAuley, "Self-Attentive Sequential
Recommendation", ICDM 2018; J. Zhai et al., "Actions Speak Louder than Words: Trillion-Parameter Sequential
Transducers for Generative Recommendations", ICML 2024, for the bias by distance and time; pre-layer-norm
blocks after R. Xiong et al., "On Layer Normalization in the Transformer Architecture", ICML 2020.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from serving.ranker.inputs import GAP_BUCKETS
from serving.training.networks.base import SequenceNetwork, Shape, Tokens
from serving.training.settings import TrainerSettings

_EXPANSION = 2
"""Width of the feed-forward layer over `dim`: 4 cost a third more time on MovieLens-100K and gained
nothing."""


_SECONDS = 1.7
"""What a gap of bucket 1 counts for, about the middle of 1 to 4 s, and four times as much for each further.
Sums of it lie on no power of two, so that rounding can't put one into another bucket elsewhere."""
_TIME_BUCKETS = 32


class Relation(NamedTuple):
    """How queries stand to keys: distance int64[B or 1, Q, T], bucket of the time between int64[B, Q, T], and
    whether the key is later, bool[B or 1, Q, T]."""

    distance: Tensor
    elapsed: Tensor
    is_later: Tensor

    @classmethod
    def of(cls, columns: Tensor, since: Tensor) -> Relation:
        """Queries at columns int64[B or 1, Q] of sequences with times since their begin, float32[B, T]."""
        apart = columns.unsqueeze(2) - torch.arange(since.shape[1], device=since.device)
        at = torch.gather(since, 1, columns.expand(since.shape[0], -1))
        between = torch.clamp(at.unsqueeze(2) - since.unsqueeze(1), min=0.5)
        buckets = torch.clamp(torch.floor(torch.log2(between)) + 1.0, max=_TIME_BUCKETS - 1.0)
        return cls(torch.clamp(apart, min=0), buckets.long(), apart < 0)


class Block(nn.Module):
    """x + Attention(LN(x)), then x + FFN(LN(x)); `distances` is how many the attention tells apart."""

    def __init__(self, dim: int, heads: int, dropout: float, distances: int) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.attention_norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.distance = nn.Parameter(torch.zeros(distances, heads))
        self.elapsed = nn.Parameter(torch.zeros(_TIME_BUCKETS, heads))
        self.out = nn.Linear(dim, dim)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, _EXPANSION * dim),
            nn.GELU(approximate="tanh"),
            nn.Linear(_EXPANSION * dim, dim),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor, relation: Relation) -> Tensor:
        """float32[B, T, d] of the same; every column asks."""
        normed = self.attention_norm(x)
        return self._finish(x, self._attend(normed, normed, self._bias(relation)))

    def at(self, x: Tensor, column: Tensor, relation: Relation) -> Tensor:
        """float32[B, 1, d]: the output at one column a row only, which is all that a last block need give."""
        index = column.view(-1, 1, 1).expand(-1, 1, x.shape[2])
        normed = self.attention_norm(x)
        attended = self._attend(torch.gather(normed, 1, index), normed, self._bias(relation))
        return self._finish(torch.gather(x, 1, index), attended)

    def _bias(self, relation: Relation) -> Tensor:
        """float32[B, H, Q, T]: -inf for later keys."""
        bias = nn.functional.embedding(relation.distance, self.distance)
        bias = bias + nn.functional.embedding(relation.elapsed, self.elapsed)
        return bias.masked_fill(relation.is_later.unsqueeze(-1), float("-inf")).permute(0, 3, 1, 2)

    def _attend(self, queries: Tensor, normed: Tensor, bias: Tensor) -> Tensor:
        """Shapes: queries [B, Q, d], normed [B, T, d], bias [B, H, Q, T]."""
        key, value = self.key_value(normed).chunk(2, dim=2)
        attended = nn.functional.scaled_dot_product_attention(
            self._split(self.query(queries)),
            self._split(key),
            self._split(value),
            attn_mask=bias,
            dropout_p=self.dropout if self.training else 0.0,
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
    """Token vectors through causal blocks and a layer norm. Where an item stands is told by distances and
    times alone: learned positions, counted from the begin mark, gave less on MovieLens-100K."""

    seconds: Tensor

    def __init__(self, shape: Shape, settings: TrainerSettings) -> None:
        super().__init__(shape, settings)
        if settings.dim % settings.heads:
            raise ValueError(f"trainer.dim={settings.dim} is no multiple of trainer.heads={settings.heads}")
        self.dropout = nn.Dropout(settings.dropout)
        self.blocks = nn.ModuleList(
            Block(settings.dim, settings.heads, settings.dropout, settings.history_length + 1)
            for _ in range(settings.blocks)
        )
        self.norm = nn.LayerNorm(settings.dim)
        seconds = torch.cat([torch.zeros(1), _SECONDS * 4.0 ** torch.arange(GAP_BUCKETS - 1)])
        self.register_buffer("seconds", seconds, persistent=False)

    def states(self, tokens: Tokens, contents: Tensor) -> Tensor:
        columns = torch.arange(tokens.items.shape[1], device=tokens.items.device).unsqueeze(0)
        relation = Relation.of(columns, self._since(tokens))
        x = self.dropout(self.embed(tokens, contents))
        for block in self.blocks:
            x = block(x, relation)
        normed: Tensor = self.norm(x)
        return normed

    def encode(self, tokens: Tokens, column: Tensor, contents: Tensor) -> Tensor:
        columns = torch.arange(tokens.items.shape[1], device=tokens.items.device).unsqueeze(0)
        since = self._since(tokens)
        relation = Relation.of(columns, since)
        x = self.dropout(self.embed(tokens, contents))
        *first, last = list(self.blocks)
        for block in first:
            x = block(x, relation)
        assert isinstance(last, Block)
        normed: Tensor = self.norm(last.at(x, column, Relation.of(column.unsqueeze(1), since)))
        return normed.squeeze(1)

    def _since(self, tokens: Tokens) -> Tensor:
        """float32[B, T]: about how many seconds after the first item; 0 for the begin mark."""
        seconds = nn.functional.embedding(tokens.gaps, self.seconds.unsqueeze(1)).squeeze(-1)
        behind = torch.arange(tokens.gaps.shape[1], device=tokens.gaps.device) >= 2
        return torch.cumsum(seconds * behind, dim=1)


def build(shape: Shape, settings: TrainerSettings) -> SequenceNetwork:
    """A fresh transformer; seed torch before."""
    return Transformer(shape, settings)
