"""The exact search against a full sort of the same kernel's scores."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from serving.retrieval import kernels_exact, kernels_lists, kernels_vector, kernels_walk
from serving.retrieval.exact import top_k

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


def scores_one_by_one(queries: Floats, factors: Floats) -> Floats:
    """float32[n, N] from one-row tables: what `dot` says of each pair, whatever stands around it."""
    every = [[top_k(query[None], row[None], 1)[1][0, 0] for row in factors] for query in queries]
    return np.array(every, dtype=np.float32).reshape(len(queries), len(factors))


def sorted_out(
    scores: Floats, k: int, mask: NDArray[np.bool_] | None, exclude: Ints | None
) -> tuple[Ints, Floats]:
    rows, best = np.full((len(scores), k), -1, np.int32), np.full((len(scores), k), -np.inf, np.float32)
    for q, one in enumerate(scores):
        may = np.ones(len(one), dtype=bool) if mask is None else mask.copy()
        if exclude is not None:
            may[[row for row in exclude[q] if 0 <= row < len(one)]] = False
        order = [row for row in np.argsort(-one, kind="stable") if may[row]][:k]
        rows[q, : len(order)], best[q, : len(order)] = order, one[order]
    return rows, best


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_best_of_a_full_sort_ties_included(data: st.DataObject) -> None:
    n, items, d = (
        data.draw(st.sampled_from([1, 5, 6, 9, 70])),
        data.draw(st.integers(1, 90)),
        data.draw(st.sampled_from([1, 3, 16, 37, 64])),
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    # thirds of small integers: sums round, and many rows are equal
    factors = (rng.integers(-2, 3, (items, d)) / 3).astype(np.float32)[rng.integers(0, items, items)]
    queries = (rng.integers(-3, 4, (n, d)) / 7).astype(np.float32)
    mask = rng.random(items) < 0.7 if data.draw(st.booleans()) else None
    exclude = rng.integers(-1, items + 2, (n, 4)).astype(np.int32) if data.draw(st.booleans()) else None
    k = data.draw(st.integers(1, 20))
    rows, scores = top_k(queries, factors, k, mask, exclude)
    wanted, best = sorted_out(scores_one_by_one(queries, factors), k, mask, exclude)
    np.testing.assert_array_equal(rows, wanted)
    np.testing.assert_array_equal(scores, best)


def test_a_batch_gives_the_bits_of_single_queries_over_many_blocks() -> None:
    rng = np.random.default_rng(3)
    factors = rng.standard_normal((9_001, 64), dtype=np.float32)
    factors *= np.exp(rng.standard_normal((9_001, 1), dtype=np.float32))  # later blocks with larger errors
    queries = rng.standard_normal((130, 64), dtype=np.float32)
    exclude = rng.integers(0, 9_001, (130, 50)).astype(np.int32)
    mask = rng.random(9_001) < 0.5
    together = top_k(queries, factors, 100, mask, exclude)
    for q in range(0, 130, 13):
        alone = top_k(queries[q : q + 1], factors, 100, mask, exclude[q : q + 1])
        np.testing.assert_array_equal(together[0][q], alone[0][0])
        np.testing.assert_array_equal(together[1][q], alone[1][0])
    assert mask[together[0]].all()
    assert not (together[0][:, :, None] == exclude[:, None, :]).any()
    np.testing.assert_allclose(
        together[1], np.take_along_axis(queries @ factors.T, together[0], 1), rtol=1e-4
    )


@pytest.mark.parametrize("n", [1, 64])
def test_where_there_are_too_few_the_rest_is_empty(n: int) -> None:
    queries, factors = np.ones((n, 2), np.float32), np.eye(2, dtype=np.float32)
    rows, scores = top_k(queries, factors, 4, mask=np.array([False, True]))
    assert rows.tolist() == [[1, -1, -1, -1]] * n
    assert scores.tolist() == [[1.0, -np.inf, -np.inf, -np.inf]] * n
    assert top_k(queries, factors[:0], 2)[0].tolist() == [[-1, -1]] * n


def test_shapes_that_do_not_fit_are_refused_with_their_numbers() -> None:
    queries, factors = np.ones((1, 2), np.float32), np.ones((5, 3), np.float32)
    with pytest.raises(ValueError, match=r"\[1, 2\] and \[5, 3\]"):
        top_k(queries, factors, 1)
    with pytest.raises(ValueError, match=r"mask is bool\[4\], but bool\[5\]"):
        top_k(np.ones((1, 3), np.float32), factors, 1, mask=np.ones(4, dtype=bool))
    with pytest.raises(ValueError, match=r"exclude has shape \[2, 1\], but \[1, E\]"):
        top_k(np.ones((1, 3), np.float32), factors, 1, exclude=np.ones((2, 1), np.int32))


@pytest.mark.parametrize("module", [kernels_exact, kernels_lists, kernels_walk])
def test_kernel_files_change_with_the_code_they_share(module: object) -> None:
    shared = Path(str(kernels_vector.__file__)).read_bytes()
    digest = hashlib.sha256(shared).hexdigest()[:16]
    message = (
        f"kernels_vector.py has changed: set VECTOR_DIGEST = {digest!r}, or numba's cache keeps old code"
    )
    assert vars(module)["VECTOR_DIGEST"] == digest, message
