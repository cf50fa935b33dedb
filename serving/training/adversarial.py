r"""Training against an adversary: perturbed item vectors (APR), and a generator of hard negatives (IRGAN).

APR trains on the loss and, with a weight, on the loss at the item vectors that hurt most nearby:

$$L(\theta) + \lambda L(\theta + \Delta), \qquad \Delta_i = \epsilon\, \Gamma_i / \lVert \Gamma_i \rVert,
\quad \Gamma_i = \partial L / \partial e_i$$

X. He, Z. He, X. Du, T.-S. Chua, "Adversarial Personalized Ranking for Recommendation", SIGIR 2018.

IRGAN's discriminator D = sigmoid(s) is the ranker, its generator G a softmax over items. D learns that what
was used is real and what G proposes is not; G learns to propose what D takes for real, by policy gradient
with the mean reward of each user's proposals as baseline. J. Wang et al., "IRGAN: A Minimax Game for Unifying
Generative and Discriminative Information Retrieval Models", SIGIR 2017; R. J. Williams, "Simple Statistical
Gradient-Following Algorithms for Connectionist Reinforcement Learning", Machine Learning 1992.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor, nn

from serving.training.networks import build_network
from serving.training.networks.base import SequenceNetwork, Shape, Tokens
from serving.training.settings import TrainerSettings

__all__ = ["Generator", "discriminator_loss", "generator_loss", "perturbation", "policy_loss"]

_PROPOSALS = 16
"""Negatives that the generator proposes for a target."""
_MAX_SCORES = 1 << 24
"""Scores of the generator at once, 64 MB: with many items, a part of the batch's targets gets proposals."""


def perturbation(loss: Tensor, vectors: Tensor, epsilon: float) -> Tensor:
    """float32[N, d]: the step of length `epsilon` for each row of vectors float32[N, d] that raises `loss`
    fastest; 0 for rows that it does not depend on. The graph of `loss` is kept."""
    [gradient] = torch.autograd.grad(loss, vectors, retain_graph=True)
    return epsilon * nn.functional.normalize(gradient, dim=1).to(vectors.dtype)


def generator_loss(judged_made: Tensor) -> Tensor:
    r"""$-\log D(G(z))$, the mean over logits of D: small where what was made is taken for real.

    >>> round(float(generator_loss(torch.tensor([0.0, 0.0]))), 4)
    0.6931
    """
    return nn.functional.softplus(-judged_made).mean()


def discriminator_loss(judged_real: Tensor, judged_made: Tensor) -> Tensor:
    r"""$-\log D(x) - \log(1 - D(G(z)))$, means over logits of D; $2 \ln 2$ where D can't tell.

    >>> round(float(discriminator_loss(torch.zeros(1), torch.zeros(3))), 4)
    1.3863
    """
    return nn.functional.softplus(-judged_real).mean() + nn.functional.softplus(judged_made).mean()


def policy_loss(log_probability: Tensor, reward: Tensor) -> Tensor:
    """What to descend so that proposals of more than the mean reward become likelier: minus the mean of
    (reward - its mean over a row) times log probability, both float32[n, k]."""
    advantage = reward - reward.mean(dim=1, keepdim=True)
    return -(advantage.detach() * log_probability).mean()


class Generator:
    """A small recurrent network that proposes negatives, with an optimiser of its own.

    It is trained as the ranker's loss is computed, and is no part of the ranker: neither exported nor served.
    Where several processes train (`is_shared`), all have the same one: they begin with the first one's
    weights, and each step is made of the mean gradient over the proposals of all. So each of them must call
    `loss_against` or `sit_out` once a batch.
    """

    def __init__(
        self, shape: Shape, settings: TrainerSettings, device: torch.device, is_shared: bool = False
    ) -> None:
        small = msgspec.structs.replace(
            settings, network="gru", dim=max(4, settings.dim // 2), blocks=1, dropout=0.0, score_heads=()
        )
        self.network = build_network(shape, small).to(device)
        self._optimizer = torch.optim.Adam(self.network.parameters(), settings.learning_rate)
        self._is_shared = is_shared
        if is_shared:
            for values in self.network.state_dict().values():
                dist.broadcast(values, src=0)

    def loss_against(
        self,
        ranker: SequenceNetwork,
        states: Tensor,
        tokens: Tokens,
        position: tuple[Tensor, Tensor],
        targets: Tensor,
        seen: Tensor,
        contents: Tensor,
    ) -> Tensor:
        """The discriminator's loss of the ranker on this batch's proposals; the generator takes its step.

        `states` float32[n, d] are the ranker's at `position`, two int64[n]: rows and columns of `tokens`.
        """
        rows = max(1, _MAX_SCORES // (self.network.vocabulary_size + 2))
        part = torch.randperm(len(targets), device=targets.device)[:rows]
        window, column = position[0][part], position[1][part]
        places, log_probability = self.propose(tokens, (window, column), targets[part], seen[part], contents)
        real = ranker.scores(states[part], targets[part].unsqueeze(1), contents)
        made = ranker.scores(states[part], places, contents)
        self._optimizer.zero_grad(set_to_none=True)
        policy_loss(log_probability, nn.functional.logsigmoid(made.detach())).backward()  # type: ignore[no-untyped-call]
        self._step(len(part))
        return discriminator_loss(real, made)

    def sit_out(self) -> None:
        """Take the step without a proposal of this process's own: the batch holds targets for others only."""
        self._optimizer.zero_grad(set_to_none=True)
        if self._is_shared:
            self._step(0)

    def _step(self, count: int) -> None:
        """Descend the mean gradient of all processes' proposals; `count` targets had this one's."""
        if self._is_shared:
            self._take_mean(count)
        self._optimizer.step()

    def _take_mean(self, count: int) -> None:
        r"""$g = \sum_p n_p g_p / \sum_p n_p$ in place of each process's own $g_p$, over $n_p$ targets."""
        weights = list(self.network.parameters())
        own = [torch.zeros_like(w) if w.grad is None else w.grad * count for w in weights]
        told = torch.cat([*(gradient.flatten() for gradient in own), weights[0].new_tensor([count])])
        dist.all_reduce(told)
        mean, first = told[:-1] / told[-1], 0
        for weight in weights:
            weight.grad = mean[first : first + weight.numel()].view_as(weight)
            first += weight.numel()

    def propose(
        self, tokens: Tokens, position: tuple[Tensor, Tensor], targets: Tensor, seen: Tensor, contents: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Places int64[n, k] drawn from the generator's softmax, never the target or what was seen, and the
        log of their probabilities float32[n, k]."""
        states = self.network.queries(tokens, contents)[position]
        never = torch.cat([torch.zeros_like(seen[:, :1]), seen, targets.unsqueeze(1)], dim=1)
        logits = self.network.logits(states, contents)[:, :-1].scatter(1, never, float("-inf"))
        log_probabilities = nn.functional.log_softmax(logits.float(), dim=1)
        places = torch.multinomial(log_probabilities.detach().exp(), _PROPOSALS, replacement=True)
        return places, log_probabilities.gather(1, places)

    def state_dict(self) -> dict[str, Tensor]:
        """Weights and the optimiser's moments by name, for a checkpoint."""
        moments = {
            f"moment.{row}.{name}": value
            for row, values in self._optimizer.state_dict()["state"].items()
            for name, value in values.items()
        }
        return {**{f"weight.{name}": p for name, p in self.network.state_dict().items()}, **moments}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state_dict` gave."""
        moments: dict[int, dict[str, Tensor]] = {}
        weights: dict[str, Tensor] = {}
        for key, value in state.items():
            kind, _, name = key.partition(".")
            if kind == "weight":
                weights[name] = value
            else:
                row, _, moment = name.partition(".")
                moments.setdefault(int(row), {})[moment] = value
        self.network.load_state_dict(weights)
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": moments, "param_groups": groups})
