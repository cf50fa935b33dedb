"""Streams of extremes in large batches, and the checks that models of bounded memory pass."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from online_models import LearningBatch, checks

LASTING = [
    check
    for check in checks.all_checks()
    if check not in (checks.check_retraction_undoes, checks.check_forgotten_user_is_unknown)
]
"""The checks that don't ask for what a bound has dropped."""


def random_batches(
    rng: np.random.Generator, n: int, batches: int, users: int, items: int, dimension: int = 0
) -> Iterator[LearningBatch]:
    """Batches of n events of any weight and time that a record may have, in any order."""
    for _ in range(batches):
        weights = rng.choice([1.0, 1e-30, 5.0, 1e6, 0.0, -0.5, -1e6], size=n).astype(np.float32)
        times = rng.choice([0, 10**12, 253_402_300_799_999], size=n, p=[0.05, 0.94, 0.01])
        times = np.clip(times + rng.integers(-(10**8), 10**8, size=n), 0, 253_402_300_799_999)
        factors = rng.choice([0.1, 10.0, 1e30], size=(n, dimension)) * rng.normal(size=(n, dimension))
        yield LearningBatch(
            item_ids=[f"i{k}" for k in range(items)],
            item=rng.integers(0, items, size=n, dtype=np.int32),
            recent=rng.integers(-1, items, size=(n, 8), dtype=np.int32),
            time_ms=times.astype(np.int64),
            weight=weights,
            event_type=np.zeros(n, dtype=np.uint8),
            user_before=factors.astype(np.float32),
            user_after=factors.astype(np.float32),
            negatives=np.full((n, 0), -1, dtype=np.int32),
            user=rng.integers(0, users, size=n, dtype=np.uint64),
            value=rng.choice([np.nan, 3.0, 1e6, -1e6], size=n).astype(np.float32),
        )
