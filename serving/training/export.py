"""PyTorch to ONNX: one graph, dynamic in users, history and candidates, all weights inside the file."""

from __future__ import annotations

import contextlib
import io
import logging
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
from serving.ranker.session import INPUTS, OUTPUT, RankerSession
from serving.training.networks.base import SequenceNetwork

__all__ = ["OPSET", "Export", "Golden", "export_onnx", "golden_inputs"]

OPSET = 20
_GOLDEN_USERS = 9
_GOLDEN_CANDIDATES = 24


@dataclass(frozen=True, slots=True)
class Golden:
    """Inputs with the scores that PyTorch gave: the probe that every worker repeats at load."""

    history: npt.NDArray[np.int64]
    candidates: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Export:
    """`parity`: largest |ONNX Runtime - PyTorch| over the golden inputs, NaN where either is not finite."""

    opset: int
    parity: float
    golden: Golden
    size_bytes: int


def export_onnx(network: SequenceNetwork, path: str | PathLike[str], *, seed: int = 0) -> Export:
    """Write `network` to `path`, then score golden inputs on both sides.

    Histories of the golden inputs go from empty to full, so that padding is part of the comparison. Raises
    RankerError when the file can't be loaded again.
    """
    network.eval()
    golden = golden_inputs(network, seed)
    example = (torch.from_numpy(golden.history), torch.from_numpy(golden.candidates))
    users = Dim("users", min=1, max=1 << 16)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            network,
            example,
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            opset_version=OPSET,
            dynamic_shapes=(
                {0: users, 1: Dim("length", min=1, max=network.history_length)},
                {0: users, 1: Dim("candidate_count", min=1, max=1 << 20)},
            ),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise RankerError("torch.onnx.export gave no program")
    program.save(path, external_data=False)
    session = RankerSession(path, "cpu")
    parity = max(
        _difference(session, golden.history, golden.candidates, golden.scores),
        _difference(session, golden.history[:1], golden.candidates[:1, :1], golden.scores[:1, :1]),
    )
    return Export(OPSET, parity, golden, Path(path).stat().st_size)


def golden_inputs(network: SequenceNetwork, seed: int) -> Golden:
    """Seeded inputs and PyTorch's scores: int64[9, L], int64[9, 24], float32[9, 24]."""
    rng = np.random.default_rng(seed)
    length = network.history_length
    history = rng.integers(1, network.vocabulary_size + 1, (_GOLDEN_USERS, length))
    filled = np.linspace(0, length, _GOLDEN_USERS).astype(np.int64)
    history[np.arange(length)[None, :] < (length - filled)[:, None]] = 0
    candidates = rng.integers(1, network.vocabulary_size + 1, (_GOLDEN_USERS, _GOLDEN_CANDIDATES))
    with torch.no_grad():
        scores = network(torch.from_numpy(history), torch.from_numpy(candidates))
    return Golden(history, candidates, scores.numpy().astype(np.float32))


def _difference(
    session: RankerSession,
    history: npt.NDArray[np.int64],
    candidates: npt.NDArray[np.int64],
    expected: npt.NDArray[np.float32],
) -> float:
    return float(np.abs(session.score(history, candidates) - expected).max())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its steps, and warns about its own internals, whatever it is told."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
