"""What a ranker reads of candidates: the equations, written out with NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online_models.item_state import ItemState
from online_models.learning_batch import LearningBatch
from online_models.settings import FactorSettings, ModelSettings
from serving import kernels
from serving.features import FEATURES_DIGEST, VERSION, candidate_features, digest_of
from serving.ranker.inputs import FEATURES

HOUR_MS = 3_600_000


def learned(weights: list[float], items: list[int], times_ms: list[int]) -> ItemState:
    state, n = ItemState(ModelSettings(factors=FactorSettings(dimension=2))), len(items)
    nothing = np.zeros((n, 2), dtype=np.float32)
    state.apply(
        LearningBatch(
            item_ids=[f"i{k}" for k in range(max(items) + 1)],
            item=np.array(items, dtype=np.int32),
            recent=np.full((n, 1), -1, dtype=np.int32),
            time_ms=np.array(times_ms, dtype=np.int64),
            weight=np.array(weights, dtype=np.float32),
            event_type=np.zeros(n, dtype=np.uint8),
            user_before=nothing,
            user_after=nothing,
            negatives=np.full((n, 1), -1, dtype=np.int32),
        )
    )
    return state


def found(rows: list[list[int]], scores: Any) -> kernels.Found:
    """Candidates, -1 behind a user's last."""
    table = np.array(rows, dtype=np.int32)
    return kernels.Found(
        length=(table >= 0).sum(axis=1).astype(np.int32),
        rows=table,
        sources=np.zeros(table.shape, dtype=np.uint8),
        scores=np.asarray(scores, dtype=np.float32),
    )


def even_shares(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """ln(n p), the definition."""
    mean = scores.mean()
    if mean <= 0:
        return np.zeros(len(scores))
    share = (scores + mean) / (scores + mean).sum()
    return np.asarray(np.log(len(scores) * share))


def columns(one: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
    return {name: one[:, k] for k, name in enumerate(FEATURES)}


def test_the_equations_on_known_numbers() -> None:
    now = 100 * HOUR_MS
    state = learned(
        [1, 1, 2, 0, -1], [0, 0, 1, 1, 2], [now - HOUR_MS, now - 2 * HOUR_MS, now - 1000, now, now]
    )
    state.expose(["i0", "unheard"], np.array([0, 0, 1], dtype=np.int32))
    scores = [[[3, 0, 1], [0, 0, 0], [0.5, -1, 2]]]
    got = columns(
        candidate_features(found([[0, 1, 2]], scores), state, np.array([now]), np.array([15], np.int32))[0]
    )
    relation = np.array([3.0, 0, 1])
    np.testing.assert_allclose(got["covisitation"], even_shares(relation), rtol=1e-6)
    assert got["popularity"].tolist() == [0, 0, 0], "a source that knows nothing says nothing"
    q = np.exp([0.5, -1, 2]) / np.exp([0.5, -1, 2]).sum()
    np.testing.assert_allclose(got["factor"], 15 / 20 * np.log(3 * q), rtol=1e-6)
    np.testing.assert_allclose(got["count"], np.log1p([2, 1, 0]) / 8, rtol=1e-6)
    np.testing.assert_allclose(got["exposure"], np.log1p([2, 1, 0]) / 8, rtol=1e-6)
    np.testing.assert_allclose(got["recency"], np.log1p([3600, 1, 1e9]) / 16, rtol=1e-6)


def test_padding_is_zero_and_users_do_not_mix() -> None:
    state = learned([1, 1, 1], [0, 1, 2], [1000, 2000, 3000])
    rng = np.random.default_rng(0)
    both = found([[2, 0, -1], [1, -1, -1]], rng.gamma(1.0, size=(2, 3, 3)))
    now, seen = np.array([9000, 4000]), np.array([3, 0], dtype=np.int32)
    got = candidate_features(both, state, now, seen)
    assert (got[0, 2:] == 0).all()
    assert (got[1, 1:] == 0).all()
    for user in range(2):
        at = slice(user, user + 1)
        alone = kernels.Found(both.length[at], both.rows[at], both.sources[at], both.scores[at])
        mine = candidate_features(alone, state, now[at], seen[at])
        assert mine[0].tobytes() == got[user].tobytes()
    assert columns(got[1])["factor"][0] == 0, "a new user's factor says nothing"


def test_without_a_time_it_is_as_of_the_newest_event() -> None:
    state = learned([1, 1], [0, 1], [1_000_000, 1_060_000])
    one = found([[0, 1]], np.ones((1, 3, 2)))
    got = candidate_features(one, state, np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int32))[0]
    np.testing.assert_allclose(columns(got)["recency"], np.log1p([60, 0]) / 16, rtol=1e-6, atol=1e-9)


@given(
    scores=st.lists(
        st.tuples(*[st.floats(0, 2.0**127, width=32)] * 2, st.floats(-1e4, 1e4, width=32)),
        min_size=1,
        max_size=40,
    ),
    now=st.integers(0, 253_402_300_799_999),
    seen=st.integers(0, 10**6),
)
@settings(max_examples=60, deadline=None)
def test_all_are_finite(scores: list[tuple[float, float, float]], now: int, seen: int) -> None:
    state = learned([1, 1, -1], [0, 1, 2], [0, 253_402_300_799_999, 5])
    rows = [[k % 3 for k in range(len(scores))]]
    one = found(rows, np.array(scores).T[None, :, :])
    got = candidate_features(one, state, np.array([now]), np.array([seen], dtype=np.int32))
    assert got.shape == (1, len(scores), len(FEATURES))
    assert np.isfinite(got).all()


def test_reading_changes_nothing() -> None:
    state = learned([1, 1, -1], [0, 1, 2], [10, 20, 30])
    before = state.digest()
    candidate_features(found([[0, 1]], np.ones((1, 3, 2))), state, np.array([50]), np.array([1], np.int32))
    assert state.digest() == before


@pytest.mark.parametrize("name", FEATURES)
def test_the_digest_names_every_column_and_the_version(name: str) -> None:
    assert digest_of([other for other in FEATURES if other != name]) != FEATURES_DIGEST
    assert digest_of(FEATURES[::-1]) != FEATURES_DIGEST
    assert digest_of(FEATURES, VERSION + 1) != FEATURES_DIGEST
    assert digest_of(FEATURES) == FEATURES_DIGEST
