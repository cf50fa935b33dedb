r"""Several networks' mean opinion, and what it costs a student to differ from it.

$$\log p(i) = \frac1K \sum_k \log \mathrm{softmax}(s_k / T)_i + \mathrm{const}, \qquad
L = (1 - w)\, L_\text{log} + w\, T^2\, \mathrm{KL}(p \,\|\, \mathrm{softmax}(s / T))$$

G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", 2015; J. Tang, K. Wang,
"Ranking Distillation", KDD 2018. The mean of logarithms is a log-linear pool: where one network is sure that
an item is wrong, the pool is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from serving.training.networks.base import Scorer, SequenceNetwork, Tokens

__all__ = ["Ensemble", "divergence", "soft_loss"]

_NEVER = -1e9
"""Logit of what was seen: its probability is 0, and no product with it is NaN."""


class Ensemble(nn.Module):
    """Networks of one vocabulary as one; its queries are theirs, side by side."""

    def __init__(self, members: Sequence[SequenceNetwork]) -> None:
        super().__init__()
        if not members:
            raise ValueError("an ensemble of no networks has no opinion")
        self.members = nn.ModuleList(members)
        self._widths: list[int] = []
        for parameter in self.parameters():
            parameter.requires_grad_(False)

    def networks(self) -> list[SequenceNetwork]:
        """The members."""
        return [member for member in self.members if isinstance(member, SequenceNetwork)]

    def queries(self, tokens: Tokens, contents: Tensor) -> Tensor:
        """float32[B, T, sum of their widths]."""
        states = [member.queries(tokens, contents) for member in self.networks()]
        self._widths = [state.shape[2] for state in states]
        return torch.cat(states, dim=2)

    def logits(self, states: Tensor, contents: Tensor) -> Tensor:
        """float32[n, V + 2]: the mean of the members' log softmax over all items."""
        return self.opinion(states, lambda member, own: member.logits(own, contents)[:, :-1], 1.0)

    def opinion(
        self, states: Tensor, scores: Callable[[SequenceNetwork, Tensor], Tensor], temperature: float
    ) -> Tensor:
        """float32[n, k + 1]: the mean of log softmax(scores / temperature), with one column more that holds
        nothing, of what each member's `scores` gives of its own states, float32[n, k]."""
        parts = torch.split(states, self._widths, dim=1)
        total = torch.zeros((), device=states.device)
        for member, own in zip(self.networks(), parts, strict=True):
            total = total + nn.functional.log_softmax(scores(member, own) / temperature, dim=1)
        return nn.functional.pad(total / len(self.members), (0, 1), value=_NEVER)


def divergence(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher) || softmax(student / T)), the mean over rows of float32[n, k]; the teacher is
    softened already."""
    wanted = nn.functional.log_softmax(teacher, dim=1)
    found = nn.functional.log_softmax(student / temperature, dim=1)
    return temperature**2 * nn.functional.kl_div(found, wanted, reduction="batchmean", log_target=True)


def soft_loss(
    student: SequenceNetwork,
    states: Tensor,
    teacher: Ensemble,
    taught: Tensor,
    targets: Tensor,
    seen: Tensor,
    contents: Tensor,
    temperature: float,
    draws: int,
) -> Tensor:
    """The divergence over all items that were not seen, or, with `draws` > 0, over the target and so many
    uniform draws; states float32[n, d] of the student, `taught` those of the teacher."""
    if draws:
        places = torch.randint(1, student.vocabulary_size + 1, (draws,), device=targets.device)

        def among(scorer: Scorer, states: Tensor) -> Tensor:
            own = scorer.scores(states, targets.unsqueeze(1), contents)
            return torch.cat([own, scorer.shared(states, places, contents)], dim=1)
    else:
        never = torch.cat([seen, torch.zeros_like(targets).unsqueeze(1)], dim=1)
        never = never.masked_fill(never == targets.unsqueeze(1), 0)

        def among(scorer: Scorer, states: Tensor) -> Tensor:
            logits = scorer.logits(states, contents)[:, :-1].float()  # half precision can't hold _NEVER
            return logits.scatter(1, never, _NEVER)

    with torch.no_grad():
        wanted = teacher.opinion(taught, among, temperature)[:, :-1]
    return divergence(wanted, among(student, states), temperature)
