"""The index against the exact search: after any changes, in any of its states, while it is rebuilt."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from numpy.typing import NDArray

from serving.retrieval.approximate import FactorIndex
from serving.retrieval.exact import top_k

ROWS = 400


def tastes(items: int, d: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Items of 60 tastes that differ in popularity, and 40 users of a few items each."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((60, d))
    vectors = centres[rng.integers(0, 60, items)] + 0.6 * rng.standard_normal((items, d))
    vectors *= np.exp(0.25 * rng.standard_normal((items, 1)))
    users = vectors[rng.integers(0, items, (40, 3))].mean(axis=1) + 0.2 * rng.standard_normal((40, d))
    return vectors.astype(np.float32), users.astype(np.float32)


def recall(index: FactorIndex, queries: NDArray[np.float32], vectors: NDArray[np.float32], k: int) -> float:
    found, wanted = index.search(queries, k)[0], top_k(queries, vectors, k)[0]
    return float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(found, wanted, strict=True)]))


def await_thread() -> None:
    for thread in threading.enumerate():
        if thread.name == "factor-index":
            thread.join(60)
            assert not thread.is_alive()


class AnyChanges(RuleBasedStateMachine):
    """An index beside a table of what should be in it."""

    @initialize(
        d=st.sampled_from([3, 16, 64, 70]), seed=st.integers(0, 9), few=st.sampled_from([10, 100, 4096])
    )
    def begin(self, d: int, seed: int, few: int) -> None:
        self.index, self.rng = FactorIndex(d, seed, untrained_below=few), np.random.default_rng(seed)
        self.vectors, self.there = np.zeros((ROWS, d), np.float32), np.zeros(ROWS, dtype=bool)

    @rule(seed=st.integers(0, 2**32 - 1), items=st.integers(0, 300), scale=st.sampled_from([0.0, 0.1, 3.0]))
    def update(self, seed: int, items: int, scale: float) -> None:
        rng = np.random.default_rng(seed)
        rows = rng.integers(0, ROWS, items).astype(np.int32)  # some twice
        vectors = (scale * rng.standard_normal((items, self.index.dimension))).astype(np.float32)
        self.index.update(rows, vectors)
        for row, vector in zip(rows, vectors, strict=True):
            self.vectors[row], self.there[row] = vector, True

    @rule(seed=st.integers(0, 2**32 - 1), items=st.integers(0, 200))
    def remove(self, seed: int, items: int) -> None:
        rows = np.random.default_rng(seed).integers(-1, ROWS + 1, items).astype(np.int32)
        self.index.remove(rows)
        self.there[rows[(rows >= 0) & (rows < ROWS)]] = False

    @rule()
    def rebuild(self) -> None:
        self.index.rebuild()

    @invariant()
    def all_of_it_is_what_a_full_scan_finds(self) -> None:
        if not hasattr(self, "index"):
            return
        queries = self.rng.standard_normal((3, self.index.dimension), dtype=np.float32)
        exclude = self.rng.integers(-1, ROWS, (3, 5)).astype(np.int32)
        mask = self.rng.random(ROWS) < 0.8
        rows, scores = self.index.search(queries, 15, mask, exclude, everything=True)
        wanted, best = top_k(queries, self.vectors, 15, self.there & mask, exclude)
        np.testing.assert_array_equal(rows, wanted)
        np.testing.assert_array_equal(scores, best)
        assert len(self.index) == self.there.sum()
        found = self.index.search(queries, ROWS)[0]
        assert self.there[found[found >= 0]].all()


TestAnyChanges = AnyChanges.TestCase
TestAnyChanges.settings = settings(max_examples=8, stateful_step_count=8, deadline=None)


@pytest.fixture(scope="module")
def built() -> tuple[FactorIndex, NDArray[np.float32], NDArray[np.float32]]:
    vectors, users = tastes(60_000, 32, seed=1)
    index = FactorIndex(32, seed=1)
    index.update(np.arange(len(vectors), dtype=np.int32), vectors)
    index.rebuild()
    return index, vectors, users


def test_a_trained_index_finds_nearly_all(
    built: tuple[FactorIndex, NDArray[np.float32], NDArray[np.float32]],
) -> None:
    index, vectors, users = built
    assert recall(index, users[:8], vectors, 100) >= 0.95, "measured with invented queries"
    for _ in range(3):
        index.search(users, 10)
    assert index.rebuild_if_due(), "measured with real ones"
    await_thread()
    assert recall(index, users, vectors, 100) >= 0.95
    assert max(index.reach) < 100, "no full scan"
    assert not index.rebuild_if_due()
    rows, scores = index.search(users, 100)
    exact = np.take_along_axis(users @ vectors.T, rows, axis=1)
    np.testing.assert_allclose(scores, exact, rtol=1e-4, atol=1e-4)
    assert (np.diff(scores, axis=1) <= 0).all()


def test_it_finds_what_few_may_have(
    built: tuple[FactorIndex, NDArray[np.float32], NDArray[np.float32]],
) -> None:
    index, vectors, users = built
    mask = np.random.default_rng(0).random(len(vectors)) < 0.01
    found, wanted = index.search(users, 50, mask)[0], top_k(users, vectors, 50, mask)[0]
    assert mask[found].all()
    assert np.mean([len(np.intersect1d(a, b)) / 50 for a, b in zip(found, wanted, strict=True)]) >= 0.95


def test_memory_is_below_two_and_a_half_times_the_vectors(
    built: tuple[FactorIndex, NDArray[np.float32], NDArray[np.float32]],
) -> None:
    index, vectors, _ = built
    lists = index.nbytes - vectors.nbytes
    assert index.nbytes + lists <= 2.5 * vectors.nbytes  # both sets of lists, as while rebuilding


def test_a_moved_item_is_found_at_its_new_place_at_once() -> None:
    vectors, users = tastes(20_000, 16, seed=2)
    index = FactorIndex(16, seed=2)
    index.update(np.arange(20_000, dtype=np.int32), vectors)
    index.rebuild()
    for user in users[:10]:
        row = np.array([np.argmin(vectors @ user)], dtype=np.int32)
        assert row[0] not in index.search(user[None], 10)[0]
        index.update(row, 5 * user[None])
        assert index.search(user[None], 10)[0][0, 0] == row[0]
        index.update(row, -5 * user[None])
        assert row[0] not in index.search(user[None], 10)[0]


def test_the_same_calls_give_the_same_answers() -> None:
    vectors, users = tastes(8_000, 24, seed=3)

    def answers() -> tuple[bytes, bytes]:
        index, rng = FactorIndex(24, seed=5), np.random.default_rng(4)
        index.update(np.arange(6_000, dtype=np.int32), vectors[:6_000])
        index.rebuild()
        index.remove(rng.integers(0, 6_000, 500).astype(np.int32))
        index.update(np.arange(6_000, 8_000, dtype=np.int32), vectors[6_000:])
        rows, scores = index.search(users, 50)
        return rows.tobytes(), scores.tobytes()

    assert answers() == answers()


def test_searches_and_updates_go_on_while_a_thread_rebuilds() -> None:
    vectors, users = tastes(30_000, 16, seed=6)
    index, rng = FactorIndex(16, seed=6), np.random.default_rng(7)
    index.update(np.arange(25_000, dtype=np.int32), vectors[:25_000])
    assert index.rebuild_if_due()
    assert not index.rebuild_if_due(), "one at a time"
    changes = 0
    (thread,) = [one for one in threading.enumerate() if one.name == "factor-index"]
    while thread.is_alive() or changes < 10:
        rows = rng.integers(0, 30_000, 200).astype(np.int32)
        vectors[rows] = vectors[rng.integers(0, 30_000, 200)]
        index.update(rows, vectors[rows])
        index.search(users[:2], 10)
        index.remove(rows[:3])
        index.update(rows[:3], vectors[rows[:3]])
        changes += 1
    index.update(np.arange(30_000, dtype=np.int32), vectors)
    rows, scores = index.search(users, 100, everything=True)
    wanted, best = top_k(users, vectors, 100)
    np.testing.assert_array_equal(rows, wanted)
    np.testing.assert_array_equal(scores, best)
    assert recall(index, users, vectors, 100) >= 0.9


@given(bad=st.sampled_from([np.nan, np.inf, -np.inf]))
@settings(max_examples=3, deadline=None)
def test_what_is_not_finite_is_refused_by_row_and_changes_nothing(bad: float) -> None:
    index = FactorIndex(2)
    index.update(np.array([1], np.int32), np.ones((1, 2), np.float32))
    with pytest.raises(ValueError, match="1 of 2 vectors are not finite, the first that of row 9"):
        index.update(np.array([1, 9], np.int32), np.array([[5, 5], [bad, 0]], np.float32))
    assert index.search(np.ones((1, 2), np.float32), 2)[1].tolist() == [[2.0, -np.inf]]


def test_arguments_that_do_not_fit_are_refused_with_their_numbers() -> None:
    index = FactorIndex(3)
    with pytest.raises(ValueError, match=r"\[2\] and \[2, 2\], but \[m\] and \[m, 3\]"):
        index.update(np.array([1, 2], np.int32), np.ones((2, 2), np.float32))
    with pytest.raises(ValueError, match="row -1 is negative"):
        index.update(np.array([-1], np.int32), np.ones((1, 3), np.float32))
    with pytest.raises(ValueError, match=r"shape \[1, 2\] and k is 4"):
        index.search(np.ones((1, 2), np.float32), 4)
    with pytest.raises(ValueError, match="dimension is 0"):
        FactorIndex(0)


def test_it_gives_candidates_where_a_catalogue_is_too_large_to_scan() -> None:
    index = FactorIndex(2)
    index.update(np.array([4, 2], np.int32), np.array([[1, 0], [0, 2]], np.float32))
    users, mask = np.array([[1, 1]], np.float32), np.ones(4, dtype=bool)
    assert index(users, 2, mask).tolist() == [[2, -1]], "row 4 is beyond the mask"
