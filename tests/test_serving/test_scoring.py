"""The blend against its equation in plain numpy, and what a ranker's silence and NaN do to it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from serving import kernels
from serving.blend_kernels import blend
from serving.scoring import FLOOR

WEIGHTS = (0.7, 0.1, 0.3, 0.4, 0.25)
NO_RANKER = np.empty((1, 0), dtype=np.float32)
Float64 = npt.NDArray[np.float64]

amounts = st.floats(0, 1e4, width=32)
tables = st.integers(1, 12).flatmap(lambda n: hnp.arrays(np.float32, (n, kernels.ONLINE), elements=amounts))


def found(scores: npt.NDArray[np.float32]) -> kernels.Found:
    """One user's candidates, with one place to spare."""
    n = len(scores)
    padded = np.zeros((1, kernels.ONLINE, n + 1), dtype=np.float32)
    padded[0, :, :n] = scores.T
    return kernels.Found(
        length=np.array([n], dtype=np.int32),
        rows=np.append(np.arange(n), -1).astype(np.int32)[None, :],
        sources=np.zeros((1, n + 1), dtype=np.uint8),
        scores=padded,
    )


def blended(
    scores: npt.NDArray[np.float32], logits: npt.NDArray[np.float32] = NO_RANKER, experience: float = 1.0
) -> Float64:
    out = np.empty((1, len(scores) + 1), dtype=np.float32)
    blend(found(scores), logits, np.array([experience]), WEIGHTS, FLOOR, out)
    assert out[0, -1] == -np.inf
    return out[0, :-1].astype(np.float64)


def log_share(x: Float64) -> Float64:
    floored = x + FLOOR * x.mean()
    return np.log(floored / floored.sum()) if x.sum() > 0 else np.zeros(len(x))


def log_softmax(x: Float64) -> Float64:
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


@given(scores=tables, experience=st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_online_scores_are_the_equation(scores: npt.NDArray[np.float32], experience: float) -> None:
    x = scores.astype(np.float64)
    expected = 0.7 * log_share(x[:, 0]) + 0.1 * log_share(x[:, 1]) + 0.3 * experience * log_softmax(x[:, 2])
    expected += 0.4 * log_share(x[:, 3])
    np.testing.assert_allclose(blended(scores, experience=experience), expected, rtol=1e-4, atol=1e-4)


@given(scores=tables, data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_ranker_that_knows_all_adds_its_log_softmax(
    scores: npt.NDArray[np.float32], data: st.DataObject
) -> None:
    logits = data.draw(hnp.arrays(np.float32, (1, len(scores)), elements=st.floats(-20, 20, width=32)))
    expected = blended(scores) + 0.25 * log_softmax(logits[0].astype(np.float64))
    np.testing.assert_allclose(blended(scores, logits), expected, rtol=1e-4, atol=1e-3)


@given(scores=tables)
@settings(max_examples=50, deadline=None)
def test_a_ranker_that_knows_nothing_changes_nothing(scores: npt.NDArray[np.float32]) -> None:
    silent = np.full((1, len(scores)), np.nan, dtype=np.float32)
    assert blended(scores, silent).tolist() == blended(scores).tolist()


def test_an_unknown_item_keeps_its_online_standing() -> None:
    """Online, the unknown item ties with the second of three; the ranker stretches all: still it does."""
    scores = np.array([[1, 1, 0, 0], [2, 1, 0, 0], [3, 1, 0, 0], [2, 1, 0, 0]], dtype=np.float32)
    online = blended(scores)
    standing = online - online.mean()
    logits = (5 * standing).astype(np.float32)[None, :]
    logits[0, 3] = np.nan
    ranked = blended(scores, logits)
    assert abs(ranked[3] - ranked[1]) < 1e-4
    assert ranked[2] > ranked[3] > ranked[0]


def test_a_source_without_an_opinion_weighs_nothing() -> None:
    scores = np.array([[0, 5, 0, 0], [0, 1, 0, 0]], dtype=np.float32)
    np.testing.assert_allclose(
        blended(scores, experience=0.0), 0.1 * log_share(np.array([5.0, 1.0])), rtol=1e-5
    )


@given(scores=tables, wanted=st.integers(0, 15))
@settings(max_examples=100, deadline=None)
def test_best_are_the_highest_and_ties_are_told(scores: npt.NDArray[np.float32], wanted: int) -> None:
    candidates, values = found(scores), np.append(scores[:, 0], -np.inf).astype(np.float32)[None, :]
    columns, tied = np.full((1, wanted), 99, dtype=np.int32), np.empty(1, dtype=np.bool_)
    kernels.best(candidates, values, np.array([wanted], dtype=np.int32), columns, tied)
    n, k = len(scores), min(wanted, len(scores))
    order = sorted(range(n), key=lambda column: (-values[0, column], column))
    assert columns[0, :k].tolist() == order[:k]
    assert (columns[0, k:] == -1).all()
    falling = [float(values[0, column]) for column in order]
    shown = falling[: k + 1]
    assert bool(tied[0]) == (k > 0 and len(set(shown)) < len(shown))
