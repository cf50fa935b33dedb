"""Whether a challenger may be published: better than popularity and the champion, finite, fast, the same as
in PyTorch.

Both sides are scored from their ONNX files, on the same newest events, with the whole catalogue ranked:
sampled metrics order models wrongly (W. Krichene, S. Rendle, "On Sampled Metrics for Item Recommendation",
KDD 2020).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serving.ranker.errors import RankerError
from serving.ranker.probe import median_latency_ms
from serving.ranker.ranker import Ranker
from serving.registry.manifest import Comparison, GateReport, ModelScore
from serving.training.dataset import Bool, EvaluationSlice, Int64
from serving.training.settings import GateSettings

__all__ = ["gate", "ranks_of_targets"]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

_CUTOFF = 10
_BATCH_EVENTS = 64
_BATCH_PAIRS = 250_000
"""Events x candidates in one call: 64 MB of gathered item vectors at 64 dimensions."""


@dataclass(frozen=True, slots=True)
class _Task:
    """Events to rank. `catalogue` is int64[C] of rows in the slice's item table; the rest are row numbers per
    event."""

    newest: EvaluationSlice
    events: Int64  # [n] numbers of events in the slice
    catalogue: Int64
    column: Int64  # [items] column in the catalogue, -1 where outside

    def targets(self) -> Int64:
        """int64[n]: column of each event's target, -1 where outside the catalogue."""
        return self.column[self.newest.targets[self.events]]

    def seen(self, at: Int64) -> Bool:
        """bool[len(at), C]: what those events' users had before."""
        mask = np.zeros((len(at), len(self.catalogue)), dtype=np.bool_)
        for row, event in enumerate(self.events[at].tolist()):
            columns = self.column[self.newest.seen(event)]
            mask[row, columns[columns >= 0]] = True
        return mask


def gate(
    challenger: Ranker,
    champion: Ranker | None,
    popularity: Mapping[str, float],
    newest: EvaluationSlice,
    settings: GateSettings,
    parity: float,
    *,
    seed: int = 0,
) -> GateReport:
    """Measure and decide; each reason for a refusal holds its numbers.

    The catalogue is every item that the challenger or the champion knows. A target outside it is a miss for
    all, one that a model doesn't know is a miss for that model. `popularity` counts interactions per item id
    before the slice. `parity` is the largest |ONNX Runtime - PyTorch| on golden inputs.
    """
    task = _task(newest, challenger, champion, settings.max_scored_pairs)
    reasons: list[str] = []
    ranks: dict[str, Float64] = {"popularity": _popularity_ranks(task, popularity)}
    latency_ms: float | None = None
    try:
        ranks["challenger"] = _ranker_ranks(task, challenger)
        latency_ms = median_latency_ms(challenger)
    except RankerError as error:
        reasons.append(f"scores: {error}")
    if champion is not None:
        ranks["champion"] = _ranker_ranks(task, champion)
    comparisons = tuple(_compare(task, ranks, against, settings, seed) for against in _opponents(ranks))
    reasons += _refusals(len(task.events), comparisons, settings, parity, latency_ms)
    scores = {name: _score(values) for name, values in ranks.items()}
    return GateReport(
        accepted=not reasons,
        reasons=tuple(reasons),
        events=len(task.events),
        catalogue=len(task.catalogue),
        challenger=scores.get("challenger"),
        champion=scores.get("champion"),
        popularity=scores["popularity"],
        comparisons=comparisons,
        parity=float(parity) if np.isfinite(parity) else None,
        latency_ms=latency_ms,
    )


def ranks_of_targets(scores: Float32, targets: Int64, masked: Bool) -> Float64:
    """float64[n]: how many candidates stand before the target, a tie counting half; infinite for a missing
    target.

    `scores` float32[n, C], NaN where a model knows no item (it ranks last); `targets` int64[n], -1 where
    outside; `masked` bool[n, C] are no candidates.

    >>> scores = np.array([[3, 2, 2, 9]], np.float32)
    >>> ranks_of_targets(scores, np.array([1]), np.array([[False, False, False, True]]))
    array([1.5])
    """
    rows = np.arange(len(targets))
    target_score = scores[rows, np.maximum(targets, 0)]
    rivals = np.where(masked | np.isnan(scores), -np.inf, scores)
    rivals[rows, np.maximum(targets, 0)] = -np.inf
    ahead = (rivals > target_score[:, None]).sum(axis=1) + 0.5 * (rivals == target_score[:, None]).sum(axis=1)
    return np.where((targets >= 0) & ~np.isnan(target_score), ahead, np.inf)


def _task(newest: EvaluationSlice, challenger: Ranker, champion: Ranker | None, max_pairs: int) -> _Task:
    known = challenger.places_of(newest.item_ids) < challenger.unseen
    if champion is not None:
        known |= champion.places_of(newest.item_ids) < champion.unseen
    catalogue = np.flatnonzero(known)
    column = np.full(len(newest.item_ids), -1, dtype=np.int64)
    column[catalogue] = np.arange(len(catalogue))
    count = min(len(newest), max(1, max_pairs // max(1, len(catalogue))))
    return _Task(newest, np.arange(len(newest) - count, len(newest)), catalogue, column)


def _popularity_ranks(task: _Task, popularity: Mapping[str, float]) -> Float64:
    ids = [task.newest.item_ids[row] for row in task.catalogue.tolist()]
    counts = np.array([popularity.get(item_id, 0.0) for item_id in ids], dtype=np.float32)
    targets = task.targets()
    parts = [
        ranks_of_targets(np.tile(counts, (len(at), 1)), targets[at], task.seen(at)) for at in _batches(task)
    ]
    return np.concatenate([np.empty(0), *parts])


def _ranker_ranks(task: _Task, ranker: Ranker) -> Float64:
    newest, table = task.newest, ranker.places_of(task.newest.item_ids)
    length, events = ranker.history_length, task.events
    history, context = newest.histories(table, length)[events], newest.context()[events]
    types, gaps_s = newest.history_types(length)[events], newest.history_gaps_s(length)[events]
    candidates, targets = table[task.catalogue], task.targets()
    parts = []
    for at in _batches(task):
        inputs = ranker.plain_inputs(history[at], np.tile(candidates, (len(at), 1)))
        inputs.history_types, inputs.history_gaps_s, inputs.context = types[at], gaps_s[at], context[at]
        parts.append(ranks_of_targets(ranker.score_inputs(inputs), targets[at], task.seen(at)))
    return np.concatenate([np.empty(0), *parts])


def _batches(task: _Task) -> list[Int64]:
    size = max(1, min(_BATCH_EVENTS, _BATCH_PAIRS // max(1, len(task.catalogue))))
    numbers = np.arange(len(task.events))
    return [numbers[at : at + size] for at in range(0, len(numbers), size)]


def _ndcg(ranks: Float64) -> Float64:
    return np.where(ranks < _CUTOFF, 1.0 / np.log2(np.minimum(ranks, _CUTOFF) + 2.0), 0.0)


def _score(ranks: Float64) -> ModelScore:
    if not len(ranks):
        return ModelScore(hr_at_10=0.0, ndcg_at_10=0.0)
    return ModelScore(hr_at_10=float((ranks < _CUTOFF).mean()), ndcg_at_10=float(_ndcg(ranks).mean()))


def _opponents(ranks: Mapping[str, Float64]) -> list[str]:
    return [name for name in ("popularity", "champion") if name in ranks] if "challenger" in ranks else []


def _compare(
    task: _Task, ranks: Mapping[str, Float64], against: str, settings: GateSettings, seed: int
) -> Comparison:
    """Mean paired difference in NDCG@10; the interval resamples users, since a user's events are not
    independent."""
    gains = _ndcg(ranks["challenger"]) - _ndcg(ranks[against])
    if not len(gains):
        return Comparison(against=against, ndcg_gain=0.0, low=0.0, high=0.0)
    _, user = np.unique(task.newest.starts[task.events], return_inverse=True)
    sums, counts = np.bincount(user, weights=gains), np.bincount(user)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(sums), (settings.bootstrap_samples, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Comparison(against=against, ndcg_gain=float(gains.mean()), low=float(low), high=float(high))


def _refusals(
    events: int,
    comparisons: tuple[Comparison, ...],
    settings: GateSettings,
    parity: float,
    latency_ms: float | None,
) -> list[str]:
    reasons = [] if events else ["no event to judge by in the newest slice"]
    reasons += [
        f"NDCG@10 is {c.ndcg_gain:+.4f} against {c.against} on {events} events "
        f"(95 % {c.low:+.4f} to {c.high:+.4f}); more than {settings.min_ndcg_gain:+.4f} is asked for"
        for c in comparisons
        if not c.ndcg_gain > settings.min_ndcg_gain
    ]
    if not parity <= settings.parity_tolerance:
        reasons.append(
            f"ONNX Runtime and PyTorch differ by {parity:.3g}, at most {settings.parity_tolerance:g}"
        )
    if latency_ms is not None and latency_ms > settings.latency_budget_ms:
        reasons.append(
            f"16 users x 200 candidates take {latency_ms:.1f} ms, at most {settings.latency_budget_ms:.1f}"
        )
    return reasons
