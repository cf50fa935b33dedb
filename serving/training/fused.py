"""What is exported: a network, and where one was trained, a head that joins in the online features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from serving.ranker.inputs import FEATURES, HASHED, OWN_CONTEXT
from serving.settings import ServingSettings
from serving.training.networks.base import SequenceNetwork, tokens_of

__all__ = ["ExportedRanker", "FusionHead"]

_HIDDEN = 16


class FusionHead(nn.Module):
    r"""The network's opinion and the online models', joined by weights that depend on the user's experience.

    $$s(i) = \sum_k w_k(x)\, z_{ik} + \mathrm{MLP}([z_i; x]), \qquad w(x) = A x + b$$

    z_i = [log softmax of the network's scores over the candidates; features of i] and x the context. The log
    softmax makes scores of different users, and of models trained apart, comparable (a log-linear pool of
    opinions, Genest and Zidek, Statistical Science 1986). The hashed part of the context has weights of its
    own, from zero, in a head that `reads_hashed`; another is the same whatever stands there.
    """

    def __init__(self, reads_hashed: bool = False) -> None:
        super().__init__()
        inputs = 1 + len(FEATURES)
        self.hashed_gate: nn.Parameter | None = None
        self.hashed_hidden: nn.Parameter | None = None
        if reads_hashed:
            self.hashed_gate = nn.Parameter(torch.zeros(inputs, HASHED))
            self.hashed_hidden = nn.Parameter(torch.zeros(_HIDDEN, HASHED))
        self.gate = nn.Linear(len(OWN_CONTEXT), inputs)
        self.hidden = nn.Linear(inputs + len(OWN_CONTEXT), _HIDDEN)
        self.out = nn.Linear(_HIDDEN, 1, bias=False)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, 0.3)
        nn.init.zeros_(self.out.weight)

    @classmethod
    def blending(cls, settings: ServingSettings, reads_hashed: bool = False) -> FusionHead:
        """A head that gives what `serving.scoring` would blend with the settings' weights: where fitting
        starts."""
        head = cls(reads_hashed)
        weights = {
            "covisitation": settings.covisitation_weight,
            "popularity": settings.popularity_weight,
            "factor": settings.factor_weight,
        }
        start = [settings.ranker_weight, *(weights.get(name, 0.0) for name in FEATURES)]
        with torch.no_grad():
            head.gate.bias.copy_(torch.tensor(start))
        return head

    def forward(self, scores: Tensor, present: Tensor, context: Tensor, features: Tensor) -> Tensor:
        """float32[B, C] of network scores float32[B, C], present bool[B, C] (not padding), context
        float32[B, len(CONTEXT)] and features float32[B, C, F]."""
        own, hashed = context[:, : len(OWN_CONTEXT)], context[:, len(OWN_CONTEXT) :]
        lowest = torch.finfo(scores.dtype).min
        masked = torch.where(present, scores, torch.full_like(scores, lowest))
        opinion = scores - torch.logsumexp(masked, dim=1, keepdim=True)
        opinion = torch.where(present, opinion, torch.zeros_like(opinion))
        z = torch.cat([opinion.unsqueeze(2), features], dim=2)
        weights = self.gate(own)
        whole = torch.cat([z, own.unsqueeze(1).expand(-1, z.shape[1], -1)], dim=2)
        hidden = self.hidden(whole)
        if self.hashed_gate is not None and self.hashed_hidden is not None:
            weights = weights + nn.functional.linear(hashed, self.hashed_gate)
            hidden = hidden + nn.functional.linear(hashed, self.hashed_hidden).unsqueeze(1)
        correction = self.out(torch.tanh(hidden)).squeeze(2)
        joined: Tensor = torch.matmul(z, weights.unsqueeze(2)).squeeze(2) + correction
        return joined


class ExportedRanker(nn.Module):
    """The one signature (`serving.ranker.inputs`): a user is encoded once, candidates cost a product each."""

    def __init__(self, network: SequenceNetwork, head: FusionHead | None = None) -> None:
        super().__init__()
        self.network = network
        self.head = head

    def forward(
        self,
        history: Tensor,
        history_types: Tensor,
        history_gaps_s: Tensor,
        context: Tensor,
        candidates: Tensor,
        features: Tensor,
        item_vectors: Tensor,
    ) -> Tensor:
        """float32[B, C]; see `serving.ranker.inputs.RankerInputs`."""
        types = torch.clamp(history_types, max=self.network.shape.event_types)
        tokens, column = tokens_of(history, types, history_gaps_s)
        hashed = context[:, len(OWN_CONTEXT) :]
        states = self.network.query(tokens, column, hashed, item_vectors)
        scores = self.network.scores(states, candidates, item_vectors)
        if self.head is None:
            return scores
        joined: Tensor = self.head(scores, candidates > 0, context, features)
        return joined
