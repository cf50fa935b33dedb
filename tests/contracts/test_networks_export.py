"""Every network is exported by the one exporter, and ONNX Runtime gives its scores at every shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from serving.ranker.inputs import CONTEXT, FEATURES, RankerInputs
from serving.ranker.session import RankerSession
from serving.training.export import export_onnx
from serving.training.fused import ExportedRanker
from tests.contracts.network_cases import ITEMS, LENGTH, NETWORKS, PLACES, TYPES, built, contents

QUICK = "gru"
"""Exported in every run: the one whose loop over time the exporter must not unroll."""


@pytest.mark.parametrize(
    "name", [name if name == QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]
)
def test_the_export_gives_the_same_scores_at_every_shape(name: str, tmp_path: Path) -> None:
    ranker = ExportedRanker(built(name))
    export = export_onnx(ranker, tmp_path / "model.onnx")
    assert export.parity <= 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"], "weights lie outside the file"
    session = RankerSession(tmp_path / "model.onnx", "cpu")
    for users, length, candidates in ((1, 1, 1), (1, LENGTH, 30), (7, 4, 2), (33, LENGTH, 50)):
        inputs = random_inputs(users, length, candidates)
        feeds = inputs.feeds().values()
        with torch.no_grad():
            expected = ranker(*(torch.from_numpy(array) for array in feeds)).numpy()
        np.testing.assert_allclose(session.score(inputs), expected, atol=1e-4)


def random_inputs(users: int, length: int, candidates: int) -> RankerInputs:
    """Full histories but for the first user's, which is empty."""
    rng = np.random.default_rng(4)
    history, vectors = rng.integers(1, PLACES, (users, length)), contents().numpy()
    history[0] = 0
    return RankerInputs(
        history=history,
        history_types=np.where(history > 0, rng.integers(0, TYPES + 1, history.shape), 0),
        history_gaps_s=np.where(history > 0, rng.exponential(1e4, history.shape), 0).astype(np.float32),
        context=rng.normal(size=(users, len(CONTEXT))).astype(np.float32),
        candidates=rng.integers(1, ITEMS + 5, (users, candidates)),
        features=rng.normal(size=(users, candidates, len(FEATURES))).astype(np.float32),
        item_vectors=vectors,
    )
