"""Where the gate's events stand in what each contestant would have shown: ranks, and the first ten.

An event is judged in one of two ways, the same for all contestants, so that every comparison is paired. Where
lists as they could have been served are at hand (`Examples`), candidates are what retrieval gave, and an item
that it did not give is a miss for all. Else the whole catalogue is ranked: sampled metrics order models
wrongly (W. Krichene, S. Rendle, "On Sampled Metrics for Item Recommendation", KDD 2020).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from serving.blend_kernels import add_opinion
from serving.ranker.inputs import FEATURES, Contents, RankerInputs
from serving.ranker.ranker import Ranker
from serving.scoring import RankerView
from serving.training.dataset import Bool, EvaluationSlice, Int64
from serving.training.examples import Examples

__all__ = [
    "CUTOFF",
    "Block",
    "Catalogue",
    "Contest",
    "Lists",
    "Ranking",
    "online_scores",
    "popularity_scores",
    "ranker_scores",
    "ranking_of",
    "ranks_of_targets",
]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

CUTOFF = 10
_BATCH_EVENTS = 64
_BATCH_PAIRS = 250_000
"""Events x candidates in one call: 64 MB of gathered item vectors at 64 dimensions."""


@dataclass(frozen=True, slots=True)
class Block:
    """Some events with their candidates: items int64[b, C] by number in the contest's `ids`, hidden bool[b,
    C] those that can't be listed, targets int64[b] the column of the item used, -1 where none leads to it."""

    items: Int64
    hidden: Bool
    targets: Int64
    features: Float32
    context: Float32
    online: Float32 | None = None
    """float32[b, C]: the online models' blend, where it is known."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """Of n events: ranks float64[n] from 0, infinite for a miss, and the items listed, int64[n, 10], -1
    padded."""

    ranks: Float64
    top: Int64


Scores = Callable[[Int64, Block], Float32]
"""Scores float32[b, C] of the contest's events at numbers int64[b]; NaN where an item is unknown."""


class Contest(ABC):
    """The events to judge by. `events` int64[n] are numbers in `newest`; `ids` names all items."""

    is_served = False
    """Whether candidates are what could have been served."""

    def __init__(self, newest: EvaluationSlice, events: Int64, ids: Sequence[str]) -> None:
        self.newest = newest
        self.events = events
        self.ids = ids

    @property
    @abstractmethod
    def width(self) -> int:
        """Candidates of an event at most."""

    @abstractmethod
    def block(self, at: Int64) -> Block:
        """The events at places `at` of `events`."""

    @abstractmethod
    def items_listable(self) -> int:
        """How many items some event could have had in its list."""

    def batches(self) -> list[Int64]:
        size = max(1, min(_BATCH_EVENTS, _BATCH_PAIRS // max(1, self.width)))
        places = np.arange(len(self.events))
        return [places[at : at + size] for at in range(0, len(places), size)]


class Catalogue(Contest):
    """Every item that a contestant knows, less what the event's user had; of the newest events as many as
    `max_pairs` allows."""

    def __init__(self, newest: EvaluationSlice, rankers: Sequence[Ranker], max_pairs: int) -> None:
        known = np.zeros(len(newest.item_ids), dtype=np.bool_)
        for ranker in rankers:
            known |= ranker.places_of(newest.item_ids) < ranker.unseen
        self.items = np.flatnonzero(known)
        count = min(len(newest), max(1, max_pairs // max(1, len(self.items))))
        super().__init__(newest, np.arange(len(newest) - count, len(newest)), newest.item_ids)
        self._column = np.full(len(newest.item_ids), -1, dtype=np.int64)
        self._column[self.items] = np.arange(len(self.items))
        self._context = newest.context()[self.events]

    @property
    def width(self) -> int:
        return len(self.items)

    def items_listable(self) -> int:
        return len(self.items)

    def block(self, at: Int64) -> Block:
        shape = (len(at), self.width)
        hidden = np.zeros(shape, dtype=np.bool_)
        for row, event in enumerate(self.events[at].tolist()):
            columns = self._column[self.newest.seen(event)]
            hidden[row, columns[columns >= 0]] = True
        return Block(
            items=np.tile(self.items, (len(at), 1)),
            hidden=hidden,
            targets=self._column[self.newest.targets[self.events[at]]],
            features=np.zeros((*shape, len(FEATURES)), dtype=np.float32),
            context=self._context[at],
        )


class Lists(Contest):
    """What retrieval gave each event's user just before it. `examples` are located in the slice's log; events
    without one are left out."""

    is_served = True

    def __init__(self, newest: EvaluationSlice, examples: Examples) -> None:
        example_of = {row: number for number, row in enumerate(examples.rows.tolist())}
        rows = newest.rows[newest.positions].tolist()
        events = np.array([n for n, row in enumerate(rows) if row in example_of], dtype=np.int64)
        number_of = {item_id: number for number, item_id in enumerate(newest.item_ids)}
        ids = list(newest.item_ids)
        for item_id in examples.item_ids:
            if number_of.setdefault(item_id, len(ids)) == len(ids):
                ids.append(item_id)
        super().__init__(newest, events, ids)
        self._examples = examples.slice(np.array([example_of[rows[n]] for n in events.tolist()], np.int64))
        self._numbers = np.array([number_of[item_id] for item_id in examples.item_ids], dtype=np.int64)

    @property
    def width(self) -> int:
        return int(self._examples.candidates.shape[1])

    def items_listable(self) -> int:
        found = self._examples
        inside = np.arange(self.width)[None, :] < found.length[:, None]
        return len(np.unique(found.candidates[inside]))

    def block(self, at: Int64) -> Block:
        found = self._examples.slice(at)
        hidden = np.arange(self.width)[None, :] >= found.length[:, None]
        return Block(
            items=np.where(hidden, -1, self._numbers[np.maximum(found.candidates, 0)]),
            hidden=hidden,
            targets=np.where(found.retrieved, found.targets, -1).astype(np.int64),
            features=np.ascontiguousarray(found.features),
            context=found.context,
            online=found.online,
        )


def ranking_of(contest: Contest, scores: Scores) -> Ranking:
    """Where every event's item stands under these scores. Raises what `scores` raises."""
    parts = [Ranking(np.empty(0), np.empty((0, CUTOFF), dtype=np.int64))]
    for at in contest.batches():
        block = contest.block(at)
        given = scores(at, block)
        parts.append(Ranking(ranks_of_targets(given, block.targets, block.hidden), _top(given, block)))
    return Ranking(np.concatenate([p.ranks for p in parts]), np.concatenate([p.top for p in parts]))


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
    if not scores.shape[1]:
        return np.full(len(targets), np.inf)
    target_score = scores[rows, np.maximum(targets, 0)]
    rivals = np.where(masked | np.isnan(scores), -np.inf, scores)
    rivals[rows, np.maximum(targets, 0)] = -np.inf
    ahead = (rivals > target_score[:, None]).sum(axis=1) + 0.5 * (rivals == target_score[:, None]).sum(axis=1)
    return np.where((targets >= 0) & ~np.isnan(target_score), ahead, np.inf)


def _top(scores: Float32, block: Block) -> Int64:
    """int64[b, 10]: the items listed, best first, of equal scores the first column's; -1 behind the last."""
    listable = np.where(block.hidden | np.isnan(scores), -np.inf, scores)
    order = np.argsort(-listable, axis=1, kind="stable")[:, :CUTOFF]
    top = np.full((len(scores), CUTOFF), -1, dtype=np.int64)
    chosen = np.take_along_axis(block.items, order, axis=1)
    top[:, : order.shape[1]] = np.where(np.isfinite(np.take_along_axis(listable, order, axis=1)), chosen, -1)
    return top


def ranker_scores(
    contest: Contest,
    ranker: Ranker,
    event_types: Sequence[str],
    contents: Contents | None,
    ranker_weight: float,
) -> Scores:
    """A ranker as it is served: a fused one's own scores, another's opinion added to the online models' with
    `ranker_weight`, or alone where theirs are not known. `event_types` are the names of the log's types."""
    view = RankerView(ranker, contents)
    places = view.places(contest.ids).astype(np.int64)
    whole = _histories(contest, ranker, places, event_types, view.vectors())

    def scores(at: Int64, block: Block) -> Float32:
        candidates = np.where(block.items >= 0, places[np.maximum(block.items, 0)], 0)
        inputs = replace(
            whole, candidates=candidates, features=block.features, context=block.context,
            **{name: getattr(whole, name)[at] for name in _PER_EVENT},
        )  # fmt: skip
        logits = ranker.score_inputs(inputs)
        if ranker.fused or block.online is None:
            return logits
        served = np.where(block.hidden, -np.inf, block.online).astype(np.float32)
        add_opinion(logits, (~block.hidden).sum(axis=1).astype(np.int32), ranker_weight, served)
        return served

    return scores


_PER_EVENT = ("history", "history_types", "history_gaps_s")


def _histories(
    contest: Contest, ranker: Ranker, places: Int64, event_types: Sequence[str], vectors: Float32
) -> RankerInputs:
    newest, length, events = contest.newest, ranker.history_length, contest.events
    types = newest.history_types(length)[events]
    if event_types:
        types = np.concatenate([[0], ranker.types_of(event_types)])[types]
    return RankerInputs(
        history=newest.histories(places, length)[events],
        history_types=types,
        history_gaps_s=newest.history_gaps_s(length)[events],
        context=np.zeros((len(events), 0), dtype=np.float32),
        candidates=np.zeros((len(events), 0), dtype=np.int64),
        features=np.zeros((len(events), 0, len(FEATURES)), dtype=np.float32),
        item_vectors=vectors,
    )


def popularity_scores(contest: Contest, popularity: Mapping[str, float]) -> Scores:
    """How often each item was used before the slice."""
    counts = np.array([popularity.get(item_id, 0.0) for item_id in contest.ids], dtype=np.float32)

    def scores(at: Int64, block: Block) -> Float32:
        return counts[np.maximum(block.items, 0)]

    return scores


def online_scores(at: Int64, block: Block) -> Float32:
    """The online models' blend, without a ranker."""
    if block.online is None:
        raise ValueError("the online models' scores are known of served lists only")
    return block.online
