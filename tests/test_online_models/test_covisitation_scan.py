from __future__ import annotations

import numpy as np
import pytest

from online_models import CoVisitation, ItemTable
from online_models.covisitation_scan_kernels import MANY


@pytest.mark.parametrize("limit", [2**30, 400])
@pytest.mark.parametrize("items", [300, 2000])
def test_many_candidates_get_the_bits_that_few_get(items: int, limit: int) -> None:
    """Where the entries are more, and where they are fewer, than the rows; with rows that changed hands."""
    model, rng = CoVisitation(row_capacity=64, half_life_s=5000.0), np.random.default_rng(0)
    model.items = ItemTable(limit=limit)
    for k in range(3000):
        item = f"i{rng.zipf(1.2) % items}"
        model.learn_one(f"u{rng.integers(40)}", item, float(rng.choice([1.0, -0.5])), {"timestamp": k * 1000})
    rows = rng.permutation(np.arange(-1, len(model.items), dtype=np.int32))
    assert len(rows) > 2 * MANY
    for user in ("u1", "u2", "stranger"):
        few = [model.score_rows(user, rows[k : k + 50]) for k in range(0, len(rows), 50)]
        many = model.score_rows(user, rows)
        assert many.tobytes() == np.concatenate(few).tobytes()
        assert (many != 0.0).any() == (user != "stranger")
    assert not model._total.any()
