from __future__ import annotations

import numpy as np
import pytest

from online_models import FactorTable
from online_models.factor_table import start_vectors


def test_start_vectors_depend_on_seed_and_id_alone() -> None:
    ids = [f"item-{k}" for k in range(50)]
    together = start_vectors(3, ids, 8, 0.1)
    alone = np.concatenate([start_vectors(3, [item], 8, 0.1) for item in reversed(ids)])[::-1]
    assert (together == alone).all()
    assert not (together == start_vectors(4, ids, 8, 0.1)).any()


def test_start_vectors_are_close_to_normal() -> None:
    values = start_vectors(0, [str(k) for k in range(4000)], 16, 0.1).ravel()
    assert abs(values.mean()) < 0.002
    assert values.std() == pytest.approx(0.1, rel=0.02)
    assert np.mean(np.abs(values) < 0.1) == pytest.approx(0.683, abs=0.02)
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.01


def test_growth_keeps_learned_rows() -> None:
    table, ids = FactorTable(4, seed=1), [str(k) for k in range(100)]
    table.ensure(ids[:3])
    table.rows[1] = 7.0
    table.ensure(ids)
    assert (table.rows[1] == 7.0).all()
    assert (table.rows[99] == table.start_vectors(["99"])[0]).all()
    table.ensure(ids[:5])
    assert len(table) == 100


def test_other_dimension_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[0, 4\], but \[any, 5\]"):
        FactorTable(5).load("f", FactorTable(4).to_arrays("f"))
