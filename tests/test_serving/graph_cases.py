"""A small exported ranker with random weights, fused with the online features, made once for a process."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import torch

from serving.ranker.inputs import CONTEXT, FEATURES, RankerInputs
from serving.training.export import Export, export_onnx
from serving.training.fused import ExportedRanker, FusionHead
from serving.training.networks import build_network
from serving.training.networks.base import Shape
from serving.training.settings import TrainerSettings

ITEMS = 300
CONTENT = 8
SETTINGS = TrainerSettings(dim=32, heads=2, blocks=2, history_length=12)


@functools.cache
def ranker() -> ExportedRanker:
    """Weights far enough from their start that every part of the graph counts."""
    torch.manual_seed(3)
    network = build_network(Shape(ITEMS, 3, CONTENT), SETTINGS)
    exported = ExportedRanker(network, FusionHead()).eval()
    with torch.no_grad():
        for parameter in exported.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return exported


@functools.cache
def exported() -> tuple[bytes, Export]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export = export_onnx(ranker(), path)
        return path.read_bytes(), export


def call(
    users: int, candidates: int, length: int = 12, seed: int = 0, places: int = ITEMS + 5
) -> RankerInputs:
    """Random inputs; the first user's history is empty, and the last candidate of each is padding."""
    rng = np.random.default_rng(seed)
    history = rng.integers(1, places, (users, length))
    history[0] = 0
    drawn = rng.integers(1, places, (users, candidates))
    drawn[:, -1] = 0
    vectors = rng.normal(0, 1, (places, CONTENT)).astype(np.float32)
    vectors[0] = 0.0
    return RankerInputs(
        history=history,
        history_types=np.where(history > 0, rng.integers(0, 4, history.shape), 0),
        history_gaps_s=np.where(history > 0, rng.exponential(1e4, history.shape), 0).astype(np.float32),
        context=rng.normal(0, 1, (users, len(CONTEXT))).astype(np.float32),
        candidates=drawn,
        features=rng.normal(0, 1, (users, candidates, len(FEATURES))).astype(np.float32),
        item_vectors=vectors,
    )
