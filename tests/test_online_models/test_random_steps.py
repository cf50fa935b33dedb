"""No stream reaches an infinity or a NaN: every model's `apply`, driven with batches of records that owners
made, in any order and mixture, with weights of every size and times out of order."""

from __future__ import annotations

import time

import numpy as np
import pytest

from online_models import OnlineRanker, checks
from online_models.learning_batch import MAX_ABS_WEIGHT, LearningBatch
from online_models.registry import MODEL_NAMES, make_model

WEIGHTS = np.array([1.0, 1.0, 0.1, 5.0, -0.5, 0.0, 1e-30, -1.0, MAX_ABS_WEIGHT, -MAX_ABS_WEIGHT])
RECORDED = 60


def recorded(model: OnlineRanker) -> LearningBatch:
    """Records of random events as the model's owner makes them, users' factors and negatives included."""
    return LearningBatch.concat(
        checks._log_of(model, checks.random_events(RECORDED, seed=3, users=5, items=9))
    )


def mixed(records: LearningBatch, n: int, rng: np.random.Generator, start_ms: int) -> LearningBatch:
    """n of the records, each with another weight and time."""
    batch = records.take(rng.integers(0, len(records), size=n))
    batch.weight = rng.choice(WEIGHTS, size=n).astype(np.float32)
    batch.time_ms = start_ms + np.cumsum(rng.integers(-50_000, 200_000, size=n))
    return batch


def assert_finite(model: OnlineRanker) -> None:
    for name, array in model.item_arrays().items():
        if np.issubdtype(array.dtype, np.floating):
            assert np.isfinite(array).all(), f"{name} has values that are not finite"
    rows = np.arange(-1, len(model.items), dtype=np.int32)
    for user in ("user-0", "user-1", "stranger"):
        assert np.isfinite(model.score_rows(user, rows)).all(), f"scores of {user} are not finite"


def drive(model: OnlineRanker, steps: int, batch_size: int, seconds: float) -> int:
    """Up to so many steps, within so many seconds; returns how many there were."""
    records, rng, done = recorded(model), np.random.default_rng(11), 0
    start_ms, end = int(records.time_ms.max()), time.perf_counter() + seconds
    while done < steps and time.perf_counter() < end:
        batch = mixed(records, min(batch_size, steps - done), rng, start_ms)
        model.apply(batch, model.items.resolve(batch))
        start_ms, done = int(batch.time_ms[-1]), done + len(batch)
        assert_finite(model)
    return done


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_a_thousand_random_steps_stay_finite(name: str) -> None:
    assert drive(make_model(name), 1000, 500, seconds=60.0) == 1000


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_million_random_steps_stay_finite() -> None:
    """Over all models; each has up to ten million, and a quarter of a minute."""
    steps = {name: drive(make_model(name), 10_000_000, 20_000, seconds=15.0) for name in MODEL_NAMES}
    assert sum(steps.values()) >= 10_000_000, steps
