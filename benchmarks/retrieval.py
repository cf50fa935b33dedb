"""Top 100 of a million items: exactly, against memory and BLAS; approximately, while items move.

Everything is timed in rounds, one measurement of each kind after the other, on one thread (BLAS too), in that
thread's CPU time; a ratio compares medians of one run. `python -m benchmarks.retrieval` prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from serving.retrieval.approximate import FactorIndex
from serving.retrieval.exact import top_k

K, BATCH, SEED = 100, 64, 20
MOVES_S, NEW_S = 1000, 100
ITEMS, DIMENSION = 1_000_000, 64

Floats = NDArray[np.float32]


def tastes(items: int, dimension: int, queries: int) -> tuple[Floats, Floats]:
    """Items and users as factor models leave them: 2,000 tastes of uneven size, the variance falling from one
    direction to the next, popularity in the vector's length; a user is a mixture of five items and noise."""
    rng = np.random.default_rng(SEED)
    falling = (1.0 / np.sqrt(1.0 + np.arange(dimension) / 8.0)).astype(np.float32)
    share = (1.0 + np.arange(2000)) ** -0.8
    taste = rng.choice(2000, items, p=share / share.sum())
    vectors = (rng.standard_normal((2000, dimension), dtype=np.float32) * falling)[taste]
    for first in range(0, items, 100_000):
        some = vectors[first : first + 100_000]
        some += 0.7 * rng.standard_normal(some.shape, dtype=np.float32) * falling
        some *= np.exp(0.25 * rng.standard_normal((len(some), 1), dtype=np.float32))
    liked = vectors[rng.integers(0, items, (queries, 5))] * rng.dirichlet(np.ones(5), queries)[:, :, None]
    users = liked.sum(axis=1) + 0.3 * rng.standard_normal((queries, dimension)) * falling
    return vectors, users.astype(np.float32)


def gaussian(items: int, dimension: int, queries: int) -> tuple[Floats, Floats]:
    """Nothing to go by: independent standard normal components, the hardest case there is."""
    rng = np.random.default_rng(SEED)
    return (
        rng.standard_normal((items, dimension), dtype=np.float32),
        rng.standard_normal((queries, dimension), dtype=np.float32),
    )


@numba.njit(nogil=True, fastmath=True)  # type: ignore[untyped-decorator]
def _sum(values: Any) -> Any:
    """The sum of all values: nothing that reads memory once does less."""
    total = np.float32(0.0)
    for j in range(values.shape[0]):
        total += values[j]
    return total


def _seconds(work: Callable[[], object]) -> float:
    start = time.thread_time()
    work()
    return time.thread_time() - start


def _medians(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each, after one call that doesn't count."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(1000 * _seconds(work))
    return {name: round(statistics.median(each), 4) for name, each in times.items()}


def measure_exact(vectors: Floats, queries: Floats, rounds: int) -> dict[str, Any]:
    """The single query against the best single pass over the matrix; the batch against the best sgemm."""
    flat, query, batch = vectors.reshape(-1), queries[0], queries[:BATCH]
    product = np.empty(len(vectors), dtype=np.float32)
    single = _medians(
        {
            "top_k": lambda: top_k(query[None], vectors, K),
            "sgemv": lambda: np.dot(vectors, query, out=product),
            "sum": lambda: _sum(flat),
        },
        rounds,
    )
    works: dict[str, Callable[[], object]] = {"top_k": lambda: top_k(batch, vectors, K)}
    columns, rows = np.ascontiguousarray(batch.T), (1024, 2048, 4096)
    whole = np.empty((len(vectors), BATCH), dtype=np.float32)
    works["sgemm_whole"] = lambda: np.matmul(vectors, columns, out=whole)
    for size in rows:
        works[f"sgemm_{size}"] = partial(_multiply, vectors, columns, whole[:size])
    many = _medians(works, rounds)
    bound, blas = min(single["sgemv"], single["sum"]), min(v for k, v in many.items() if k != "top_k")
    return {
        "single_ms": single,
        "single_ratio": round(bound / single["top_k"], 3),
        "batch_ms": many,
        "batch_ratio": round(blas / many["top_k"], 3),
    }


def _multiply(vectors: Floats, columns: Floats, product: Floats) -> None:
    size = len(product)
    for first in range(0, len(vectors), size):
        block = vectors[first : first + size]
        np.matmul(block, columns, out=product[: len(block)])


class Stream:
    """Items that move to where another item was, nearly, and new ones, at MOVES_S and NEW_S."""

    def __init__(self, index: FactorIndex, vectors: Floats, items: int) -> None:
        self._index, self._vectors, self.items = index, vectors, items
        self._rng = np.random.default_rng(SEED + 1)
        self.seconds, self.changes = 0.0, 0

    def step(self, duration_s: float) -> None:
        """What changes in so long."""
        moves, new = (
            round(MOVES_S * duration_s),
            min(round(NEW_S * duration_s), len(self._vectors) - self.items),
        )
        rows = self._rng.integers(0, self.items, moves)
        near = self._vectors[self._rng.integers(0, self.items, moves)]
        self._vectors[rows] = near + 0.1 * self._rng.standard_normal(near.shape, dtype=np.float32)
        rows = np.concatenate([rows, np.arange(self.items, self.items + new)]).astype(np.int32)
        self.items += new
        self.seconds += _seconds(lambda: self._index.update(rows, self._vectors[rows]))
        self.changes += len(rows)


def measure_approximate(vectors: Floats, queries: Floats, rounds: int) -> dict[str, Any]:
    """Recall and rate while the stream runs, on queries that `reach` was not measured with."""
    items, index = len(vectors) - len(vectors) // 50, FactorIndex(vectors.shape[1], SEED)
    inserted_s = _seconds(lambda: index.update(np.arange(items, dtype=np.int32), vectors[:items]))
    before, asked = queries[: len(queries) // 2], queries[len(queries) // 2 :]
    index.search(before, K)
    rebuilt_s = _seconds(index.rebuild)
    stream, recalls, exact_ms, near_ms = Stream(index, vectors, items), [], [], []
    for _ in range(rounds):
        stream.step(1.0)
        now = vectors[: stream.items]
        for position, query in enumerate(asked):
            near_ms.append(1000 * _seconds(partial(index.search, query[None], K)))
            if position % 20 == 0:
                exact_ms.append(1000 * _seconds(partial(top_k, query[None], now, K)))
        found, wanted = index.search(asked, K)[0], top_k(asked, now, K)[0]
        recalls.append(np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(found, wanted, strict=True)]))
    exact, near = statistics.median(exact_ms), statistics.median(near_ms)
    return {
        "recall_at_100": round(float(np.mean(recalls)), 4),
        "exact_ms": round(exact, 3),
        "approximate_ms": {
            "p50": round(near, 4),
            "mean": round(statistics.mean(near_ms), 4),
            "p99": round(float(np.quantile(near_ms, 0.99)), 4),
        },
        "ratio": round(exact / near, 2),
        "ratio_of_means": round(statistics.mean(exact_ms) / statistics.mean(near_ms), 2),
        "us_per_change": round(1e6 * stream.seconds / stream.changes, 2),
        "core_share_of_changes": round(stream.seconds / rounds, 4),
        "us_per_bulk_insert": round(1e6 * inserted_s / items, 2),
        "rebuild_s": round(rebuilt_s, 2),
        "moved_item_found_ms": _found_after_ms(index, vectors, stream.items, asked[0]),
        "bytes_per_raw_byte": round(index.nbytes / (stream.items * vectors.shape[1] * 4), 3),
        "reach": index.reach,
    }


def _found_after_ms(index: FactorIndex, vectors: Floats, items: int, query: Floats) -> float:
    """Milliseconds from the update of an item to an answer with it in its new place: median of 21."""
    times = []
    for row in np.random.default_rng(SEED + 2).integers(0, items, 21).astype(np.int32):
        start = time.perf_counter()
        index.update(row[None], 3.0 * query[None])
        found = index.search(query[None], K)[0][0]
        if row not in found:
            raise RuntimeError(f"item {row} was moved to 3 times the query and is not among its {K} best")
        times.append(1000 * (time.perf_counter() - start))
        index.update(row[None], vectors[row][None])
    return round(statistics.median(times), 3)


def measure(
    items: int = ITEMS, dimension: int = DIMENSION, rounds: int = 7, queries: int = 200
) -> dict[str, Any]:
    """All figures: exact, then approximate over realistic and over Gaussian factors."""
    with threadpool_limits(1):
        return _measure(items, dimension, rounds, queries)


def _measure(items: int, dimension: int, rounds: int, queries: int) -> dict[str, Any]:
    results: dict[str, Any] = {"items": items, "dimension": dimension, "k": K, "rounds": rounds, "seed": SEED}
    results["machine"] = {"cpus": os.cpu_count(), "processor": platform.processor() or platform.machine()}
    vectors, users = tastes(items + items // 50, dimension, queries)
    results["exact"] = measure_exact(vectors[:items], users, rounds)
    results["approximate"] = measure_approximate(vectors, users, rounds)
    del vectors
    results["approximate_gaussian"] = measure_approximate(
        *gaussian(items + items // 50, dimension, queries), rounds
    )
    return results


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=ITEMS)
    parser.add_argument("--dimension", type=int, default=DIMENSION)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    print(json.dumps(measure(given.items, given.dimension, given.rounds), indent=2))


if __name__ == "__main__":
    main()
