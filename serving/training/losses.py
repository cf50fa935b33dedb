"""What a network is trained on: softmax over all items, over some of them, or each pair's own sigmoid.

Every loss is the mean over n targets. `seen` int64[n, T] holds what stood before each target, and 0 where
nothing did: what was seen is never recommended, so nothing is spent on learning to rank it low. On
MovieLens-100K that gave NDCG@10 0.0991 instead of 0.0924 after as many epochs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from serving.training.dataset import LogSplit
from serving.training.networks.base import Scorer
from serving.training.settings import TrainerSettings

__all__ = [
    "GeneralisedCrossEntropy",
    "InBatchSoftmax",
    "LossFunction",
    "SampledSoftmax",
    "full_softmax",
    "make_loss",
]

LossFunction = Callable[[Scorer, Tensor, Tensor, Tensor, Tensor], Tensor]
"""Of a network or one of its heads, states float32[n, d], targets int64[n], seen int64[n, T], and contents
float32[V + 2, E]."""


def make_loss(split: LogSplit, settings: TrainerSettings, default: str = "full_softmax") -> LossFunction:
    """`settings.loss`; "auto" is `default`, what the network names as its own.

    Where `default` is the full softmax, sampled softmax takes its place above `settings.full_softmax_limit`
    items.
    """
    items = len(split.vocabulary)
    name: str = settings.loss
    if name == "auto":
        too_many = default == "full_softmax" and items > settings.full_softmax_limit
        name = "sampled_softmax" if too_many else default
    if name == "full_softmax":
        return full_softmax
    if name == "bce":
        return GeneralisedCrossEntropy(items, settings.negatives_per_target, calibration=0.0)
    if name == "gbce":
        return GeneralisedCrossEntropy(items, settings.negatives_per_target, settings.gbce_calibration)
    popularity = _popularity(split)
    if name == "in_batch":
        return InBatchSoftmax(popularity)
    uniform = torch.ones_like(popularity) / items
    uniform[0] = 0.0
    return SampledSoftmax(0.5 * popularity + 0.5 * uniform, settings.negatives)


def full_softmax(scorer: Scorer, states: Tensor, targets: Tensor, seen: Tensor, contents: Tensor) -> Tensor:
    """Mean of -log softmax(logits)[target] over all items that the user had not seen. `seen` holds 0, the
    begin mark, in every row."""
    seen = seen.masked_fill(seen == targets.unsqueeze(1), 0)
    logits = scorer.logits(states, contents).scatter(1, seen, float("-inf"))
    return nn.functional.cross_entropy(logits[:, :-1], targets)


class SampledSoftmax:
    """Softmax over the target and K shared draws from q, each draw's logit less log(K q).

    exp(s_target) + sum_k exp(s_k) / (K q_k) estimates the full softmax's sum without bias. Y. Bengio, J.-S.
    Senecal, "Adaptive Importance Sampling to Accelerate Training of a Neural Probabilistic Language Model",
    IEEE TNN 2008. Draws that hit the target are left out; what was seen is not, since of many items few draws
    hit it. q, float32[V + 1], is popularity and uniform in equal parts.
    """

    def __init__(self, q: Tensor, negatives: int) -> None:
        self.q = q
        self.negatives = negatives

    def __call__(
        self, scorer: Scorer, states: Tensor, targets: Tensor, seen: Tensor, contents: Tensor
    ) -> Tensor:
        self.q = self.q.to(targets.device)
        drawn = torch.multinomial(self.q, self.negatives, replacement=True)
        expected = torch.log(self.negatives * self.q[drawn])
        negatives = scorer.shared(states, drawn, contents) - expected
        negatives = negatives.masked_fill(drawn.unsqueeze(0) == targets.unsqueeze(1), float("-inf"))
        return _softmax_of(scorer.scores(states, targets.unsqueeze(1), contents), negatives)


class InBatchSoftmax:
    r"""Softmax over the target and the batch's other targets, each logit less the log of how often its item
    is expected in a batch.

    $$-\log \frac{e^{s_+}}{e^{s_+} + \sum_{j \neq +} c_j\, e^{s_j} / (n q_j)}$$

    An item comes into a batch as often as it is popular: without the correction the loss would teach that
    what is popular is wrong. q, float32[V + 1], is each item's share of all targets, c_j how often j is a
    target in this batch of n. X. Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item
    Recommendations", RecSys 2019.
    """

    def __init__(self, q: Tensor) -> None:
        self.q = q

    def __call__(
        self, scorer: Scorer, states: Tensor, targets: Tensor, seen: Tensor, contents: Tensor
    ) -> Tensor:
        self.q = self.q.to(targets.device)
        items, counts = torch.unique(targets, return_counts=True)
        weight = torch.log(counts / (len(targets) * self.q[items]))
        rivals = scorer.shared(states, items, contents) + weight
        column = torch.full_like(self.q, len(items), dtype=torch.int64)
        column[items] = torch.arange(len(items), device=items.device)
        not_rivals = column[torch.cat([targets.unsqueeze(1), seen], dim=1)]
        rivals = nn.functional.pad(rivals, (0, 1)).scatter(1, not_rivals, float("-inf"))[:, :-1]
        return _softmax_of(scorer.scores(states, targets.unsqueeze(1), contents), rivals)


class GeneralisedCrossEntropy:
    r"""Binary cross-entropy of the target and K uniform draws, the target's probability raised to beta.

    $$-\frac{1}{1 + K}\Big(\beta \log \sigma(s_+) + \sum_k \log(1 - \sigma(s_k))\Big), \qquad
    \beta = \alpha\Big(t\big(1 - \tfrac1\alpha\big) + \tfrac1\alpha\Big), \quad \alpha = \frac{K}{V - 1}$$

    t = 0 is the plain one (beta 1), which few draws make too sure of itself; t = 1 undoes that. Draws that
    hit the target or what was seen count nothing. A. Petrov, C. Macdonald, "gSASRec: Reducing Overconfidence
    in Sequential Recommendation Trained with Negative Sampling", RecSys 2023; plain: X. He et al., "Neural
    Collaborative Filtering", WWW 2017.
    """

    def __init__(self, items: int, negatives: int, calibration: float) -> None:
        alpha = min(1.0, negatives / max(1, items - 1))
        self.items, self.negatives = items, negatives
        self.beta = alpha * (calibration * (1.0 - 1.0 / alpha) + 1.0 / alpha)

    def __call__(
        self, scorer: Scorer, states: Tensor, targets: Tensor, seen: Tensor, contents: Tensor
    ) -> Tensor:
        shape = len(targets), self.negatives
        drawn = torch.randint(1, self.items + 1, shape, device=targets.device)
        had = torch.cat([targets.unsqueeze(1), seen], dim=1)
        counted = ~(drawn.unsqueeze(2) == had.unsqueeze(1)).any(dim=2)
        scores = scorer.scores(states, torch.cat([targets.unsqueeze(1), drawn], dim=1), contents)
        positive = self.beta * nn.functional.softplus(-scores[:, 0])
        negative = (nn.functional.softplus(scores[:, 1:]) * counted).sum(dim=1)
        return (positive + negative).mean() / (1 + self.negatives)


def _softmax_of(positive: Tensor, rivals: Tensor) -> Tensor:
    """Mean of -log softmax of positive float32[n, 1] beside rivals float32[n, k]."""
    return (torch.logsumexp(torch.cat([positive, rivals], dim=1), dim=1) - positive.squeeze(1)).mean()


def _popularity(split: LogSplit) -> Tensor:
    """float32[V + 1]: each item's share of all targets, 0 for the begin mark."""
    counts = torch.tensor([0.0] + [split.popularity[item_id] for item_id in split.vocabulary])
    return counts / counts.sum()
