"""What a list costs: from columns to the bytes of its record, at several batch sizes and catalogue sizes.

python -m benchmarks.lists [seconds a figure]

The state is seeded: `users` users in `GROUPS` groups of taste walk over `items` items, Zipf within their
group's. No broker; one thread.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from online_models.item_state import ItemState
from online_models.learning_batch import LearningBatch
from online_models.settings import ModelSettings
from serving.catalogue import Catalogue, CatalogueEntry
from serving.list_encoding import ListEncoder
from serving.pipeline import Pipeline
from serving.query import QueryBatch
from serving.settings import ServingSettings

__all__ = ["Workload", "measure"]

SEED = 4
GROUPS = 16
RECENT = 50
BATCHES = (1, 8, 64, 256, 500)
COUNT = 10

Int32 = npt.NDArray[np.int32]


class Workload:
    """A learned state, its catalogue and the users' columns; equal arguments, equal state."""

    def __init__(self, items: int, users: int, events: int) -> None:
        rng = np.random.default_rng(SEED)
        self.state = ItemState(ModelSettings())
        ids = [f"item-{number:07d}" for number in range(items)]
        walks = _walks(rng, items, users, max(1, events // users))
        factors = rng.normal(size=(users, self.state.factors.dimension)).astype(np.float32)
        self.factors = factors / np.linalg.norm(factors, axis=1, keepdims=True)
        for step in range(walks.shape[1]):
            self.state.apply(self._round(ids, walks, step))
        self.catalogue = Catalogue(self.state.items)
        for item_id in self.state.items.ids:
            self.catalogue.put(item_id, CatalogueEntry(title=f"The one called {item_id}"), 0)
        self.rows = np.stack([self.state.items.rows([ids[i] for i in walk]) for walk in walks[:512].tolist()])

    def columns(self, n: int) -> QueryBatch:
        """The queries of the first n users."""
        recent = np.full((n, RECENT), -1, dtype=np.int32)
        newest = self.rows[:n, ::-1][:, :RECENT]
        recent[:, : newest.shape[1]] = newest
        seen = [np.unique(walk) for walk in self.rows[:n]]
        lengths = np.array([len(rows) for rows in seen], dtype=np.int32)
        return QueryBatch(
            recent=recent,
            blocked=np.concatenate(seen).astype(np.int32),
            blocked_end=np.cumsum(lengths, dtype=np.int32),
            seen_count=lengths,
            factors=self.factors[:n],
            count=np.full(n, COUNT, dtype=np.int32),
        )

    def _round(self, ids: list[str], walks: Int32, step: int) -> LearningBatch:
        """One event of every user."""
        users, window = len(walks), self.state.covisitation.window
        recent = np.full((users, window), -1, dtype=np.int64)
        before = walks[:, max(0, step - window) : step][:, ::-1]
        recent[:, : before.shape[1]] = before
        used, index = np.unique(np.concatenate((walks[:, step : step + 1], recent), 1), return_inverse=True)
        columns = (index.reshape(users, 1 + window) - int(used[0] < 0)).astype(np.int32)
        return LearningBatch(
            item_ids=[ids[item] for item in used.tolist() if item >= 0],
            item=columns[:, 0].copy(),
            recent=columns[:, 1:].copy(),
            time_ms=np.full(users, 1_700_000_000_000 + step * 60_000, dtype=np.int64),
            weight=np.ones(users, dtype=np.float32),
            event_type=np.zeros(users, dtype=np.uint8),
            user_before=self.factors,
            user_after=self.factors,
            negatives=np.full((users, self.state.factors.negatives), -1, dtype=np.int32),
        )


def _walks(rng: np.random.Generator, items: int, users: int, steps: int) -> Int32:
    """int32[users, steps]: what each user uses, one after the other."""
    group = rng.integers(0, GROUPS, users)
    shares = np.cumsum(1.0 / (np.arange(items // GROUPS) + 10.0) ** 0.9)
    drawn = np.searchsorted(shares / shares[-1], rng.random((users, steps)))
    return (np.minimum(drawn, items // GROUPS - 1) * GROUPS + group[:, None]).astype(np.int32)


def _seconds(function: Callable[[], object], seconds: float) -> float:
    """Median of single calls, 5 or more, for about so long."""
    function()
    taken: list[float] = []
    while len(taken) < 5 or sum(taken) < seconds:
        started = time.thread_time()
        function()
        taken.append(time.thread_time() - started)
    return float(np.median(taken))


def _figures(workload: Workload, seconds: float) -> dict[str, object]:
    pipeline = Pipeline(workload.state, workload.catalogue, ServingSettings())
    encoder = ListEncoder(workload.state.items, workload.catalogue)
    head = b'{"user_id":"user-00000001","request_id":null,"event_id":"0123456789abcdef","online_offset":12345'
    made, written, size = {}, {}, 0
    for n in BATCHES:
        columns, heads = workload.columns(n), [head] * n
        ranked = pipeline.recommend_batch(columns)
        size = len(encoder.encode(ranked, heads)[0])
        made[str(n)] = 1e6 / n * _seconds(lambda columns=columns: pipeline.recommend_batch(columns), seconds)  # type: ignore[misc]
        written[str(n)] = 1e6 / n * _seconds(lambda r=ranked, h=heads: encoder.encode(r, h), seconds)  # type: ignore[misc]
    return {
        "items": len(workload.state.items),
        "record_bytes": size,
        "list_us": made,
        "json_us": written,
        "total_us": {n: made[n] + written[n] for n in made},
    }


def measure(seconds: float = 0.5) -> dict[str, object]:
    """`catalogues`: one entry a catalogue size, with `items`, `record_bytes`, and by batch size `list_us`
    (columns to ranked, explained lists), `json_us` (lists to bytes) and `total_us`, CPU µs a list,
    medians of calls."""
    sizes = ((1_682, 943, 100_000), (100_000, 20_000, 1_000_000))
    return {"catalogues": [_figures(Workload(*size), seconds) for size in sizes]}


if __name__ == "__main__":
    print(json.dumps(measure(*map(float, sys.argv[1:2])), indent=2))
