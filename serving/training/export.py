"""PyTorch to ONNX: one graph, dynamic in users, history and candidates, all weights inside the file."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.export import Dim

from serving.ranker.errors import RankerError
from serving.ranker.inputs import CONTEXT, FEATURES, INPUTS, OUTPUT, RankerInputs
from serving.ranker.session import RankerSession
from serving.registry.manifest import MODEL_FILE
from serving.training.fused import ExportedRanker
from serving.training.slim import slim

__all__ = ["OPSET", "Export", "Golden", "export_onnx", "exported", "golden_inputs"]

OPSET = 20
_GOLDEN_USERS = 9
_GOLDEN_CANDIDATES = 24
_GOLDEN_UNSEEN = 3
"""Places of items newer than the export."""


@dataclass(frozen=True, slots=True)
class Golden:
    """Inputs with the scores that PyTorch gave: the probe that every worker repeats at load."""

    inputs: RankerInputs
    scores: npt.NDArray[np.float32]

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """All of it by name, for one file."""
        return {**self.inputs.feeds(), "scores": self.scores}


@dataclass(frozen=True, slots=True)
class Export:
    """`parity`: largest |ONNX Runtime - PyTorch| over the golden inputs, NaN where either is not finite."""

    opset: int
    parity: float
    golden: Golden
    size_bytes: int


def export_onnx(ranker: ExportedRanker, path: str | PathLike[str], *, seed: int = 0) -> Export:
    """Write `ranker` to `path`, then score golden inputs on both sides.

    Histories of the golden inputs go from empty to full, so that padding is part of the comparison. Raises
    RankerError when the file can't be loaded again.
    """
    ranker.eval()
    golden = golden_inputs(ranker, seed)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            ranker,
            _tensors(golden.inputs),
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            opset_version=OPSET,
            dynamic_shapes=_dynamic_shapes(ranker.network.history_length),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise RankerError("torch.onnx.export gave no program")
    program.save(path, external_data=False)
    Path(path).write_bytes(slim(Path(path).read_bytes()))
    session = RankerSession(path, "cpu")
    one = golden.inputs.part(0, 1)
    one.candidates, one.features = one.candidates[:, :1], one.features[:, :1]
    parity = max(
        _difference(session, golden.inputs, golden.scores), _difference(session, one, _torch(ranker, one))
    )
    return Export(OPSET, parity, golden, Path(path).stat().st_size)


def exported(ranker: ExportedRanker, *, seed: int = 0) -> tuple[bytes, Export]:
    """The bytes that `export_onnx` writes, and what it says of them."""
    with tempfile.TemporaryDirectory(prefix="freshet-export-") as folder:
        path = Path(folder) / MODEL_FILE
        export = export_onnx(ranker, path, seed=seed)
        return path.read_bytes(), export


def golden_inputs(ranker: ExportedRanker, seed: int) -> Golden:
    """Seeded inputs of 9 users with 24 candidates, one of them padding, with PyTorch's scores."""
    rng = np.random.default_rng(seed)
    network, shape = ranker.network, ranker.network.shape
    length, users = network.history_length, (_GOLDEN_USERS, network.history_length)
    places = shape.vocabulary + 2 + _GOLDEN_UNSEEN
    filled = np.linspace(0, length, _GOLDEN_USERS).astype(np.int64)
    padding = np.arange(length)[None, :] < (length - filled)[:, None]
    candidates = rng.integers(1, places, (_GOLDEN_USERS, _GOLDEN_CANDIDATES))
    candidates[0, -1] = 0
    vectors = rng.normal(0, shape.content**-0.5, (places, shape.content)).astype(np.float32)
    vectors[0] = 0.0
    inputs = RankerInputs(
        history=np.where(padding, 0, rng.integers(1, places, users)),
        history_types=np.where(padding, 0, rng.integers(0, shape.event_types + 1, users)),
        history_gaps_s=np.where(padding, 0, rng.exponential(1e4, users)).astype(np.float32),
        context=rng.normal(0, 1, (_GOLDEN_USERS, len(CONTEXT))).astype(np.float32),
        candidates=candidates,
        features=rng.normal(0, 1, (*candidates.shape, len(FEATURES))).astype(np.float32),
        item_vectors=vectors,
    )
    return Golden(inputs, _torch(ranker, inputs))


def _dynamic_shapes(history_length: int) -> tuple[dict[int, Dim], ...]:
    users, length = Dim("users", min=1, max=1 << 16), Dim("length", min=1, max=history_length)
    count, places = Dim("candidate_count", min=1, max=1 << 20), Dim("places", min=2, max=1 << 30)
    history = {0: users, 1: length}
    return (history, history, history, {0: users}, {0: users, 1: count}, {0: users, 1: count}, {0: places})


def _tensors(inputs: RankerInputs) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(array) for array in inputs.feeds().values())


@torch.no_grad()
def _torch(ranker: ExportedRanker, inputs: RankerInputs) -> npt.NDArray[np.float32]:
    scores: npt.NDArray[np.float32] = ranker(*_tensors(inputs)).numpy().astype(np.float32)
    return scores


def _difference(session: RankerSession, inputs: RankerInputs, expected: npt.NDArray[np.float32]) -> float:
    return float(np.abs(session.score(inputs) - expected).max())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its steps, and warns about its own internals, whatever it is told."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
