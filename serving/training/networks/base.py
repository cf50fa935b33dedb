"""What every network shares: item vectors from ids and content, how a history is laid out, and the heads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from serving.ranker.inputs import GAP_BUCKETS
from serving.training.networks.heads import Heads
from serving.training.settings import TrainerSettings

__all__ = ["Ranking", "Scorer", "SequenceNetwork", "Shape", "Tokens", "tokens_of"]


class Scorer(Protocol):
    """What a loss asks: a network, or one of its heads."""

    def logits(self, states: Tensor, contents: Tensor) -> Tensor:
        """float32[n, V + 2] of states float32[n, d]."""
        ...

    def scores(self, states: Tensor, places: Tensor, contents: Tensor) -> Tensor:
        """float32[n, k] of places int64[n, k], each state's own."""
        ...

    def shared(self, states: Tensor, places: Tensor, contents: Tensor) -> Tensor:
        """float32[n, k] of places int64[k], the same for all states."""
        ...


class Ranking(Protocol):
    """What can be judged: a network, or several as one."""

    def queries(self, tokens: Tokens, contents: Tensor) -> Tensor:
        """float32[B, T, d], as `SequenceNetwork.queries`."""
        ...

    def logits(self, states: Tensor, contents: Tensor) -> Tensor:
        """float32[n, V + 2] of states float32[n, d]."""
        ...

    def eval(self) -> object:
        """Without dropout from now on."""
        ...

    def train(self) -> object:
        """With dropout again."""
        ...


class Shape(NamedTuple):
    """Sizes that a network is built for: V items, K event types, E components of content, H columns of
    hashed context, 0 where it reads none."""

    vocabulary: int
    event_types: int = 0
    content: int = 1
    context: int = 0


class Tokens(NamedTuple):
    """Sequences behind a begin mark (column 0, all zeros), 0 on the right: items int64[B, T] (places),
    types int64[B, T] (event type, 0 = unknown), gaps int64[B, T] (`gap_buckets` of the seconds since the item
    before), and context float32[B, T, H], hashed, of the list behind each token, where any is known."""

    items: Tensor
    types: Tensor
    gaps: Tensor
    context: Tensor | None = None


class SequenceNetwork(nn.Module, ABC):
    """An encoder of item sequences; by default with a tied dot-product head: score(h, i) = <u_h, e_i> + b_i.

    e_i = E_i + W c_i for an item of the vocabulary with content vector c_i, and E_{V+1} + W c_i for any
    other: row V + 1 stands for items never seen, and is learned by hiding ids in training.

    Rendle et al., "Neural Collaborative Filtering vs. Matrix Factorization Revisited", RecSys 2020, for the
    dot product. `default_loss` is what `trainer.loss = "auto"` trains this network on; `inner_product` says
    whether a score is one, which several heads need.

    What was said beside the event or the request that asks for a list comes in behind all layers: u_h + M x,
    x the hashed context and M from zero, so that it can favour items of its own, whatever the history.
    """

    default_loss: ClassVar[str] = "full_softmax"
    inner_product: ClassVar[bool] = True

    def __init__(self, shape: Shape, settings: TrainerSettings) -> None:
        super().__init__()
        self.shape = shape
        self.vocabulary_size = shape.vocabulary
        self.dim = settings.dim
        self.history_length = settings.history_length
        self.item_embedding = nn.Embedding(shape.vocabulary + 2, settings.dim)
        self.item_bias = nn.Parameter(torch.zeros(shape.vocabulary + 2))
        self.content = nn.Linear(shape.content, settings.dim, bias=False)
        self.type_embedding = nn.Embedding(shape.event_types + 1, settings.dim)
        self.gap_embedding = nn.Embedding(GAP_BUCKETS, settings.dim)
        self.context_map: nn.Parameter | None = None
        if shape.context:
            self.context_map = nn.Parameter(torch.zeros(self.state_width, shape.context))
        self.heads: Heads | None = None
        self.hidden: Tensor | None = None
        self.shift: Tensor | None = None
        """float32[V + 2, d] added to the items' vectors in adversarial training."""
        nn.init.normal_(self.item_embedding.weight, std=settings.dim**-0.5)
        for added in (self.content, self.type_embedding, self.gap_embedding):
            nn.init.zeros_(added.weight)

    @abstractmethod
    def states(self, tokens: Tokens, contents: Tensor) -> Tensor:
        """float32[B, T, d]: the vector at t predicts what follows token t, and reads nothing after it."""

    def encode(self, tokens: Tokens, column: Tensor, contents: Tensor) -> Tensor:
        """float32[B, d]: the state at one column int64[B] of each row."""
        states = self.states(tokens, contents)
        index = column.view(-1, 1, 1).expand(-1, 1, states.shape[2])
        return torch.gather(states, 1, index).squeeze(1)

    @property
    def state_width(self) -> int:
        """d: components of a state."""
        return self.dim

    def queries(self, tokens: Tokens, contents: Tensor) -> Tensor:
        """float32[B, T, d]: the states as they are scored, each with its token's context."""
        return self._in_context(self.states(tokens, contents), tokens.context)

    def query(self, tokens: Tokens, column: Tensor, context: Tensor | None, contents: Tensor) -> Tensor:
        """float32[B, d]: `encode`, with the context float32[B, H] that the list is asked for in."""
        return self._in_context(self.encode(tokens, column, contents), context)

    def _in_context(self, states: Tensor, context: Tensor | None) -> Tensor:
        if self.context_map is None or context is None:
            return states
        return states + nn.functional.linear(context, self.context_map)

    def embed(self, tokens: Tokens, contents: Tensor) -> Tensor:
        """float32[B, T, d]: item, event type and gap of each token, added up."""
        embedded: Tensor = (
            self.vectors(tokens.items, contents)
            + self.type_embedding(tokens.types)
            + self.gap_embedding(tokens.gaps)
        )
        return embedded

    def hide(self, places: Tensor | None) -> None:
        """Treat the items at places int64[n] as never seen until the next call: training only."""
        self.hidden = None
        if places is not None:
            self.hidden = torch.zeros(self.vocabulary_size + 2, dtype=torch.bool, device=places.device)
            self.hidden[places] = True

    def vectors(self, places: Tensor, contents: Tensor) -> Tensor:
        """float32[..., d] of places int64[...]; contents float32[N, E] has a row for each place."""
        vectors: Tensor = self._ids(places) + self.content(nn.functional.embedding(places, contents))
        return vectors

    def biases(self, places: Tensor) -> Tensor:
        """float32[...] of places int64[...]."""
        return nn.functional.embedding(self._known(places), self.item_bias.unsqueeze(1)).squeeze(-1)

    def table(self, contents: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors float32[V + 2, d] and biases float32[V + 2] of all places up to V + 1."""
        if self.hidden is not None or self.shift is not None:
            places = torch.arange(self.vocabulary_size + 2, device=self.item_bias.device)
            return self.vectors(places, contents), self.biases(places)
        content = self.content(contents[: self.vocabulary_size + 2])
        return self.item_embedding.weight + content, self.item_bias

    def _known(self, places: Tensor) -> Tensor:
        places = torch.clamp(places, max=self.vocabulary_size + 1)
        if self.hidden is None:
            return places
        return torch.where(self.hidden[places], self.vocabulary_size + 1, places)

    def _ids(self, places: Tensor) -> Tensor:
        known = self._known(places)
        rows: Tensor = self.item_embedding(known)
        return rows if self.shift is None else rows + nn.functional.embedding(known, self.shift)

    def fold(self, states: Tensor) -> Tensor:
        """float32[n, d]: the states that are scored, all heads in one."""
        return states if self.heads is None else self.heads.fold(states)

    def fold_biases(self, biases: Tensor) -> Tensor:
        """Biases that go with folded states."""
        return biases if self.heads is None else self.heads.fold_biases(biases)

    def logits(self, states: Tensor, contents: Tensor) -> Tensor:
        """float32[n, V + 2] of states float32[n, d]; columns 0 and V + 1 belong to no item."""
        vectors, biases = self.table(contents)
        return self.shared_scores(self.fold(states), vectors, self.fold_biases(biases))

    def shared_scores(self, states: Tensor, vectors: Tensor, biases: Tensor) -> Tensor:
        """float32[n, k] of folded states float32[n, d], item vectors float32[k, d] and biases float32[k]."""
        return nn.functional.linear(states, vectors, biases)

    def pair_scores(self, states: Tensor, vectors: Tensor, biases: Tensor) -> Tensor:
        """float32[n, k] of folded states float32[n, d], item vectors float32[n, k, d] and biases
        float32[n, k]."""
        return torch.matmul(vectors, states.unsqueeze(-1)).squeeze(-1) + biases

    def shared(self, states: Tensor, places: Tensor, contents: Tensor) -> Tensor:
        """float32[n, k] of states float32[n, d] and places int64[k]."""
        biases = self.fold_biases(self.biases(places))
        return self.shared_scores(self.fold(states), self.vectors(places, contents), biases)

    def scores(self, states: Tensor, places: Tensor, contents: Tensor) -> Tensor:
        """float32[n, k] of states float32[n, d] and places int64[n, k].

        A dot-product head takes <h, E_i + W c_i> as <h, E_i> + <W' h, c_i>: W meets each user once, not each
        candidate.
        """
        states, biases = self.fold(states), self.fold_biases(self.biases(places))
        network, base = type(self), SequenceNetwork
        if network.vectors is not base.vectors or network.pair_scores is not base.pair_scores:
            return self.pair_scores(states, self.vectors(places, contents), biases)
        ids = torch.matmul(self._ids(places), states.unsqueeze(-1))
        by_content = torch.matmul(states, self.content.weight).unsqueeze(-1)
        given = torch.matmul(nn.functional.embedding(places, contents), by_content)
        return (ids + given).squeeze(-1) + biases

    def retrieval_vectors(self, contents: Tensor) -> Tensor:
        """float32[V, d + 1]: item vectors whose inner products with [fold(state); 1] are the scores.

        Raises ValueError where a score is no inner product.
        """
        if not self.inner_product:
            raise ValueError(
                f"{type(self).__name__}: scores are no inner products, so no index can find them"
            )
        vectors, biases = self.table(contents)
        whole = torch.cat([vectors, self.fold_biases(biases).unsqueeze(1)], dim=1)
        return whole[1 : self.vocabulary_size + 1]


def tokens_of(history: Tensor, types: Tensor, gaps_s: Tensor) -> tuple[Tokens, Tensor]:
    """Histories [B, L] with 0 on the left as tokens [B, L + 1]: begin mark, items oldest first, 0 on the
    right.

    The second result, int64[B], is the column of the newest item, or 0, the begin mark, for an empty history.
    With the padding on the right a causal network can't see it, so no mask is needed and leading columns of
    zeros change nothing.
    """
    length = history.shape[1]
    empty = (history == 0).sum(dim=1, keepdim=True)
    columns = torch.arange(length, device=history.device).unsqueeze(0) + empty
    inside = columns < length
    columns = torch.clamp(columns, max=length - 1)
    rolled = [torch.gather(x, 1, columns) * inside for x in (history, types)]
    gaps = torch.gather(gaps_s, 1, columns) * inside
    buckets = 1 + torch.floor(torch.log2(torch.clamp(gaps, min=1.0)) / 2.0)
    buckets = torch.where(gaps > 0, torch.clamp(buckets, max=GAP_BUCKETS - 1), torch.zeros_like(buckets))
    items, kinds, gaps = (nn.functional.pad(x, (1, 0)) for x in (*rolled, buckets.long()))
    return Tokens(items, kinds, gaps), length - empty.squeeze(1)
