"""Fit the head that joins a network's opinion with the online models': the network stays as it is.

The head learns on lists that could have been served (`Examples`) before events that the network was not
fitted on: where it was, its scores are surer of the target than they will ever be again, and a head would
learn to follow it alone. That leaves the newest part of the training data, by which training was stopped. The
gate's events are newer still.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor, nn

from serving.ranker.inputs import Contents
from serving.settings import ServingSettings
from serving.training.dataset import LogSplit
from serving.training.examples import Examples
from serving.training.fused import ExportedRanker, FusionHead
from serving.training.networks.base import SequenceNetwork
from serving.training.settings import TrainerSettings
from serving.training.windows import hold_out_newest

__all__ = ["FittedHead", "fit_head", "unfitted"]

CUTOFF = 10
BATCH = 128
EPOCHS = 60
PATIENCE = 6
RATE = 1e-2
PULL = 1e-3
"""Of the squared distance from where the head starts: what a thousand lists do not speak against stays."""
JUDGED = 1 / 3
"""Newest share of the examples, by which fitting is stopped."""


@dataclass(frozen=True, slots=True)
class FittedHead:
    """A head, and NDCG@10 on the newest examples, which did not fit it: with it, of the network blended at
    the settings' fixed weight, and of the online models alone. A miss of retrieval counts as 0 in all."""

    head: FusionHead
    examples: int
    ndcg_at_10: float
    blend_ndcg_at_10: float
    online_ndcg_at_10: float


@dataclass(frozen=True, slots=True)
class _Lists:
    """n lists of C candidates: the network's scores float32[n, C], whether they are served bool[n, C], the
    blend's scores without a ranker, features and context, and the column of the target int64[n], which is
    served where `found` bool[n]."""

    scores: Tensor
    served: Tensor
    online: Tensor
    features: Tensor
    context: Tensor
    targets: Tensor
    found: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def at(self, rows: Tensor | slice) -> _Lists:
        return _Lists(*(getattr(self, f.name)[rows] for f in fields(self)))


def fit_head(
    network: SequenceNetwork,
    split: LogSplit,
    examples: Examples,
    settings: TrainerSettings,
    contents: Contents | None = None,
    serving: ServingSettings | None = None,
) -> FittedHead | None:
    """Listwise softmax over what retrieval gave, from the fixed blend on, stopped by the newest third.

    `examples` are located in the log of `split`; only those between what the network was fitted on and the
    gate's events are used. None where they are fewer than `settings.head_min_examples`, or where the head
    does not beat the network blended at the fixed weight on that third: by -log p of the target, the blend's
    scores brought to their best scale first, since that tells two models apart with a fraction of the events
    that NDCG needs.
    """
    part = unfitted(split, examples, settings)
    if len(part) < settings.head_min_examples:
        return None
    lists = _lists(network, split, part, contents)
    cut = len(lists) - int(len(lists) * JUDGED)
    newest = lists.at(slice(cut, None))
    fitting, judging = (one.at(one.found) for one in (lists.at(slice(None, cut)), newest))
    if not len(fitting) or not len(judging):
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        blend = FusionHead.blending(serving or ServingSettings(), network.shape.context > 0)
    head = copy.deepcopy(blend)
    _fit(head, fitting, judging, settings.seed)
    factor = _sharpening(blend, fitting)
    with torch.no_grad():
        if float(_loss(head, judging)) >= float(_loss(blend, judging, factor)):
            return None
        scores = (_scores(head, newest), _scores(blend, newest), newest.online)
        return FittedHead(head.eval(), len(part), *(float(_ndcg(one, newest).mean()) for one in scores))


def unfitted(split: LogSplit, examples: Examples, settings: TrainerSettings) -> Examples:
    """The examples of events newer than all that a network was fitted on, and older than the gate's."""
    newest = split.newest
    fitted, _ = hold_out_newest(split.train, settings)
    from_ms = int(fitted.times_ms.max(initial=-1))
    to_ms = int(newest.times_ms[newest.positions].min(initial=np.iinfo(np.int64).max))
    held_out = np.isin(examples.rows, newest.rows[newest.positions])
    return examples.slice((examples.times_ms > from_ms) & (examples.times_ms <= to_ms) & ~held_out)


def _fit(head: FusionHead, lists: _Lists, newest: _Lists, seed: int) -> None:
    """First the weights that hold for every context, a convex problem; then the rest, until the loss on
    `newest` stops falling. The head keeps its best weights."""
    _minimise([head.gate.bias], lambda: _loss(head, lists))
    generator = torch.Generator().manual_seed(seed)
    start = [parameter.detach().clone() for parameter in head.parameters()]
    optimizer = torch.optim.Adam(head.parameters(), RATE)
    best, kept, since = float("inf"), copy.deepcopy(head.state_dict()), 0
    for _ in range(EPOCHS):
        with torch.no_grad():
            loss = float(_loss(head, newest))
        best, since = (loss, 0) if loss < best else (best, since + 1)
        if since == 0:
            kept = copy.deepcopy(head.state_dict())
        if since >= PATIENCE:
            break
        order = torch.randperm(len(lists), generator=generator)
        for first in range(0, len(order), BATCH):
            rows = order[first : first + BATCH]
            optimizer.zero_grad()
            _backward(_loss(head, lists.at(rows)) + _pull(list(head.parameters()), start))
            optimizer.step()
    head.load_state_dict(kept)


def _sharpening(head: FusionHead, lists: _Lists) -> Tensor:
    """The factor by which the head's scores fit the lists best."""
    log_factor = torch.zeros(1, requires_grad=True)
    _minimise([log_factor], lambda: _loss(head, lists, log_factor.exp()))
    return log_factor.detach().exp()


def _minimise(parameters: list[Tensor], loss_of: Callable[[], Tensor]) -> None:
    """L-BFGS on a few parameters of a convex loss, pulled towards where they start."""
    start = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.LBFGS(parameters, max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = loss_of() + _pull(parameters, start)
        _backward(loss)
        return float(loss.detach())

    optimizer.step(closure)  # type: ignore[no-untyped-call]


def _pull(parameters: Sequence[Tensor], start: Sequence[Tensor]) -> Tensor:
    moved = [((p - s) ** 2).sum() for p, s in zip(parameters, start, strict=True)]
    return PULL * torch.stack(moved).sum()


def _backward(loss: Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]


def _loss(head: FusionHead, lists: _Lists, factor: Tensor | float = 1.0) -> Tensor:
    """Mean of -log softmax of the scores, times a factor, over what is served, at the target."""
    scores = factor * head(lists.scores, lists.served, lists.context, lists.features)
    return nn.functional.cross_entropy(scores.masked_fill(~lists.served, float("-inf")), lists.targets)


def _scores(head: FusionHead, lists: _Lists) -> Tensor:
    scores: Tensor = head(lists.scores, lists.served, lists.context, lists.features)
    return scores.masked_fill(~lists.served, float("-inf"))


def _ndcg(scores: Tensor, lists: _Lists) -> Tensor:
    """float32[n]: ties count half, a target that is not served 0."""
    targets = torch.where(lists.found, lists.targets, torch.zeros_like(lists.targets)).unsqueeze(1)
    mine = scores.gather(1, targets)
    tied = ((scores == mine) & lists.served).sum(dim=1) - 1
    ahead = (scores > mine).sum(dim=1) + 0.5 * tied
    gains = 1.0 / torch.log2(ahead + 2.0)
    return torch.where(lists.found & (ahead < CUTOFF), gains, torch.zeros_like(gains))


def _lists(
    network: SequenceNetwork, split: LogSplit, examples: Examples, contents: Contents | None
) -> _Lists:
    events, length = split.newest.at(examples.rows), network.history_length
    place_of, vectors = _places(split, [*examples.item_ids, *events.item_ids], contents)
    named = np.array([place_of[item_id] for item_id in examples.item_ids], dtype=np.int64)
    before = np.array([place_of[item_id] for item_id in events.item_ids], dtype=np.int64)
    columns = (
        events.histories(before, length),
        events.history_types(length),
        events.history_gaps_s(length),
        examples.context,
        np.where(examples.candidates >= 0, named[examples.candidates], 0),
        examples.features,
    )
    ranker, scores = ExportedRanker(network).eval(), []
    with torch.no_grad():
        for start in range(0, len(examples), BATCH):
            inputs = (torch.from_numpy(column[start : start + BATCH]) for column in columns)
            scores.append(ranker(*inputs, vectors))
    served = np.arange(examples.candidates.shape[1])[None, :] < examples.length[:, None]
    return _Lists(
        scores=torch.cat(scores),
        served=torch.from_numpy(served),
        online=torch.from_numpy(examples.online),
        features=torch.from_numpy(examples.features),
        context=torch.from_numpy(examples.context),
        targets=torch.from_numpy(examples.targets.astype(np.int64)),
        found=torch.from_numpy(examples.retrieved),
    )


def _places(
    split: LogSplit, item_ids: Sequence[str], contents: Contents | None
) -> tuple[dict[str, int], Tensor]:
    """The place of each id, and content vectors float32[N, E] by place: what serving would look up."""
    place_of = {item_id: place for place, item_id in enumerate(split.vocabulary, start=1)}
    unseen = [item_id for item_id in dict.fromkeys(item_ids) if item_id not in place_of]
    place_of.update(dict.fromkeys(unseen, len(split.vocabulary) + 1))
    vectors = split.contents
    if contents is not None and split.content and unseen:
        given = contents.of(unseen)
        known = np.flatnonzero(given.any(axis=1))
        place_of.update({unseen[k]: len(vectors) + n for n, k in enumerate(known.tolist())})
        vectors = np.concatenate([vectors, given[known]])
    return place_of, torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32))
